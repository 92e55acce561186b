"""Deadlocks between models: the pure function against brute force, the victim, the text, two looks."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.standin import FakeInstance
from triton_fast.backends.python import deadlock
from triton_fast.backends.python.deadlock import QUEUED, RUNNING, BlsCall, Detector, Snapshot, stuck

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
            instance.open_calls = [(number, instance.model_key, 1, "queued", 0, 5)]
            assert detector.look()
        assert not instance.failed
        detector.look()
        assert [number for number, _ in instance.failed] == [3]
        assert instance.failed[0][1].startswith("Deadlock: model 'm' waits for itself: m -> m, and no instance of 'm'")
        instance.open_calls = []
        assert not detector.look()
    finally:
        detector.remove(instance)
