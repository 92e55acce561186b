"""Instances under the rate limiter: gates hold executions, so what waits for what is exact. No servers, no sleeps."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest

from tests.helpers.models import LONG_S, ONE, OUT, STOPPED, Gate, counters_at_base, submit, value_of
from tests.helpers.server import until
from triton_fast._native.sched.limiter import Limiter, LimiterPlace
from triton_fast._native.sched.model import NativeModel
from triton_fast._native.sched.pyinstance import PyInstance
from triton_fast.errors import Unavailable

__all__ = ["counters_at_base"]

R = [("R", False, 1)]


class Limited:
    """A model whose instances share one gate, each with a place of its own."""

    def __init__(self, limiter: Limiter, needs: list[tuple[str, bool, int]], *, count: int = 1, priority: int = 1,
                 gate: Gate | None = None, **options: object) -> None:  # fmt: skip
        self.gate = gate or Gate()
        self.native = NativeModel("m", 1, 8, ONE, OUT, **options)
        self.places: list[LimiterPlace] = []
        for k in range(count):
            place = limiter.join(needs, priority=priority)
            self.places.append(place)
            self.native.start_instance(PyInstance(self.gate, f"m_{k}"), 0, place)

    @property
    def place(self) -> LimiterPlace:
        return self.places[0]


@contextlib.contextmanager
def stopped(*models: Limited) -> Iterator[None]:
    try:
        yield
    finally:
        for model in models:
            model.gate.open()
        for model in models:
            model.native.stop()


def waits(model: Limited) -> None:
    """Return once an instance of the model waits for its resources."""
    assert until(lambda: any(place.waiting for place in model.places))


def test_two_models_never_execute_at_the_same_time():
    limiter = Limiter()
    a, b = Limited(limiter, R), Limited(limiter, R)
    with stopped(a, b):
        first = submit(a.native, 1)
        assert a.gate.taken() == [1]
        second = submit(b.native, 2)
        waits(b)
        assert b.gate.batches == []
        assert limiter.amounts == {("R", 0): (1, 1)}
        a.gate.step()
        assert b.gate.taken() == [2]
        assert value_of(first) == 1
        b.gate.step()
        assert value_of(second) == 2
    assert limiter.amounts == {}


def test_only_what_is_shared_is_waited_for():
    limiter = Limiter()
    a, b, free = Limited(limiter, R), Limited(limiter, [("S", False, 1)]), Limited(limiter, [])
    with stopped(a, b, free):
        calls = [submit(model.native, k) for k, model in enumerate((a, b, free))]
        for k, model in enumerate((a, b, free)):
            assert model.gate.taken() == [k]
        for model in (a, b, free):
            model.gate.open()
        assert [value_of(call) for call in calls] == [0, 1, 2]


def test_instances_of_one_model_share_what_it_needs():
    limiter = Limiter([("R", 2, -1)])
    model = Limited(limiter, R, count=3)
    with stopped(model):
        calls = [submit(model.native, k) for k in range(3)]
        assert sorted(model.gate.taken() + model.gate.taken()) == [0, 1]
        waits(model)
        assert len(model.gate.batches) == 2
        model.gate.step()
        assert model.gate.taken() == [2]
        model.gate.open()
        assert sorted(value_of(call) for call in calls) == [0, 1, 2]


def test_a_batch_forms_until_its_resources_are_there():
    """The instance takes what is queued when it may run, not when it began to wait."""
    limiter = Limiter()
    holder = limiter.join(R)
    holder.ask()
    model = Limited(limiter, R, dynamic=True)
    with stopped(model):
        calls = [submit(model.native, 0)]
        waits(model)
        calls += [submit(model.native, k) for k in (1, 2)]
        holder.release()
        assert model.gate.taken() == [0, 1, 2]
        model.gate.open()
        assert [value_of(call) for call in calls] == [0, 1, 2]
    holder.leave()


def test_the_lower_product_of_executions_and_priority_goes_first():
    """Both models always have requests: with priorities 1 and 3 one executes three times as often."""
    limiter = Limiter()
    gate = Gate()
    often, seldom = (Limited(limiter, R, priority=priority, gate=gate) for priority in (1, 3))
    with stopped(often, seldom):
        calls = [submit(often.native, 1)]
        assert gate.taken() == [1]
        calls.append(submit(seldom.native, 3))
        waits(seldom)
        calls += [submit(often.native, 1) for _ in range(8)] + [submit(seldom.native, 3) for _ in range(2)]
        order = [1]
        while len(order) < len(calls):
            gate.step()
            order += gate.taken()
        gate.open()
        for call in calls:
            value_of(call)
    # The products: 0 and 0, then 1, 2 before 3; among equals who asked first.
    assert order == [1, 3, 1, 1, 3, 1, 1, 1, 3, 1, 1, 1]


def test_nothing_is_held_without_work():
    limiter = Limiter()
    a, b = Limited(limiter, R, count=2), Limited(limiter, R)
    with stopped(a, b):
        a.gate.open()
        b.gate.open()
        for k in range(20):
            assert value_of(submit((a, b)[k % 2].native, k)) == k
        # The second instance of a may have been woken for a request that the first took.
        assert until(lambda: limiter.amounts == {("R", 0): (1, 0)})
        assert sum(place.executions for place in a.places) == 10
        assert b.place.executions == 10


def test_abort_ends_the_wait_for_resources():
    limiter = Limiter()
    holder = limiter.join(R)
    holder.ask()
    model = Limited(limiter, R)
    call = submit(model.native, 1)
    waits(model)
    model.native.stop(abort=True)
    with pytest.raises(Unavailable, match=STOPPED):
        call.wait(LONG_S)
    assert model.gate.batches == []
    assert limiter.amounts == {("R", 0): (1, 1)}
    holder.leave()


def test_stop_executes_what_is_queued_when_it_may():
    limiter = Limiter()
    holder = limiter.join(R)
    holder.ask()
    model = Limited(limiter, R)
    model.gate.open()
    call = submit(model.native, 1)
    waits(model)
    stopper = threading.Thread(target=model.native.stop)
    stopper.start()
    with pytest.raises(Unavailable, match=STOPPED):
        while True:  # until the stop has begun
            submit(model.native, 2).cancel()
    holder.release()
    assert value_of(call) == 1
    stopper.join()
    holder.leave()


def test_stop_does_not_wait_for_resources_that_nobody_needs():
    """A cancelled request leaves an instance that waits for nothing; the model can end although R is taken."""
    limiter = Limiter()
    holder = limiter.join(R)
    holder.ask()
    model = Limited(limiter, R)
    call = submit(model.native, 1)
    waits(model)
    assert call.cancel()
    model.native.stop()
    assert holder.holding
    holder.leave()


def test_an_expired_request_is_refused_while_its_instance_waits():
    limiter = Limiter()
    holder = limiter.join(R)
    holder.ask()
    model = Limited(limiter, R, timeout_us=1000)
    with stopped(model):
        with pytest.raises(Unavailable, match="Request timeout expired"):
            submit(model.native, 1).wait(LONG_S)
        holder.release()
        model.gate.open()
        assert until(lambda: limiter.amounts == {("R", 0): (1, 0)})
        assert model.gate.batches == []
    holder.leave()


def test_many_models_and_instances_are_never_above_the_amounts():
    limiter = Limiter([("R", 3, -1), ("S", 2, -1)])
    lock = threading.Lock()
    now = {"R": 0, "S": 0}
    most = dict(now)

    def counted(needs: list[tuple[str, bool, int]]) -> Gate:
        def answer(requests):
            with lock:
                for name, _, count in needs:
                    now[name] += count
                    most[name] = max(most[name], now[name])
            results = [{"OUT": (8, shape, bytes(view))} for _, shape, view in (r["IN"] for r in requests)]
            with lock:
                for name, _, count in needs:
                    now[name] -= count
            return results

        return Gate(held=False, answer=answer)

    every = [
        [("R", False, 1)], [("R", False, 3)], [("S", False, 2)], [("R", False, 2), ("S", False, 1)], [("S", False, 1)],
    ]  # fmt: skip
    models = [Limited(limiter, needs, count=3, gate=counted(needs)) for needs in every]
    with stopped(*models):
        calls = [submit(models[k % len(models)].native, k) for k in range(1500)]
        assert [value_of(call) for call in calls] == list(range(1500))
    assert most["R"] == 3
    assert 0 < most["S"] <= 2
    assert now == {"R": 0, "S": 0}
    assert sum(place.executions for model in models for place in model.places) == 1500
    assert limiter.amounts == {}


def test_a_stopped_model_outlives_its_limiter():
    limiter = Limiter()
    model = Limited(limiter, R)
    model.native.stop()
    del limiter
    model.native.abort()
    model.native.stop(abort=True)


def test_a_model_that_is_dropped_gives_its_places_back():
    limiter = Limiter()
    model = Limited(limiter, R)
    model.gate.open()
    assert value_of(submit(model.native, 1)) == 1
    model.native.stop()
    assert limiter.amounts == {}
    del model
    other = Limited(limiter, [("R", True, 2)])
    assert limiter.amounts == {("R", None): (2, 0)}
    with stopped(other):
        pass
