"""Responses to calls that find no memory shared with the worker: what waits, what passes, what fails.

The test plays both workers: the one that calls, and gives memory back when the script says, and the one that answers.
"""

from __future__ import annotations

import contextlib
import threading

import pytest

from tests.helpers.models import ANY, ANY_OUT, INT32, LONG_S, submit, value_of
from tests.helpers.pyworker_peer import EVENTS
from tests.helpers.pyworker_scripted import BLS_CLOSED, GONE, everything_at_base, python_model  # noqa: F401
from tests.helpers.server import until
from triton_fast._native.sched.model import Epoch
from triton_fast.errors import Internal

STREAM = 1
HOUR_NS = 3600 * 10**9
NO_MEMORY = "not enough memory shared with the model's worker for the response"
# Of an inbound heap of 64 KiB: two of these have no room beside each other.
LARGE = 10_000


@contextlib.contextmanager
def pair(wait_ns=HOUR_NS, **options):
    """A model that is called as "t", and one with little memory that calls it."""
    io = {"inputs": ANY, "outputs": ANY_OUT, "dynamic": False}
    with python_model(out_bytes=4 << 20, **io, **options) as t:
        def resolve(name, version):
            if name != "t":
                raise LookupError(name)
            return t.model

        with python_model(resolve, Epoch(), in_bytes=1 << 16, wait_ns=wait_ns, **io) as s:
            yield s, t
            s.instance.fail(GONE)


def number(value):
    return ("IN", INT32, (1, 1), value.to_bytes(4, "little"))


def out(value, count=1):
    return (0, INT32, (1, count), value.to_bytes(4, "little") * count)


def value(response):
    assert response["code"] == -1, response
    return int.from_bytes(response["outputs"][0][3][:4], "little")


def ask(s, t, call, **options):
    """Have the worker call, and return the execution of it."""
    s.worker.call(call, "t", [number(call)], **options)
    return t.worker.execution()


def answer(t, e, *outputs):
    t.worker.done(e, t.worker.record(e.requests[0].name, outputs))


def passes(s, t, call=99):
    """Have another call answered: the service thread has looked at all that came before."""
    answer(t, ask(s, t, call), out(call))
    assert s.worker.answered() == (call, {"kind": 0, "code": -1, "error": "", "flags": 1, "params": "",
                                          "outputs": [("OUT", *out(call)[1:], pytest.approx(0, abs=1 << 30))]})


def test_a_response_waits_for_inputs_that_the_worker_still_has():
    with pair() as (s, t):
        call = submit(s.model, 3, 1, LARGE)
        held = s.worker.execution()
        answer(t, ask(s, t, 1), out(7, LARGE))
        passes(s, t)            # what is small does not wait behind it
        s.worker.release(held.off)
        assert s.worker.answered()[0] == 1
        s.worker.done(held, s.worker.record(held.requests[0].name, [out(1)]))
        assert value_of(call) == 1


def test_a_response_waits_for_one_that_was_not_read():
    with pair() as (s, t):
        for k in range(1, 4):
            answer(t, ask(s, t, k), out(k, LARGE))
        for k in range(1, 4):       # each gives its memory back
            call, response = s.worker.answered()
            assert (call, value(response), response["flags"]) == (k, k, 1)


def test_the_order_of_a_stream_stays():
    with pair(decoupled=True) as (s, t):
        e = ask(s, t, 1, options=STREAM)
        t.worker.done_empty(e)
        name = e.requests[0].name
        for k, count in enumerate([LARGE, LARGE, 1, LARGE, 1]):
            t.worker.event(t.worker.record(name, [out(k, count)], final=k == 4))
        found = [s.worker.answered() for _ in range(5)]
        assert [(call, value(response), response["flags"]) for call, response in found] == [
            (1, k, int(k == 4)) for k in range(5)
        ]


def test_what_can_never_fit_fails_at_once():
    with pair() as (s, t):
        call = submit(s.model, 3, 1, LARGE)
        held = s.worker.execution()
        answer(t, ask(s, t, 1), out(7, 1 << 15))
        assert s.worker.answered()[1]["error"] == NO_MEMORY
        s.worker.done(held, s.worker.record(held.requests[0].name, [out(1)]))
        assert value_of(call) == 1


@pytest.mark.parametrize("wait_ns", [0, 10**6])
def test_a_model_that_keeps_its_inputs_gets_an_error_in_the_end(wait_ns):
    with pair(wait_ns) as (s, t):
        call = submit(s.model, 3, 1, LARGE)
        held = s.worker.execution()
        for k in (1, 2):
            answer(t, ask(s, t, k), out(7, LARGE))
            got, response = s.worker.answered()
            assert (got, response["error"], response["flags"]) == (k, NO_MEMORY, 1)
        s.worker.done(held, s.worker.record(held.requests[0].name, [out(1)]))
        assert value_of(call) == 1


def test_a_heap_that_is_free_but_cut_small_takes_large_ones():
    with pair() as (s, t):
        offs = []
        for k in range(1, 17):      # 4 KiB each: all of it
            e = ask(s, t, k)
            answer(t, e, out(k))
            offs.append(s.worker.answered())
        assert [value(response) for _, response in offs] == list(range(1, 17))
        answer(t, ask(s, t, 1), out(5, 15_000))
        assert value(s.worker.answered()[1]) == 5


def test_a_closed_call_waits_no_longer_and_the_end_of_the_worker_ends_all():
    with pair() as (s, t):
        call = submit(s.model, 3, 1, LARGE)
        s.worker.execution()
        for k in (1, 2, 3):
            answer(t, ask(s, t, k), out(7, LARGE))
        passes(s, t)
        s.worker.publish(EVENTS, BLS_CLOSED, 2)
        assert until(lambda: [c[0] for c in s.instance.calls()] == [3, 1])
        s.instance.fail(GONE)
        with pytest.raises(Internal, match=GONE):
            call.wait(LONG_S)
        assert s.instance.calls() == []


def test_many_that_wait_take_turns():
    with pair() as (s, t):
        call = submit(s.model, 3, 1, LARGE)
        held = s.worker.execution()
        for k in range(1, 41):
            answer(t, ask(s, t, k), out(k, LARGE if k % 2 else 1))
        s.worker.release(held.off)
        found = [s.worker.answered() for _ in range(40)]
        assert sorted((k, value(response)) for k, response in found) == [(k, k) for k in range(1, 41)]
        s.worker.done(held, s.worker.record(held.requests[0].name, [out(1)]))
        assert value_of(call) == 1


# --- calls that are refused -------------------------------------------------------------------------------------------


def test_a_call_that_was_just_taken_is_not_told_to_stop():
    """Refusals race with the taking of a batch: what the worker has is either refused or not cancelled."""
    n = 40
    with python_model(inputs=ANY, outputs=ANY_OUT, max_batch=n, decoupled=True, in_bytes=8 << 20,
                      out_bytes=32 << 20) as t:
        def resolve(name, version):
            return t.model

        with python_model(resolve, Epoch(), out_bytes=32 << 20, in_bytes=8 << 20) as s:
            for _ in range(60):
                s.worker.bump, t.worker.bump = s.worker.out_off, t.worker.out_off
                refused = set()
                done = threading.Event()

                def refuse(refused=refused, done=done):
                    while not done.is_set():
                        refused.update(k for k in range(1, n + 1) if s.instance.fail_call(k, "refused"))

                thread = threading.Thread(target=refuse)
                thread.start()
                for k in range(1, n + 1):
                    s.worker.call(k, "t", [number(k)], options=STREAM)
                taken, answered = {}, set()
                while len(taken) + len(answered) < n:
                    with contextlib.suppress(TimeoutError):
                        while True:
                            e = t.worker.execution(0.0)
                            taken |= {int.from_bytes(g.inputs[0][3], "little"): g for g in e.requests}
                            t.worker.release(e.off)
                            t.worker.done_empty(e)
                    with contextlib.suppress(TimeoutError):
                        while True:
                            answered.add(s.worker.answered(0.0)[0])
                done.set()
                thread.join()
                assert answered == refused
                assert not [k for k, given in taken.items() if t.worker.is_cancelled(given)]
                for given in taken.values():
                    t.worker.event(t.worker.record(given.name, [out(1)]))
                for _ in taken:
                    s.worker.answered()
            s.instance.fail(GONE)
