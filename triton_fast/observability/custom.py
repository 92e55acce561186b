"""Metrics that models make: families of counters, gauges and histograms, shared by name among their makers.

A series lives as long as somebody holds it, a family as long as anybody holds it or one of its series. Texts are
Triton's. Source: spec/metrics.md section 4, observed on the real server. Knows nothing of models or workers.
"""

from __future__ import annotations

import itertools
import math
import re
import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import Metric

from triton_fast.errors import InvalidArg, Unsupported

KINDS = ("counter", "gauge", "histogram")
# A model that makes a series for each request must not eat the server's memory.
MAX_FAMILIES = 4096
MAX_SERIES = 16384
MAX_LABELS = 64
MAX_CHARS = 1 << 24  # of a scrape, about, in all series together
MAX_BUCKETS = 512
RESERVED = (
    "nv_inference_", "nv_gpu_", "nv_cpu_", "nv_energy_", "nv_cache_", "nv_model_load_", "nv_pinned_memory_",
    "triton_fast_",
)  # fmt: skip
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
_SAMPLES = ("bucket", "count", "sum")
Labels = tuple[tuple[str, str], ...]


@dataclass(eq=False)
class _Series:
    labels: Labels
    holders: int = 0
    value: float = 0.0
    bounds: tuple[float, ...] = ()
    counts: list[int] = field(default_factory=list)


@dataclass(eq=False)
class _Family:
    name: str
    description: str
    kind: str
    holders: int = 0
    series: dict[Labels, _Series] = field(default_factory=dict)


class CustomMetrics:
    """All families of a server; each maker has a ``CustomScope``. It is a collector of prometheus_client.

    The prefixes in ``RESERVED`` are those of the server's own families.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._families: dict[str, _Family] = {}
        self._n_series = 0
        self._chars = 0

    def scope(self) -> CustomScope:
        """Return the view of one maker, whose end lets go of everything it still holds."""
        return CustomScope(self)

    def collect(self) -> Iterator[Metric]:
        with self.lock:
            taken = [_as_metric(family) for _, family in sorted(self._families.items())]
        yield from taken

    def values(self, name: str) -> list[tuple[dict[str, str], float]]:
        """Return labels and value of each series of a counter or gauge; empty when there is no such family."""
        with self.lock:
            family = self._families.get(name)
            if family is None or family.kind == "histogram":
                return []
            return [(dict(series.labels), series.value) for series in family.series.values()]

    def describe(self) -> list[Metric]:
        return []

    def check_name(self, name: str, *, own: bool) -> None:
        if not _NAME.fullmatch(name) or len(name) > 256:
            raise InvalidArg("Invalid metric name")
        if not own and name.startswith(RESERVED):
            raise InvalidArg(f"Invalid metric name: '{name}' looks like one of the server's own")

    # With the lock held, by scopes only.

    def hold_family(self, name: str, description: str, kind: str) -> _Family:
        family = self._families.get(name)
        if family is None:
            if len(self._families) >= MAX_FAMILIES:
                raise Unsupported(f"more than {MAX_FAMILIES} metric families")
            self._check_samples(name, kind)
            family = self._families[name] = _Family(name, description, kind)
        elif family.kind != kind:
            raise InvalidArg("Family name already exists with different type")
        family.holders += 1
        return family

    def _check_samples(self, name: str, kind: str) -> None:
        """A family's name must not be that of a histogram's samples, lest a scrape have a series twice."""
        base, _, suffix = name.rpartition("_")
        above = self._families.get(base) if suffix in _SAMPLES else None
        below = [f"{name}_{one}" for one in _SAMPLES] if kind == "histogram" else []
        if (above is not None and above.kind == "histogram") or any(one in self._families for one in below):
            raise InvalidArg("Family name already exists with different type")

    def drop_family(self, family: _Family) -> None:
        family.holders -= 1
        self._tidy(family)

    def hold_series(self, family: _Family, labels: Labels, bounds: tuple[float, ...]) -> _Series:
        series = family.series.get(labels)
        if series is None:
            if self._n_series >= MAX_SERIES:
                raise Unsupported(f"more than {MAX_SERIES} metrics made by models")
            if self._chars + _chars(labels, bounds) > MAX_CHARS:
                raise Unsupported(f"labels and buckets of metrics made by models take more than {MAX_CHARS} characters")
            series = _Series(labels, bounds=bounds, counts=[0] * (len(bounds) + 1))
            family.series[labels] = series
            self._n_series += 1
            self._chars += _chars(labels, bounds)
        series.holders += 1
        return series

    def drop_series(self, family: _Family, series: _Series) -> None:
        series.holders -= 1
        if series.holders == 0:
            del family.series[series.labels]
            self._n_series -= 1
            self._chars -= _chars(series.labels, series.bounds)
        self._tidy(family)

    def _tidy(self, family: _Family) -> None:
        if family.holders <= 0 and not family.series and self._families.get(family.name) is family:
            del self._families[family.name]


class CustomScope:
    """What one maker holds, under numbers. All of it may be called from any thread."""

    def __init__(self, metrics: CustomMetrics) -> None:
        self._metrics = metrics
        self._numbers = itertools.count(1)
        self._families: dict[int, _Family] = {}
        self._series: dict[int, tuple[_Family, _Series]] = {}

    def family(self, name: str, description: str, kind: str, *, own: bool = False) -> int:
        """Return a number for the family, made or shared. Raises InvalidArg; ``own``: the name may be the server's."""
        if kind not in KINDS:
            raise InvalidArg(f"unknown kind of metric '{kind[:64]}'")
        self._metrics.check_name(name, own=own)
        with self._metrics.lock:
            number = next(self._numbers)
            self._families[number] = self._metrics.hold_family(name, description, kind)
            return number

    def metric(self, family: int, labels: Mapping[str, str], buckets: Sequence[float] | None = None) -> int:
        """Return a number for the series of these labels, made or shared. Raises InvalidArg."""
        key = tuple(sorted(labels.items()))
        if len(key) > MAX_LABELS or not all(_LABEL.fullmatch(name) for name, _ in key):
            raise InvalidArg("Invalid label name")
        bounds = tuple(buckets or ())
        if len(bounds) > MAX_BUCKETS or any(math.isnan(bound) for bound in bounds):
            raise InvalidArg(f"a histogram has at most {MAX_BUCKETS} buckets, each a number")
        if any(low >= high for low, high in itertools.pairwise(bounds)):
            raise InvalidArg("Bucket Boundaries must be strictly sorted")
        with self._metrics.lock:
            held = self._family_of(family)
            if held.kind != "histogram" and bounds:
                raise InvalidArg("Failed to create metric. Unexpected buckets found.")
            if held.kind == "histogram" and not bounds:
                raise InvalidArg("Failed to create metric. Missing required buckets.")
            if any(name == "le" for name, _ in key) and held.kind == "histogram":
                raise InvalidArg("Invalid label name")
            number = next(self._numbers)
            # +Inf is every histogram's last bucket, given or not.
            finite = tuple(bound for bound in bounds if not math.isinf(bound) or bound < 0)
            self._series[number] = held, self._metrics.hold_series(held, key, finite)
            return number

    def update(self, metric: int, op: str, value: float) -> None:
        """Increment, set or observe. Raises InvalidArg or Unsupported with Triton's texts."""
        with self._metrics.lock:
            family, series = self._series_of(metric)
            kind = family.kind
            allowed = {"increment": ("counter", "gauge"), "set": ("gauge",), "observe": ("histogram",)}.get(op)
            if allowed is None:
                raise InvalidArg(f"unknown operation on a metric '{op[:64]}'")
            if kind not in allowed:
                raise Unsupported(f"TRITONSERVER_METRIC_KIND_{kind.upper()} does not support {op.capitalize()}")
            if kind == "counter" and not value >= 0:
                raise InvalidArg(
                    "TRITONSERVER_METRIC_KIND_COUNTER can only be incremented monotonically by non-negative values."
                )
            if op == "observe":
                series.counts[bisect_left(series.bounds, value)] += 1
            series.value = value if op == "set" else series.value + value

    def value(self, metric: int) -> float:
        with self._metrics.lock:
            family, series = self._series_of(metric)
            if family.kind == "histogram":
                raise Unsupported("TRITONSERVER_METRIC_KIND_HISTOGRAM does not support Value")
            return series.value

    def drop_metric(self, metric: int) -> None:
        with self._metrics.lock:
            held = self._series.pop(metric, None)
            if held is not None:
                self._metrics.drop_series(*held)

    def drop_family(self, family: int) -> None:
        with self._metrics.lock:
            held = self._families.pop(family, None)
            if held is not None:
                self._metrics.drop_family(held)

    def close(self) -> None:
        """Let go of everything. Idempotent."""
        with self._metrics.lock:
            for family, series in self._series.values():
                self._metrics.drop_series(family, series)
            self._series.clear()
            for family in self._families.values():
                self._metrics.drop_family(family)
            self._families.clear()

    def _family_of(self, number: int) -> _Family:
        if number not in self._families:
            raise InvalidArg("no such metric family")
        return self._families[number]

    def _series_of(self, number: int) -> tuple[_Family, _Series]:
        if number not in self._series:
            raise InvalidArg("no such metric")
        return self._series[number]


def _chars(labels: Labels, bounds: tuple[float, ...]) -> int:
    return (len(bounds) + 1) * (16 + sum(len(name) + len(value) for name, value in labels))


def _as_metric(family: _Family) -> Metric:
    metric = Metric(family.name, family.description, family.kind)
    for series in family.series.values():
        labels = dict(series.labels)
        if family.kind != "histogram":
            metric.add_sample(family.name, labels, _plain(series.value))
            continue
        count = sum(series.counts)
        metric.add_sample(f"{family.name}_count", labels, count)
        metric.add_sample(f"{family.name}_sum", labels, _plain(series.value))
        total = 0
        for bound, counted in zip((*series.bounds, math.inf), series.counts, strict=True):
            total += counted
            le = "+Inf" if bound == math.inf else "-Inf" if bound == -math.inf else _text(bound)
            metric.add_sample(f"{family.name}_bucket", {**labels, "le": le}, total)
    return metric


def _plain(value: float) -> float:
    """Return a whole number as such: 3, not 3.0, as Triton prints it."""
    return int(value) if math.isfinite(value) and value.is_integer() and abs(value) < 2**53 else value


def _text(value: float) -> str:
    return str(_plain(value))
