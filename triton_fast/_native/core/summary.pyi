"""Quantiles of durations over a sliding minute. Source: core/summary.pyx."""

from collections.abc import Iterable

WINDOW_SECONDS: int
"""How long a value counts; a fifth of it is forgotten at a time."""

class LatencySummary:
    """Quantiles of the last minute's durations. Its methods take the time, so that a test needs no clock.

    Parameters
    ----------
    error
        How far, as a part of all values, the rank of an answer may be from the quantile asked for.
    """

    def __init__(self, error: float) -> None: ...
    def add(self, values_ns: Iterable[int], now_ns: int) -> None:
        """Add durations in ns that ended at ``now_ns``, monotonic ns that do not run backwards."""

    def quantile(self, quantile: float, now_ns: int) -> int | None:
        """Return the duration in whole microseconds, or None when the last minute had none."""

    @property
    def count(self) -> int:
        """Values ever added."""

    @property
    def sum_us(self) -> int:
        """Their sum in microseconds, each cut to a whole number."""

    @property
    def entries(self) -> int:
        """Entries that the window takes, each of 12 bytes."""

def bench(n: int) -> int:
    """Add n durations of the shape that real ones have (bench/micro only); return how many."""
