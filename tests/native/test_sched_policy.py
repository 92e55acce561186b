"""The batching decision against a slow obvious model, and its promises one by one. No queue, no threads, no clock."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from triton_fast._native.sched.queue_driver import decide

MAX_TAKE = 4096


def obvious(sizes, oldest, now, *, max_batch, delay_ns, preferred, single):
    """(taken, wait_until, reason) from the sums of all prefixes."""
    if not sizes:
        return 0, 0, None
    if single:
        return 1, 0, "max"
    overdue = delay_ns > 0 and now - oldest >= delay_ns
    largest = max_batch if overdue else max(preferred, default=max_batch)
    fits = [n for n in range(1, len(sizes) + 1) if n == 1 or sum(sizes[:n]) <= max_batch]
    # The first prefix that reaches the largest size wanted closes the batch.
    closing = [n for n in fits if sum(sizes[:n]) >= min(largest, max_batch)]
    reach = closing[0] if closing else fits[-1]
    met = [n for n in range(1, reach + 1) if sum(sizes[:n]) in preferred]
    cannot_grow = bool(closing) or reach < len(sizes)
    if met and not overdue:
        return met[-1], 0, "max" if cannot_grow and met[-1] == reach else "preferred"
    if cannot_grow:
        return reach, 0, "max"
    if delay_ns == 0:
        return reach, 0, "empty"
    if overdue:
        return reach, 0, "delay"
    return 0, oldest + delay_ns, None


@st.composite
def cases(draw):
    max_batch = draw(st.integers(1, 40))
    sizes = draw(st.lists(st.integers(1, max_batch), max_size=30))
    preferred = draw(st.lists(st.integers(1, max_batch), max_size=4))
    delay = draw(st.sampled_from([0, 1, 1000, 10**9]))
    oldest = draw(st.integers(0, 10**12))
    now = oldest + draw(st.one_of(st.sampled_from([0, 1, max(delay - 1, 0), delay, delay + 1]), st.integers(0, 10**10)))
    options = {
        "max_batch": max_batch, "delay_ns": delay, "preferred": tuple(preferred), "single": draw(st.booleans()),
    }  # fmt: skip
    return sizes, oldest, now, options


@settings(max_examples=800, deadline=None)
@given(cases())
@example(([3, 3], 0, 1, {"max_batch": 8, "delay_ns": 100, "preferred": (4,), "single": False}))
@example(([8, 8], 0, 1, {"max_batch": 8, "delay_ns": 100, "preferred": (), "single": False}))
@example(([2, 2, 7], 0, 1, {"max_batch": 8, "delay_ns": 100, "preferred": (6, 2), "single": False}))
def test_equals_the_obvious_model(case):
    sizes, oldest, now, options = case
    assert decide(sizes, oldest, now, **options) == obvious(sizes, oldest, now, **options)


@settings(max_examples=800, deadline=None)
@given(cases())
def test_promises(case):
    sizes, oldest, now, options = case
    taken, until, reason = decide(sizes, oldest, now, **options)
    assert (reason is None) == (taken == 0)
    assert 0 <= taken <= len(sizes)
    if taken:
        assert until == 0
        assert taken == 1 or sum(sizes[:taken]) <= options["max_batch"]
        assert taken == 1 or not options["single"]
    elif sizes:
        # Waiting is allowed only within the oldest request's delay, and ends with it.
        assert not options["single"]
        assert now < until == oldest + options["delay_ns"]
        assert decide(sizes, oldest, until, **options)[0] > 0
        assert not any(sum(sizes[:n]) in options["preferred"] for n in range(1, len(sizes) + 1))
        assert sum(sizes) < options["max_batch"]


@settings(max_examples=250, deadline=None)
@given(cases())
def test_every_queue_drains(case):
    """Asked again at the time it names, it never leaves a request behind, and keeps their order."""
    sizes, oldest, now, options = case
    left = list(sizes)
    for _ in range(2 * len(sizes)):
        if not left:
            break
        taken, until, _ = decide(left, oldest, now, **options)
        now = max(now, until)
        left = left[taken:]
    assert not left


@settings(max_examples=250, deadline=None)
@given(cases(), st.randoms())
def test_order_of_preferred_sizes_does_not_matter(case, random):
    sizes, oldest, now, options = case
    shuffled = list(options["preferred"])
    random.shuffle(shuffled)
    assert decide(sizes, oldest, now, **{**options, "preferred": shuffled}) == decide(sizes, oldest, now, **options)


@pytest.mark.parametrize(
    ("sizes", "options", "taken"),
    [
        ([], {"max_batch": 4}, 0),
        ([4], {"max_batch": 4, "delay_ns": 100}, 1),  # a whole batch does not wait
        ([4, 4], {"max_batch": 4}, 1),
        ([3, 2], {"max_batch": 4, "delay_ns": 100}, 1),  # the next does not fit: it can not grow
        ([3], {"max_batch": 4, "delay_ns": 100}, 0),
        ([1, 1, 1], {"max_batch": 8, "delay_ns": 100, "preferred": (2,)}, 2),
        ([1] * 5, {"max_batch": 8, "delay_ns": 100, "preferred": (4, 2)}, 4),  # the largest met
        ([1, 1, 1], {"max_batch": 8, "delay_ns": 100, "preferred": (4, 2)}, 2),
        ([1], {"max_batch": 8, "delay_ns": 100, "preferred": (4, 2)}, 0),
        ([1], {"max_batch": 8, "preferred": (4, 2)}, 1),
        ([3, 3, 1], {"max_batch": 8, "delay_ns": 100, "preferred": (4,)}, 2),  # past the largest: it can not grow
        ([5, 5], {"max_batch": 8, "delay_ns": 100, "single": True}, 1),
        ([9], {"max_batch": 8}, 1),  # never refused here; validation does that
        ([1] * 5000, {"max_batch": 10000, "delay_ns": 100}, MAX_TAKE),
    ],
)
def test_table(sizes, options, taken):
    assert decide(sizes, 1000, 1001, **options)[:2] == (taken, 0 if taken or not sizes else 1100)


@pytest.mark.parametrize(
    ("sizes", "options", "now", "result"),
    [
        ([1] * 7, {"preferred": (4,)}, 0, (4, "max")),
        ([1] * 7, {"preferred": (4,)}, 100, (7, "delay")),  # past its delay it is not cut
        ([1] * 9, {"preferred": (4,)}, 100, (8, "max")),
        ([1] * 3, {"preferred": (4, 2)}, 0, (2, "preferred")),
        ([1] * 3, {"preferred": (4, 3)}, 0, (3, "preferred")),
        ([1] * 3, {"others": True}, 100, (3, "delay")),
        ([1] * 3, {"others": True, "delay_ns": 0}, 0, (3, "shape")),
        ([1] * 3, {"delay_ns": 0}, 0, (3, "empty")),
        ([1] * 3, {"volumes": [5, 4, 2], "max_volume": 10}, 0, (2, "order")),
        ([1] * 3, {"volumes": [5, 5, 0], "max_volume": 10, "delay_ns": 0}, 0, (3, "empty")),
        ([1] * 3, {"volumes": [50, 5, 5], "max_volume": 10}, 0, (1, "order")),  # too large for any batch: alone
    ],
)
def test_what_ends_a_batch(sizes, options, now, result):
    taken, _, reason = decide(sizes, 0, now, **{"max_batch": 8, "delay_ns": 100, **options})
    assert (taken, reason) == result


def test_too_many_preferred_sizes_are_refused():
    with pytest.raises(ValueError, match="at most 64 preferred batch sizes, got 65"):
        decide([1], 0, 0, max_batch=100, preferred=range(1, 66))
