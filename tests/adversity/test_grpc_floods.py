"""Floods on an HTTP/2 connection: each is answered or taken, costs no memory, and its neighbours go on meanwhile."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import psutil
import pytest

from tests.helpers.h2attacks import FLOODS, beside, flood, hpack_bomb, joined
from tests.helpers.h2raw import (
    ENHANCE_YOUR_CALM,
    WATCH,
    Http2,
    block,
    infer_message,
    message,
    ping,
    request_fields,
)  # fmt: skip
from tests.helpers.server import LocalServer, Model, ServerProcess, repository, until
from triton_fast._native.core import memory
from triton_fast._native.core import model as models
from triton_fast._native.core import request as requests
from triton_fast._native.grpc import call as calls

MIB = 1 << 20


@pytest.mark.parametrize("name", FLOODS)
def test_flood(grpc: ServerProcess, name: str) -> None:
    grpc.reset_peak()
    rss = grpc.rss()
    codes = set()
    beside(grpc.grpc, lambda: codes.add(flood(grpc.grpc, name).code))
    assert codes == {FLOODS[name].code}
    assert grpc.peak_rss() < rss + 24 * MIB


def counters() -> dict[str, int]:
    return {**calls.stats(), "blocks": memory.stats()["live_blocks"], "bytes": memory.stats()["live_bytes"],
            **requests.stats(), **models.stats()}  # fmt: skip


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    root = repository(tmp_path_factory.mktemp("local"), Model("m"), Model("slow", delay_ms=5),
                      Model("big", "UINT8", max_batch=0))  # fmt: skip
    with LocalServer(root) as server:
        yield server


@pytest.mark.parametrize("name", FLOODS)
def test_nothing_is_left_of_a_flood(local: LocalServer, name: str) -> None:
    own = psutil.Process()
    with Http2(local.grpc) as client:
        assert client.ask(infer_message()).values() == [1.0]
    native = local.server.endpoints.grpc.native  # type: ignore[union-attr]
    assert until(lambda: local.call(lambda: len(native.connections)) == 0)
    gc.collect()
    before, fds = counters(), own.num_fds()
    assert before["live_calls"] == before["live_items"] == before["live_outs"] == before["live_requests"] == 0
    assert flood(local.grpc, name, 0.2).code == FLOODS[name].code
    assert until(lambda: local.call(counters) == before), (counters(), before)
    assert native.in_flight == 0
    assert until(lambda: own.num_fds() <= fds)


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
