"""Requests with 0 to n responses: order, errors between, the limit of what is on its way, cancelling, who frees what.

A Python generator as the model shows each step; the stress at the end lets all of it happen at once.
"""

from __future__ import annotations

import random
import struct
from queue import SimpleQueue

import pytest

from tests.helpers.models import (
    INT32,
    LONG_S,
    STOPPED,
    Gate,
    counters_at_base,
    drain,
    first_number,
    in_threads,
    live,
    make_model,
    numbers,
    served,
)
from triton_fast._native.core import respond
from triton_fast._native.sched.inprocess import InferCall, StreamCall
from triton_fast.errors import Cancelled, Internal, InvalidArg, Unavailable, Unsupported

__all__ = ["counters_at_base"]


def out(value):
    return {"OUT": (INT32, (1, 1), struct.pack("<i", value))}


def stream(model, value, **options):
    return StreamCall(model, [numbers(value, 1, 1)], **options)


def decoupled(answer, **options):
    """A served decoupled model; ``answer(number)`` gives the result of the request with that number."""
    gate = Gate(held=False, answer=lambda requests: [answer(first_number(inputs)) for inputs in requests])
    return served(gate, decoupled=True, **options)


# --- what comes, in which order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_responses_come_in_order_then_an_empty_final_one(n):
    with decoupled(lambda n: [out(k) for k in range(n)]) as model:
        assert drain(stream(model, n)) == [*range(n), ("final", None)]
        taken = model.snapshot()
        assert (taken["success"], taken["execution_count"], taken["inference_count"]) == (1, 1, 1)


def test_each_response_is_sent_as_it_comes():
    steps = SimpleQueue()

    def answer(n):
        for _ in range(n):
            yield out(steps.get(timeout=LONG_S))

    with decoupled(answer) as model:
        call = stream(model, 3)
        for value in (7, 8, 9):
            with pytest.raises(TimeoutError, match="no response within 0 s"):
                call.take(0)
            steps.put(value)
            assert call.take(LONG_S) == (out(value), False)
        assert call.take(LONG_S) == ({}, True)
        assert call.take(LONG_S) is None
        assert not call.cancel()  # it has ended


def test_a_final_response_may_have_outputs():
    def answer(n):
        yield out(1)
        return out(2)

    with decoupled(answer) as model:
        assert drain(stream(model, 0)) == [1, ("final", 2)]


def test_a_decoupled_model_may_answer_once():
    with decoupled(out) as model:
        assert drain(stream(model, 5)) == [("final", 5)]


def test_an_iteration_yields_outputs_and_what_is_final():
    with decoupled(lambda n: [out(k) for k in range(n)]) as model:
        assert list(stream(model, 2)) == [(out(0), False), (out(1), False), ({}, True)]


def test_unwanted_outputs_are_left_out_of_every_response():
    with decoupled(lambda n: [{**out(1), "NONE": 3}, {}]) as model:
        assert list(stream(model, 0, outputs=["OUT"])) == [(out(1), False), ({}, False), ({}, True)]


def test_requests_of_one_batch_each_have_their_own():
    gate = Gate(answer=lambda requests: [
        [out(10 * first_number(inputs) + k) for k in range(abs(first_number(inputs)))] for inputs in requests
    ])  # fmt: skip
    with served(gate, decoupled=True) as model:
        first = stream(model, 1)
        assert gate.taken() == [1]
        calls = [stream(model, n) for n in (3, 0, 2)]
        gate.open()
        assert [drain(call)[:-1] for call in (first, *calls)] == [[10], [30, 31, 32], [], [20, 21]]
        assert model.snapshot()["success"] == 4
    assert gate.batches == [[1], [3, 0, 2]]


# --- errors -----------------------------------------------------------------------------------------------------------


def test_an_error_between_responses_ends_nothing():
    with decoupled(lambda n: [out(1), InvalidArg("no 2"), {"OUT": 1}, out(3)]) as model:
        assert drain(stream(model, 0)) == [
            1, (InvalidArg, "no 2"), (Internal, "'int' object is not iterable"), 3, ("final", None),
        ]  # fmt: skip
        assert model.snapshot()["success"] == 1


@pytest.mark.parametrize("ending", ["raise", "return"])
def test_an_error_at_the_end_is_the_final_response(ending):
    def answer(n):
        yield out(1)
        if ending == "raise":
            raise InvalidArg("no more")
        return InvalidArg("no more")

    with decoupled(answer) as model:
        assert drain(stream(model, 0)) == [1, (InvalidArg, "no more")]
        taken = model.snapshot()
        assert (taken["success"], taken["failures"]["BACKEND"]) == (0, 1)


def test_several_responses_of_an_ordinary_model_fail_the_request():
    with served(Gate(held=False, answer=lambda requests: [[out(1)]])) as model:
        call = InferCall(model, [numbers(1, 1, 1)])
        with pytest.raises(Internal, match="only a decoupled model may give several responses"):
            call.wait(LONG_S)


def test_an_ordinary_model_may_be_streamed():
    with served(Gate(held=False)) as model:
        assert drain(stream(model, 4)) == [("final", 4)]


def test_a_single_answer_of_a_decoupled_model_is_refused():
    with decoupled(out) as model, pytest.raises(Unsupported, match="model 'm' is decoupled: it has no single answer"):
        InferCall(model, [numbers(1, 1, 1)])


def test_a_stopped_model_answers_with_one_final_error():
    gate = Gate(answer=lambda requests: [[out(1)] for _ in requests])
    model = make_model(gate, decoupled=True)
    running = stream(model, 0)
    gate.taken()
    queued = stream(model, 1)
    model.abort()
    assert drain(queued) == [(Unavailable, STOPPED)]
    with pytest.raises(Unavailable, match=STOPPED):
        stream(model, 2)
    gate.open()
    assert drain(running) == [1, ("final", None)]
    model.stop()


# --- the limit --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 3])
def test_no_more_than_the_limit_are_on_their_way(limit):
    base = live()["requests"]
    most = []

    def answer(n):
        for k in range(n):
            most.append(live()["requests"] - base)
            yield out(k)

    with decoupled(answer) as model:
        assert drain(stream(model, 200, max_responses=limit)) == [*range(200), ("final", None)]
    # The request itself and what was sent; the next carrier is made after this look.
    assert max(most) <= 1 + limit
    assert len(most) == 200


def test_without_a_limit_all_may_be_on_their_way():
    base = live()["requests"]
    alive = SimpleQueue()

    def answer(n):
        for k in range(n):
            yield out(k)
        alive.put(live()["requests"] - base)

    with decoupled(answer) as model:
        call = stream(model, 200)
        assert alive.get(timeout=LONG_S) == 201
        assert drain(call) == [*range(200), ("final", None)]


# --- cancelling -------------------------------------------------------------------------------------------------------


class Endless:
    """Answers without an end; ``made`` gets each number when it is made, ``closed`` something at the end."""

    def __init__(self):
        self.made = SimpleQueue()
        self.closed = SimpleQueue()

    def __call__(self, n):
        try:
            for k in range(1_000_000):
                self.made.put(k)
                yield out(k)
        finally:
            self.closed.put(True)

    def reached(self, n):
        while self.made.get(timeout=LONG_S) < n:
            pass


def test_cancel_of_what_is_queued():
    gate = Gate(answer=lambda requests: [[out(1)] for _ in requests])
    with served(gate, decoupled=True) as model:
        running = stream(model, 0)
        gate.taken()
        call = stream(model, 1)
        assert call.cancel()
        for _ in range(2):
            with pytest.raises(Cancelled, match="the request was cancelled"):
                call.take(LONG_S)
        assert not call.cancel()
        gate.open()
        assert drain(running) == [1, ("final", None)]
    assert gate.batches == [[0]]


def test_cancel_wakes_a_model_that_waits_for_room():
    for _ in range(50):  # at the moment of the cancel it waits, or is about to
        model_side = Endless()
        with decoupled(model_side) as model:
            call = stream(model, 0, max_responses=2)
            model_side.reached(2)
            assert not call.cancel()  # it runs
            assert model_side.closed.get(timeout=LONG_S)  # before anything is taken, which would make room
            assert drain(call) == [0, 1, (Cancelled, "the request was cancelled")]
            assert model.snapshot()["failures"]["CANCELED"] == 1


def test_cancel_stops_a_model_that_need_not_wait():
    model_side = Endless()
    with decoupled(model_side) as model:
        call = stream(model, 0)
        model_side.reached(10)
        assert not call.cancel()
        found = drain(call)
        assert found[-1] == (Cancelled, "the request was cancelled")
        assert found[:-1] == list(range(len(found) - 1))
        assert len(found) > 10


def test_a_dropped_call_is_cancelled():
    model_side = Endless()
    with decoupled(model_side) as model:
        call = stream(model, 0, max_responses=3)
        model_side.reached(3)
        del call
        assert model_side.closed.get(timeout=LONG_S)


def test_a_dropped_call_that_was_queued_never_runs():
    gate = Gate(answer=lambda requests: [[out(1)] for _ in requests])
    with served(gate, decoupled=True) as model:
        running = stream(model, 0)
        gate.taken()
        stream(model, 1)
        assert model.pending == 0
        gate.open()
        drain(running)
    assert gate.batches == [[0]]


def test_a_dropped_call_frees_what_it_was_given():
    ended = SimpleQueue()

    def answer(n):
        for k in range(5):
            yield out(k)
        ended.put(True)

    with decoupled(answer) as model:
        call = stream(model, 0)
        assert ended.get(timeout=LONG_S)
        assert call.take(LONG_S) == (out(0), False)
        del call


# --- ownership --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "alive"),
    [
        ((1, 2, 3, 0), [3, 2, 1, 0]),
        ((0, 1, 2, 3), [4, 3, 2, 0]),  # the last carrier takes the request with it
        ((3, 0, 1, 2), [3, 3, 2, 0]),
        ((3, 2, 0, 1), [3, 2, 2, 0]),
    ],
)
def test_a_request_outlives_its_carriers_whoever_is_freed_first(order, alive):
    assert respond._family(3, order) == (alive, [b"the-id"] * 3)


# --- all at once ------------------------------------------------------------------------------------------------------


def test_many_streams_on_several_instances():
    def answer(requests):
        return [[out(k) for k in range(first_number(inputs) % 50)] for inputs in requests]

    gates = [Gate(held=False, answer=answer) for _ in range(3)]
    with served(*gates, decoupled=True) as model:

        def work(seed):
            rng = random.Random(seed)
            for _ in range(60):
                n = rng.randrange(200)
                call = stream(model, n, max_responses=rng.choice((0, 1, 2, 7)))
                fate = rng.randrange(4)
                if fate == 0:
                    assert drain(call) == [*range(n % 50), ("final", None)]
                elif fate == 1:  # cancelled after some
                    for k in range(rng.randrange(3)):
                        if k < n % 50:
                            assert call.take(LONG_S) == (out(k), False)
                    if not call.cancel():
                        assert drain(call)[-1] in (("final", None), (Cancelled, "the request was cancelled"))
                elif fate == 2:  # dropped after one
                    call.take(LONG_S)
                else:  # dropped at once
                    del call

        in_threads(8, work)
        # Each has ended when the model has nothing queued and has stopped; the fixture looks for what is left over.
