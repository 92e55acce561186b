"""What one client or one change must not do to others: stale lookups, stalls, starved verbs, reserved memory."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.helpers.raw import Client, ask, get, infer_json, post
from tests.helpers.server import LocalServer, Model, repository, until
from triton_fast.dataplane import Dataplane
from triton_fast.repository import ModelRepositoryManager

EVERY_VERSION = "version_policy: { all {} }"


def test_a_change_during_a_lookup_is_seen_by_the_next_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = repository(tmp_path, Model("m", extra=EVERY_VERSION))
    lookup = Dataplane.native_model
    changed = threading.Event()
    with LocalServer(root, "--model-control-mode=explicit", "--load-model=m") as server:

        def lookup_while_a_version_arrives(plane: Dataplane, name: str, version: int) -> object:
            found = lookup(plane, name, version)
            if not changed.is_set():
                changed.set()
                (root / "m" / "2").mkdir()
                server.server.repository.load("m")
            return found

        monkeypatch.setattr(Dataplane, "native_model", lookup_while_a_version_arrives)
        with Client(server.http) as client:
            served = [client.ask(infer_json("m", [1])).json()["model_version"] for _ in range(3)]
    assert served == ["1", "2", "2"]


def test_a_large_head_behind_a_running_request_does_not_stall(tmp_path: Path) -> None:
    root = repository(tmp_path, Model("slow", delay_ms=500))
    # More than is kept unread while a request is in flight, in one head that is not whole until all of it is read.
    large = get("/v2/health/live", *(f"X{i}: {'a' * 30000}" for i in range(30)))
    with LocalServer(root, "--http-max-head-size=1048576") as server, Client(server.http) as client:
        sender = threading.Thread(target=client.send, args=(infer_json("slow", [1]) + large,))
        sender.start()
        assert [client.answer().status for _ in range(2)] == [200, 200]
        sender.join()


def test_loads_that_wait_hold_up_no_other_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loading, go_on = threading.Semaphore(0), threading.Event()

    def load(*_: object, **__: object) -> None:
        loading.release()
        go_on.wait()

    monkeypatch.setattr(ModelRepositoryManager, "load", load)
    with LocalServer(repository(tmp_path, Model("m")), "--model-control-mode=explicit") as server:
        waiting = [Client(server.http) for _ in range(12)]
        try:
            for client in waiting:
                client.send(post("/v2/repository/models/m/load"))
            for _ in waiting:
                assert loading.acquire(timeout=30), "not every load was begun"
            assert ask(server.metrics, get("/metrics")).status == 200
            assert ask(server.http, post("/v2/repository/index")).status == 200
        finally:
            go_on.set()
        assert [client.answer().status for client in waiting] == [200] * len(waiting)
        for client in waiting:
            client.close()
        assert until(lambda: server.call(lambda: len(server.native.connections)) == 0)  # type: ignore[attr-defined]


PROMISES = """
import resource
from triton_fast._native.wire import json_infer
from triton_fast.errors import InvalidArg

resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
one = '{"name":"a%d","datatype":"BYTES","shape":[1048576],"data":["x"]}'
body = '{"inputs":[' + ",".join(one % i for i in range(20000)) + "]}"
try:
    json_infer.decode(body.encode() + b" " * (28 << 20))
except InvalidArg as error:
    assert "expected 1048576 string elements" in str(error), error
else:
    raise AssertionError("a wrong element count was taken")
"""


def test_promised_elements_reserve_no_memory(tmp_path: Path) -> None:
    """20 000 inputs that each promise a million strings, in a process of 8 GiB of address space."""
    done = subprocess.run([sys.executable, "-c", PROMISES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
