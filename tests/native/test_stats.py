"""Counters: they equal what was sent exactly, add up among themselves, and are consistent at any moment."""

from __future__ import annotations

import itertools
import random
import threading
import time

import pytest

from tests.helpers.models import LONG_S, Gate, busy, counters_at_base, first_number, served, submit, value_of
from triton_fast._native.backends.identity import IdentityInstance
from triton_fast._native.core.stats import BREAK_REASONS, FAILURE_REASONS, HISTOGRAM_BOUNDS_US, PHASES
from triton_fast.errors import ServerError

__all__ = ["counters_at_base"]


def adds_up(taken):
    """What must hold of any snapshot, also in the middle of a load."""
    sizes = [size for size, *_ in taken["batches"]]
    assert sizes == sorted(set(sizes))
    assert taken["inference_count"] == sum(size * count for size, count, *_ in taken["batches"])
    assert taken["execution_count"] == sum(count for _, count, *_ in taken["batches"])
    for phase in PHASES:
        counts, total_ns = taken["histograms"][phase]
        assert len(counts) == len(HISTOGRAM_BOUNDS_US) + 1
        assert sum(counts) == taken["success"]
        assert total_ns == taken["ns"][phase]
        assert 0 <= taken["ns"][phase] // 1000 - taken["us"][phase] <= taken["success"]


def test_names():
    assert PHASES == ("request", "queue", "compute_input", "compute_infer", "compute_output")
    assert FAILURE_REASONS == ("REJECTED", "CANCELED", "BACKEND", "OTHER")
    assert list(HISTOGRAM_BOUNDS_US) == sorted(set(HISTOGRAM_BOUNDS_US))
    assert HISTOGRAM_BOUNDS_US[0] == 10


def test_a_new_model_has_counted_nothing():
    with served() as model:
        taken = model.snapshot()
    adds_up(taken)
    assert taken == {
        "last_inference_ms": 0, "inference_count": 0, "execution_count": 0, "success": 0, "fail_ns": 0, "pending": 0,
        "failures": dict.fromkeys(FAILURE_REASONS, 0), "ns": dict.fromkeys(PHASES, 0), "us": dict.fromkeys(PHASES, 0),
        "histograms": {phase: ((0,) * (len(HISTOGRAM_BOUNDS_US) + 1), 0) for phase in PHASES}, "batches": [],
        "cache": (0, 0, 0, 0), "cache_us": (0, 0), "first_response": None, "responses": {},
        "breaks": dict.fromkeys(BREAK_REASONS, 0),
    }  # fmt: skip


def test_counts_equal_what_was_sent():
    gate = Gate()
    began_ms = time.time_ns() // 1_000_000
    with served(gate, max_batch=4, max_queue_size=6) as model:
        first = busy(model, gate)
        rows = [1, 3, 2, 2, 4]
        calls = [submit(model, k, n) for k, n in enumerate(rows)]
        cancelled = submit(model, 9)
        for _ in range(2):
            with pytest.raises(ServerError):
                submit(model, 10)
        assert cancelled.cancel()
        gate.answer = lambda requests: [{} if first_number(r) == 4 else RuntimeError("x") for r in requests]
        assert model.snapshot()["pending"] == 5
        gate.open()
        ends = []
        for call in [first, *calls]:
            try:
                ends.append(call.wait(LONG_S))
            except ServerError as error:
                ends.append(str(error))
        taken = model.snapshot()
    # The first batch is answered after the gate, so by the same answer.
    assert ends == ["x", "x", "x", "x", "x", {}]
    adds_up(taken)
    assert gate.batches == [[-1], [0, 1], [2, 3], [4]]
    assert taken["success"] == 1
    assert taken["failures"] == {"REJECTED": 2, "CANCELED": 1, "BACKEND": 5, "OTHER": 0}
    assert taken["inference_count"] == 1 + 4 + 4 + 4
    assert taken["execution_count"] == 4
    assert [(size, count) for size, count, *_ in taken["batches"]] == [(1, 1), (4, 3)]
    assert taken["pending"] == 0
    assert taken["fail_ns"] > 0
    assert began_ms <= taken["last_inference_ms"] <= time.time_ns() // 1_000_000


def test_batch_sizes_stay_sorted():
    rng = random.Random(5)
    sizes = [rng.randint(1, 60) for _ in range(150)]
    with served(IdentityInstance(), max_batch=60, dynamic=False) as model:
        for size in sizes:
            value_of(submit(model, 1, size))
        taken = model.snapshot()
    adds_up(taken)
    assert [(size, count) for size, count, *_ in taken["batches"]] == [
        (size, sizes.count(size)) for size in sorted(set(sizes))
    ]


def test_times_are_of_the_right_phase():
    """The request's time is at least the sum of its phases; a batch's compute time is counted once per batch."""
    delay_ns = 3_000_000
    with served(IdentityInstance("slow", delay_ns), max_batch=4) as model:
        calls = [submit(model, k) for k in range(4)]
        for call in calls:
            value_of(call)
        taken = model.snapshot()
    adds_up(taken)
    ns = taken["ns"]
    assert ns["request"] == ns["queue"] + ns["compute_input"] + ns["compute_infer"] + ns["compute_output"]
    assert ns["compute_infer"] >= 4 * delay_ns
    counts, _ = taken["histograms"]["compute_infer"]
    first = next(k for k, bound in enumerate(HISTOGRAM_BOUNDS_US) if bound * 1000 >= delay_ns)
    assert sum(counts[:first]) == 0
    batch_ns = sum(infer_ns for _, _, _, infer_ns, _ in taken["batches"])
    assert delay_ns * taken["execution_count"] <= batch_ns <= ns["compute_infer"]


def test_snapshots_are_consistent_under_load():
    done = threading.Event()
    seen = []
    with served(IdentityInstance(), IdentityInstance(), max_batch=50) as model:

        def look():
            while not done.is_set():
                seen.append(model.snapshot())

        looker = threading.Thread(target=look)
        looker.start()
        rng = random.Random(1)
        for _ in range(300):
            calls = [submit(model, k, rng.randint(1, 50)) for k in range(10)]
            for call in calls:
                value_of(call)
        done.set()
        looker.join()
        seen.append(model.snapshot())
    for taken in seen:
        adds_up(taken)
    for before, after in itertools.pairwise(seen):
        assert before["success"] <= after["success"]
        assert before["inference_count"] <= after["inference_count"]
    assert seen[-1]["success"] == 3000
