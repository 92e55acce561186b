"""gRPC calls, their bytes cut at every byte: what is answered must not depend on how the bytes arrive.

The library h2 writes the bytes and reads the answers. The native connection is driven by hand; a sample goes over real
sockets.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest

from tests.helpers.grpc_wire import GrpcWire
from tests.helpers.h2raw import (
    INFER,
    LIVE,
    PREFACE,
    STREAM,
    Http2,
    data,
    head,
    infer_message,
    message,
    repeat_message,
    request_fields,
    settings,
)  # fmt: skip
from tests.helpers.server import Model, ServerProcess, repository, with_repeat

ONE = message(infer_message([1.5, -2.0], id="a"))
LARGE = message(gzip.compress(infer_message([float(i % 7) for i in range(5000)]), 0), 1)
PACKED = message(gzip.compress(infer_message([3.0]), mtime=0), 1)


class Script:
    """The client's bytes of one connection."""

    def __init__(self) -> None:
        self.client = new_client()
        self.client.initiate_connection()

    def call(
        self, body: bytes, path: str = INFER, *extra: tuple[str, str], end: bool = True, **replaced: str
    ) -> Script:
        i = self.client.get_next_available_stream_id()
        self.client.send_headers(i, request_fields(path, *extra, **replaced))
        for at in range(0, len(body), 16384):
            self.client.send_data(i, body[at : at + 16384])
        if end:
            self.client.end_stream(i)
        return self

    def also(self, act: Callable[[h2.connection.H2Connection], object]) -> Script:
        act(self.client)
        return self


def new_client() -> h2.connection.H2Connection:
    # What is to be refused must be sent.
    config = h2.config.H2Configuration(
        header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False)  # fmt: skip
    return h2.connection.H2Connection(config)


def interleaved(client: h2.connection.H2Connection) -> None:
    for i in (1, 3):
        client.send_headers(i, request_fields())
    for at in range(0, len(ONE), 9):
        for i in (1, 3):
            client.send_data(i, ONE[at : at + 9], pad_length=at % 4)
    for i in (3, 1):
        client.send_headers(i, [("x-last", "trailer")], end_stream=True)


GZIP = ("grpc-encoding", "gzip")
CASES: dict[str, Script] = {
    "unary": Script().call(ONE),
    "three": Script().call(ONE).call(ONE).call(message(infer_message([7.0]))),
    "stream": Script().call(ONE * 2 + message(infer_message([9.0])) + message(infer_message([1], "absent")), STREAM),
    "stream that ends with an error": Script().call(
        message(infer_message([1.0], "absent")) + ONE * 2, STREAM, ("triton_grpc_error", "true")),
    "decoupled": Script().call(message(repeat_message([4, 5, 6])), STREAM).call(message(repeat_message([])), STREAM),
    "verbs": Script().call(message(b""), LIVE).call(message(b"\n\1m"), LIVE.replace("ServerLive", "ModelReady")),
    "gzip": Script().call(PACKED, INFER, GZIP).call(PACKED + ONE, STREAM, GZIP),
    "errors": Script().call(message(infer_message([1.0], "absent"))).call(message(b"\xff" * 9)).call(ONE[:-1])
    .call(b"").call(ONE * 2).call(message(b"x", 7)).call(message(b"", 0, 2**31)),
    "refused heads": Script().call(ONE, "/no.Service/Method").call(ONE, content_type="text/plain")
    .call(ONE, method="GET").call(ONE, INFER, ("grpc-timeout", "soon")).call(ONE, INFER, ("grpc-encoding", "br"))
    .call(ONE, INFER, *[("k", "v" * 400)] * 40).call(ONE),
    "malformed heads": Script().call(ONE, INFER, ("Upper", "case")).call(ONE, INFER, ("connection", "close")).call(ONE),
    "interleaved, padded, trailers": Script().also(interleaved),
    "around it": Script().also(lambda c: c.ping(b"12345678")).call(ONE, end=False)
    .also(lambda c: c.increment_flow_control_window(70000)).also(lambda c: c.reset_stream(1)).call(ONE)
    .also(lambda c: c.update_settings({4: 100000})).also(lambda c: c.ping(b"abcdefgh")),
}  # fmt: skip


def raw_of(name: str) -> bytes:
    script = CASES[name]
    raw = getattr(script, "raw", None)
    if raw is None:
        raw = script.raw = script.client.data_to_send()  # type: ignore[attr-defined]
    return bytes(raw)


Outcome = tuple[Any, ...]


def meaning(out: bytes, streams: int = 10) -> Outcome:
    """What the server's bytes say according to h2: of each stream fields, body, end; of the connection pings, end."""
    client = new_client()
    client.initiate_connection()
    for _ in range(streams):
        i = client.get_next_available_stream_id()
        client.send_headers(i, request_fields(), end_stream=True)
    found: dict[int, list[Any]] = {}
    rest: list[Any] = []
    for event in client.receive_data(out):
        match event:
            case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                found.setdefault(event.stream_id, []).append([*event.headers])
            case h2.events.DataReceived():
                body = found.setdefault(event.stream_id, [])
                if body and isinstance(body[-1], bytes):
                    body[-1] += event.data
                else:
                    body.append(event.data)
            case h2.events.StreamEnded():
                found.setdefault(event.stream_id, []).append("end")
            case h2.events.StreamReset():
                # Whether the client is told to stop sending depends on whether it had.
                if event.error_code != 0:
                    found.setdefault(event.stream_id, []).append(event.error_code)
            case h2.events.PingAckReceived():
                rest.append(event.ping_data)
            case h2.events.ConnectionTerminated():
                rest.append(event.error_code)
    return sorted(found.items()), rest


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_repeat(repository(tmp_path_factory.mktemp("repo"), Model("m")))


@pytest.fixture(scope="module")
def wire(root: Path) -> Iterator[GrpcWire]:
    with GrpcWire(root) as wire:
        yield wire
        assert wire.app.errors == []


def outcomes(wire: GrpcWire, ways: Iterable[list[bytes]]) -> Iterator[Outcome]:
    known: dict[bytes, Outcome] = {}
    for parts in ways:
        out = wire.exchange(parts)
        if out not in known:
            known[out] = meaning(out)
        yield known[out]


def cut(raw: bytes, step: int) -> list[bytes]:
    return [raw[at : at + step] for at in range(0, len(raw), step)]


@pytest.mark.parametrize("name", CASES)
def test_every_cut(wire: GrpcWire, name: str) -> None:
    raw = raw_of(name)
    (expected,) = outcomes(wire, [[raw]])
    assert expected[0]
    ways = [[raw[:at], raw[at:]] for at in range(1, len(raw))]
    for at, got in enumerate(outcomes(wire, ways), 1):
        assert got == expected, f"cut at {at}"


@pytest.mark.parametrize("name", CASES)
def test_small_pieces(wire: GrpcWire, name: str) -> None:
    raw = raw_of(name)
    first, *others = outcomes(wire, [[raw], *(cut(raw, step) for step in (1, 2, 3, 5, 7, 8, 9, 10, 16, 63, 64, 65))])
    assert all(other == first for other in others)


def test_the_answers_are_what_they_should_be(wire: GrpcWire) -> None:
    """So that the others do not compare errors with errors."""
    statuses = {}
    for name in CASES:
        (streams, _), = outcomes(wire, [[raw_of(name)]])  # fmt: skip
        statuses[name] = [
            next((dict(part).get("grpc-status", dict(part).get(":status"))
                  for part in reversed(parts) if isinstance(part, list)), parts[-1])
            for _, parts in streams
        ]  # fmt: skip
    assert statuses == {
        "unary": ["0"], "three": ["0"] * 3, "stream": ["0"], "stream that ends with an error": ["5"],
        "decoupled": ["0", "0"], "verbs": ["0", "0"], "gzip": ["0", "0"],
        "errors": ["5", "13", "13", "13", "13", "13", "8"],
        "refused heads": ["12", "415", "405", "13", "12", "8", "0"], "malformed heads": [1, 1, "0"],
        "interleaved, padded, trailers": ["0", "0"], "around it": ["0"],
    }  # fmt: skip


def test_a_large_compressed_message_in_pieces(wire: GrpcWire) -> None:
    """Inflated on another thread while the rest comes."""
    raw = Script().call(LARGE, INFER, GZIP).call(LARGE + ONE + LARGE, STREAM, GZIP).client.data_to_send()
    expected, *others = outcomes(wire, [[raw], *(cut(raw, step) for step in (100, 1000, 4097, 20000))])
    assert all(other == expected for other in others)
    assert all(len(parts) >= 3 for _, parts in expected[0])


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[ServerProcess]:
    with ServerProcess(root) as server:
        yield server


@pytest.mark.parametrize("step", [1, 3, 9, 50])
def test_over_sockets(server: ServerProcess, step: int) -> None:
    whole = PREFACE + settings() + head(1) + data(1, ONE, end=True) + head(3) + data(3, ONE, end=True)
    with Http2(server.grpc, greet=False) as client:
        for piece in cut(whole, step):
            client.send(piece)
        for i in (1, 3):
            assert client.answer(i).values() == [1.5, -2.0]
