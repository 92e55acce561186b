"""The same dialogues with Python models of this server and of the reference: controls, slots, refusals, timeouts.

Needs TRITON_REFERENCE (see reference.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest

from tests.conformance import reference, sequence_models
from tests.conformance.sequence_models import DIALOGUES, MODELS
from tests.helpers.grpc_channel import Channel
from tests.helpers.server import ServerProcess


class Side(NamedTuple):
    http: tuple[str, int]
    metrics: tuple[str, int]
    channel: Channel

    def answers(self, model: str, steps: Any) -> dict[str, Any]:
        pending = partial(sequence_models.pending_of, self.metrics)
        ways: dict[str, Any] = {
            "http": partial(sequence_models.over_http, self.http),
            "grpc": partial(sequence_models.over_grpc, self.channel),
        }
        return {name: sequence_models.talk(ask, pending, model, steps) for name, ask in ways.items()}


class Pair(NamedTuple):
    ours: Side
    theirs: Side


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    if reference.VARIABLE not in os.environ:
        pytest.skip(f"{reference.VARIABLE} is not set: the path of the reference server")
    root = tmp_path_factory.mktemp("sequences") / "models"
    root.mkdir()
    sequence_models.write(root, MODELS)
    with (
        reference.Reference(root, root.parent / "log") as other, ServerProcess(root) as process,
        Channel(process.grpc) as near, Channel(other.grpc) as far,
    ):  # fmt: skip
        yield Pair(Side(process.http, process.metrics, near), Side(other.http, other.metrics, far))


@pytest.mark.parametrize("name", DIALOGUES)
def test_same_answers(pair: Pair, name: str) -> None:
    model, steps = DIALOGUES[name]
    assert pair.ours.answers(model, steps) == pair.theirs.answers(model, steps)
