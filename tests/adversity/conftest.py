"""One server for the tests that only talk to it, and the check that each of them leaves it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.raw import Client, infer_json, values_of
from tests.helpers.server import Model, ServerProcess, repository

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
