"""Which requests share an execution: by scheduler, batch size, shape and optional inputs. Seen from the statistics."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.helpers import raw
from tests.helpers.server import Model, ServerProcess, repository

# A delay that no test waits for: what is sent at once proves that the size was reached.
LONG_US = 60_000_000
ONE = "instance_group [{ count: 1 kind: KIND_CPU }]"
OPTIONAL = """
backend: "identity"
max_batch_size: 4
input [{ name: "INPUT0" data_type: TYPE_INT32 dims: [1] },
       { name: "INPUT1" data_type: TYPE_INT32 dims: [1] optional: true }]
output [{ name: "OUTPUT0" data_type: TYPE_INT32 dims: [1] },
        { name: "OUTPUT1" data_type: TYPE_INT32 dims: [1] }]
"""


def dynamic(**fields: int) -> str:
    text = " ".join(f"{name}: {value}" for name, value in fields.items())
    return f"{ONE} dynamic_batching {{ {text} }}"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = repository(
        tmp_path_factory.mktemp("batching"),
        Model("alone", delay_ms=20, extra=ONE),
        Model("preferred", extra=dynamic(preferred_batch_size=4, max_queue_delay_microseconds=LONG_US)),
        Model("whole", max_batch=4, extra=dynamic(max_queue_delay_microseconds=LONG_US)),
        Model("lone", extra=dynamic(max_queue_delay_microseconds=50_000)),
        Model("shapes", max_batch=4, extra=dynamic(max_queue_delay_microseconds=100_000)),
    )
    (root / "optional" / "1").mkdir(parents=True)
    (root / "optional" / "config.pbtxt").write_text(OPTIONAL + dynamic(max_queue_delay_microseconds=100_000))
    with ServerProcess(root) as process:
        yield process


def ask(process: ServerProcess, requests: Sequence[bytes]) -> list[raw.Answer]:
    """Send all at once and return the answers in the order of the requests."""
    answers: dict[int, raw.Answer] = {}

    def one(k: int) -> None:
        answers[k] = raw.ask(process.http, requests[k])

    threads = [threading.Thread(target=one, args=(k,)) for k in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answers[k] for k in range(len(requests))]


def batches(process: ServerProcess, model: str) -> dict[int, int]:
    (found,) = raw.ask(process.http, raw.get(f"/v2/models/{model}/stats")).json()["model_stats"]
    return {row["batch_size"]: row["compute_infer"]["count"] for row in found["batch_stats"]}


def numbers(model: str, count: int) -> list[bytes]:
    return [raw.infer_json(model, [k]) for k in range(count)]


def test_without_a_scheduler_each_executes_alone(served: ServerProcess) -> None:
    answers = ask(served, numbers("alone", 6))
    assert [raw.values_of(answer) for answer in answers] == [[k] for k in range(6)]
    assert batches(served, "alone") == {1: 6}


def test_a_preferred_size_goes_at_once(served: ServerProcess) -> None:
    answers = ask(served, numbers("preferred", 4))
    assert [raw.values_of(answer) for answer in answers] == [[k] for k in range(4)]
    assert batches(served, "preferred") == {4: 1}


def test_the_largest_size_goes_at_once(served: ServerProcess) -> None:
    rows = [raw.infer_json("whole", [k] * n, shape=[n, 1]) for k, n in ((5, 3), (6, 1))]
    assert [raw.values_of(answer) for answer in ask(served, rows)] == [[5] * 3, [6]]
    assert batches(served, "whole") == {4: 1}


def test_a_lone_request_waits_for_the_delay(served: ServerProcess) -> None:
    assert raw.values_of(raw.ask(served.http, raw.infer_json("lone", [1]))) == [1]
    (found,) = raw.ask(served.http, raw.get("/v2/models/lone/stats")).json()["model_stats"]
    assert found["inference_stats"]["queue"]["ns"] >= 50_000_000


def test_shapes_do_not_mix(served: ServerProcess) -> None:
    given = [[1.0], [2.0, 2.0], [3.0, 3.0, 3.0]]
    answers = ask(served, [raw.infer_json("shapes", values) for values in given])
    assert [raw.values_of(answer) for answer in answers] == given
    assert batches(served, "shapes") == {1: 3}


def test_optional_inputs_do_not_mix(served: ServerProcess) -> None:
    def request(*names: str) -> bytes:
        tensors: list[dict[str, Any]] = [
            {"name": name, "datatype": "INT32", "shape": [1, 1], "data": [7]} for name in names
        ]
        wanted = [{"name": name.replace("IN", "OUT")} for name in names]
        return raw.post(raw.infer_path("optional"), json.dumps({"inputs": tensors, "outputs": wanted}).encode())

    answers = ask(served, [request("INPUT0"), request("INPUT0", "INPUT1")])
    assert [[row["data"] for row in answer.json()["outputs"]] for answer in answers] == [[[7]], [[7], [7]]]
    assert batches(served, "optional") == {1: 2}
