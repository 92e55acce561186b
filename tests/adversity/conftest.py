"""One server for the tests that only talk to it, and the check that each of them leaves it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.h2raw import Http2, bytes_message, infer_message
from tests.helpers.raw import Client, infer_json, values_of
from tests.helpers.server import Model, ServerProcess, repository, until, with_repeat

MODELS = (
    Model("m"),
    Model("flat", dims=(3,), max_batch=0),
    Model("big", "UINT8", max_batch=0),
    Model("text", "BYTES"),
    Model("bytes1", "BYTES", dims=(1,)),
    Model("int64", "INT64"),
    Model("int8", "INT8"),
    Model("bool", "BOOL"),
    Model("half", "FP16"),
    Model("square", dims=(-1, -1), max_batch=0),
    Model("cube", dims=(-1, 4, -1), max_batch=0),
    Model("pair", tensors=2),
    Model("slow", delay_ms=1500),
)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository(tmp_path_factory.mktemp("models"), *MODELS)


@pytest.fixture(scope="session")
def shared_server(root: Path) -> Iterator[ServerProcess]:
    with ServerProcess(root) as server:
        yield server


@pytest.fixture
def server(shared_server: ServerProcess) -> Iterator[ServerProcess]:
    """The shared server. After the test it still serves, an older connection too, and logged no failed connection."""
    with Client(shared_server.http) as neighbour:
        assert values_of(neighbour.ask(infer_json("m", [1]))) == [1.0]
        before = len(shared_server.log())
        yield shared_server
        assert shared_server.alive
        assert values_of(neighbour.ask(infer_json("m", [2]))) == [2.0]
        with Client(shared_server.http) as other:
            assert values_of(other.ask(infer_json("m", [3]))) == [3.0]
        assert "a connection failed" not in shared_server.log()[before:]


# ---- gRPC

GRPC_MODELS = (
    Model("m"),
    Model("big", "UINT8", max_batch=0),
    Model("text", "BYTES"),
    Model("slow", delay_ms=800),
    Model("slowish", delay_ms=20),
    Model("square", dims=(-1, -1), max_batch=0),
    Model("pair", tensors=2),
)
GRPC_FLAGS = ("--grpc-stall-timeout-secs=1", f"--grpc-max-inflated-size={64 << 20}")


@pytest.fixture(scope="session")
def grpc_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_repeat(repository(tmp_path_factory.mktemp("grpc"), *GRPC_MODELS))


@pytest.fixture(scope="session")
def shared_grpc(grpc_root: Path) -> Iterator[ServerProcess]:
    with ServerProcess(grpc_root, *GRPC_FLAGS) as server, Http2(server.grpc) as client:
        # What the first large messages leave in pools is no leak.
        assert client.ask(bytes_message(bytes(4 << 20))).status == 0
        yield server


@pytest.fixture
def grpc(shared_grpc: ServerProcess) -> Iterator[ServerProcess]:
    """The shared gRPC server. After the test it still serves, an older connection too; nothing failed inside, nothing
    is left open, and no memory beyond what the allocator keeps.
    """
    server = shared_grpc
    with Http2(server.grpc) as neighbour:
        assert neighbour.ask(infer_message([1.0])).values() == [1.0]
        logged, fds, rss = len(server.log()), server.fds(), server.rss()
        yield server
        assert server.alive
        assert neighbour.ask(infer_message([2.0])).values() == [2.0]
        with Http2(server.grpc) as other:
            assert other.ask(infer_message([3.0])).values() == [3.0]
        assert " failed" not in server.log()[logged:]
        assert until(lambda: server.fds() <= fds)
        assert server.rss() < rss + 48 * (1 << 20)
