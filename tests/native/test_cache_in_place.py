"""What the response cache has is answered where the request is read: the loop is not woken for it.

The connections are driven by hand, so that what they do within a read is all that is done.
"""

from __future__ import annotations

import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest

from tests.helpers.grpc_wire import GrpcWire
from tests.helpers.h2raw import INFER, STREAM, infer_message, message, request_fields
from tests.helpers.raw import fp32, infer_binary
from tests.helpers.server import Model, repository
from tests.helpers.wire import Transport, Wire

CACHE = "--cache-config=local,size=1000000"
HTTP = infer_binary("m", fp32([1.0, 2.0]), [1, 2])
GRPC = message(infer_message([1.5, -2.0]))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository(tmp_path_factory.mktemp("models"), Model(extra="response_cache { enable: true }"))


def woken(native: Any) -> bool:
    return bool(select.select([native.ring.fileno()], [], [], 0)[0])


@pytest.fixture
def http(root: Path) -> Iterator[Wire]:
    with Wire(root, CACHE) as wire:
        yield wire


def test_http(http: Wire) -> None:
    connection = http.connect()
    connection.feed(HTTP)
    http.pump()
    first = bytes(connection.transport.out)
    assert first.startswith(b"HTTP/1.1 200 OK")
    connection.transport.out.clear()
    connection.feed(HTTP * 3)  # pipelined
    assert bytes(connection.transport.out) == first * 3
    assert http.native.in_flight == 0
    assert not woken(http.native)
    assert not http.app.errors
    connection.lose()


def test_http_among_requests_that_are_executed(http: Wire) -> None:
    connection, other = http.connect(), http.connect()
    connection.feed(HTTP)
    http.pump()
    first = bytes(connection.transport.out)
    connection.transport.out.clear()
    other.feed(infer_binary("m", fp32([3.0, 4.0]), [1, 2]))
    connection.feed(HTTP)
    assert bytes(connection.transport.out) == first
    http.pump()
    assert bytes(other.transport.out).endswith(fp32([3.0, 4.0]))
    connection.lose()
    other.lose()


class Grpc:
    """One connection, and a client of it."""

    def __init__(self, wire: GrpcWire) -> None:
        self.native: Any = wire.native()
        self.transport = Transport()
        self.transport.connection = self.native
        self.native.connection_made(self.transport)
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.client.initiate_connection()

    def call(self, body: bytes, path: str = INFER) -> None:
        stream = self.client.get_next_available_stream_id()
        self.client.send_headers(stream, request_fields(path))
        self.client.send_data(stream, body, end_stream=True)

    def send(self) -> None:
        """All calls in one read."""
        data = self.client.data_to_send()
        with memoryview(self.native.get_buffer(-1)) as window:
            window[: len(data)] = data
        self.native.buffer_updated(len(data))

    def answers(self) -> dict[int, bytes]:
        """Of the streams that ended well, what came."""
        found: dict[int, bytes] = {}
        for event in self.client.receive_data(bytes(self.transport.out)):
            if isinstance(event, h2.events.DataReceived):
                found[event.stream_id] = found.get(event.stream_id, b"") + event.data
            elif isinstance(event, h2.events.TrailersReceived):
                assert ("grpc-status", "0") in event.headers
        self.transport.out.clear()
        return found


def test_grpc(root: Path) -> None:
    with GrpcWire(root, CACHE) as wire:
        connection = Grpc(wire)
        connection.call(GRPC)
        connection.send()
        wire.pump()
        first = connection.answers()[1]
        connection.call(GRPC)
        connection.call(GRPC)
        connection.call(GRPC * 2, STREAM)
        connection.send()
        found = connection.answers()
        assert found[3] == found[5] == first
        assert len(found[7]) > 2 * len(first)
        assert wire.native.in_flight == 0
        assert not woken(wire.native)
        assert not wire.app.errors
        connection.native.connection_lost(None)


def test_grpc_of_a_client_that_is_gone(root: Path) -> None:
    with GrpcWire(root, CACHE) as wire:
        connection = Grpc(wire)
        connection.call(GRPC)
        connection.send()
        wire.pump()
        connection.call(GRPC)
        connection.transport.closed = True
        connection.send()
        assert wire.native.in_flight == 0
        connection.native.connection_lost(None)
        assert not wire.app.errors
