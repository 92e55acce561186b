"""Deadlocks between models: the pure function against brute force, the victim, the text, two looks."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.standin import FakeInstance
from triton_fast._native.sched.limiter import Limiter
from triton_fast.backends.python import deadlock
from triton_fast.backends.python.deadlock import QUEUED, RUNNING, BlsCall, Detector, Place, Snapshot, Wait, stuck

A, B, C = 1, 2, 3


def one(key, model, *calls, executing=True):
    return Snapshot(key, model, executing, calls)


def call(number, target, runner=0, waits=True, age=0):
    return BlsCall(number, target, waits, RUNNING if runner else QUEUED, runner, age)


def ids(found):
    return {item.call.id for item in found}


def test_self_call_on_the_only_instance():
    assert ids(stuck([one(10, A, call(1, A))])) == {1}


def test_a_second_instance_frees_it():
    assert not stuck([one(10, A, call(1, A)), one(11, A, executing=False)])
    assert not stuck([one(10, A, call(1, A)), one(11, A)])


def test_cycle_over_two_models():
    found = stuck([one(10, A, call(1, B, runner=20)), one(20, B, call(2, A))])
    assert ids(found) == {1, 2}
    assert deadlock.victim(found).call.id == 2


def test_call_that_nobody_waits_for_blocks_nothing():
    assert not stuck([one(10, A, call(1, A, waits=False))])


def test_other_backends_and_unknown_runners_can_progress():
    assert not stuck([one(10, A, call(1, 99))])
    assert not stuck([one(10, A, call(1, A, runner=77))])


# --- ensembles --------------------------------------------------------------------------------------------------------


def over(number, *waits):
    """A call to an ensemble, which waits for these."""
    return BlsCall(number, 99, True, RUNNING, 0, 0, waits)


def test_a_step_that_leads_back_to_the_caller():
    world = [one(10, A, over(1, Wait(A, QUEUED)))]
    found = stuck(world)
    assert ids(found) == {1}
    broken = deadlock.victim(found)
    assert deadlock.chain(found, broken, world) == [A, A]
    assert not stuck([*world, one(11, A, executing=False)])


def test_a_step_whose_model_calls_the_caller():
    world = [one(10, A, over(1, Wait(B, RUNNING, 20))), one(20, B, call(2, A))]
    found = stuck(world)
    assert ids(found) == {1, 2}
    broken = deadlock.victim(found)
    assert broken.call.id == 2
    assert deadlock.chain(found, broken, world) == [A, B, A]


def test_a_step_that_waits_for_a_place_is_not_what_is_broken():
    """Of two calls the newer one has not come as far as a queue."""
    older, newer = over(1, Wait(A, QUEUED)), over(2, Wait(A, "waiting"))._replace(age_ns=-1)
    found = stuck([one(10, A, older), one(11, A, newer)])
    assert ids(found) == {1, 2}
    assert deadlock.victim(found).call.id == 1


def test_an_ensemble_goes_on_when_one_step_can():
    assert not stuck([one(10, A, over(1))])
    assert not stuck([one(10, A, over(1, Wait(A, QUEUED), Wait(B, RUNNING, 77)))])
    assert ids(stuck([one(10, A, over(1, Wait(A, QUEUED), Wait(A, QUEUED)))])) == {1}


# --- resources --------------------------------------------------------------------------------------------------------


R, S = 7, 8


def holds(key, model, *needs):
    return Place(key, model, False, True, needs)


def waits_for(key, model, *needs):
    return Place(key, model, True, False, needs)


def test_the_target_waits_for_what_its_caller_holds():
    caller = one(10, A, call(1, B))
    places = [waits_for(20, B, (R, 1, 1)), holds(10, A, (R, 1, 1))]
    # Of any backend; and of Python, before its first execution and after.
    assert ids(stuck([caller], places)) == {1}
    assert ids(stuck([caller, one(20, 0, executing=False)], places)) == {1}
    assert ids(stuck([caller, one(20, B, executing=False)], places)) == {1}


@pytest.mark.parametrize(
    "places",
    [
        [waits_for(20, B, (R, 1, 2)), holds(10, A, (R, 1, 2))],  # enough for both
        [waits_for(20, B, (R, 1, 1)), holds(10, A, (S, 1, 1))],  # another one
        [waits_for(20, B, (R, 1, 1)), holds(30, C, (R, 1, 1))],  # somebody else has it, and will give it back
        [waits_for(20, 0, (R, 1, 1)), holds(10, A, (R, 1, 1))],  # other instances of the target need nothing
        [holds(20, B, (R, 1, 2)), waits_for(21, B, (R, 1, 2)), holds(10, A, (R, 1, 2))],  # one is at work
        [Place(20, B, False, False, [(R, 1, 1)]), holds(10, A, (R, 1, 1))],  # has not asked yet
    ],
)
def test_who_gets_what_it_waits_for_can_progress(places):
    assert not stuck([one(10, A, call(1, B))], places)


def test_who_waits_before_it_keeps_what_it_wants():
    """The first in line wants what the caller holds and what the target needs: neither is served."""
    caller = one(10, A, call(1, B))
    first, target = waits_for(30, C, (R, 1, 1), (S, 1, 1)), waits_for(20, B, (S, 1, 1))
    assert ids(stuck([caller], [first, target, holds(10, A, (R, 1, 1))])) == {1}
    assert not stuck([caller], [target, first, holds(10, A, (R, 1, 1))])


class Counted(tuple):
    """Needs that count how often they are looked at."""

    looks = 0

    def __iter__(self):
        type(self).looks += 1
        return super().__iter__()


def test_a_long_line_costs_a_few_looks_at_each():
    """Whoever looks keeps Python from everything else: not each of those that wait is to look at all before it."""
    Counted.looks, n = 0, 100
    line = [Place(1000 + k, B, True, False, Counted([(R, 1, 1)])) for k in range(n)]
    assert not stuck([one(10, A, call(1, B))], [*line, holds(30, C, (R, 1, 1))])
    assert Counted.looks <= 4 * n
    assert ids(stuck([one(10, A, call(1, B))], [*line, holds(10, A, (R, 1, 1))])) == {1}
    assert Counted.looks <= 8 * n


def test_over_two_calls():
    """A holds and calls B, which has no limits and calls C, which wants what A holds."""
    places = [waits_for(30, C, (R, 1, 1)), holds(10, A, (R, 1, 1))]
    assert ids(stuck([one(10, A, call(1, B, runner=20)), one(20, B, call(2, C))], places)) == {1, 2}


def test_text_of_a_resource():
    assert deadlock.text_limited("a", "b", ["gpu", "gpu", "disk"]) == (
        "Deadlock: model 'a' waits for 'b', which waits for the rate limiter's resource 'disk', 'gpu' that can not "
        "become free before. Give it to 'b' alone, or raise its amount."
    )


def test_the_detector_asks_the_limiters():
    limiter = Limiter()
    holder, waiter = limiter.join([("R", True, 1)]), limiter.join([("R", True, 1)])
    instance = FakeInstance("a_0_0", Model())
    instance.executing, instance.model_key = True, 1000
    instance.open_calls = [(1, 2000, 1, "queued", 0, 5, ())]
    holder.belongs(instance.key, 1000, "a")
    waiter.belongs(1, 2000, "b")
    holder.ask()
    detector = Detector(never)
    detector.limited_by(limiter)
    detector.add(instance, "a")
    try:
        for _ in range(2):
            detector.look()
        assert not instance.failed  # b has not asked
        waiter.ask()
        detector.look()
        assert not instance.failed
        detector.look()
        assert instance.failed == [(1, deadlock.text_limited("a", "b", ["R"]))]
    finally:
        detector.remove(instance)
        holder.leave()
        waiter.leave()
    assert limiter.places() == ([], {}, {})


# --- against brute force ----------------------------------------------------------------------------------------------


def brute(snapshots):
    """Let whoever can finish do so, one at a time in every order: who never can is stuck."""
    by_key = {item.key: item for item in snapshots}

    def finishes(done):
        def answered(c):
            if c.state == RUNNING:
                return c.runner not in by_key or c.runner in done
            takers = [item.key for item in snapshots if item.model == c.target]
            return not takers or any(key in done for key in takers)

        return {
            item.key for item in snapshots
            if not item.executing or all(answered(c) for c in item.calls if c.is_waited_for)
        }  # fmt: skip

    # The least fixpoint: the smallest set that is its own image.
    keys = list(by_key)
    for size in range(len(keys) + 1):
        for chosen in itertools.combinations(keys, size):
            if finishes(set(chosen)) == set(chosen):
                done = set(chosen)
                return {item.key for item in snapshots if item.key not in done}
    raise AssertionError("no fixpoint")


@st.composite
def worlds(draw):
    n = draw(st.integers(1, 7))
    models = [draw(st.integers(1, 4)) for _ in range(n)]
    numbers = itertools.count(1)
    snapshots = []
    for key in range(n):
        calls = tuple(
            call(next(numbers), draw(st.integers(1, 5)), 100 + draw(st.integers(0, n)) if draw(st.booleans()) else 0,
                 draw(st.booleans()))
            for _ in range(draw(st.integers(0, 3)))
        )  # fmt: skip
        snapshots.append(one(100 + key, models[key], *calls, executing=draw(st.integers(0, 3)) > 0))
    return snapshots


@given(worlds())
@settings(max_examples=400)
def test_agrees_with_brute_force(world):
    found = stuck(world)
    assert {item.caller for item in found} == brute(world)
    for item in found:
        assert item.call.is_waited_for


@given(worlds())
def test_the_chain_ends_and_names_models_of_the_world(world):
    found = stuck(world)
    broken = deadlock.victim(found)
    if broken is None:
        return
    way = deadlock.chain(found, broken, world)
    assert way[-1] == broken.call.target
    assert len(way) <= len(world) + 1


def test_text_of_a_cycle():
    world = [one(10, A, call(1, B, runner=20)), one(20, B, call(2, A))]
    found = stuck(world)
    way = deadlock.chain(found, deadlock.victim(found), world)
    assert deadlock.text([" ab"[key] for key in way]) == (
        "Deadlock: model 'a' waits for itself: a -> b -> a, and no instance of 'a' is free. Raise the instance count "
        "or avoid the cycle."
    )


class Model:
    """Stands for a native model: only its address counts."""


def never(event, delay_s):
    event.wait()
    return True


def test_the_second_look_breaks_it_and_a_passing_wait_is_left_alone():
    model = Model()
    instance = FakeInstance("m_0_0", model)
    instance.executing = True
    detector = Detector(never)
    detector.add(instance, "m")
    try:
        for number in (1, 2, 3):  # each look sees another call: all of them move
            instance.open_calls = [(number, instance.model_key, 1, "queued", 0, 5, ())]
            assert detector.look()
        assert not instance.failed
        detector.look()
        assert [number for number, _ in instance.failed] == [3]
        assert instance.failed[0][1].startswith("Deadlock: model 'm' waits for itself: m -> m, and no instance of 'm'")
        instance.open_calls = []
        assert not detector.look()
    finally:
        detector.remove(instance)
