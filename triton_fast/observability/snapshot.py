"""What a scrape shows of one model version at one moment. Plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Histogram:
    """Upper ``bounds``, ``counts`` of each bucket alone with +Inf last, and the sum of all values."""

    bounds: Sequence[float]
    counts: Sequence[int]
    sum: float


@dataclass(frozen=True)
class Summary:
    """``quantiles``: (quantile, us); us is None when nothing was measured lately."""

    count: int
    sum_us: int
    quantiles: Sequence[tuple[float, int | None]]


@dataclass(frozen=True)
class ModelSnapshot:
    """Counters of one loaded model version; times in whole microseconds added per request.

    ``duration_us`` and ``histograms`` (in us, their sums in ns) are keyed by ``families.PHASES``, ``summaries`` by
    these and cache_hit, cache_miss. ``breaks`` are batches by what ended them; empty where requests share none.
    """

    model: str
    version: str
    tags: Mapping[str, str] = field(default_factory=dict)
    namespace: str = ""  # the model repository, where models of several may have the same name
    success: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    inference_count: int = 0
    exec_count: int = 0
    duration_us: Mapping[str, int] = field(default_factory=dict)
    pending: int = 0
    load_seconds: float = 0.0
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    summaries: Mapping[str, Summary] = field(default_factory=dict)
    first_response: Histogram | None = None  # in ms
    breaks: Mapping[str, int] = field(default_factory=dict)
    # hits, their us, misses, their us; None: the response cache does not answer for this model
    cache: tuple[int, int, int, int] | None = None
