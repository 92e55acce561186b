"""Loads whose clients have gone before they began: over HTTP and gRPC they are dropped, others are served."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.helpers import raw
from tests.helpers.gated import Gated
from tests.helpers.grpc_channel import Channel
from tests.helpers.server import ServerProcess
from triton_fast import protos
from triton_fast.config.render import to_json

EXPLICIT = "--model-control-mode=explicit"
PATH = "/v2/repository/models/slow/load"


def override(mark: str) -> str:
    """A config that always makes the server load again."""
    config = protos.ModelConfig(name="slow", backend="python")
    for side in (config.input, config.output):
        side.add(name="INPUT0" if side is config.input else "OUTPUT0", data_type=11, dims=[1])
    config.instance_group.add(count=1, kind=2)
    config.parameters["mark"].string_value = mark
    return json.dumps(to_json(config))


def load(mark: str) -> bytes:
    return raw.post(PATH, json.dumps({"parameters": {"config": override(mark)}}).encode())


@pytest.mark.parametrize("leave", [raw.Client.close, raw.Client.reset, raw.Client.half_close])
def test_over_http(tmp_path: Path, leave: Callable[[raw.Client], None]) -> None:
    gated = Gated(tmp_path, "slow")
    with ServerProcess(gated.models, EXPLICIT) as process, ExitStack() as stack:
        first, *others, last = (stack.enter_context(raw.Client(process.http)) for _ in range(5))
        first.send(raw.post(PATH))
        assert gated.saw("initializing", 1)
        for client in others:
            client.send(load("left"))
            leave(client)
        last.send(load("wanted"))
        settle(process)
        gated.open("loaded")
        assert [client.answer().status for client in (first, last)] == [200, 200]
        shown = raw.ask(process.http, raw.get("/v2/models/slow/config")).json()
        assert shown["parameters"] == {"mark": {"string_value": "wanted"}}
        if leave is raw.Client.half_close:
            # Who may hear it still is told.
            answers = [client.answer() for client in others]
            assert [answer.status for answer in answers] == [503] * 3
            assert "has gone" in answers[0].error
        assert len(gated.notes("initializing")) == 2


def test_over_grpc(tmp_path: Path) -> None:
    gated = Gated(tmp_path, "slow")
    with ServerProcess(gated.models, EXPLICIT) as process, raw.Client(process.http) as first:
        with Channel(process.grpc) as last:
            first.send(raw.post(PATH))
            assert gated.saw("initializing", 1)
            with Channel(process.grpc) as channel:
                calls = [grpc_load(channel, "left") for _ in range(3)]
                wanted = grpc_load(last, "wanted")
                # An answered call that came later: these have begun.
                assert channel.ask("ServerLive").status == last.ask("ServerLive").status == 0
                for call in calls:
                    call.cancel()
                assert channel.ask("ServerLive").status == 0
            settle(process)
            gated.open("loaded")
            assert first.answer().status == 200
            wanted.result()
        assert len(gated.notes("initializing")) == 2


def grpc_load(channel: Channel, mark: str):  # type: ignore[no-untyped-def]
    request = protos.RepositoryModelLoadRequest(model_name="slow")
    request.parameters["config"].string_param = override(mark)
    path = "/inference.GRPCInferenceService/RepositoryModelLoad"
    return channel.future(path, request, protos.RepositoryModelLoadResponse)


def settle(process: ServerProcess) -> None:
    """Return when the server has read what came before: it takes what all sockets have in rounds."""
    with raw.Client(process.http) as client:
        for _ in range(3):
            assert client.ask(raw.get("/v2/health/live")).status == 200
