"""Cancels, timeouts and disconnects at random across every scheduler: each request that is waited for is answered once
with what it asked for or with a reason, and nothing is left over.

``make soak`` makes TF_SOAK_REQUESTS requests (100 000 are the release's); ``make test`` a few of them.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.h2raw import STREAM_CALL, Http2, message, repeat_message, rst
from tests.helpers.load import Tally
from tests.helpers.raw import Client, Closed, ask, fp32, get, infer_binary, infer_json, post, values_of
from tests.helpers.server import LocalServer, Model, repository, until, with_repeat
from triton_fast import protos
from triton_fast._native.core import memory
from triton_fast._native.core import request as requests
from triton_fast._native.grpc import call as calls

REQUESTS = int(os.environ.get("TF_SOAK_REQUESTS", "3000"))
CLIENTS = 24
TIMEOUT_US = 8000
LATE_MS = (1, 2, 5, 10, 20, 50)
TWO = "instance_group [ { kind: KIND_CPU count: 2 } ]"
CONTROLS = """control_input [
  { name: "START" control [ { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } ] },
  { name: "READY" control [ { kind: CONTROL_SEQUENCE_READY int32_false_true: [ 0, 1 ] } ] },
  { name: "END" control [ { kind: CONTROL_SEQUENCE_END int32_false_true: [ 0, 1 ] } ] },
  { name: "ID" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } ] } ]
  max_sequence_idle_microseconds: 30000"""
MODELS = (
    Model("plain", delay_ms=1, extra=TWO),
    Model("levels", delay_ms=2, extra=f"""dynamic_batching {{
        max_queue_delay_microseconds: 300 priority_levels: 3 default_priority_level: 2
        default_queue_policy {{ max_queue_size: 100 default_timeout_microseconds: {TIMEOUT_US}
                                allow_timeout_override: true }}
        priority_queue_policy {{ key: 3 value {{ timeout_action: DELAY default_timeout_microseconds: 1000 }} }} }}"""),
    Model("ordered", delay_ms=1, extra=f"dynamic_batching {{ preserve_ordering: true }} {TWO}"),
    Model("direct", max_batch=4, extra=f"sequence_batching {{ direct {{ }} {CONTROLS} }} {TWO}"),
    Model("oldest", max_batch=4,
          extra=f"sequence_batching {{ oldest {{ max_candidate_sequences: 8 }} {CONTROLS} }} {TWO}"),
    Model("cached", delay_ms=1, extra="response_cache { enable: true }"),
    Model("split", max_batch=2, delay_ms=1,
          extra='parameters { key: "batch_splitting" value { string_value: "true" } }' + TWO),
)  # fmt: skip
ENSEMBLE = """platform: "ensemble" max_batch_size: 8
input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1 ] } ]
ensemble_scheduling { step [
  { model_name: "plain" model_version: -1 input_map { key: "INPUT0" value: "INPUT0" }
    output_map { key: "OUTPUT0" value: "a" } },
  { model_name: "levels" model_version: -1 input_map { key: "INPUT0" value: "a" }
    output_map { key: "OUTPUT0" value: "b" } },
  { model_name: "ordered" model_version: -1 input_map { key: "INPUT0" value: "b" }
    output_map { key: "OUTPUT0" value: "OUTPUT0" } } ] }
"""
FLAGS = ("--cache-config=local,size=4194304",)
SINGLE = ("plain", "levels", "ordered", "cached", "split", "ensemble")
SEQUENCES = ("direct", "oldest")
# What an answer may say besides what was asked for.
REASONS = ("timeout expired", "Exceeds maximum queue size", "cancel", "START flag", "not found in", "sequence")


def infer(values: list[float], model: str, rows: int = 1, id: str = "", **parameters: int | bool) -> bytes:
    """A ModelInferRequest of FP32 rows with parameters."""
    made = protos.ModelInferRequest(model_name=model, id=id)
    made.inputs.add(name="INPUT0", datatype="FP32", shape=[rows, len(values) // rows])
    made.raw_input_contents.append(fp32(values))
    for key, value in parameters.items():
        setattr(made.parameters[key], "bool_param" if isinstance(value, bool) else "int64_param", value)
    return bytes(made.SerializeToString())


def write(root: Path) -> Path:
    repository(root, *MODELS)
    (root / "ensemble" / "1").mkdir(parents=True)
    (root / "ensemble" / "config.pbtxt").write_text(ENSEMBLE)
    return with_repeat(root)


class Clients:
    """One client: each turn makes a connection, does something odd with it and checks whatever it waits for."""

    def __init__(self, server: LocalServer, seed: int, tally: Tally, late_ms: list[float]) -> None:
        self.server, self.rng, self.tally, self.late_ms = server, random.Random(seed), tally, late_ms
        self.sequence = seed * 1_000_000
        self.turns: list[Callable[[], int]] = [
            self.http, self.http_leaves, self.generate, self.many, self.rows, self.deadlines, self.stream,
            self.decoupled, self.sequences, self.sequences_left,
        ]  # fmt: skip

    def run(self, share: int) -> None:
        made = 0
        while made < share:
            turn = self.rng.choice(self.turns)
            n = turn()
            made += n
            self.tally.add(turn.__name__, n)

    def model(self) -> str:
        return self.rng.choice(SINGLE)

    def more(self) -> dict[str, Any]:
        """Parameters of a request."""
        more: dict[str, Any] = {}
        if self.rng.random() < 0.3:
            more["priority"] = self.rng.randrange(4)
        if self.rng.random() < 0.3:
            more["timeout"] = self.rng.choice([1, 500, 3000])
        return more

    def check(self, client: Http2, i: int, values: list[float]) -> None:
        self.tally.add("awaited")
        answer = client.answer(i)
        if answer.status == 0:
            assert answer.values() == values
            self.tally.add("right")
        else:
            assert any(reason in answer.text for reason in REASONS), answer
            self.tally.add("refused")
        assert client.late == 0

    def http(self) -> int:
        value = float(self.rng.randrange(40))
        with Client(self.server.http) as client:
            answer = client.ask(infer_json(self.model(), [value, 2.0], parameters=self.more()))
        self.tally.add("awaited")
        if answer.status == 200:
            assert values_of(answer) == [value, 2.0]
            self.tally.add("right")
        else:
            assert any(reason in answer.error for reason in REASONS), answer
            self.tally.add("refused")
        return 1

    def http_leaves(self) -> int:
        n = self.rng.randrange(1, 4)
        raw = infer_binary(self.model(), fp32([1.0] * 50), [1, 50])
        client = Client(self.server.http)
        client.send(raw * n + raw[: self.rng.randrange(len(raw))])
        self.rng.choice([client.reset, client.close])()
        return n

    def generate(self) -> int:
        """A stream of events that is read to its end, or left."""
        n = self.rng.randrange(1, 20)
        body = json.dumps({"IN": list(range(n)), "DELAY": [self.rng.randrange(2)] * n, "WAIT": 0}).encode()
        client = Client(self.server.http)
        client.send(post("/v2/models/repeat/generate_stream", body))
        if self.rng.random() < 0.5:
            self.rng.choice([client.reset, client.close])()
            return 1
        with client, contextlib.suppress(Closed):
            answer = client.answer()
            self.tally.add("awaited")
            assert answer.body.count(b"data: ") == n, answer
            self.tally.add("right")
        return 1

    def many(self) -> int:
        """Many in flight, some given up; the others have their own answer."""
        with Http2(self.server.grpc) as client:
            n = self.rng.randrange(1, 20)
            ids = {client.call(infer([float(k)], self.model(), **self.more())): float(k) for k in range(n)}
            dropped = self.rng.sample([*ids], self.rng.randrange(n + 1))
            client.send(b"".join(map(rst, dropped)))
            if self.rng.random() < 0.2:
                client.reset()
                return n
            for i, value in ids.items():
                if i not in dropped:
                    self.check(client, i, [value])
        return n

    def rows(self) -> int:
        """More rows than one batch may have."""
        with Http2(self.server.grpc) as client:
            n = self.rng.randrange(1, 20)
            values = [float(k) for k in range(n)]
            i, j = (client.call(infer(values, "split", rows=n)) for _ in range(2))
            client.send(rst(i))
            self.check(client, j, values)
        return 2

    def deadlines(self) -> int:
        """A full queue: who is refused for the time is refused in time."""
        with Http2(self.server.grpc) as client:
            sent = {}
            for _ in range(40):
                sent[client.call(infer([1.0] * 8, "levels"))] = time.monotonic()
            for i, began in sent.items():
                self.check(client, i, [1.0] * 8)
                if "Request timeout expired" in client.answer(i).text:
                    self.late_ms.append((client.streams[i].ended_at - began) * 1000 - TIMEOUT_US / 1000)
        return 40

    def stream(self) -> int:
        with Http2(self.server.grpc) as client:
            n = self.rng.randrange(1, 20)
            body = b"".join(message(infer([float(k)], self.model(), id=str(k))) for k in range(n))
            i = client.open(STREAM_CALL, body, end=True)
            if self.rng.random() < 0.3:
                client.send(rst(i))
                self.check(client, client.call(infer([2.0], "plain")), [2.0])
                return n + 1
            self.tally.add("awaited", n)
            answer = client.answer(i)
            assert answer.status == 0
            assert len(answer.messages) == n
            for k, raw in enumerate(answer.messages):
                got = protos.ModelStreamInferResponse.FromString(raw)
                assert got.infer_response.id == str(k)
                good = not got.error_message
                assert good or any(reason in got.error_message for reason in REASONS), got
                self.tally.add("right" if good else "refused")
        return n

    def decoupled(self) -> int:
        with Http2(self.server.grpc) as client:
            i = client.open(STREAM_CALL, message(repeat_message(range(10), self.rng.randrange(2))) * 2, end=True)
            if self.rng.random() < 0.5:
                client.send(rst(i))
                client.sync()
                return 2
            self.tally.add("awaited", 2)
            answer = client.answer(i)
            assert answer.status == 0
            assert len(answer.messages) == 20
            self.tally.add("right", 2)
        return 2

    def new_sequence(self) -> int:
        self.sequence += 1
        return self.sequence

    def frame(self, model: str, sequence: int, value: float, k: int, n: int) -> bytes:
        return infer(
            [value], model, sequence_id=sequence, sequence_start=k == 0, sequence_end=k == n - 1, **self.more()
        )

    def sequences(self) -> int:
        """Some sequences, their requests mixed on one connection."""
        model = self.rng.choice(SEQUENCES)
        with Http2(self.server.grpc) as client:
            length = self.rng.randrange(1, 6)
            names = [self.new_sequence() for _ in range(self.rng.randrange(1, 5))]
            ids = {}
            for k in range(length):
                for name in names:
                    ids[client.call(self.frame(model, name, float(name % 1000 + k), k, length))] = float(
                        name % 1000 + k
                    )
            for i, value in ids.items():
                self.check(client, i, [value])
        return len(ids)

    def sequences_left(self) -> int:
        """Sequences without an end: reset, left by their client, or just idle."""
        model = self.rng.choice(SEQUENCES)
        client = Http2(self.server.grpc)
        length = self.rng.randrange(1, 6)
        name = self.new_sequence()
        ids = [client.call(self.frame(model, name, 1.0, k, 99)) for k in range(length)]
        kind = self.rng.randrange(3)
        if kind == 0:
            client.send(rst(self.rng.choice(ids)))
            client.sync()
        elif kind == 1:
            client.reset()
        else:
            self.check(client, ids[-1], [1.0])
        client.close()
        return length


def counters() -> dict[str, int]:
    return {**calls.stats(), "blocks": memory.stats()["live_blocks"], "requests": requests.stats()["live_requests"]}


def storm(server: LocalServer, n: int, seed: int, tally: Tally, late_ms: list[float]) -> None:
    errors: list[BaseException] = []

    def guarded(client: Clients) -> None:
        try:
            client.run(n // CLIENTS)
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=guarded, args=(Clients(server, seed + k, tally, late_ms),)) for k in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def histogram(late_ms: list[float]) -> str:
    """How late the refusals came that a deadline brought, as clients saw it."""
    counts = Counter(next((bound for bound in LATE_MS if late <= bound), None) for late in late_ms)
    return ", ".join([*(f"<= {bound} ms: {counts[bound]}" for bound in LATE_MS), f"more: {counts[None]}"])


@pytest.mark.soak
def test_cancels_timeouts_and_disconnects_in_every_scheduler(tmp_path: Path) -> None:
    late_ms: list[float] = []
    tally = Tally()
    with LocalServer(write(tmp_path), *FLAGS) as server:
        grpc_native: Any = server.server.endpoints.grpc.native  # type: ignore[union-attr]

        def settled() -> bool:
            return server.call(
                lambda: (
                    len(server.native.connections) == len(grpc_native.connections) == 0  # type: ignore[attr-defined]
                    and server.native.in_flight == grpc_native.in_flight == 0
                )  # type: ignore[attr-defined]
            )

        storm(server, 500, 1, Tally(), [])
        assert until(settled)
        gc.collect()
        memory.trim()
        base = {**server.call(counters), "blocks": 0}
        assert base["live_calls"] == base["live_items"] == base["live_outs"] == base["requests"] == 0
        storm(server, REQUESTS, 10_000, tally, late_ms)
        assert until(settled)
        # What the cache holds stays.
        assert until(lambda: {**server.call(counters), "blocks": 0} == base), server.call(counters)
        for model in (*SINGLE, *SEQUENCES, "repeat"):
            assert server.snapshot(model)["pending"] == 0, model
        counts = tally.counts
        native = server.server.plane.native_model("levels", -1)
        late = ", ".join(f"<= {bound // 1000} us: {n}" if bound else f"more: {n}" for bound, n in native.late)
        print(f"{dict(counts)}\nrefused after their deadline by {late}\nas clients saw it: {histogram(late_ms)}")
        assert counts["awaited"] == counts["right"] + counts["refused"]
        assert counts["right"] > counts["refused"]
        assert late_ms
        assert ask(server.http, get("/v2/health/ready")).status == 200
        with Http2(server.grpc) as client:
            for model in SINGLE:
                assert client.ask(infer([7.0], model)).values() == [7.0]
    gc.collect()
    assert until(lambda: requests.stats()["live_requests"] == 0)
