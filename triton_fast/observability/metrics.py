"""Prometheus metrics: the text of a scrape, made from snapshots at that moment.

A registry object of its own, no global state. Knows nothing of HTTP, of models or of where counts come from.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry

from triton_fast.observability import families as f
from triton_fast.observability.custom import CustomMetrics
from triton_fast.observability.exposition import exposition, head, labels_text, number, plain
from triton_fast.observability.gpu import GpuSampler
from triton_fast.observability.host import HostSampler
from triton_fast.observability.metrics_config import MetricsConfig
from triton_fast.observability.snapshot import Histogram, ModelSnapshot, Summary

REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
_NOT_LABEL = re.compile(r"[^a-zA-Z0-9_]")


class Metrics:
    """Makes the text of a scrape.

    Parameters
    ----------
    snapshot
        Called once for each scrape, on the scraping thread; what it returns is gone through once.
    config
        ``counter_latencies`` false leaves Triton's per-request counters at 0.
    host
        Source of CPU and memory figures; None leaves those families out.
    gpu
        Source of GPU figures, likewise.
    pinned
        Total and used bytes of the pinned memory pool.
    cache
        Counters of the response cache (``NativeCache.stats``); None leaves its families out.
    custom
        Metrics that models make.
    lost
        Lines of the log that could not be written; None leaves the family out.
    """

    def __init__(
        self,
        snapshot: Callable[[], Iterable[ModelSnapshot]],
        config: MetricsConfig | None = None,
        host: HostSampler | None = None,
        pinned: Callable[[], tuple[int, int]] = lambda: (0, 0),
        *,
        gpu: GpuSampler | None = None,
        cache: Callable[[], Mapping[str, int]] | None = None,
        custom: CustomMetrics | None = None,
        lost: Callable[[], int] | None = None,
    ) -> None:
        self._lost = lost
        self._cache = cache
        self._snapshot = snapshot
        self._config = config or MetricsConfig()
        self._host = host
        self._gpu = gpu
        self._pinned = pinned
        self.custom = custom
        self.registry = CollectorRegistry()
        if custom is not None:
            self.registry.register(custom)

    def render(self) -> bytes:
        """Return the scrape in Prometheus text format 0.0.4.

        Models are written one after the other, each to all families, and between two of them other threads may run:
        however many there are, the loop waits for none of them but the current one.
        """
        page = _Page(self._families())
        for snapshot in self._snapshot():
            page.add(snapshot, counts=self._config.counter_latencies)
            time.sleep(0)
        self._add_server(page)
        return page.text() + exposition(self.registry.collect())

    def _families(self) -> list[f.Family]:
        left_out: list[f.Family] = []
        if self._cache is None:
            left_out += (f.CACHE_HITS, f.CACHE_HIT_TIME, f.CACHE_MISSES, f.CACHE_MISS_TIME, *f.STORE.values())
        if self._gpu is None:
            left_out += f.GPU.values()
        if self._host is None:
            left_out += f.CPU.values()
        if not self._config.histogram_latencies:
            left_out.append(f.FIRST_RESPONSE)
        if not self._config.summary_latencies:
            left_out += f.SUMMARIES.values()
        if not self._config.summary_latencies or self._cache is None:
            left_out += f.CACHE_SUMMARIES.values()
        if self._lost is None:
            left_out.append(f.LOST_LINES)
        gone = {family.name for family in left_out}
        return [family for family in f.FAMILIES if family.name not in gone]

    def _add_server(self, page: _Page) -> None:
        total, used = self._pinned()
        page.one(f.PINNED_TOTAL, total)
        page.one(f.PINNED_USED, used)
        if self._host is not None:
            figures = self._host.sample()
            for name, family in f.CPU.items():
                page.one(family, getattr(figures, name))
        for gpu in self._gpu.sample() if self._gpu is not None else ():
            for name, family in f.GPU.items():
                page.one(family, getattr(gpu, name), f'{{gpu_uuid="{gpu.uuid}"}}')
        if self._cache is not None:
            self._add_store(page, self._cache())
        if self._lost is not None:
            page.one(f.LOST_LINES, self._lost())

    @staticmethod
    def _add_store(page: _Page, stats: Mapping[str, int]) -> None:
        if not stats["budget"]:  # a remote cache
            for family in f.STORE.values():
                page.drop(family)
            return
        figures = {
            "util": stats["used"] / stats["budget"], "lookups": stats["hits"] + stats["misses"],
            "lookup_us": stats["lookup_ns"] // 1000, "insert_us": stats["insert_ns"] // 1000,
        }  # fmt: skip
        for name, family in f.STORE.items():
            page.one(family, figures[name] if name in figures else stats[name])


class _Page:
    """The text in the making: the lines of each family, in the order of the families."""

    def __init__(self, families: Iterable[f.Family]) -> None:
        self._parts: dict[str, list[str]] = {family.name: [head(family)] for family in families}

    def text(self) -> bytes:
        pieces = []
        for parts in self._parts.values():
            pieces.append("".join(parts).encode("utf-8", "replace"))
            time.sleep(0)
        return b"".join(pieces)

    def drop(self, family: f.Family) -> None:
        self._parts.pop(family.name, None)

    def one(self, family: f.Family, value: float | None, labels: str = "") -> None:
        if value is not None:
            self._parts[family.name].append(f"{family.name}{labels} {number(value)}\n")

    def add(self, snapshot: ModelSnapshot, *, counts: bool) -> None:
        """Write one model's lines. ``counts`` false: as if no request had come, in all that Triton counts."""
        parts, s = self._parts, snapshot
        rest = f'version="{s.version}"'
        front = labels_text(_labels(s))
        labels = f"{{{front},{rest}}}"

        def put(family: f.Family, value: float) -> None:
            parts[family.name].append(f"{family.name}{labels} {number(value)}\n")

        def count(family: f.Family, value: int) -> None:
            put(family, value if counts else 0)

        count(f.SUCCESS, s.success)
        name = f.FAILURE.name
        for reason in REASONS:
            value = s.failures.get(reason, 0) if counts else 0
            parts[name].append(f'{name}{{{front},reason="{reason}",{rest}}} {value}\n')
        count(f.INFERENCES, s.inference_count)
        count(f.EXECUTIONS, s.exec_count)
        for phase, family in f.DURATIONS.items():
            count(family, s.duration_us.get(phase, 0))
        put(f.PENDING, s.pending)
        put(f.LOAD_TIME, s.load_seconds)
        if s.cache is not None and f.CACHE_HITS.name in parts:
            for family, value in zip(_CACHE, s.cache, strict=True):
                count(family, value)
        open_labels = f"{front},{rest}"
        if s.first_response is not None and f.FIRST_RESPONSE.name in parts:
            bounds = tuple(map(plain, s.first_response.bounds))
            parts[f.FIRST_RESPONSE.name].append(
                _histogram(f.FIRST_RESPONSE.name, open_labels, bounds, s.first_response, plain(s.first_response.sum))
            )
        for phase, family in (*f.SUMMARIES.items(), *f.CACHE_SUMMARIES.items()):
            # As in Triton: where a cache answers, the summary of requests would mix two things.
            wanted = s.cache is None if phase == "request" else s.cache is not None or phase in f.PHASES
            if wanted and phase in s.summaries and family.name in parts:
                parts[family.name].append(_summary(family.name, open_labels, s.summaries[phase]))
        for phase, family in f.HISTOGRAMS.items():
            histogram = s.histograms.get(phase)
            if histogram is not None:
                bounds = _seconds(tuple(histogram.bounds))
                sum_text = number(histogram.sum / 1e9)
                parts[family.name].append(_histogram(family.name, open_labels, bounds, histogram, sum_text))
        name = f.BREAKS.name
        for reason, value in s.breaks.items():
            parts[name].append(f'{name}{{{front},reason="{reason}",{rest}}} {value}\n')


_CACHE = (f.CACHE_HITS, f.CACHE_HIT_TIME, f.CACHE_MISSES, f.CACHE_MISS_TIME)
_SECONDS: dict[tuple[float, ...], tuple[str, ...]] = {}


def _seconds(bounds_us: tuple[float, ...]) -> tuple[str, ...]:
    """Texts of bounds in seconds: the same few for all models."""
    if bounds_us not in _SECONDS:
        _SECONDS.clear()
        _SECONDS[bounds_us] = tuple(number(bound / 1e6) for bound in bounds_us)
    return _SECONDS[bounds_us]


def _labels(snapshot: ModelSnapshot) -> dict[str, str]:
    """Labels of a model's series but for its version, which comes last.

    What a label name may not hold becomes '_'; two leading ones are Prometheus's own.
    """
    tags = {f"_{_NOT_LABEL.sub('_', tag).lstrip('_')}": value for tag, value in snapshot.tags.items()}
    labels = {**tags, "model": snapshot.model}
    return {**labels, "namespace": snapshot.namespace} if snapshot.namespace else labels


def _histogram(name: str, labels: str, bounds: tuple[str, ...], histogram: Histogram, sum_text: str) -> str:
    counts = histogram.counts
    if len(bounds) + 1 != len(counts):
        raise ValueError(f"{name}: {len(bounds) + 1} bounds with +Inf, {len(counts)} counts")
    total, lines = 0, []
    front = f'{name}_bucket{{{labels},le="'
    for bound, count in zip((*bounds, "+Inf"), counts, strict=True):
        total += count
        lines.append(f'{front}{bound}"}} {total}\n')
    lines.append(f"{name}_count{{{labels}}} {total}\n{name}_sum{{{labels}}} {sum_text}\n")
    return "".join(lines)


def _summary(name: str, labels: str, summary: Summary) -> str:
    lines = [f"{name}_count{{{labels}}} {summary.count}\n{name}_sum{{{labels}}} {summary.sum_us}\n"]
    for quantile, us in summary.quantiles:
        value = "NaN" if us is None else us
        lines.append(f'{name}{{{labels},quantile="{plain(quantile)}"}} {value}\n')
    return "".join(lines)
