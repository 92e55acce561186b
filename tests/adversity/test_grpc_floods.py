"""Floods on an HTTP/2 connection: each is answered or taken, costs no memory, and its neighbours go on meanwhile."""

from __future__ import annotations

from tests.helpers.h2attacks import hpack_bomb, joined
from tests.helpers.h2raw import (
    ENHANCE_YOUR_CALM,
    WATCH,
    Http2,
    block,
    message,
    ping,
    request_fields,
)  # fmt: skip
from tests.helpers.server import ServerProcess

MIB = 1 << 20


def test_a_head_that_goes_on_and_on_is_not_read(grpc: ServerProcess) -> None:
    """One byte that stands for 4 kB, a quarter of a million times: not read to its end."""
    with Http2(grpc.grpc) as client:
        client.sync()
        client.send_until_refused(joined(hpack_bomb(1)))
        client.drain()
        assert client.goaways == [(1, ENHANCE_YOUR_CALM, b"")]
        assert client.streams == {}


def test_pings_end_a_connection_that_has_a_call(grpc: ServerProcess) -> None:
    with Http2(grpc.grpc) as client:
        watch = client.open(block(request_fields(WATCH)), message(b""), end=True)
        client.until(lambda: watch in client.streams and len(client.streams[watch].messages) == 1)
        client.send(ping() * 4)
        client.drain()
        assert client.goaways == [(watch, ENHANCE_YOUR_CALM, b"too_many_pings")]
        assert not client.streams[watch].over
