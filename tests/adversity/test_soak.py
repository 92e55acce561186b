"""Mixed load with cancels, disconnects and reloads: every request has one end, and nothing is left over.

TF_SOAK_REQUESTS sets how many requests there are. The server runs in this process, so that its counters can be read.
"""

from __future__ import annotations

import gc
import json
import os
import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers.raw import (
    Client,
    Closed,
    ask,
    chunked,
    fp32,
    get,
    infer_binary,
    infer_json,
    infer_object,
    infer_path,
    post,
    values_of,
)
from tests.helpers.server import LocalServer, Model, repository, until
from triton_fast._native.core import memory
from triton_fast._native.core import request as requests
from triton_fast.scheduling.runtime import ModelRuntime

TOTAL = int(os.environ.get("TF_SOAK_REQUESTS", "5000"))
CLIENTS = 8
BATCHING = "dynamic_batching {{ max_queue_delay_microseconds: {} }}"
MODELS = (
    Model("m", extra=BATCHING.format(100)),
    Model("slow", delay_ms=2),
    Model("text", "BYTES"),
    Model("big", "UINT8", max_batch=0),
)


class Tally:
    """What the clients did and saw. ``sent``: valid infer requests that reached the server whole."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.counts: Counter[str] = Counter()

    def add(self, name: str, n: int = 1) -> None:
        with self.lock:
            self.counts[name] += n


class Versions:
    """The counters of every version that was started: a reload begins anew, and the old version goes away."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.natives: list[Any] = []
        self.ends: Counter[str] = Counter()

    def add(self, native: Any) -> None:
        with self.lock:
            self.natives.append(native)

    def harvest(self, *, everything: bool = False) -> None:
        """Take over the counters of versions that have ended."""
        with self.lock:
            ended = [n for n in self.natives if everything or n.n_instances == 0]
            for native in ended:
                taken = native.snapshot()
                assert taken["pending"] == 0
                self.ends["success"] += taken["success"]
                self.ends.update(taken["failures"])
                self.natives.remove(native)


class Load:
    """One client: a connection that is made anew after each end, and a random choice of what to do next."""

    def __init__(self, server: LocalServer, tally: Tally, versions: Versions, seed: int) -> None:
        self.server, self.tally, self.versions, self.rng = server, tally, versions, random.Random(seed)
        self.client: Client | None = None
        self.actions = [
            (30, self.binary), (20, self.json), (8, self.pipelined), (6, self.chunked), (5, self.strings),
            (4, self.large),
            (6, self.bad), (4, self.other_verbs), (6, self.leave), (5, self.reset), (4, self.partial), (1, self.reload),
        ]  # fmt: skip

    def run(self, n: int) -> None:
        weights = [weight for weight, _ in self.actions]
        for _ in range(n):
            _, action = self.rng.choices(self.actions, weights)[0]
            if self.client is None:
                self.client = Client(self.server.http)
            action(self.client)
        self.drop()

    def drop(self) -> None:
        if self.client is not None:
            self.client.close()
            self.client = None

    def values(self) -> list[float]:
        size = self.rng.choice([1, 4, 16, 100, 1000, 5000])
        return [float(i + self.rng.randrange(100)) for i in range(size)]

    def expect(self, client: Client, values: list[Any]) -> None:
        answer = client.answer()
        assert answer.status == 200, answer
        assert values_of(answer) == values
        self.tally.add("answered")

    # ---- requests that are answered

    def binary(self, client: Client) -> None:
        values = self.values()
        self.tally.add("sent")
        client.send(infer_binary(self.rng.choice(["m", "m", "slow"]), fp32(values), [1, len(values)]))
        self.expect(client, values)

    def json(self, client: Client) -> None:
        values = self.values()
        self.tally.add("sent")
        client.send(infer_json("m", values, id=str(len(values))))
        self.expect(client, values)

    def strings(self, client: Client) -> None:
        values = ["x" * self.rng.randrange(200) for _ in range(self.rng.randrange(1, 50))]
        self.tally.add("sent")
        client.send(infer_json("text", values, datatype="BYTES"))
        self.expect(client, values)

    def chunked(self, client: Client) -> None:
        values = self.values()
        text = json.dumps(infer_object(values)).encode()
        step = self.rng.randrange(100, 2000)
        self.tally.add("sent")
        client.send(chunked(infer_path("m"), [text[i : i + step] for i in range(0, len(text), step)]))
        self.expect(client, values)

    def large(self, client: Client) -> None:
        size = self.rng.randrange(1, 3_000_000)
        data = self.rng.randbytes(1) * size
        self.tally.add("sent")
        answer = client.ask(infer_binary("big", data, [size], datatype="UINT8"))
        assert answer.status == 200
        assert answer.body[int(answer.headers["inference-header-content-length"]) :] == data
        self.tally.add("answered")

    def pipelined(self, client: Client) -> None:
        batches = [self.values()[:50] for _ in range(self.rng.randrange(2, 12))]
        self.tally.add("sent", len(batches))
        client.send(b"".join(infer_binary("m", fp32(values), [1, len(values)]) for values in batches))
        for values in batches:
            self.expect(client, values)

    def bad(self, client: Client) -> None:
        request = self.rng.choice([
            infer_json("m", ["x"]), infer_json("absent", [1]), post(infer_path("m"), b"{"),
            infer_json("m", [1], shape=[9, 1]),
            infer_binary("m", fp32([1]), [1, 2]),
        ])  # fmt: skip
        assert client.ask(request).status in {400, 404, 500}

    def other_verbs(self, client: Client) -> None:
        path = self.rng.choice(["/v2/models/m/stats", "/v2/models/m/config", "/v2/health/ready", "/v2"])
        assert client.ask(get(path)).status == 200
        assert ask(self.server.metrics, get("/metrics")).status == 200

    # ---- requests whose client leaves

    def leave(self, client: Client) -> None:
        """Send a whole request and close in order: the server reads all of it, and then the end."""
        self.tally.add("sent")
        self.tally.add("left")
        client.send(infer_binary(self.rng.choice(["slow", "m"]), fp32([1.0]), [1, 1]))
        self.drop()

    def reset(self, client: Client) -> None:
        """Send a whole request and reset: the server may never read it."""
        self.tally.add("reset")
        client.send(infer_binary(self.rng.choice(["slow", "m"]), fp32([1.0] * 1000), [1, 1000]))
        client.reset()
        self.drop()

    def partial(self, client: Client) -> None:
        request = infer_binary("m", fp32([1.0] * 500), [1, 500])
        client.send(request[: self.rng.randrange(1, len(request))])
        self.drop()

    def reload(self, client: Client) -> None:
        """Load the model that the others use with another configuration, in the middle of their requests."""
        config = {
            "backend": "identity", "max_batch_size": 8,
            "input": [{"name": "INPUT0", "data_type": "TYPE_FP32", "dims": ["-1"]}],
            "output": [{"name": "OUTPUT0", "data_type": "TYPE_FP32", "dims": ["-1"]}],
            "dynamic_batching": {"max_queue_delay_microseconds": self.rng.randrange(300)},
        }  # fmt: skip
        body = json.dumps({"parameters": {"config": json.dumps(config)}}).encode()
        answer = client.ask(post("/v2/repository/models/m/load", body))
        assert answer.status == 200, answer
        self.tally.add("reloads")
        self.versions.harvest()


@contextmanager
def every_version(monkeypatch: pytest.MonkeyPatch) -> Iterator[Versions]:
    versions = Versions()
    start = ModelRuntime.start

    def kept(*arguments: Any) -> ModelRuntime:
        runtime = start(*arguments)
        versions.add(runtime.native)
        return runtime

    with monkeypatch.context() as patch:
        patch.setattr(ModelRuntime, "start", kept)
        yield versions


def run_clients(server: LocalServer, tally: Tally, versions: Versions, total: int, seed: int) -> None:
    loads = [Load(server, tally, versions, seed + i) for i in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        for done in [pool.submit(load.run, total // CLIENTS) for load in loads]:
            done.result()


def mixed_load(server: LocalServer, versions: Versions) -> None:
    """Run the load, then compare what the clients saw with what the server counted."""
    own = psutil.Process()
    tally = Tally()
    fds_idle = own.num_fds()
    run_clients(server, tally, versions, TOTAL // 4, 1)
    memory.trim()
    warm = own.memory_info().rss
    run_clients(server, tally, versions, TOTAL - TOTAL // 4, 1000)
    assert until(lambda: server.call(lambda: len(server.native.connections)) == 0)
    assert until(lambda: server.native.in_flight == 0)

    counts, ends = tally.counts, versions.ends
    versions.harvest(everything=True)
    finished = sum(ends.values())
    assert counts["reloads"] > 0
    # Every request that surely came whole has one end; of those that were reset, some have one.
    assert counts["sent"] <= finished <= counts["sent"] + counts["reset"], (counts, ends)
    assert ends["success"] + ends["CANCELED"] == finished, ends
    assert ends["CANCELED"] <= counts["left"] + counts["reset"]
    assert counts["answered"] == counts["sent"] - counts["left"]
    assert ends["success"] >= counts["answered"]

    assert until(lambda: own.num_fds() <= fds_idle)
    memory.trim()
    gc.collect()
    assert own.memory_info().rss < warm + 48 * (1 << 20)


@pytest.mark.soak
def test_each_request_ends_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = psutil.Process()
    # What the first event loop of a process opens stays open.
    with LocalServer(repository(tmp_path / "first", MODELS[0])):
        pass
    gc.collect()
    blocks, live, fds = memory.stats()["live_blocks"], requests.stats(), own.num_fds()
    flags = ["--model-control-mode=explicit", *(f"--load-model={model.name}" for model in MODELS)]
    root = repository(tmp_path / "second", *MODELS)
    with every_version(monkeypatch) as versions, LocalServer(root, *flags) as server:
        mixed_load(server, versions)
        assert until(lambda: requests.stats()["live_requests"] == live["live_requests"])
        assert memory.stats()["live_blocks"] == blocks
    del server
    gc.collect()
    assert until(lambda: requests.stats() == live), requests.stats()
    assert memory.stats()["live_blocks"] == blocks
    assert until(lambda: own.num_fds() <= fds)


@pytest.mark.soak
def test_unloading_under_load(tmp_path: Path) -> None:
    """Load and unload while requests come: each is answered, by the model or by the error that says where it went."""
    flags = ["--model-control-mode=explicit", "--load-model=m"]
    rounds = max(10, TOTAL // 1000)
    with LocalServer(repository(tmp_path, MODELS[0]), *flags) as server:
        stop = threading.Event()
        statuses: Counter[int] = Counter()
        lock = threading.Lock()

        def client(seed: int) -> None:
            rng = random.Random(seed)
            with Client(server.http) as connection:
                while not stop.is_set():
                    values = [float(rng.randrange(9))] * rng.randrange(1, 40)
                    try:
                        answer = connection.ask(infer_binary("m", fp32(values), [1, len(values)]))
                    except Closed as closed:
                        raise AssertionError(f"the connection ended: {closed}") from None
                    if answer.status == 200:
                        assert values_of(answer) == values
                    else:
                        assert answer.status in {400, 404, 503}, answer
                        assert "'m'" in answer.error or "stopped accepting" in answer.error, answer
                    with lock:
                        statuses[answer.status] += 1

        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(client, seed) for seed in range(4)]
            for _ in range(rounds):
                before = sum(statuses.values())
                assert ask(server.http, post("/v2/repository/models/m/unload")).status == 200
                assert until(lambda before=before: sum(statuses.values()) > before + 20)  # type: ignore[misc]
                assert ask(server.http, post("/v2/repository/models/m/load")).status == 200
                done = statuses[200]
                assert until(lambda done=done: statuses[200] > done + 20)  # type: ignore[misc]
            stop.set()
            for result in running:
                result.result()
        assert statuses[200] > 0
        assert sum(statuses.values()) > statuses[200]
