"""Races: submit, take, cancel, expire, stop and abort against each other; each request must end exactly once.

The counts are exact whatever the timing: what callers saw must equal what the engine counted.
"""

from __future__ import annotations

import random
import threading
from collections import Counter

import pytest

from tests.helpers.models import (
    ANY,
    ANY_OUT,
    LONG_S,
    STOPPED,
    counters_at_base,
    in_threads,
    make_model,
    served,
    submit,
    value_of,
)
from triton_fast._native.backends.identity import IdentityInstance
from triton_fast.errors import Unavailable

__all__ = ["counters_at_base"]

EXPIRED = "Request timeout expired"
LOCK = threading.Lock()


def finish(call, value):
    """Wait and say how the call ended."""
    try:
        assert value_of(call) == value
    except Unavailable as error:
        return str(error)
    return "done"


def flood(model, seed, count, window, ends, *, cancel=0.5, shapes=1):
    """Submit ``count`` requests, ``window`` at a time, cancel some in random order, wait for the others."""
    rng = random.Random(seed)
    mine = Counter()
    for start in range(0, count, window):
        calls = []
        for k in range(start, min(start + window, count)):
            rows = rng.randint(1, 4)
            try:
                calls.append((submit(model, k, rows, rng.randint(1, shapes)), k, rows))
            except Unavailable as error:
                mine[f"refused: {error}"] += 1
        rng.shuffle(calls)
        for call, k, rows in calls:
            if rng.random() < cancel and call.cancel():
                mine["cancelled"] += 1
                continue
            end = finish(call, k)
            mine[end] += 1
            mine["rows"] += rows if end == "done" else 0
    with LOCK:
        ends.update(mine)


def balance(model, ends):
    """The engine's counts equal what the callers saw."""
    taken = model.snapshot()
    refused = sum(n for text, n in ends.items() if text.startswith("refused: Exceeds"))
    assert taken["pending"] == 0
    assert taken["success"] == ends["done"]
    assert taken["inference_count"] == ends["rows"]
    assert taken["inference_count"] == sum(size * count for size, count, *_ in taken["batches"])
    assert taken["execution_count"] == sum(count for _, count, *_ in taken["batches"])
    assert taken["failures"]["CANCELED"] == ends["cancelled"]
    assert taken["failures"]["REJECTED"] == ends[EXPIRED] + refused + ends[STOPPED]
    assert taken["failures"]["BACKEND"] == taken["failures"]["OTHER"] == 0


@pytest.mark.parametrize("spin_ns", [0, 50_000])
def test_cancel_against_take(spin_ns):
    ends = Counter()
    instances = [IdentityInstance() for _ in range(3)]
    with served(*instances, inputs=ANY, outputs=ANY_OUT, spin_ns=spin_ns) as model:
        in_threads(4, lambda k: flood(model, k, 5000, 8, ends, shapes=3))
        balance(model, ends)
    assert ends["done"] + ends["cancelled"] == 20_000
    assert ends["done"] and ends["cancelled"]


def test_cancel_against_expiry():
    ends = Counter()
    with served(IdentityInstance(), IdentityInstance(), timeout_us=30, delay_us=20, preferred=(3, 7)) as model:
        in_threads(4, lambda k: flood(model, k, 2500, 16, ends, shapes=1))
        balance(model, ends)
    assert ends["done"] + ends["cancelled"] + ends[EXPIRED] == 10_000
    assert ends[EXPIRED] and ends["cancelled"]


def test_full_queue_against_take():
    ends = Counter()
    with served(IdentityInstance(delay_ns=20_000), max_queue_size=5) as model:
        in_threads(8, lambda k: flood(model, k, 500, 4, ends))
        balance(model, ends)
    assert ends["done"] + ends["cancelled"] + ends["refused: Exceeds maximum queue size"] == 4000
    assert ends["refused: Exceeds maximum queue size"]


def test_two_threads_cancel_the_same_request():
    with served(IdentityInstance(delay_ns=50_000)) as model:
        for _ in range(100):
            calls = [submit(model, k) for k in range(8)]
            won = []

            def work(k, calls=calls, won=won):
                won.extend(n for n in range(8) if calls[n if k else 7 - n].cancel() for n in [n if k else 7 - n])

            in_threads(2, work)
            assert len(won) == len(set(won))
            assert [value_of(calls[n]) for n in range(8) if n not in won] == [n for n in range(8) if n not in won]
        assert model.pending == 0


@pytest.mark.parametrize("spin_ns", [0, 1_000_000])
@pytest.mark.parametrize("how", ["stop", "abort", "stop and abort"])
def test_stop_against_everything(how, spin_ns):
    """Ten model lives under load; what was accepted ends once, what was not gets the text."""
    for life in range(10):
        ends = Counter()
        instances = [IdentityInstance() for _ in range(2)]
        model = make_model(*instances, delay_us=10, inputs=ANY, outputs=ANY_OUT, spin_ns=spin_ns)
        under_way = threading.Event()

        def work(k, model=model, ends=ends, life=life, under_way=under_way):
            if k < 3:
                flood(model, life * 10 + k, 200, 8, ends, shapes=2)
                under_way.set()
                flood(model, life * 10 + k, 400, 8, ends, shapes=2)
                return
            under_way.wait(LONG_S)
            if k == 3 and how != "abort":
                model.stop()
            if k == 4 and how != "stop":
                model.abort()

        in_threads(5, work)
        model.stop()
        balance(model, ends)
        refused = ends[f"refused: {STOPPED}"]
        assert ends["done"] + ends["cancelled"] + ends[STOPPED] + refused == 1800
        if how == "stop":
            assert ends[STOPPED] == 0
