"""Sampling and the queue of ended traces, on an HTTP connection without sockets: nothing blocks and nothing is left."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.micro.traced import Transport, application, feed, served
from triton_fast._native.core import tracing as native
from triton_fast._native.http.connection import HttpServer
from triton_fast._native.sched.model import Epoch
from triton_fast.errors import InvalidArg
from triton_fast.observability.tracing import TraceOptions, Tracing

Send = Callable[..., bytes]


@pytest.fixture(autouse=True)
def none_left() -> Iterator[None]:
    before = native.stats()
    yield
    assert native.stats() == before


@pytest.fixture
def send() -> Iterator[Send]:
    """Send one request to the model, whose name is mlp, and return the answer; ``send.model`` is the model."""
    model = served()
    app = application(model)
    app.error_reply = lambda code, text: (400, [], text)
    server = HttpServer(app, SimpleNamespace(call_soon=lambda call: call()), Epoch())
    transport, connection = Transport(), server()
    connection.connection_made(transport)

    def one(values: list[float] | None = None, **more: Any) -> bytes:
        tensor = {"name": "INPUT", "datatype": "FP32", "shape": [1, 16], "data": values or [1.0] * 16}
        body = json.dumps({**more, "inputs": [tensor]}).encode()
        head = b"POST /v2/models/mlp/infer HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body)
        feed(connection, head + body)
        server.on_completions()
        answer = bytes(transport.out)
        transport.out.clear()
        return answer

    one.model = model  # type: ignore[attr-defined]
    yield one
    connection.connection_lost(None)


def started(
    send: Any, file: Path, *, most: int = 100, level: tuple[str, ...] = ("TIMESTAMPS",), **options: Any
) -> Tracing:
    tracing = Tracing(TraceOptions(level=level, file=str(file), **options), most=most)
    tracing.attach("mlp", send.model)
    return tracing


def ids(taken: list[tuple[int, Any]]) -> list[str]:
    return [json.loads(b"[" + objects + b"]")[0]["request_id"] for _, objects in taken]


@pytest.mark.parametrize("rate", [1, 2, 3, 7])
def test_every_so_manieth_is_taken(send: Send, tmp_path: Path, rate: int) -> None:
    tracing = started(send, tmp_path / "t", rate=rate)
    for n in range(1, 15):
        assert b" 200 " in send(id=str(n))
    assert ids(tracing.collector.take(0.0)) == [str(n) for n in range(1, 15) if n % rate == 0]
    tracing.close()


def test_what_has_no_place_is_dropped_and_counted(send: Send, tmp_path: Path) -> None:
    tracing = started(send, tmp_path / "t", most=2, rate=1)
    for n in range(5):
        assert b" 200 " in send(id=str(n))
    assert (tracing.collector.waiting, tracing.collector.dropped) == (2, 3)
    tracing.collector.hurry()
    assert ids(tracing.collector.take(0.0)) == ["0", "1"]
    assert b" 200 " in send(id="5")
    tracing.collector.hurry()
    assert ids(tracing.collector.take(0.0)) == ["5"]
    tracing.close()


def test_a_request_that_is_refused_leaves_none_and_uses_its_turn(send: Send, tmp_path: Path) -> None:
    tracing = started(send, tmp_path / "t", rate=1, count=2)
    assert b" 400 " in send([1.0], id="bad")
    assert b" 200 " in send(id="good")
    assert b" 200 " in send(id="late")
    assert tracing.shown()["trace_count"] == ["0"]
    assert ids(tracing.collector.take(0.0)) == ["good"]
    tracing.close()


def test_nothing_is_traced_once_it_is_off(send: Send, tmp_path: Path) -> None:
    tracing = started(send, tmp_path / "t", rate=1)
    assert b" 200 " in send(id="1")
    tracing.update("mlp", {"trace_level": 0})
    assert b" 200 " in send(id="2")
    tracing.update("mlp", {"trace_level": None})
    assert b" 200 " in send(id="3")
    assert ids(tracing.collector.take(0.0)) == ["1", "3"]
    tracing.close()


def test_tensors_are_copied(send: Send, tmp_path: Path) -> None:
    tracing = started(send, tmp_path / "t", rate=1, level=("TENSORS",))
    assert b" 200 " in send([float(n) for n in range(16)])
    ((_, objects),) = tracing.collector.take(0.0)
    header, given, made = json.loads(b"[" + objects + b"]")
    assert header["model_name"] == "mlp"
    assert given["tensor"]["data"] == made["tensor"]["data"] == ",".join(map(str, range(16)))
    tracing.close()


def test_tensors_that_wait_for_the_writer_have_a_limit(send: Send, tmp_path: Path) -> None:
    """However slow the disk is: what is over is left out, and there is room again once something was written."""
    tracing = started(send, tmp_path / "t", rate=1, level=("TENSORS",))
    before = native._limit_waiting(100)
    try:
        for _ in range(2):
            assert b" 200 " in send()
        assert native.stats()["waiting_bytes"] == 64
        told = [json.loads(b"[" + objects + b"]")[1:] for _, objects in tracing.collector.take(0.0)]
        assert [one["tensor"]["data"] == "..." for trace in told for one in trace] == [False, True, True, True]
        assert b" 200 " in send()
        ((_, objects),) = tracing.collector.take(0.0)
        assert json.loads(b"[" + objects + b"]")[1]["tensor"]["data"] != "..."
    finally:
        native._limit_waiting(before)
    tracing.close()


def test_much_is_taken_in_pieces_in_its_order(send: Send, tmp_path: Path) -> None:
    """The text of all that waits is never made at once; what is left for later comes first, and is written at last."""
    tracing = started(send, tmp_path / "t", rate=1, level=("TENSORS",))
    values = [-1.17549435e-38] * 16
    for n in range(40):
        assert b" 200 " in send(values, id=str(n))
    pieces = []
    while tracing.collector.waiting:
        pieces.append(tracing.collector.take(0.0, 4000))
        assert b" 200 " in send(values, id="later") if len(pieces) == 1 else True
    assert len(pieces) > 5
    assert ids([one for piece in pieces for one in piece]) == [*map(str, range(40)), "later"]
    tracing.close()


def test_a_setting_that_can_trace_nothing_is_refused(send: Send, tmp_path: Path) -> None:
    tracing = started(send, tmp_path / "t", rate=5)
    before = tracing.shown()
    with pytest.raises(InvalidArg, match="sample rate must be non-zero"):
        tracing.update("", {"trace_rate": 0, "log_frequency": 3})
    assert tracing.shown() == before
    tracing.close()
