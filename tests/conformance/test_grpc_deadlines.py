"""Deadlines and cancels of unary calls: what is queued leaves the queue, what runs is not waited for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.grpc_channel import Channel, Talk, end_of, infer_request, value_of
from tests.helpers.server import LocalServer, Model, repository, until
from triton_fast import protos

DEADLINE = 4
CANCELLED = 1
BUSY_MS = 500


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    root = repository(tmp_path_factory.mktemp("deadlines"), Model("m"), Model("busy", max_batch=0, delay_ms=BUSY_MS))
    with LocalServer(root) as made:
        yield made


@pytest.fixture
def channel(local: LocalServer) -> Iterator[Channel]:
    with Channel(local.grpc) as made:
        yield made


def busy(value: float = 0) -> Any:
    return infer_request("busy", [value], shape=[1])


def counts(local: LocalServer) -> dict[str, int]:
    """Requests by what became of them, and executions."""
    taken: Any = local.snapshot("busy")
    return {"success": taken["success"], "runs": taken["execution_count"], **taken["failures"]}


def idle(local: LocalServer) -> bool:
    native: Any = local.server.endpoints.grpc.native  # type: ignore[union-attr]
    return local.call(lambda: native.in_flight) == 0 and local.snapshot("busy")["pending"] == 0


def occupy(local: LocalServer, channel: Channel) -> Any:
    """A call that runs; others queue behind it."""
    runs = channel.infer_later(busy())
    assert until(lambda: local.call(lambda: local.server.endpoints.grpc.native.in_flight) == 1)  # type: ignore[union-attr]
    assert until(lambda: local.snapshot("busy")["pending"] == 0)
    return runs


def test_queued_requests_leave_the_queue_at_their_deadline(local: LocalServer, channel: Channel) -> None:
    before = counts(local)
    runs = occupy(local, channel)
    late = [channel.infer_later(busy(k), timeout=0.1) for k in range(5)]
    patient = channel.infer_later(busy(7))
    assert [end_of(call).status for call in late] == [DEADLINE] * 5
    assert until(lambda: local.snapshot("busy")["pending"] == 1)
    assert not runs.done()
    assert end_of(runs).outcome == (0, "")
    assert value_of(end_of(patient).message, "OUTPUT0", "FP32") == [7]
    after = counts(local)
    assert {key: after[key] - before[key] for key in after if after[key] != before[key]} == {
        "success": 2, "runs": 2, "CANCELED": 5,
    }  # fmt: skip


def test_deadline_while_it_runs(local: LocalServer, channel: Channel) -> None:
    before = counts(local)
    assert channel.infer(busy(), timeout=0.1).status == DEADLINE
    assert channel.infer(infer_request("m")).outcome == (0, "")
    assert until(lambda: idle(local))
    after = counts(local)
    assert after["runs"] == before["runs"] + 1
    assert channel.infer(busy()).outcome == (0, "")


def test_cancel_while_queued(local: LocalServer, channel: Channel) -> None:
    before = counts(local)
    runs = occupy(local, channel)
    waiting = [channel.infer_later(busy(k)) for k in range(4)]
    assert until(lambda: local.snapshot("busy")["pending"] == 4)
    for call in waiting[1:]:
        call.cancel()
    assert until(lambda: local.snapshot("busy")["pending"] == 1)
    assert end_of(runs).outcome == end_of(waiting[0]).outcome == (0, "")
    after = counts(local)
    assert (after["CANCELED"], after["runs"]) == (before["CANCELED"] + 3, before["runs"] + 2)


def test_cancel_while_it_runs(local: LocalServer, channel: Channel) -> None:
    occupy(local, channel).cancel()
    assert channel.infer(infer_request("m")).outcome == (0, "")
    assert until(lambda: idle(local))
    assert channel.infer(busy(3)).outcome == (0, "")


def test_a_lost_connection_cancels_its_calls(local: LocalServer) -> None:
    before = counts(local)
    with Channel(local.grpc) as lost:
        occupy(local, lost)
        calls = [lost.infer_later(busy(k)) for k in range(3)]
        assert until(lambda: local.snapshot("busy")["pending"] == 3)
    assert until(lambda: idle(local))
    assert counts(local)["CANCELED"] >= before["CANCELED"] + 3
    assert {call.code().value[0] for call in calls} == {CANCELLED}


def test_a_timeout_of_the_request_is_the_queues(local: LocalServer, channel: Channel) -> None:
    """The parameter ``timeout`` means the queue policy's, and this model allows none: it says nothing."""
    assert channel.infer(infer_request("busy", [1], shape=[1], parameters={"timeout": 1})).outcome == (0, "")


def test_deadlines_that_are_met_change_nothing(channel: Channel) -> None:
    calls = [channel.infer_later(infer_request("m", [k]), timeout=5 + k / 100) for k in range(300)]
    assert [value_of(end_of(call).message, "OUTPUT0", "FP32") for call in calls] == [[k] for k in range(300)]


def test_deadline_of_calls_that_wait_for_nothing(channel: Channel) -> None:
    """A watch, and calls whose client never ends its side."""
    health = "/grpc.health.v1.Health/Watch"
    with Talk(channel, health, protos.HealthCheckResponse, timeout=0.2) as talk:
        talk.send(b"")
        talk.end()
        reply = talk.rest()
    assert (reply.status, [message.status for message in reply.messages]) == (DEADLINE, [1])
    for path in ("ModelInfer", "ModelStreamInfer", "ServerLive"):
        with Talk(channel, f"/inference.GRPCInferenceService/{path}", timeout=0.1) as talk:
            assert talk.rest().status == DEADLINE
    assert channel.ask("ServerLive").message.live


def test_cancel_of_every_other_call(channel: Channel) -> None:
    calls = [channel.infer_later(infer_request("m", [k])) for k in range(200)]
    for call in calls[::2]:
        call.cancel()
    assert [value_of(end_of(call).message, "OUTPUT0", "FP32") for call in calls[1::2]] == [
        [k] for k in range(1, 200, 2)
    ]
