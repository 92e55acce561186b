"""The runtime of an ensemble's version: starting over a scheduler, readiness by its members, its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.helpers.ensembles import Chain
from tests.helpers.models import LONG_S, STOPPED, counters_at_base, numbers, served
from tests.helpers.models import Gate as Instance
from triton_fast import config as cfg
from triton_fast._native.sched.inprocess import InferCall
from triton_fast._native.sched.model import NativeModel
from triton_fast.backends.base import LoadContext
from triton_fast.backends.host import Caller, Host
from triton_fast.config import EnsemblePlan, check_members, parse
from triton_fast.errors import NotFound, Unavailable
from triton_fast.scheduling.ensemble import EnsembleRuntime

__all__ = ["counters_at_base"]

CONFIG = Chain("e", ("m", "m"), "INT32", "1", 8).config().replace("INPUT0", "IN").replace("OUTPUT0", "OUT")
MEMBER = """name: "m" backend: "b" max_batch_size: 8
input { name: "IN" data_type: TYPE_INT32 dims: 1 } output { name: "OUT" data_type: TYPE_INT32 dims: 1 }
"""


class Control:
    """Knows which members are ready."""

    def __init__(self, ready: Mapping[tuple[str, str], bool]) -> None:
        self.ready = ready
        self.asked: list[Caller] = []

    def load_model(self, *_: object) -> None:
        raise AssertionError

    unload_model = load_model

    def is_model_ready(self, caller: Caller, name: str, version: str) -> bool:
        self.asked.append(caller)
        if (name, version) not in self.ready:
            raise Unavailable("nobody knows")
        return self.ready[name, version]


def started(resolve: object = None, control: Control | None = None) -> EnsembleRuntime:
    config = parse.parse_text(f'name: "e"\n{CONFIG}'.encode(), "f").config
    cfg.normalize(config, cpu_count=2)
    cfg.validate(config, Path("e"))
    member = parse.parse_text(MEMBER.encode(), "f").config
    plan = check_members(config, {("m", -1): member})
    host = Host(control=control or Control({}), resolve=resolve)  # type: ignore[arg-type]
    return EnsembleRuntime.start(LoadContext("e", 3, Path("e"), Path("e/3"), config, host=host), plan)


def test_requests_pass_through_the_members_until_the_end():
    gate = Instance(held=False)
    with served(gate) as member:
        asked: list[tuple[str, int]] = []

        def resolve(name: str, version: int) -> NativeModel:
            asked.append((name, version))
            return member

        runtime = started(resolve)
        assert (runtime.name, runtime.version, runtime.config.platform) == ("e", 3, "ensemble")
        assert isinstance(runtime.plan, EnsemblePlan)
        call = InferCall(runtime.native, [numbers(7, 2, 1)])
        assert call.wait(LONG_S)["OUT"] == (8, (2, 1), numbers(7, 2, 1)[3])
        assert asked == [("m", -1)] * 2
        assert gate.batches == [[7], [7]]
        assert runtime.stop(LONG_S)
        assert runtime.stop(LONG_S)
        with pytest.raises(Unavailable, match=STOPPED):
            InferCall(runtime.native, [numbers(7, 2, 1)])


def test_a_member_that_is_gone_fails_the_request():
    def resolve(name: str, version: int) -> NativeModel:
        raise NotFound(f"no {name}")

    runtime = started(resolve)
    with pytest.raises(NotFound, match=r"^in ensemble 'e', no m$"):
        InferCall(runtime.native, [numbers(7, 2, 1)]).wait(LONG_S)
    runtime.abort()
    assert runtime.stop(LONG_S)


@pytest.mark.parametrize(("members", "expected"), [({("m", ""): True}, True), ({("m", ""): False}, False), ({}, False)])
def test_ready_as_its_members_are(members, expected):
    control = Control(members)
    runtime = started(control=control)
    assert runtime.is_ready() is expected
    assert control.asked == [Caller("e", loading=False)]
    assert not runtime.ready_may_block
    runtime.trim(0)
    assert runtime.stop(LONG_S)
