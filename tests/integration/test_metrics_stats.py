"""Statistics equal what was sent, exactly, and the metrics text says the same."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.helpers import onnx_models, raw
from tests.helpers.scrape import scrape
from tests.helpers.server import Model, ServerProcess, repository, until
from tests.integration.onnx_files import add, request

Labels = frozenset[tuple[str, str]]
ONE_BY_ONE = "instance_group [{ count: 1 kind: KIND_CPU }] dynamic_batching { %s }"
REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
PHASES = ("request", "queue", "compute_input", "compute_infer", "compute_output")
FAMILIES = {
    "nv_inference_request_success": "Number of successful inference requests, all batch sizes",
    "nv_inference_request_failure": "Number of failed inference requests, all batch sizes",
    "nv_inference_count": "Number of inferences performed (does not include cached requests)",
    "nv_inference_exec_count": "Number of model executions performed (does not include cached requests)",
    "nv_inference_request_duration_us":
        "Cumulative inference request duration in microseconds (includes cached requests)",
    "nv_inference_queue_duration_us":
        "Cumulative inference queuing duration in microseconds (includes cached requests)",
    "nv_inference_compute_input_duration_us":
        "Cumulative compute input duration in microseconds (does not include cached requests)",
    "nv_inference_compute_infer_duration_us":
        "Cumulative compute inference duration in microseconds (does not include cached requests)",
    "nv_inference_compute_output_duration_us":
        "Cumulative inference compute output duration in microseconds (does not include cached requests)",
    "nv_inference_pending_request_count": "Instantaneous number of pending requests awaiting execution per-model.",
    "nv_model_load_duration_secs": "Model load time in seconds",
}  # fmt: skip
GAUGES = {
    "nv_inference_pending_request_count", "nv_model_load_duration_secs", "nv_cpu_utilization",
    "nv_cpu_memory_total_bytes", "nv_cpu_memory_used_bytes",
}  # fmt: skip


def stats(process: ServerProcess, model: str) -> dict[str, Any]:
    (found,) = raw.ask(process.http, raw.get(f"/v2/models/{model}/stats")).json()["model_stats"]
    return dict(found)


def samples(process: ServerProcess, model: str = "") -> dict[tuple[str, Labels], float]:
    """Every sample of one model (or without a model), its own labels left out."""
    found = {}
    for family in text_string_to_metric_families(scrape(process)):
        for sample in family.samples:
            if sample.labels.get("model", "") == model:
                rest = frozenset(item for item in sample.labels.items() if item[0] not in ("model", "version"))
                # The parser gives counters the suffix that OpenMetrics wants.
                found[sample.name.removesuffix("_total"), rest] = sample.value
    return found


def counter(process: ServerProcess, model: str, name: str, **labels: str) -> float:
    return samples(process, model)[name, frozenset(labels.items())]


def failures(process: ServerProcess, model: str) -> dict[str, float]:
    found = samples(process, model)
    name = "nv_inference_request_failure"
    return {reason: found[name, frozenset([("reason", reason)])] for reason in REASONS}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("metrics")
    repository(
        root,
        Model("exact"), Model("idle"), Model("invalid"),
        Model("merged", delay_ms=100, extra=ONE_BY_ONE % ""),
        Model("full", max_batch=1, delay_ms=300, extra=ONE_BY_ONE % "default_queue_policy { max_queue_size: 1 }"),
        Model("gone", max_batch=1, delay_ms=1000, extra=ONE_BY_ONE % ""),
        Model("tagged", extra='metric_tags { key: "team" value: "a\\"b" }'),
    )  # fmt: skip
    add(root, "gather", onnx_models.gather())
    with ServerProcess(root) as process:
        yield process


def test_statistics_equal_what_was_sent(served: ServerProcess) -> None:
    sizes = [1, 1, 3, 8, 3, 1, 2]
    before = stats(served, "exact")
    assert (before["inference_count"], before["last_inference"], before["batch_stats"]) == (0, 0, [])
    for size in sizes:
        answer = raw.ask(served.http, raw.infer_json("exact", [0] * size, shape=[size, 1]))
        assert answer.status == 200
    found = stats(served, "exact")
    assert (found["inference_count"], found["execution_count"]) == (sum(sizes), len(sizes))
    spent = found["inference_stats"]
    assert {name: spent[name]["count"] for name in spent} == {
        "success": 7, "fail": 0, "queue": 7, "compute_input": 7, "compute_infer": 7, "compute_output": 7,
        "cache_hit": 0, "cache_miss": 0,
    }  # fmt: skip
    parts = sum(spent[name]["ns"] for name in ("queue", "compute_input", "compute_infer", "compute_output"))
    assert 0 < parts <= spent["success"]["ns"]
    rows = [(row["batch_size"], row["compute_infer"]["count"]) for row in found["batch_stats"]]
    assert rows == [(1, 3), (2, 1), (3, 2), (8, 1)]
    for phase in ("compute_input", "compute_infer", "compute_output"):
        assert sum(row[phase]["ns"] for row in found["batch_stats"]) == spent[phase]["ns"]
    assert found["last_inference"] > 1_600_000_000_000


def test_metrics_agree_with_statistics(served: ServerProcess) -> None:
    for _ in range(5):
        raw.ask(served.http, raw.infer_json("exact", [1, 2]))
    found, text = stats(served, "exact"), samples(served, "exact")
    spent, no = found["inference_stats"], frozenset[tuple[str, str]]()
    assert text["nv_inference_request_success", no] == spent["success"]["count"]
    assert text["nv_inference_count", no] == found["inference_count"]
    assert text["nv_inference_exec_count", no] == found["execution_count"]
    assert text["nv_inference_pending_request_count", no] == 0
    for name, phase in zip(PHASES, ("success", *PHASES[1:]), strict=True):
        # Each request's microseconds are whole.
        assert 0 <= spent[phase]["ns"] // 1000 - text[f"nv_inference_{name}_duration_us", no] <= spent[phase]["count"]
        family = f"triton_fast_{name}_duration_seconds"
        assert text[f"{family}_count", no] == spent[phase]["count"]
        assert text[f"{family}_sum", no] == pytest.approx(spent[phase]["ns"] / 1e9)
        buckets = [value for (key, _), value in text.items() if key == f"{family}_bucket"]
        assert buckets == sorted(buckets)
        assert buckets[-1] == spent[phase]["count"]


def test_families(served: ServerProcess) -> None:
    found = {}
    for family in text_string_to_metric_families(scrape(served)):
        found[family.name] = family
    for name, text in FAMILIES.items():
        family = found[name]
        assert family.documentation == text
        assert family.type == ("gauge" if name in GAUGES else "counter")
        models = {sample.labels["model"] for sample in family.samples}
        assert {"exact", "idle", "gather"} <= models
        assert {sample.labels["version"] for sample in family.samples} == {"1"}
    for name in GAUGES:
        assert found[name].type == "gauge"
    assert found["nv_cpu_memory_total_bytes"].samples[0].value > 1e6
    assert all(found[f"triton_fast_{phase}_duration_seconds"].type == "histogram" for phase in PHASES)


def test_idle_models_have_series(served: ServerProcess) -> None:
    found = samples(served, "idle")
    assert found["nv_inference_request_success", frozenset()] == 0
    assert found["nv_model_load_duration_secs", frozenset()] > 0
    assert failures(served, "idle") == dict.fromkeys(REASONS, 0)


def test_tags(served: ServerProcess) -> None:
    name = "nv_inference_request_success"
    assert counter(served, "tagged", name, _team='a"b') == 0


def test_requests_that_never_reach_the_model_are_not_counted(served: ServerProcess) -> None:
    for wrong in (
        raw.infer_json("invalid", [0] * 9, shape=[9, 1]),
        raw.infer_json("invalid", [0], datatype="INT32"),
        raw.post(raw.infer_path("invalid"), b"{"),
    ):
        assert raw.ask(served.http, wrong).status >= 400
    found = stats(served, "invalid")
    assert found["inference_stats"]["fail"]["count"] == found["inference_stats"]["success"]["count"] == 0
    assert failures(served, "invalid") == dict.fromkeys(REASONS, 0)


def ask_at_once(process: ServerProcess, model: str, count: int) -> list[raw.Answer]:
    answers: list[raw.Answer] = []
    threads = [
        threading.Thread(target=lambda: answers.append(raw.ask(process.http, raw.infer_json(model, [1]))))
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_merged_requests(served: ServerProcess) -> None:
    assert [answer.status for answer in ask_at_once(served, "merged", 12)] == [200] * 12
    found = stats(served, "merged")
    assert found["inference_count"] == found["inference_stats"]["success"]["count"] == 12
    rows = {row["batch_size"]: row["compute_infer"]["count"] for row in found["batch_stats"]}
    assert sum(size * count for size, count in rows.items()) == 12
    assert sum(rows.values()) == found["execution_count"] < 12


def test_rejected(served: ServerProcess) -> None:
    statuses = [answer.status for answer in ask_at_once(served, "full", 6)]
    refused = statuses.count(503)
    assert refused + statuses.count(200) == 6
    assert refused
    assert failures(served, "full") == {"REJECTED": refused, "CANCELED": 0, "BACKEND": 0, "OTHER": 0}
    found = stats(served, "full")["inference_stats"]
    assert (found["success"]["count"], found["fail"]["count"]) == (6 - refused, refused)


def test_backend(served: ServerProcess) -> None:
    for index in (99, 3, 98):
        raw.ask(served.http, request("gather", {"INDEX": np.array([[index]], np.int64)}))
    assert failures(served, "gather") == {"REJECTED": 0, "CANCELED": 0, "BACKEND": 2, "OTHER": 0}
    found = stats(served, "gather")["inference_stats"]
    assert (found["success"]["count"], found["fail"]["count"]) == (1, 2)


def test_canceled(served: ServerProcess) -> None:
    waiting = 'nv_inference_pending_request_count{model="gone",version="1"} 1\n'
    with raw.Client(served.http) as first, raw.Client(served.http) as second:
        # One executes for a second; the other waits and is given up.
        first.send(raw.infer_json("gone", [1]))
        second.send(raw.infer_json("gone", [1]))
        assert until(lambda: waiting in scrape(served))
        second.reset()
        assert until(lambda: failures(served, "gone")["CANCELED"] == 1)
        assert first.answer().status == 200
    assert waiting not in scrape(served)
    assert failures(served, "gone") == {"REJECTED": 0, "CANCELED": 1, "BACKEND": 0, "OTHER": 0}
    found = stats(served, "gone")
    assert found["inference_count"] == found["execution_count"] == 1


def test_series_end_with_the_model(tmp_path: Path) -> None:
    repository(tmp_path, Model("a"), Model("b"))
    with ServerProcess(tmp_path, "--model-control-mode=explicit", "--load-model=*") as process:
        raw.ask(process.http, raw.infer_json("a", [1]))
        assert counter(process, "a", "nv_inference_request_success") == 1
        assert raw.ask(process.http, raw.post("/v2/repository/models/a/unload")).status == 200
        assert until(lambda: samples(process, "a") == {})
        assert raw.ask(process.http, raw.get("/v2/models/a/stats")).status == 400
        raw.ask(process.http, raw.post("/v2/repository/models/a/load"))
        assert counter(process, "a", "nv_inference_request_success") == 0
        assert samples(process, "b")


def test_metrics_flags(tmp_path: Path) -> None:
    repository(tmp_path, Model("a"))
    with ServerProcess(tmp_path, "--allow-cpu-metrics=false", "--metrics-config=counter_latencies=false") as process:
        raw.ask(process.http, raw.infer_json("a", [1]))
        assert "nv_cpu_utilization" not in scrape(process)
        assert counter(process, "a", "nv_inference_request_success") == 0
        assert stats(process, "a")["inference_count"] == 1
    with ServerProcess(tmp_path, "--allow-metrics=false") as process:
        assert process.metrics == ("", 0)
        assert "Started Metrics Service" not in process.log()
