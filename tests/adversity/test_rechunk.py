"""Every request, cut at every byte: what is answered must not depend on how the bytes arrive.

The exhaustive part drives the native connection by hand; a sample goes over real sockets.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.raw import (
    Client,
    Reader,
    binary_body,
    chunked,
    fp32,
    get,
    infer_binary,
    infer_json,
    infer_object,
    infer_path,
    post,
)
from tests.helpers.server import Model, ServerProcess, repository
from tests.helpers.wire import Wire

INFER = infer_path("m")
JSON = json.dumps(infer_object([1.5, -2.0])).encode()
DATA = fp32([1.0, 2.0, 3.0])
BODY, SIZE = binary_body(DATA, [1, 3])
LENGTH = f"Inference-Header-Content-Length: {SIZE}"
BINARY = infer_binary("m", DATA, [1, 3])
GZIPPED = gzip.compress(BODY, mtime=0)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

# name -> (bytes, statuses of the answers)
CASES: dict[str, tuple[bytes, list[int]]] = {
    "get": (get("/v2/models/m"), [200]),
    "head": (get("/v2/models/m/config", method="HEAD"), [200]),
    "not found": (get("/nothing?a=b"), [404]),
    "wrong method": (get(INFER), [405]),
    "blocking verb": (post("/v2/repository/index", b"{}"), [200]),
    "json": (post(INFER, JSON), [200]),
    "json, bad": (post(INFER, JSON[:-1]), [500]),
    "json, unknown model": (post(infer_path("absent"), JSON), [404]),
    "binary": (BINARY, [200]),
    "binary, json out": (infer_binary("m", DATA, [1, 3], binary_out=False), [200]),
    "binary, compressed out": (infer_binary("m", DATA, [1, 3], "Accept-Encoding: gzip"), [200]),
    "raw": (post(infer_path("flat"), DATA, "Inference-Header-Content-Length: 0"), [200]),
    "chunked": (chunked(INFER, [BODY[:1], BODY[1:50], BODY[50:]], LENGTH), [200]),
    "chunked, extensions and trailers": (
        get(INFER, "Transfer-Encoding: chunked", method="POST")
        + b"%x;a=b;c=\"d\"\r\n%s\r\n0;last\r\nX-T: 1\r\nY: 2\r\n\r\n" % (len(JSON), JSON), [200]),
    "chunked, bad": (get(INFER, "Transfer-Encoding: chunked", method="POST") + b"5\r\nabcdeXX\r\n", [400]),
    "chunked verb": (chunked("/v2/repository/index", [b"{", b"}"]), [200]),
    "gzip": (post(INFER, GZIPPED, LENGTH, "Content-Encoding: gzip"), [200]),
    "gzip, chunked": (chunked(INFER, [GZIPPED[:9], GZIPPED[9:]], LENGTH, "Content-Encoding: gzip"), [200]),
    "deflate": (post(INFER, zlib.compress(JSON), "Content-Encoding: deflate"), [200]),
    "expect": (post(INFER, JSON, "Expect: 100-continue"), [200]),
    "expect, binary": (infer_binary("m", DATA, [1, 3], "Expect: 100-continue"), [200]),
    "expect, other": (post(INFER, JSON, "Expect: the-unexpected"), [417]),
    "1.0": (post(INFER, JSON, version="1.0"), [200]),
    "1.0, keep-alive": (post(INFER, JSON, "Connection: keep-alive", version="1.0") + get("/v2"), [200, 200]),
    "connection close": (post(INFER, JSON, "Connection: close"), [200]),
    "empty lines first": (b"\r\n\r\n" + get("/v2/health/live"), [200]),
    "broken request line": (b"GET  /v2 HTTP/1.1\r\nHost: t\r\n\r\n", [400]),
    "head too large": (get("/v2", *(f"X-{i}: {'v' * 100}" for i in range(60))), [431]),
    "version": (get("/v2", version="2.0"), [505]),
    # The same head again is recognised without being parsed; other messages follow it.
    "pipelined, equal": (BINARY * 4, [200] * 4),
    "pipelined, equal then short": (BINARY * 3 + get("/v2/health/live") + BINARY, [200] * 5),
    "pipelined, equal then encodings": (
        BINARY * 3 + infer_binary("m", DATA, [1, 3], "Accept-Encoding: deflate") + BINARY, [200] * 5),
    "pipelined, equal then 1.0": (
        BINARY * 3 + infer_binary("m", DATA, [1, 3], "Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"),
        [200] * 4),
    "pipelined, mixed": (
        get("/v2") + BINARY + get("/x", method="HEAD") + chunked(INFER, [JSON]) + infer_json("m", [7]) + get("/v2"),
        [200, 200, 404, 200, 200, 200]),
    "pipelined, an error between": (
        infer_json("m", ["no number"]) + infer_json("absent", [1]) + BINARY, [500, 404, 200]),
    "pipelined, broken at the end": (BINARY + get("/v2") + b"\x00", [200, 200, 400]),
}  # fmt: skip
HEADS_ONLY = {"head": {0}, "pipelined, mixed": {2}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository(tmp_path_factory.mktemp("repo"), Model("m"), Model("flat", dims=(3,), max_batch=0))


@pytest.fixture(scope="module")
def wire(root: Path) -> Iterator[Wire]:
    with Wire(root) as wire:
        yield wire
        assert wire.app.errors == []


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[ServerProcess]:
    with ServerProcess(root) as server:
        yield server


def whole(wire: Wire, data: bytes) -> bytes:
    return wire.connect().exchange([data]).replace(CONTINUE, b"")


@pytest.mark.parametrize("name", CASES)
def test_statuses(wire: Wire, name: str) -> None:
    data, statuses = CASES[name]
    out = whole(wire, data)
    parts = iter([out, b""])
    reader = Reader(lambda: next(parts))
    got = [reader.answer(head_only=i in HEADS_ONLY.get(name, ())) for i in range(len(statuses))]
    assert [answer.status for answer in got] == statuses, [answer.body for answer in got]
    assert reader.rest == b""


@pytest.mark.parametrize("name", CASES)
def test_every_cut(wire: Wire, name: str) -> None:
    data, _ = CASES[name]
    expected = whole(wire, data)
    for at in range(1, len(data)):
        # The pause between the parts is as long as the first one's answer takes, or none at all.
        for pause in (True, False):
            got = wire.connect().exchange([data[:at], data[at:]], pump_between=pause)
            assert got.replace(CONTINUE, b"") == expected, f"cut at {at}, pause {pause}"


@pytest.mark.parametrize("name", CASES)
def test_byte_by_byte(wire: Wire, name: str) -> None:
    data, _ = CASES[name]
    expected = whole(wire, data)
    single = [data[i : i + 1] for i in range(len(data))]
    for pause in (True, False):
        assert wire.connect().exchange(single, pump_between=pause).replace(CONTINUE, b"") == expected


@pytest.mark.parametrize("step", [2, 3, 7, 16, 61, 256])
def test_all_on_one_connection(wire: Wire, step: int) -> None:
    """Requests of every kind, one after the other, in pieces that respect no boundary."""
    stays = [n for n, (_, statuses) in CASES.items() if not whole_closes(wire, n) and statuses]
    data = b"".join(CASES[name][0] for name in stays)
    expected = whole(wire, data)
    assert expected.count(b"HTTP/1.") >= sum(len(CASES[name][1]) for name in stays)
    got = wire.connect().exchange([data[i : i + step] for i in range(0, len(data), step)])
    assert got.replace(CONTINUE, b"") == expected


def whole_closes(wire: Wire, name: str) -> bool:
    connection = wire.connect()
    connection.feed(CASES[name][0])
    wire.pump()
    ended = connection.transport.closed or connection.transport.eof
    connection.lose()
    return ended


def test_interim_answer_only_where_it_is_waited_for(wire: Wire) -> None:
    data = post(INFER, JSON, "Expect: 100-continue")
    head = data.index(b"\r\n\r\n") + 4
    assert wire.connect().exchange([data[:head], data[head:]]).startswith(CONTINUE)
    assert wire.connect().exchange([data[: head + 1], data[head + 1 :]]).startswith(b"HTTP/1.1 200")
    assert wire.connect().exchange([data]).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("room", [0, 1, 17, 150, 400])
def test_pipelined_behind_a_reader_that_pauses(wire: Wire, room: int) -> None:
    """An answer that the socket does not take holds back the next request, and only until the reader goes on."""
    data = BINARY * 2 + get("/v2") + infer_json("m", [4]) + get("/v2/health/live")
    expected = whole(wire, data)
    connection = wire.connect()
    connection.transport.room = room
    connection.feed(data)
    wire.pump()
    assert len(connection.transport.out) == room
    connection.transport.release()
    wire.pump()
    connection.lose()
    assert bytes(connection.transport.out) == expected


def test_a_flood_of_pipelined_requests_stops_being_read(wire: Wire) -> None:
    connection = wire.connect()
    connection.transport.room = 10
    request = get("/v2/health/live", "X-Pad: " + "x" * 900)
    sent = 0
    while not connection.transport.paused:
        connection.feed(request * 16)
        sent += 16
        assert sent * len(request) < 1 << 20
    connection.transport.release()
    wire.pump()
    assert not connection.transport.paused
    connection.lose()
    assert connection.transport.out.count(b"HTTP/1.1 200 OK\r\n") == sent


@pytest.mark.parametrize("name", CASES)
def test_over_a_socket(server: ServerProcess, name: str) -> None:
    """A sample of cuts: after the head, in it, in the body; each part is on the wire before the next."""
    data, statuses = CASES[name]
    heads = HEADS_ONLY.get(name, set())
    with Client(server.http) as client:
        client.send(data)
        expected = [client.answer(head_only=i in heads) for i in range(len(statuses))]
    for at in {1, len(data) // 3, len(data) // 2, len(data) - 1}:
        with Client(server.http) as client:
            client.send(data[:at])
            client.send_until_refused([data[at:]])
            got = [client.answer(head_only=i in heads) for i in range(len(statuses))]
            assert [(a.status, a.headers, a.body) for a in got] == [(a.status, a.headers, a.body) for a in expected]
