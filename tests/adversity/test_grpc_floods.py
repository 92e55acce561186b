"""Floods on an HTTP/2 connection: each is answered or taken, costs no memory, and its neighbours go on meanwhile."""

from __future__ import annotations

from tests.helpers.h2attacks import hpack_bomb, joined
from tests.helpers.h2raw import (
    ENHANCE_YOUR_CALM,
    Http2,
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
