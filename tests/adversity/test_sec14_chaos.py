"""More than a hundred clients of both protocols that cancel, reset, half-close, disconnect and set deadlines at random,
while models are loaded, unloaded and replaced: each request is answered or cancelled once, and nothing is left over.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from tests.helpers.h2raw import (
    CALL,
    INFER,
    INITIAL_WINDOW,
    PREFACE,
    STREAM,
    STREAM_CALL,
    Ended,
    Http2,
    block,
    bytes_message,
    data,
    frame,
    head,
    infer_message,
    message,
    repeat_message,
    request_fields,
    rst,
    settings,
    unary,
    window,
)  # fmt: skip
from tests.helpers.load import Versions, every_version
from tests.helpers.raw import Client, Closed, ask, fp32, get, infer_binary, infer_json, post, values_of
from tests.helpers.server import LocalServer, Model, repository, until, with_repeat
from triton_fast import protos
from triton_fast._native.core import memory
from triton_fast._native.core import request as requests
from triton_fast._native.grpc import call as calls

CLIENTS = 112
ROUNDS = max(6, int(os.environ.get("TF_SOAK_REQUESTS", "0")) // 1000)
MIB = 1 << 20
MODELS = (
    Model("m", extra="dynamic_batching { max_queue_delay_microseconds: 200 }"),
    Model("slow", delay_ms=3),
    Model("big", "UINT8", max_batch=0),
    Model("web", extra="dynamic_batching { max_queue_delay_microseconds: 200 }", delay_ms=2),
)
NAMES = ("m", "slow", "big", "web", "repeat")
# What a model that is going or gone is answered with, and what a client is that gave up.
GONE = {5, 14}
TIMED_OUT = {0, 4}


class Chaos:
    """One client: each turn makes a connection, does something odd with it and checks whatever it waits for."""

    def __init__(self, server: LocalServer, seed: int) -> None:
        self.server, self.rng = server, random.Random(seed)
        self.seen: Counter[str] = Counter()
        self.turns: list[Callable[[], None]] = [
            self.http, self.http_leaves, self.http_half, self.unary, self.many, self.stream, self.decoupled,
            self.resets, self.resets_midway, self.half_message, self.disconnect, self.half_close, self.deadline,
            self.no_window, self.cut_anywhere, self.goaway, self.broken,
        ]  # fmt: skip

    def run(self, n: int) -> None:
        for _ in range(n):
            turn = self.rng.choice(self.turns)
            turn()
            self.seen[turn.__name__] += 1

    def model(self) -> str:
        return self.rng.choice(["m", "m", "slow"])

    def connect(self, *arguments: Any, **options: Any) -> Http2:
        return Http2(self.server.grpc, *arguments, **options)

    def check(self, client: Http2, i: int, values: list[float] | None = None, *others: int) -> None:
        answer = client.answer(i)
        if answer.status == 0 and values is not None:
            assert answer.values() == values
        else:
            assert answer.status in GONE | {0, *others}, answer
        assert client.late == 0

    # ---- HTTP

    def http(self) -> None:
        with Client(self.server.http) as client:
            answer = client.ask(infer_json("web", [1.0, 2.0]))
            assert answer.status in {200, 400, 404, 503}, answer
            if answer.status == 200:
                assert values_of(answer) == [1.0, 2.0]

    def http_leaves(self) -> None:
        client = Client(self.server.http)
        raw = infer_binary("web", fp32([1.0] * 50), [1, 50])
        client.send(raw * self.rng.randrange(1, 4) + raw[: self.rng.randrange(len(raw))])
        self.rng.choice([client.reset, client.close])()

    def http_half(self) -> None:
        with Client(self.server.http) as client:
            client.send(infer_json("web", [1.0]))
            client.half_close()
            with contextlib.suppress(Closed):
                assert client.answer().status in {200, 400, 404, 503}

    # ---- gRPC

    def unary(self) -> None:
        with self.connect() as client:
            self.check(client, client.call(infer_message([3.0], self.model())), [3.0])

    def many(self) -> None:
        """Many in flight, some given up; the others have their own answer."""
        with self.connect() as client:
            ids = {client.call(infer_message([float(k)], self.model())): float(k) for k in range(20)}
            dropped = self.rng.sample([*ids], 8)
            client.send(b"".join(map(rst, dropped)))
            for i, value in ids.items():
                if i not in dropped:
                    self.check(client, i, [value])

    def stream(self) -> None:
        with self.connect() as client:
            n = self.rng.randrange(1, 30)
            body = b"".join(message(infer_message([float(k)], self.model(), id=str(k))) for k in range(n))
            answer = client.answer(client.open(STREAM_CALL, body, end=True))
            assert answer.status == 0
            ids = [protos.ModelStreamInferResponse.FromString(raw).infer_response.id for raw in answer.messages]
            assert ids == [str(k) for k in range(n)]

    def decoupled(self) -> None:
        with self.connect() as client:
            i = client.open(STREAM_CALL, message(repeat_message(range(10), self.rng.randrange(2))) * 2, end=True)
            answer = client.answer(i)
            assert answer.status == 0
            assert len(answer.messages) in {2, 11, 20}

    def resets(self) -> None:
        with self.connect() as client:
            for _ in range(self.rng.randrange(1, 30)):
                kind = self.rng.randrange(3)
                i = client.new_id()
                if kind == 0:
                    client.send(unary(i, infer_message([1.0], self.model())) + rst(i))
                elif kind == 1:
                    client.send(head(i, STREAM_CALL) + data(i, message(repeat_message(range(50), 1)) * 2) + rst(i))
                else:
                    client.send(head(i) + rst(i))
            self.check(client, client.call(infer_message([2.0])), [2.0])

    def resets_midway(self) -> None:
        """After the first responses of a stream."""
        with self.connect() as client:
            i = client.open(STREAM_CALL, message(repeat_message(range(200), self.rng.randrange(2))))
            wanted = self.rng.randrange(1, 5)
            client.until(
                lambda: (
                    i in client.streams
                    and (client.streams[i].over or len(client.streams[i].messages) >= wanted or self.gone(client, i))
                )
            )
            client.send(rst(i))
            self.check(client, client.call(infer_message([2.0])), [2.0])

    @staticmethod
    def gone(client: Http2, i: int) -> bool:
        raw = client.streams[i].messages
        return bool(raw) and bool(protos.ModelStreamInferResponse.FromString(raw[0]).error_message)

    def half_message(self) -> None:
        whole = message(infer_message([1.0], self.model()))
        with self.connect() as client:
            i = client.open(self.rng.choice([CALL, STREAM_CALL]), whole[: self.rng.randrange(1, len(whole))],
                            end=self.rng.random() < 0.5)  # fmt: skip
            if self.rng.random() < 0.5:
                client.send(rst(i))
                self.check(client, client.call(infer_message([2.0])), [2.0])

    def disconnect(self) -> None:
        client = self.connect()
        for _ in range(self.rng.randrange(1, 10)):
            client.call(infer_message([1.0] * 100, self.model()))
            client.open(STREAM_CALL, message(repeat_message(range(30), 1)))
        self.rng.choice([client.reset, client.close])()
        client.close()

    def half_close(self) -> None:
        with self.connect() as client:
            client.call(infer_message([1.0], "slow"))
            client.half_close()
            client.drain()

    def deadline(self) -> None:
        timeout = ("grpc-timeout", f"{self.rng.randrange(4000)}u")
        with self.connect() as client:
            i = client.call(infer_message([1.0], "slow"), block(request_fields(INFER, timeout)))
            j = client.open(block(request_fields(STREAM, timeout)), message(repeat_message(range(99), 1)) * 2)
            for answer in (client.answer(i), client.answer(j)):
                assert answer.status in TIMED_OUT | GONE, answer

    def no_window(self) -> None:
        with self.connect({INITIAL_WINDOW: self.rng.choice([0, 1, 100])}) as client:
            i = client.call(bytes_message(bytes(10_000)))
            client.open(STREAM_CALL, message(repeat_message(range(500))))
            client.sync()
            if self.rng.random() < 0.5:
                client.send(window(i, 100_000))
                self.check(client, i)

    def cut_anywhere(self) -> None:
        whole = (
            PREFACE
            + settings()
            + unary(1, infer_message([1.0], self.model()))
            + head(3, STREAM_CALL)
            + data(3, message(repeat_message(range(10))) * 3)
        )
        client = self.connect(greet=False)
        client.send(whole[: self.rng.randrange(len(whole))])
        self.rng.choice([client.reset, client.close])()
        client.close()

    def goaway(self) -> None:
        with self.connect() as client:
            i = client.call(infer_message([1.0], self.model()))
            client.send(frame(7, 0, 0, bytes(8)))
            self.check(client, i, [1.0])
            client.drain()

    def broken(self) -> None:
        """An error of the connection with requests in flight."""
        with self.connect() as client:
            client.call(infer_message([1.0], "slow"))
            client.open(STREAM_CALL, message(repeat_message(range(30), 1)))
            client.send(frame(0, 0, 0, b"x"))
            client.drain()
            assert client.code == 1


class GrpcioChaos:
    """The same with a client library: cancels, deadlines, streams that are left."""

    def __init__(self, server: LocalServer, seed: int) -> None:
        self.rng = random.Random(seed)
        self.target = "{}:{}".format(*server.grpc)
        self.seen: Counter[str] = Counter()

    def run(self, n: int) -> None:
        with grpc.insecure_channel(self.target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            infer = channel.unary_unary(INFER)
            stream = channel.stream_stream(STREAM)
            for _ in range(n):
                kind = self.rng.randrange(3)
                if kind == 0:
                    future = infer.future(infer_message([1.0], "slow"))
                    if self.rng.random() < 0.7:
                        future.cancel()
                elif kind == 1:
                    future = infer.future(infer_message([1.0], "slow"), timeout=self.rng.random() * 0.01)
                else:
                    asked = (repeat_message(range(40), 1) for _ in range(3))
                    answers = stream(asked, timeout=20)
                    for _ in range(self.rng.randrange(3)):
                        next(answers, None)
                    answers.cancel()
                    continue
                try:
                    code = future.exception(timeout=30)
                except grpc.FutureCancelledError:
                    self.seen["cancelled"] += 1
                    continue
                assert code is None or code.code().value[0] in {1, 4} | GONE, code
                self.seen["answered"] += 1


def reload_at_random(server: LocalServer, versions: Versions, stop: threading.Event, seen: Counter[str]) -> None:
    rng = random.Random(1)
    while not stop.is_set() or seen["load"] < 5:
        name = rng.choice(NAMES)
        verb = rng.choice(["load", "load", "unload"])
        answer = ask(server.http, post(f"/v2/repository/models/{name}/{verb}"))
        assert answer.status in {200, 400}, answer
        seen[verb] += answer.status == 200
        versions.harvest()
    for name in NAMES:
        assert ask(server.http, post(f"/v2/repository/models/{name}/load")).status == 200


def counters() -> dict[str, int]:
    return {**calls.stats(), "blocks": memory.stats()["live_blocks"], "requests": requests.stats()["live_requests"]}


def storm(server: LocalServer, versions: Versions, rounds: int, seed: int) -> Counter[str]:
    errors: list[BaseException] = []
    changes: Counter[str] = Counter()
    stop = threading.Event()

    def guarded(work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except BaseException as error:
            errors.append(error)

    clients: list[Chaos | GrpcioChaos] = [Chaos(server, seed + k) for k in range(CLIENTS - 12)]
    clients += [GrpcioChaos(server, seed + 500 + k) for k in range(12)]
    threads = [threading.Thread(target=guarded, args=(client.run, rounds)) for client in clients]
    loader = threading.Thread(target=guarded, args=(reload_at_random, server, versions, stop, changes))
    for thread in (*threads, loader):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    loader.join()
    if errors:
        raise errors[0]
    return sum((client.seen for client in clients), changes)


@pytest.mark.soak
def test_chaos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = psutil.Process()
    root = with_repeat(repository(tmp_path, *MODELS))
    flags = ["--model-control-mode=explicit", "--grpc-http2-max-ping-strikes=0",
             *(f"--load-model={name}" for name in NAMES)]  # fmt: skip
    with every_version(monkeypatch) as versions, LocalServer(root, *flags) as server:
        grpc_native: Any = server.server.endpoints.grpc.native  # type: ignore[union-attr]

        def settled() -> bool:
            return server.call(
                lambda: (
                    len(server.native.connections) == len(grpc_native.connections) == 0  # type: ignore[attr-defined]
                    and server.native.in_flight == grpc_native.in_flight == 0
                )  # type: ignore[attr-defined]
            )

        storm(server, versions, 3, 1)
        assert until(settled)
        gc.collect()
        memory.trim()
        base, fds, rss = server.call(counters), own.num_fds(), own.memory_info().rss
        assert base["live_calls"] == base["live_items"] == base["live_outs"] == base["requests"] == 0

        seen = storm(server, versions, ROUNDS, 10_000)
        assert seen["load"] >= 5
        assert seen["unload"] >= 1
        assert until(settled)
        assert until(lambda: server.call(counters) == base), (server.call(counters), base)
        # Every request that a model took has one end.
        versions.harvest(everything=True)
        web = versions.by_model.pop("web")
        assert sum(versions.by_model.values()) == grpc_native.requests
        assert 0 < web <= server.native.requests  # type: ignore[attr-defined]
        assert versions.ends["success"] > 0 < versions.ends["CANCELED"]
        gc.collect()
        memory.trim()
        assert until(lambda: own.num_fds() <= fds), (own.num_fds(), fds)
        assert own.memory_info().rss < rss + 48 * MIB
        with Http2(server.grpc) as client:
            assert client.ask(infer_message([7.0])).values() == [7.0]
        assert ask(server.http, get("/v2/health/ready")).status == 200
    gc.collect()
    assert until(lambda: requests.stats()["live_requests"] == 0)


def test_the_loader_of_the_storm_changes_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the storm is one."""
    root = with_repeat(repository(tmp_path, *MODELS))
    stop = threading.Event()
    stop.set()
    seen: Counter[str] = Counter()
    with every_version(monkeypatch) as versions, LocalServer(root, "--model-control-mode=explicit") as server:
        reload_at_random(server, versions, stop, seen)
        with pytest.raises(Ended), Http2(server.grpc) as client:
            client.send(frame(0, 0, 0, b"x"))
            client.answer(1)
    assert seen["load"] >= 5
