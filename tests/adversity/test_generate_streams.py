"""Generate requests cut, abandoned and not read: what is answered does not depend on how bytes come, nothing leaks, and
a slow reader holds up only its own model.

Most of it drives the native connection by hand, so that every delivery is deterministic.
"""

from __future__ import annotations

import json
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.raw import Client, Reader, chunked, generate, get, infer_json, values_of
from tests.helpers.server import LocalServer, Model, ServerProcess, repository, until, with_repeat
from tests.helpers.wire import Connection, Wire
from triton_fast._native.core import memory, request

HOUR_MS = 3_600_000


def repeat(n: int, delay: int = 0, **more: Any) -> dict[str, Any]:
    return {"IN": list(range(n)), "DELAY": [delay] * n, "WAIT": 0, **more}


def numbers(events: list[dict[str, Any]]) -> list[int]:
    return [event["OUT"] for event in events]


@pytest.fixture(scope="module")
def stream_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = with_repeat(repository(tmp_path_factory.mktemp("streams"), Model("m")))
    config = root / "repeat" / "config.pbtxt"
    config.write_text(config.read_text() + "instance_group [{ count: 2 kind: KIND_CPU }]\n")
    return root


@pytest.fixture
def wire(stream_root: Path) -> Iterator[Wire]:
    with Wire(stream_root) as wire:
        before = counts()
        yield wire
        drain(wire)
        assert wire.app.errors == []
        assert counts() == before


def counts() -> tuple[int, int]:
    return memory.stats()["live_blocks"], request.stats()["live_requests"]


def drain(wire: Wire) -> None:
    """Deliver until nothing is in flight."""
    while wire.native.in_flight:
        step(wire)


def step(wire: Wire) -> None:
    """Wait for responses and deliver them."""
    ready, _, _ = select.select([wire.native.ring.fileno()], [], [], 30.0)
    assert ready, "no response came"
    wire.native.on_completions()
    wire.loop.run_soon()


def answers(data: bytes) -> list[Any]:
    parts = iter([data, b""])
    reader = Reader(lambda: next(parts))
    found = []
    while True:
        try:
            answer = reader.answer()
        except Exception:
            assert reader.rest == b""
            return found
        found.append(answer)


STREAM = generate("repeat", repeat(3, id="i"), "endpoint-load-metrics-format: text", stream=True)
CASES = {
    "stream": STREAM,
    "one": generate("repeat", repeat(1)),
    "not one": generate("repeat", repeat(2)),
    "plain": generate("m", {"INPUT0": [1.5, 2], "parameters": {"a": "b"}}),
    "error": generate("m", {"INPUT0": "x"}, stream=True),
    "chunked": chunked("/v2/models/repeat/generate_stream", [json.dumps(repeat(2)).encode()]),
    "twice, then infer": STREAM * 2 + infer_json("m", [1]),
    "old": generate("repeat", repeat(2), stream=True, version="1.0"),
}


@pytest.mark.parametrize("name", CASES)
def test_cut_at_every_byte(wire: Wire, name: str) -> None:
    data = CASES[name]
    whole = wire.connect().exchange([data])
    assert whole.startswith(b"HTTP/1.1 ")
    for cut in range(1, len(data)):
        assert wire.connect().exchange([data[:cut], data[cut:]]) == whole, cut
    assert wire.connect().exchange([data[i : i + 1] for i in range(len(data))], pump_between=False) == whole


def test_a_body_that_ends_early(wire: Wire) -> None:
    for cut in range(len(STREAM)):
        connection = wire.connect()
        connection.feed(STREAM[:cut])
        connection.lose()
        assert connection.transport.out == b""


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_is_gone_after_any_response(wire: Wire, stream: bool) -> None:
    """The model is told, and everything that was made for the client is given back."""
    for rounds in range(6):
        connection = wire.connect()
        body = {"IN": list(range(8)), "DELAY": [0] * rounds + [HOUR_MS] * (8 - rounds), "WAIT": 0}
        connection.feed(generate("repeat", body, stream=stream))
        if rounds:
            step(wire)  # one of them or several
        connection.lose()
        drain(wire)


def test_a_client_that_sends_an_end_is_gone(wire: Wire) -> None:
    connection = wire.connect()
    connection.feed(generate("repeat", repeat(3, HOUR_MS), stream=True))
    assert not connection.native.eof_received()
    assert connection.transport.aborted
    connection.lose()
    drain(wire)


def paused(wire: Wire, room: int, n: int, limit: int) -> Connection:
    """A connection whose socket took `room` bytes of a stream of n events, and whose model waits for it."""
    wire.native.max_responses = limit
    connection = wire.connect()
    connection.transport.room = room
    live = counts()[1]
    connection.feed(generate("repeat", repeat(n), stream=True))
    step(wire)
    while not connection.transport.held:
        step(wire)
    # The request, as many responses as may wait, and the one that its model wants to send next.
    assert until(lambda: request.stats()["live_requests"] == live + 2 + limit)
    return connection


@pytest.mark.parametrize("limit", [1, 2, 7, 100])
def test_a_slow_reader_stops_its_model(wire: Wire, limit: int) -> None:
    connection = paused(wire, 300, 2000, limit)
    for _ in range(3):
        wire.native.on_completions()
        assert len(b"".join(connection.transport.held)) < 66000
    # The other instance serves others meanwhile.
    other = wire.connect()
    other.feed(generate("repeat", repeat(500), stream=True))
    while not bytes(other.transport.out).endswith(b"\r\n0\r\n\r\n"):
        step(wire)
    assert numbers(answers(bytes(other.transport.out))[0].events) == list(range(500))
    other.lose()
    assert wire.native.in_flight == 1
    connection.transport.release()
    drain(wire)
    (answer,) = answers(bytes(connection.transport.out))
    assert numbers(answer.events) == list(range(2000))
    connection.lose()


def test_a_slow_reader_that_goes(wire: Wire) -> None:
    connection = paused(wire, 300, 2000, 5)
    connection.lose()
    drain(wire)


def test_a_reader_that_takes_nothing_is_let_go(wire: Wire) -> None:
    connection = paused(wire, 300, 2000, 5)
    wire.native.tick()
    assert not connection.transport.closed
    wire.native.body_timeout_ns = 0
    other = paused(wire, 300, 2000, 5)
    wire.native.tick()
    assert other.transport.aborted
    assert not connection.transport.closed
    for one in (other, connection):
        one.lose()
    drain(wire)


def test_a_model_that_takes_its_time_is_no_slow_reader(wire: Wire) -> None:
    wire.native.body_timeout_ns = 0
    wire.native.idle_timeout_ns = 0
    connection = wire.connect()
    connection.feed(generate("repeat", {"IN": [1, 2], "DELAY": [0, HOUR_MS], "WAIT": 0}, stream=True))
    step(wire)
    wire.native.tick()
    assert not connection.transport.closed
    assert connection.transport.out.count(b"data: ") == 1
    connection.lose()
    drain(wire)


def test_draining_ends_a_stream_in_good_order(wire: Wire) -> None:
    connection = wire.connect()
    connection.feed(generate("repeat", {"IN": [1, 2, 3], "DELAY": [0, 50, 0], "WAIT": 0}, stream=True) + get("/v2"))
    step(wire)
    wire.native.begin_drain()
    drain(wire)
    (answer,) = answers(bytes(connection.transport.out))
    assert numbers(answer.events) == [1, 2, 3]
    assert connection.transport.closed
    connection.lose()
    wire.native.draining = False


def test_a_large_response_is_encoded_elsewhere(wire: Wire) -> None:
    """Printing it would hold up the loop; what comes behind it keeps its place."""
    wire.native.set_limits(max_head=4096, max_input=1 << 24)
    values = [0.5] * 20000
    for stream in (False, True):
        connection = wire.connect()
        for size in (1, 14):
            connection.feed(generate("m", {"INPUT0": values * size, "id": str(size)}, stream=stream))
            wire.pump()
        first, second = answers(bytes(connection.transport.out))
        for size, answer in ((1, first), (14, second)):
            (found,) = answer.events if stream else [answer.json()]
            assert found == {"OUTPUT0": values * size, "id": str(size), "model_name": "m", "model_version": "1"}
        connection.lose()
    # A client that goes while its answer is being made.
    connection = wire.connect()
    connection.feed(generate("m", {"INPUT0": values * 14}, stream=True))
    while not wire.loop.waiting:
        step(wire)
    connection.lose()
    wire.loop.cancel()


def test_hostile_bodies(server: ServerProcess) -> None:
    bodies = [
        b'{"a":' * 200_000, b"[" * 500_000, b'{"parameters":' * 100_000, b'{"INPUT0": ' + b"[" * 300_000,
        b'{"INPUT0": ' + b"9" * 500_000 + b"}", b'{"x": ' + b"1" * 400 + b"e" + b"9" * 400 + b"}",
        b'{"INPUT0": [' + b"1," * 300_000 + b"]}", b'{"' + b"\\u0061" * 100_000 + b'": 1}',
        b"{" + b",".join(b'"p%d": 1' % i for i in range(70_000)) + b"}", b'{"x": "' + b"\\" * 99_999 + b'"}',
        b"\0" * 1000,
    ]  # fmt: skip
    with Client(server.http) as client:
        for body in bodies:
            for stream in (False, True):
                answer = client.ask(generate("m", body, stream=stream))
                assert answer.status in (400, 500), body[:40]
                assert answer.error
        assert values_of(client.ask(infer_json("m", [1]))) == [1]


def test_many_streams_of_which_some_are_cut(stream_root: Path) -> None:
    """Over sockets: half of the clients go in mid-stream; the others get all, and the server is as before."""
    with LocalServer(stream_root) as server:

        def in_flight() -> int:
            return server.call(lambda: server.native.in_flight)  # type: ignore[attr-defined, no-any-return]

        before = counts()
        for _ in range(3):
            clients = [Client(server.http, receive_buffer=4096) for _ in range(20)]
            for client in clients:
                client.send(generate("repeat", repeat(300), stream=True))
            for i, client in enumerate(clients):
                if i % 2:
                    assert client.head().status == 200
                    client.chunk()
                    client.reset()
            for client in clients[::2]:
                assert numbers(client.answer().events) == list(range(300))
                client.close()
        assert until(lambda: in_flight() == 0)
        assert until(lambda: counts() == before)


def test_cutting_a_stream_of_a_model_under_unload(stream_root: Path) -> None:
    with (
        LocalServer(stream_root, "--model-control-mode=explicit", "--load-model=*") as server,
        Client(server.http) as client, Client(server.http) as other,
    ):  # fmt: skip
        client.send(generate("repeat", {"IN": [1, 2], "DELAY": [0, HOUR_MS], "WAIT": 0}, stream=True))
        assert client.head().status == 200
        client.chunk()
        assert other.ask(generate("repeat", repeat(1))).status == 200
        before = b"POST /v2/repository/models/repeat/unload HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n"
        assert other.ask(before).status == 200
        answer = other.ask(generate("repeat", repeat(1)))
        assert answer.status in (404, 503)
        assert answer.error.startswith("Request for unknown model: 'repeat'")
        client.close()
        assert until(lambda: server.call(lambda: server.native.in_flight) == 0)  # type: ignore[attr-defined]
