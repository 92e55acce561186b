"""Prometheus metrics: Triton's families and our latency histograms, made from snapshots at the moment of a scrape.

A registry object of its own, no global state. Knows nothing of HTTP, of models or of where counts come from.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Metric

from triton_fast.observability.custom import CustomMetrics
from triton_fast.observability.host import HostSampler
from triton_fast.observability.metrics_config import MetricsConfig

CONTENT_TYPE = "text/plain; charset=utf-8"
REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
PHASES = ("request", "queue", "compute_input", "compute_infer", "compute_output")
_NOT_LABEL = re.compile(r"[^a-zA-Z0-9_]")
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})


@dataclass(frozen=True)
class Histogram:
    """One phase's latencies: upper ``bounds_us``, ``counts`` of each bucket alone with +Inf last, and their sum."""

    bounds_us: tuple[int, ...]
    counts: tuple[int, ...]
    sum_ns: int


@dataclass(frozen=True)
class ModelSnapshot:
    """Counters of one loaded model version at one moment; times in ns. ``histograms`` is keyed by ``PHASES``.

    ``breaks`` are batches by what ended them; empty where requests share none.
    """

    model: str
    version: str
    tags: Mapping[str, str] = field(default_factory=dict)
    success: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    inference_count: int = 0
    exec_count: int = 0
    request_ns: int = 0
    queue_ns: int = 0
    compute_input_ns: int = 0
    compute_infer_ns: int = 0
    compute_output_ns: int = 0
    pending: int = 0
    load_seconds: float = 0.0
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    breaks: Mapping[str, int] = field(default_factory=dict)
    # hits, their ns, misses, their ns; None: the response cache does not answer for this model
    cache: tuple[int, int, int, int] | None = None
    # The repository, where each is a namespace; else empty.
    namespace: str = ""


@dataclass(frozen=True)
class _Family:
    name: str
    kind: str
    help: str
    value: Callable[[ModelSnapshot], float]


_SUFFIX = " duration in microseconds "
# Names and texts are Triton's, letter for letter.
_FAMILIES = (
    _Family(
        "nv_inference_count",
        "counter",
        "Number of inferences performed (does not include cached requests)",
        lambda s: s.inference_count,
    ),
    _Family(
        "nv_inference_exec_count",
        "counter",
        "Number of model executions performed (does not include cached requests)",
        lambda s: s.exec_count,
    ),
    _Family(
        "nv_inference_request_duration_us",
        "counter",
        f"Cumulative inference request{_SUFFIX}(includes cached requests)",
        lambda s: s.request_ns // 1000,
    ),
    _Family(
        "nv_inference_queue_duration_us",
        "counter",
        f"Cumulative inference queuing{_SUFFIX}(includes cached requests)",
        lambda s: s.queue_ns // 1000,
    ),
    _Family(
        "nv_inference_compute_input_duration_us",
        "counter",
        f"Cumulative compute input{_SUFFIX}(does not include cached requests)",
        lambda s: s.compute_input_ns // 1000,
    ),
    _Family(
        "nv_inference_compute_infer_duration_us",
        "counter",
        f"Cumulative compute inference{_SUFFIX}(does not include cached requests)",
        lambda s: s.compute_infer_ns // 1000,
    ),
    _Family(
        "nv_inference_compute_output_duration_us",
        "counter",
        f"Cumulative inference compute output{_SUFFIX}(does not include cached requests)",
        lambda s: s.compute_output_ns // 1000,
    ),
    _Family(
        "nv_inference_pending_request_count",
        "gauge",
        "Instantaneous number of pending requests awaiting execution per-model.",
        lambda s: s.pending,
    ),
    _Family("nv_model_load_duration_secs", "gauge", "Model load time in seconds", lambda s: s.load_seconds),
)
_CACHE_FAMILIES: tuple[tuple[str, str, Callable[[tuple[int, int, int, int]], int]], ...] = (
    ("nv_cache_num_hits_per_model", "Number of cache hits per model", lambda cache: cache[0]),
    ("nv_cache_hit_duration_per_model", "Total cache hit duration per model, in microseconds",
     lambda cache: cache[1] // 1000),
    ("nv_cache_num_misses_per_model", "Number of cache misses per model", lambda cache: cache[2]),
    ("nv_cache_miss_duration_per_model", "Total cache miss (insert+lookup) duration per model, in microseconds",
     lambda cache: cache[3] // 1000),
)  # fmt: skip
# Of the local cache as a whole; Triton's has these too, and leaves them at 0.
_STORE_FAMILIES: tuple[tuple[str, str, Callable[[Mapping[str, int]], float]], ...] = (
    ("nv_cache_util", "Cache utilization [0.0 - 1.0]", lambda s: s["used"] / s["budget"]),
    ("nv_cache_num_entries", "Number of responses stored in response cache", lambda s: s["entries"]),
    ("nv_cache_num_hits", "Number of cache hits in response cache", lambda s: s["hits"]),
    ("nv_cache_num_misses", "Number of cache misses in response cache", lambda s: s["misses"]),
    ("nv_cache_num_lookups", "Number of cache lookups in response cache", lambda s: s["hits"] + s["misses"]),
    ("nv_cache_num_evictions", "Number of cache evictions in response cache", lambda s: s["evictions"]),
    ("nv_cache_lookup_duration", "Total cache lookup duration (hit and miss), in microseconds",
     lambda s: s["lookup_ns"] // 1000),
    ("nv_cache_insertion_duration", "Total cache insertion duration, in microseconds",
     lambda s: s["insert_ns"] // 1000),
)  # fmt: skip
_PHASE_HELP = {
    "request": "End-to-end time of successful requests",
    "queue": "Time requests waited before execution",
    "compute_input": "Time taken to prepare the inputs of an execution",
    "compute_infer": "Time taken by the model itself",
    "compute_output": "Time taken to hand out the outputs of an execution",
}


class Metrics:
    """Makes the text of a scrape.

    Parameters
    ----------
    snapshot
        Called once for each scrape, on the scraping thread.
    config
        ``counter_latencies`` false leaves Triton's per-request counters at 0.
    host
        Source of CPU and memory figures; None leaves those families out.
    pinned
        Total and used bytes of the pinned memory pool.
    cache
        Counters of the response cache (``NativeCache.stats``); None leaves its families out.
    """

    def __init__(
        self,
        snapshot: Callable[[], Iterable[ModelSnapshot]],
        config: MetricsConfig | None = None,
        host: HostSampler | None = None,
        pinned: Callable[[], tuple[int, int]] = lambda: (0, 0),
        *,
        cache: Callable[[], Mapping[str, int]] | None = None,
        custom: CustomMetrics | None = None,
    ) -> None:
        self._cache = cache
        self._snapshot = snapshot
        self._counts = config is None or config.counter_latencies
        self._host = host
        self._pinned = pinned
        self.custom = custom
        self.registry = CollectorRegistry()
        self.registry.register(self)
        if custom is not None:
            self.registry.register(custom)

    def collect(self) -> Iterator[Metric]:
        """Yield every family, in Triton's order; prometheus_client calls this."""
        models = [(_labels(snapshot), snapshot) for snapshot in self._snapshot()]
        yield self._success(models)
        yield self._failure(models)
        yield from self._families("counter", models)
        if self._cache is not None:
            yield from self._caches(models, self._cache())
        yield from self._families("gauge", models)
        yield from self._pool()
        if self._host is not None:
            yield from _host_families(self._host)
        for phase in PHASES:
            yield _histogram(phase, models)
        yield _breaks(models)

    def describe(self) -> list[Metric]:
        """Return nothing: registering must not take a snapshot."""
        return []

    def render(self) -> bytes:
        """Return the scrape in Prometheus text format 0.0.4."""
        return exposition(self.registry.collect())

    def _success(self, models: Sequence[tuple[dict[str, str], ModelSnapshot]]) -> Metric:
        name = "nv_inference_request_success"
        metric = Metric(name, "Number of successful inference requests, all batch sizes", "counter")
        for labels, snapshot in models:
            metric.add_sample(name, labels, snapshot.success if self._counts else 0)
        return metric

    def _failure(self, models: Sequence[tuple[dict[str, str], ModelSnapshot]]) -> Metric:
        name = "nv_inference_request_failure"
        metric = Metric(name, "Number of failed inference requests, all batch sizes", "counter")
        for labels, snapshot in models:
            for reason in REASONS:
                count = snapshot.failures.get(reason, 0) if self._counts else 0
                metric.add_sample(name, {**labels, "reason": reason}, count)
        return metric

    def _families(self, kind: str, models: Sequence[tuple[dict[str, str], ModelSnapshot]]) -> Iterator[Metric]:
        for family in _FAMILIES:
            if family.kind != kind:
                continue
            metric = Metric(family.name, family.help, family.kind)
            for labels, snapshot in models:
                counted = self._counts or family.kind != "counter"
                metric.add_sample(family.name, labels, family.value(snapshot) if counted else 0)
            yield metric

    def _caches(
        self, models: Sequence[tuple[dict[str, str], ModelSnapshot]], stats: Mapping[str, int]
    ) -> Iterator[Metric]:
        for name, text, value in _CACHE_FAMILIES:
            metric = Metric(name, text, "counter")
            for labels, snapshot in models:
                if snapshot.cache is not None:
                    metric.add_sample(name, labels, value(snapshot.cache) if self._counts else 0)
            yield metric
        if stats["budget"]:
            for name, text, figure in _STORE_FAMILIES:
                yield _gauge(name, text, figure(stats))

    def _pool(self) -> Iterator[Metric]:
        total, used = self._pinned()
        for word, value in (("total", total), ("used", used)):
            yield _gauge(
                f"nv_pinned_memory_pool_{word}_bytes", f"Pinned memory pool {word} memory size, in bytes", value
            )


def _gauge(name: str, text: str, value: float | None) -> Metric:
    metric = Metric(name, text, "gauge")
    if value is not None:
        metric.add_sample(name, {}, value)
    return metric


def _host_families(host: HostSampler) -> Iterator[Metric]:
    figures = host.sample()
    yield _gauge("nv_cpu_utilization", "CPU utilization rate [0.0 - 1.0]", figures.utilization)
    yield _gauge("nv_cpu_memory_total_bytes", "CPU total memory (RAM), in bytes", figures.memory_total)
    yield _gauge("nv_cpu_memory_used_bytes", "CPU used memory (RAM), in bytes", figures.memory_used)


def _labels(snapshot: ModelSnapshot) -> dict[str, str]:
    """Labels of a model's series. What a label name may not hold becomes '_'; two leading ones are Prometheus's own."""
    tags = {f"_{_NOT_LABEL.sub('_', tag).lstrip('_')}": value for tag, value in snapshot.tags.items()}
    where = {"namespace": snapshot.namespace} if snapshot.namespace else {}
    return {**tags, "model": snapshot.model, **where, "version": snapshot.version}


def _histogram(phase: str, models: Sequence[tuple[dict[str, str], ModelSnapshot]]) -> Metric:
    name = f"triton_fast_{phase}_duration_seconds"
    metric = Metric(name, f"{_PHASE_HELP[phase]}, in seconds", "histogram")
    for labels, snapshot in models:
        histogram = snapshot.histograms.get(phase)
        if histogram is None:
            continue
        bounds = [_number(bound / 1e6) for bound in histogram.bounds_us] + ["+Inf"]
        if len(bounds) != len(histogram.counts):
            raise ValueError(f"{name}: {len(bounds)} bounds with +Inf, {len(histogram.counts)} counts")
        total = 0
        for bound, count in zip(bounds, histogram.counts, strict=True):
            total += count
            metric.add_sample(f"{name}_bucket", {**labels, "le": bound}, total)
        metric.add_sample(f"{name}_count", labels, total)
        metric.add_sample(f"{name}_sum", labels, histogram.sum_ns / 1e9)
    return metric


def _breaks(models: Sequence[tuple[dict[str, str], ModelSnapshot]]) -> Metric:
    metric = Metric("tf_batch_break", "Batches that were executed, by what kept them from growing", "counter")
    for labels, snapshot in models:
        for reason, count in snapshot.breaks.items():
            metric.add_sample("tf_batch_break_total", {**labels, "reason": reason}, count)
    return metric


def exposition(families: Iterable[Metric]) -> bytes:
    """Return ``families`` as Prometheus text 0.0.4.

    prometheus_client's own writer appends ``_total`` to the name of every counter family; Triton's have no such
    suffix, so the lines are written here. ``_created`` series of foreign collectors are left out, as that format has
    no place for them.
    """
    lines: list[str] = []
    for family in families:
        name = family.name
        if family.type == "counter" and any(sample.name == f"{name}_total" for sample in family.samples):
            name += "_total"
        kind = _TYPES.get(family.type, family.type)
        lines.append(f"# HELP {name} {family.documentation.translate(_HELP_ESCAPES)}\n# TYPE {name} {kind}\n")
        for sample in family.samples:
            if sample.name != f"{family.name}_created":
                lines.append(f"{sample.name}{_label_text(sample.labels)} {_number(sample.value)}\n")
    return "".join(lines).encode("utf-8", "replace")


_TYPES = {"unknown": "untyped", "info": "gauge", "stateset": "gauge", "gaugehistogram": "histogram"}


def _label_text(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{key}="{value.translate(_ESCAPES)}"' for key, value in sorted(labels.items())) + "}"


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(int(value))
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else repr(float(value))
