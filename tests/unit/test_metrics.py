"""The scrape: Triton's names, help texts and labels; our histograms; the text itself through prometheus_client."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Counter
from prometheus_client import Histogram as ClientHistogram
from prometheus_client.parser import text_string_to_metric_families

from triton_fast.errors import InvalidArg
from triton_fast.frontends.metrics import handler
from triton_fast.observability import log
from triton_fast.observability.families import FAMILIES
from triton_fast.observability.host import HostSampler
from triton_fast.observability.metrics import REASONS, Metrics
from triton_fast.observability.metrics_config import MetricsConfig
from triton_fast.observability.snapshot import Histogram, ModelSnapshot, Summary

SNAPSHOT = ModelSnapshot(
    model="m", version="2", tags={"tag": 'v"1'}, success=3, failures={"BACKEND": 2}, inference_count=5, exec_count=4,
    duration_us={
        "request": 51_465, "queue": 66, "compute_input": 228, "compute_infer": 50_992, "compute_output": 167,
    },
    pending=1, load_seconds=0.25,
    histograms={"request": Histogram((100, 1_000_000), (1, 2, 4), 1_500_000_000)},
)  # fmt: skip
# Taken from a scrape of the real server with the same numbers; our own histograms come after it.
EXPECTED = r"""
# HELP nv_inference_request_success Number of successful inference requests, all batch sizes
# TYPE nv_inference_request_success counter
nv_inference_request_success{_tag="v\"1",model="m",version="2"} 3
# HELP nv_inference_request_failure Number of failed inference requests, all batch sizes
# TYPE nv_inference_request_failure counter
nv_inference_request_failure{_tag="v\"1",model="m",reason="REJECTED",version="2"} 0
nv_inference_request_failure{_tag="v\"1",model="m",reason="CANCELED",version="2"} 0
nv_inference_request_failure{_tag="v\"1",model="m",reason="BACKEND",version="2"} 2
nv_inference_request_failure{_tag="v\"1",model="m",reason="OTHER",version="2"} 0
# HELP nv_inference_count Number of inferences performed (does not include cached requests)
# TYPE nv_inference_count counter
nv_inference_count{_tag="v\"1",model="m",version="2"} 5
# HELP nv_inference_exec_count Number of model executions performed (does not include cached requests)
# TYPE nv_inference_exec_count counter
nv_inference_exec_count{_tag="v\"1",model="m",version="2"} 4
# HELP nv_inference_request_duration_us Cumulative inference request duration in microseconds (includes cached requests)
# TYPE nv_inference_request_duration_us counter
nv_inference_request_duration_us{_tag="v\"1",model="m",version="2"} 51465
# HELP nv_inference_queue_duration_us Cumulative inference queuing duration in microseconds (includes cached requests)
# TYPE nv_inference_queue_duration_us counter
nv_inference_queue_duration_us{_tag="v\"1",model="m",version="2"} 66
# HELP nv_inference_compute_input_duration_us Cumulative compute input duration in microseconds (does not include cached requests)
# TYPE nv_inference_compute_input_duration_us counter
nv_inference_compute_input_duration_us{_tag="v\"1",model="m",version="2"} 228
# HELP nv_inference_compute_infer_duration_us Cumulative compute inference duration in microseconds (does not include cached requests)
# TYPE nv_inference_compute_infer_duration_us counter
nv_inference_compute_infer_duration_us{_tag="v\"1",model="m",version="2"} 50992
# HELP nv_inference_compute_output_duration_us Cumulative inference compute output duration in microseconds (does not include cached requests)
# TYPE nv_inference_compute_output_duration_us counter
nv_inference_compute_output_duration_us{_tag="v\"1",model="m",version="2"} 167
# HELP nv_inference_pending_request_count Instantaneous number of pending requests awaiting execution per-model.
# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{_tag="v\"1",model="m",version="2"} 1
# HELP nv_model_load_duration_secs Model load time in seconds
# TYPE nv_model_load_duration_secs gauge
nv_model_load_duration_secs{_tag="v\"1",model="m",version="2"} 0.25
# HELP nv_pinned_memory_pool_total_bytes Pinned memory pool total memory size, in bytes
# TYPE nv_pinned_memory_pool_total_bytes gauge
nv_pinned_memory_pool_total_bytes 268435456
# HELP nv_pinned_memory_pool_used_bytes Pinned memory pool used memory size, in bytes
# TYPE nv_pinned_memory_pool_used_bytes gauge
nv_pinned_memory_pool_used_bytes 7
# HELP nv_cpu_utilization CPU utilization rate [0.0 - 1.0]
# TYPE nv_cpu_utilization gauge
nv_cpu_utilization 0.0
# HELP nv_cpu_memory_total_bytes CPU total memory (RAM), in bytes
# TYPE nv_cpu_memory_total_bytes gauge
nv_cpu_memory_total_bytes 102400
# HELP nv_cpu_memory_used_bytes CPU used memory (RAM), in bytes
# TYPE nv_cpu_memory_used_bytes gauge
nv_cpu_memory_used_bytes 61440
# HELP triton_fast_request_duration_seconds""".lstrip()  # noqa: E501


class Proc:
    """A made-up /proc and clock."""

    def __init__(self) -> None:
        self.now = 0
        self.files = {
            "/proc/stat": "cpu  10 0 10 70 10 0 0 0 0 0\ncpu0 1 1 1 1 1 1 1 1\n",
            "/proc/meminfo": "MemTotal:         100 kB\nMemFree:           10 kB\nMemAvailable:      40 kB\n",
        }

    def read(self, path: str) -> str:
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path]

    def sampler(self) -> HostSampler:
        return HostSampler(100, self.read, lambda: self.now)


def parsed(metrics: Metrics) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    text = metrics.render().decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            # The parser turns every counter into OpenMetrics, with a suffix that the text does not have.
            written = sample.name if f"\n{sample.name}" in text else sample.name.removesuffix("_total")
            series = found.setdefault(written, {})
            key = tuple(sorted(sample.labels.items()))
            assert key not in series
            series[key] = sample.value
    return found


def test_text_equals_the_real_servers() -> None:
    metrics = Metrics(lambda: [SNAPSHOT], host=Proc().sampler(), pinned=lambda: (268435456, 7))
    assert metrics.render().decode().startswith(EXPECTED)


def test_families_are_there_without_models() -> None:
    text = Metrics(list).render().decode()
    for name in ("nv_inference_request_success", "nv_inference_request_failure", "nv_model_load_duration_secs"):
        assert f"# TYPE {name} " in text
        assert f"\n{name}{{" not in text
    assert "nv_cpu_" not in text
    assert "_total{" not in text
    assert "_created" not in text


def test_histograms_are_cumulative_in_seconds() -> None:
    found = parsed(Metrics(lambda: [SNAPSHOT]))
    buckets = found["triton_fast_request_duration_seconds_bucket"]
    assert {dict(key)["le"]: value for key, value in buckets.items()} == {"0.0001": 1, "1.0": 3, "+Inf": 7}
    labels = (("_tag", 'v"1'), ("model", "m"), ("version", "2"))
    assert found["triton_fast_request_duration_seconds_count"] == {labels: 7}
    assert found["triton_fast_request_duration_seconds_sum"] == {labels: 1.5}
    assert "triton_fast_queue_duration_seconds_bucket" not in found
    text = Metrics(lambda: [SNAPSHOT]).render().decode()
    for phase in ("request", "queue", "compute_input", "compute_infer", "compute_output"):
        assert f"# TYPE triton_fast_{phase}_duration_seconds histogram\n" in text


def test_a_histogram_of_the_wrong_size_is_an_error() -> None:
    broken = ModelSnapshot("m", "1", histograms={"queue": Histogram((1, 2), (1, 2), 0)})
    with pytest.raises(ValueError, match="3 bounds with \\+Inf, 2 counts"):
        Metrics(lambda: [broken]).render()


def test_counter_latencies_false_stops_counters_only() -> None:
    found = parsed(Metrics(lambda: [SNAPSHOT], MetricsConfig(counter_latencies=False)))
    for name, series in found.items():
        if name.startswith("nv_inference") and "pending" not in name:
            assert set(series.values()) == {0}, name
    assert set(found["nv_inference_pending_request_count"].values()) == {1}
    assert max(found["triton_fast_request_duration_seconds_count"].values()) == 7


def test_models_come_and_go_and_one_scrape_is_one_snapshot() -> None:
    calls = []
    loaded = [SNAPSHOT, ModelSnapshot("n", "1")]

    def snapshot() -> list[ModelSnapshot]:
        calls.append(1)
        return list(loaded)

    metrics = Metrics(snapshot)
    assert calls == []
    found = parsed(metrics)
    assert calls == [1]
    assert len(found["nv_inference_request_failure"]) == 2 * len(REASONS)
    loaded.clear()
    assert "nv_inference_request_failure" not in parsed(metrics)


@given(st.text(), st.dictionaries(st.text(), st.text(), max_size=3))
def test_any_name_and_tag_gives_a_text_that_parses(model: str, tags: dict[str, str]) -> None:
    found = parsed(Metrics(lambda: [ModelSnapshot(model, "1", tags, success=9)]))
    ((key, value),) = found["nv_inference_request_success"].items()
    assert value == 9
    assert dict(key)["model"] == model
    assert {label for label in dict(key) if label not in ("model", "version")} <= {
        "_" + "".join(char if char.isascii() and char.isalnum() else "_" for char in tag).lstrip("_") for tag in tags
    }


def test_custom_collectors_share_the_scrape() -> None:
    metrics = Metrics(list)
    Counter("my_events", "Own events", ["kind"], registry=metrics.registry).labels("a").inc(2.5)
    ClientHistogram("my_time", "Own time", registry=metrics.registry, buckets=(1.0,)).observe(0.5)
    found = parsed(metrics)
    assert found["my_events_total"] == {(("kind", "a"),): 2.5}
    assert found["my_time_bucket"] == {(("le", "1.0"),): 1, (("le", "+Inf"),): 1}
    text = metrics.render().decode()
    assert "# TYPE my_events_total counter\n" in text
    assert "_created" not in text


def test_numbers_that_are_not_finite() -> None:
    found = metrics_text(ModelSnapshot("m", "1", load_seconds=float("inf")))
    assert 'nv_model_load_duration_secs{model="m",version="1"} +Inf\n' in found
    assert "} NaN\n" in metrics_text(ModelSnapshot("m", "1", load_seconds=float("nan")))


def metrics_text(snapshot: ModelSnapshot) -> str:
    return Metrics(lambda: [snapshot]).render().decode()


def test_utilisation_covers_the_time_since_the_last_interval() -> None:
    proc = Proc()
    sampler = proc.sampler()
    assert sampler.sample() == (0.0, 102400, 61440)
    proc.files["/proc/stat"] = "cpu  20 5 15 80 10 3 2 5 99 99\n"  # 30 busy, 10 idle more; guest time not counted
    proc.now = 99
    assert sampler.sample().utilization == 0.0
    proc.now = 100
    assert sampler.sample().utilization == 0.75
    proc.now = 200
    assert sampler.sample().utilization == 0.0
    proc.files["/proc/stat"] = "cpu  0 0 0 100 10 0 0 0\n"  # busy ran backwards
    proc.now = 300
    assert sampler.sample().utilization == 0.0


@pytest.mark.parametrize("text", ["", "cpu\n", "cpu  a b c d e f g h\n", "intr 1 2 3 4 5 6 7 8\n", None])
def test_a_machine_without_proc_has_families_but_no_series(text: str | None) -> None:
    proc = Proc()
    proc.files = {} if text is None else {"/proc/stat": text, "/proc/meminfo": text}
    sampler = proc.sampler()
    proc.now = 1000
    assert sampler.sample() == (None, None, None)
    scrape = Metrics(list, host=sampler).render().decode()
    assert "# TYPE nv_cpu_utilization gauge\n" in scrape
    assert "\nnv_cpu_utilization " not in scrape


def test_the_real_proc() -> None:
    figures = HostSampler(0).sample()
    if figures.utilization is not None:
        assert 0.0 <= figures.utilization <= 1.0
    if figures.memory_total is not None and figures.memory_used is not None:
        assert 0 < figures.memory_used < figures.memory_total


def test_what_ended_batches() -> None:
    batches = ModelSnapshot("m", "1", breaks={"max": 3, "delay": 0})
    text = Metrics(lambda: [batches, ModelSnapshot("n", "1")]).render().decode()
    assert text.endswith(
        "# HELP triton_fast_batch_break_total Batches that were executed, by what kept them from growing\n"
        "# TYPE triton_fast_batch_break_total counter\n"
        'triton_fast_batch_break_total{model="m",reason="max",version="1"} 3\n'
        'triton_fast_batch_break_total{model="m",reason="delay",version="1"} 0\n'
    )


def test_summaries() -> None:
    summaries = {
        phase: Summary(2, 30, ((0.5, 10), (0.999, 20), (1.0, None)))
        for phase in ("request", "queue", "compute_infer", "cache_hit", "cache_miss")
    }
    on = MetricsConfig(summary_latencies=True)
    with_cache = ModelSnapshot("c", "1", summaries=summaries, cache=(0, 0, 0, 0))
    text = Metrics(
        lambda: [ModelSnapshot("m", "1", {"a": "b"}, summaries=summaries), with_cache], on, cache=store
    ).render().decode()  # fmt: skip
    assert (
        "# HELP nv_inference_request_summary_us Summary of inference request duration in microseconds "
        "(includes cached requests)\n# TYPE nv_inference_request_summary_us summary\n"
        'nv_inference_request_summary_us_count{_a="b",model="m",version="1"} 2\n'
        'nv_inference_request_summary_us_sum{_a="b",model="m",version="1"} 30\n'
        'nv_inference_request_summary_us{_a="b",model="m",version="1",quantile="0.5"} 10\n'
        'nv_inference_request_summary_us{_a="b",model="m",version="1",quantile="0.999"} 20\n'
        'nv_inference_request_summary_us{_a="b",model="m",version="1",quantile="1"} NaN\n'
        "# HELP nv_inference_queue_summary_us "
    ) in text
    assert 'nv_inference_queue_summary_us_count{model="c",version="1"} 2\n' in text
    assert 'nv_cache_hit_summary_per_model_count{model="c",version="1"} 2\n' in text
    assert 'nv_cache_miss_summary_per_model_count{model="c",version="1"} 2\n' in text
    assert 'nv_inference_request_summary_us_count{model="c"' not in text
    assert 'nv_cache_hit_summary_per_model_count{_a="b"' not in text
    assert "nv_cache_hit_summary_per_model" not in Metrics(lambda: [with_cache], on).render().decode()
    assert "summary" not in Metrics(lambda: [with_cache], cache=store).render().decode()


def store() -> dict[str, int]:
    return dict.fromkeys(("budget", "used", "hits", "misses", "entries", "evictions", "lookup_ns", "insert_ns"), 8)


def test_first_responses() -> None:
    model = ModelSnapshot("m", "1", first_response=Histogram((0.5, 100.0), (1, 0, 4), 800))
    name = "nv_inference_first_response_histogram_ms"
    text = Metrics(lambda: [model], MetricsConfig(histogram_latencies=True)).render().decode()
    assert (
        f"# HELP {name} Duration from request to first response in milliseconds\n# TYPE {name} histogram\n"
        f'{name}_bucket{{model="m",version="1",le="0.5"}} 1\n{name}_bucket{{model="m",version="1",le="100"}} 1\n'
        f'{name}_bucket{{model="m",version="1",le="+Inf"}} 5\n'
        f'{name}_count{{model="m",version="1"}} 5\n{name}_sum{{model="m",version="1"}} 800\n'
    ) in text
    assert name not in Metrics(lambda: [model]).render().decode()


def test_namespace_and_order_of_labels() -> None:
    text = Metrics(lambda: [ModelSnapshot("m", "1", {"z": "t"}, namespace="/models/a")]).render().decode()
    labels = '_z="t",model="m",namespace="/models/a",'
    assert f'nv_inference_count{{{labels}version="1"}} 0\n' in text
    assert f'nv_inference_request_failure{{{labels}reason="OTHER",version="1"}} 0\n' in text


@pytest.mark.parametrize(
    "text, error, count",
    [("0.5:0.05,0.9:0.01", 0.01, 2), ("0.5:0", 0.0001, 1), ("0.5:0.1,0.5:0.2", 0.2, 1), ("1:1", 1.0, 1)],
)
def test_quantiles(text: str, error: float, count: int) -> None:
    config = MetricsConfig.from_pairs([("summary_latencies", "true"), ("summary_quantiles", text)])
    assert config.summary_error == error
    assert len(config.summary_quantiles) == count
    assert bool(config.notes) == (":0" in text and text.endswith(":0"))
    assert MetricsConfig.from_pairs([("summary_quantiles", text)]).summary_error == 0


def test_quantiles_that_are_none() -> None:
    many = ",".join(f"{i / 100}:0.1" for i in range(65))
    for text in ("", "0.5", "2:0.1", "a:b", "0.5:0.1,", "nan:0.1", "0.5:-1", many):
        with pytest.raises(InvalidArg, match=r"^invalid value for metrics setting summary_quantiles: "):
            MetricsConfig.from_pairs([("summary_quantiles", text)])


def test_the_page_of_all_families_is_the_table() -> None:
    """docs/metrics.md names each family with what it is and when it is there."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = [
        f"| `{family.name}` | {family.kind} | {', '.join(f'`{label}`' for label in family.labels)} | "
        f"{f'`{family.when}`' if family.when.startswith('--') and ',' not in family.when else family.when} | "
        f"{family.help} |\n"
        for family in FAMILIES
    ]
    assert "".join(rows) in page
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


# --- the metrics port ------------------------------------------------------------------------------------------


def test_paths_and_methods() -> None:
    handle = handler(lambda: b"x 1\n")
    text = [("Content-Type", "text/plain; charset=utf-8")]
    for path in ("/metrics", "/metrics/", "/metrics?x=1"):
        assert handle("GET", path) == (200, text, b"x 1\n")
    for path in ("/", "/metrics/x", "//metrics", "/Metrics", "", "\x00", "/%6detrics"):
        assert handle("GET", path) == (200, text, b"")
    for method in ("POST", "HEAD", "PUT", "DELETE", "get", ""):
        status, _, body = handle(method, "/metrics")
        assert (status, body) == (405, b'{"error":"Method Not Allowed"}')


def test_a_scrape_that_fails_is_500_and_logged(capsys: pytest.CaptureFixture[str]) -> None:
    def render() -> bytes:
        raise RuntimeError("a\nb")

    before = log.settings()
    status, _, body = handler(render)("GET", "/metrics")
    assert log.settings() == before
    assert status == 500
    assert b"RuntimeError" not in body
    assert capsys.readouterr().err.endswith('"metrics cannot be collected: RuntimeError: a\\nb"\n')
