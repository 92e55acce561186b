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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers.h2raw import (
    CALL,
    STREAM_CALL,
    Http2,
    block,
    bytes_message,
    data,
    head,
    infer_message,
    message,
    repeat_message,
    request_fields,
    rst,
)
from tests.helpers.load import Tally, Versions, every_version
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
from tests.helpers.server import LocalServer, Model, repository, until, with_repeat
from triton_fast import protos
from triton_fast._native.core import memory
from triton_fast._native.core import request as requests
from triton_fast._native.grpc import call as calls

TOTAL = int(os.environ.get("TF_SOAK_REQUESTS", "5000"))
CLIENTS = 8
GRPC_CLIENTS = 4
BATCHING = "dynamic_batching {{ max_queue_delay_microseconds: {} }}"
MODELS = (
    Model("m", extra=BATCHING.format(100)),
    Model("slow", delay_ms=2),
    Model("text", "BYTES"),
    Model("big", "UINT8", max_batch=0),
)


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


class GrpcLoad:
    """The same over HTTP/2: unary calls and streams, calls that are given up, deadlines, connections that break."""

    def __init__(self, server: LocalServer, tally: Tally, seed: int) -> None:
        self.server, self.tally, self.rng = server, tally, random.Random(seed)
        self.client: Http2 | None = None
        self.actions = [
            (40, self.unary), (10, self.several), (12, self.stream), (8, self.decoupled), (4, self.large),
            (6, self.bad), (8, self.give_up), (4, self.give_up_stream), (4, self.give_up_decoupled),
            (4, self.deadline), (3, self.partial), (3, self.reset),
        ]  # fmt: skip

    def run(self, n: int) -> None:
        weights = [weight for weight, _ in self.actions]
        for _ in range(n):
            _, action = self.rng.choices(self.actions, weights)[0]
            if self.client is None:
                self.client = Http2(self.server.grpc)
            action(self.client)
            if self.client is not None:
                assert self.client.late == 0
                self.client.streams.clear()
        self.drop()

    def drop(self) -> None:
        if self.client is not None:
            self.client.close()
            self.client = None

    def values(self) -> list[float]:
        return [float(i) for i in range(self.rng.choice([1, 4, 16, 100, 1000]))]

    def model(self) -> str:
        return self.rng.choice(["m", "m", "m", "slow"])

    # ---- calls that are answered

    def unary(self, client: Http2) -> None:
        values = self.values()
        self.tally.add("sent")
        assert client.ask(infer_message(values, self.model())).values() == values
        self.tally.add("answered")

    def several(self, client: Http2) -> None:
        """Calls in flight together, each with its own answer."""
        asked = {client.call(infer_message(values, self.model())): values
                 for values in (self.values() for _ in range(self.rng.randrange(2, 12)))}  # fmt: skip
        self.tally.add("sent", len(asked))
        for i, values in asked.items():
            assert client.answer(i).values() == values
        self.tally.add("answered", len(asked))

    def stream(self, client: Http2) -> None:
        n = self.rng.randrange(1, 12)
        self.tally.add("sent", n)
        body = b"".join(message(infer_message([float(k)], self.model(), id=str(k))) for k in range(n))
        answer = client.answer(client.open(STREAM_CALL, body, end=True))
        got = [protos.ModelStreamInferResponse.FromString(raw) for raw in answer.messages]
        assert answer.status == 0
        assert [m.infer_response.id for m in got] == [str(k) for k in range(n)]
        self.tally.add("answered", n)

    def decoupled(self, client: Http2) -> None:
        n, values = self.rng.randrange(1, 4), range(self.rng.randrange(20))
        self.tally.add("sent", n)
        answer = client.answer(client.open(STREAM_CALL, message(repeat_message(values)) * n, end=True))
        assert (answer.status, len(answer.messages)) == (0, n * len(values))
        self.tally.add("answered", n)

    def large(self, client: Http2) -> None:
        payload = self.rng.randbytes(1) * self.rng.randrange(1, 2_000_000)
        self.tally.add("sent")
        answer = client.ask_large(message(bytes_message(payload)))
        (raw,) = answer.messages
        assert protos.ModelInferResponse.FromString(raw).raw_output_contents[0] == payload
        self.tally.add("answered")

    def bad(self, client: Http2) -> None:
        payload = self.rng.choice([infer_message([1.0], "absent"), b"\xff", infer_message()[:-1], b""])
        assert client.ask(payload).status in {3, 5, 13}

    # ---- calls that are given up

    def give_up(self, client: Http2) -> None:
        n = self.rng.randrange(1, 6)
        self.tally.add("sent", n)
        self.tally.add("left", n)
        ids = [client.call(infer_message(self.values(), self.model())) for _ in range(n)]
        client.send(b"".join(map(rst, ids)))
        client.sync()

    def give_up_stream(self, client: Http2) -> None:
        n = self.rng.randrange(1, 6)
        self.tally.add("sent", n)
        self.tally.add("left", n)
        client.send(rst(client.open(STREAM_CALL, message(infer_message([1.0], "slow")) * n)))
        client.sync()

    def give_up_decoupled(self, client: Http2) -> None:
        """After some of its responses, in the middle of the others."""
        self.tally.add("sent")
        self.tally.add("left")
        i = client.open(STREAM_CALL, message(repeat_message(range(40), self.rng.randrange(2))))
        wanted = self.rng.randrange(5)
        client.until(lambda: wanted == 0 or (i in client.streams and len(client.streams[i].messages) >= wanted))
        client.send(rst(i))
        client.sync()

    def deadline(self, client: Http2) -> None:
        fields = block(request_fields("/inference.GRPCInferenceService/ModelInfer",
                                      ("grpc-timeout", f"{self.rng.randrange(1, 5000)}u")))  # fmt: skip
        self.tally.add("deadlines")
        answer = client.ask(infer_message([1.0], "slow"), fields)
        assert answer.status in {0, 4}, answer

    def partial(self, client: Http2) -> None:
        """A message without its end, then the end of the call or of the connection."""
        whole = message(infer_message())
        i = client.open(self.rng.choice([CALL, STREAM_CALL]), whole[: self.rng.randrange(1, len(whole))])
        if self.rng.randrange(2):
            client.send(data(i, end=True))
            assert client.answer(i).status == 13
        else:
            self.drop()

    def reset(self, client: Http2) -> None:
        """Send whole requests and break the connection: the server may never read them."""
        n = self.rng.randrange(1, 5)
        self.tally.add("reset", n)
        for _ in range(n):
            i = client.new_id()
            client.send(head(i) + data(i, message(infer_message([1.0] * 100, self.model())), end=True))
        if self.rng.randrange(2):
            client.reset()
        self.drop()


def run_clients(server: LocalServer, tally: Tally, versions: Versions, total: int, seed: int) -> None:
    loads: list[Load | GrpcLoad] = [Load(server, tally, versions, seed + i) for i in range(CLIENTS)]
    loads += [GrpcLoad(server, tally, seed + 100 + i) for i in range(GRPC_CLIENTS)]
    with ThreadPoolExecutor(len(loads)) as pool:
        for done in [pool.submit(load.run, total // len(loads)) for load in loads]:
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
    grpc = server.server.endpoints.grpc.native  # type: ignore[union-attr]
    assert until(lambda: server.call(lambda: len(grpc.connections)) == 0)
    assert until(lambda: server.call(lambda: grpc.in_flight) == 0)
    assert until(lambda: not any(server.call(calls.stats).values())), calls.stats()

    counts, ends = tally.counts, versions.ends
    versions.harvest(everything=True)
    finished = sum(ends.values())
    assert counts["reloads"] > 0
    # Every request that surely came whole has one end; of those that were reset, some have one.
    assert counts["sent"] <= finished <= counts["sent"] + counts["reset"] + counts["deadlines"], (counts, ends)
    assert ends["success"] + ends["CANCELED"] == finished, ends
    assert ends["CANCELED"] <= counts["left"] + counts["reset"] + counts["deadlines"]
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
    names = [*(model.name for model in MODELS), "repeat"]
    # Clients wait for what was given up with a ping.
    flags = ["--model-control-mode=explicit", "--grpc-http2-max-ping-strikes=0",
             *(f"--load-model={name}" for name in names)]  # fmt: skip
    root = with_repeat(repository(tmp_path / "second", *MODELS))
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
