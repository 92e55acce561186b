"""Quantiles: within the error that was asked for, of what the last minute had, whatever the values are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triton_fast._native.core.summary import WINDOW_SECONDS, LatencySummary

S = 1_000_000_000
QUANTILES = (0.0, 0.001, 0.01, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)


def rank_error(values_us, quantile, answer):
    """How far, as a part of all values, the ranks that ``answer`` has lie from the quantile's; numpy is the oracle."""
    ordered = np.sort(values_us)
    target = max(1, int(np.ceil(quantile * len(ordered))))
    lowest, highest = np.searchsorted(ordered, answer, "left") + 1, np.searchsorted(ordered, answer, "right")
    assert highest >= lowest, f"{answer} is not one of the values"
    return max(0, lowest - target, target - highest) / len(ordered)


def shapes(rng, n):
    yield "uniform", rng.integers(0, 10_000_000, n)
    yield "lognormal", np.minimum(rng.lognormal(6, 2, n), 1e9).astype(np.int64)
    yield "ascending", np.arange(n)
    yield "descending", np.arange(n)[::-1]
    yield "few", rng.choice([3, 4, 5, 1000], n, p=[0.5, 0.3, 0.199, 0.001])
    yield "equal", np.full(n, 77)
    yield "two humps", np.concatenate([rng.integers(10, 20, n - n // 50), rng.integers(10**6, 10**7, n // 50)])
    yield "zigzag", np.arange(n) * 7919 % n
    yield "narrow", 100_000 + rng.integers(0, 1000, n)


@pytest.mark.parametrize("error", [0.0005, 0.001, 0.01, 0.05])
def test_the_rank_is_within_the_error(error):
    rng = np.random.default_rng(int(error * 1e6))
    for name, values in shapes(rng, 60_000):
        summary = LatencySummary(error)
        summary.add((values * 1000 + 999).tolist(), 0)
        for quantile in QUANTILES:
            found = rank_error(values, quantile, summary.quantile(quantile, 0))
            assert found <= error, (name, quantile)
        assert summary.count == len(values)
        assert summary.sum_us == values.sum()
        # What it takes depends on the error, not on how many values there were.
        assert summary.entries <= 6 / error, name


@given(
    st.lists(st.lists(st.integers(0, 60), max_size=3000), min_size=1, max_size=5),
    st.sampled_from([0.001, 0.02, 0.1, 0.3]),
    st.floats(0, 1),
)
@settings(max_examples=150, deadline=None)
def test_parts_of_the_window_add_up(parts, error, quantile):
    summary = LatencySummary(error)
    for number, part in enumerate(parts):
        summary.add([value * 1000 for value in part], number * 12 * S)
    values = np.array([value for part in parts for value in part])
    answer = summary.quantile(quantile, (len(parts) - 1) * 12 * S)
    if len(values) == 0:
        assert answer is None
    else:
        assert rank_error(values, quantile, answer) <= error + 1e-12


def test_many_parts_with_much_in_them():
    rng = np.random.default_rng(5)
    summary, kept = LatencySummary(0.001), []
    for number in range(12):
        values = rng.lognormal(4 + number % 3, 1, 20_000 * (1 + number % 2)).astype(np.int64)
        summary.add((values * 1000).tolist(), number * 12 * S)
        kept.append(values)
        last = np.concatenate(kept[-5:])
        for quantile in QUANTILES:
            assert rank_error(last, quantile, summary.quantile(quantile, number * 12 * S)) <= 0.001


def test_what_is_older_than_a_minute_is_forgotten():
    summary = LatencySummary(0.01)
    summary.add([5000] * 10, 0)
    summary.add([9000], 12 * S)
    assert summary.quantile(0.5, 12 * S) == 5
    assert summary.quantile(0.5, 59 * S) == 5
    assert summary.quantile(0.5, WINDOW_SECONDS * S) == 9
    assert summary.quantile(0.5, (WINDOW_SECONDS + 12) * S) is None
    assert (summary.count, summary.sum_us, summary.entries) == (11, 59, 0)
    summary.add([1000], 10**6 * S)
    assert summary.quantile(0.5, 10**6 * S) == 1


def test_values_that_no_clock_gives():
    summary = LatencySummary(0.01)
    assert summary.quantile(0.5, 0) is None
    summary.add([-5_000_000, 2**62], 0)
    assert summary.sum_us == 2**62 // 1000
    assert summary.quantile(0, 0) == 0
    assert LatencySummary(1.0).quantile(1, 5) is None
    for error in (0, -1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="error must be"):
            LatencySummary(error)
