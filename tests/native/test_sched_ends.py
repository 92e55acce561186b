"""Every way a request ends besides success: refused, expired, cancelled, failed by the backend, stopped, aborted.

Each is checked for its error, its count in the statistics, and for leaving the other requests alone.
"""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest

from tests.helpers.models import (
    ANY,
    ANY_OUT,
    HOUR_US,
    LONG_S,
    STOPPED,
    Gate,
    busy,
    counters_at_base,
    echo,
    first_number,
    in_threads,
    make_model,
    served,
    submit,
    value_of,
)
from triton_fast._native.backends.identity import IdentityInstance
from triton_fast._native.sched.instance import NativeInstance
from triton_fast._native.sched.pyinstance import PyInstance
from triton_fast.errors import Cancelled, Internal, InvalidArg, Unavailable

__all__ = ["counters_at_base"]


def failures(model, **expected):
    counts = {"REJECTED": 0, "CANCELED": 0, "BACKEND": 0, "OTHER": 0, **expected}
    assert model.snapshot()["failures"] == counts
    assert model.pending == 0


def let_pass(ns):
    """Return once the monotonic clock has gone on by ns."""
    until = time.monotonic_ns() + ns
    while time.monotonic_ns() < until:
        pass


# --- queue size -------------------------------------------------------------------------------------------------------


def test_queue_size_is_exact_under_64_threads():
    gate = Gate()
    with served(gate, max_queue_size=100) as model:
        first = busy(model, gate)
        accepted = []
        refused = []

        def work(k):
            for n in range(10):
                try:
                    accepted.append(submit(model, k * 10 + n))
                except Unavailable as error:
                    refused.append(str(error))

        in_threads(64, work)
        assert len(accepted) == model.pending == 100
        assert refused == ["Exceeds maximum queue size"] * 540
        # A place that becomes free is taken again, once.
        assert accepted.pop().cancel()
        accepted.append(submit(model, 7))
        with pytest.raises(Unavailable, match="Exceeds maximum queue size"):
            submit(model, 8)
        gate.open()
        for call in [first, *accepted]:
            value_of(call)
        failures(model, REJECTED=541, CANCELED=1)
        assert model.snapshot()["success"] == 101


# --- queue timeout ----------------------------------------------------------------------------------------------------


def test_expired_requests_are_refused_and_never_executed():
    gate = Gate()
    with served(gate, timeout_us=1) as model:
        gate.open()
        while True:  # the first itself may expire before the instance looks
            call = submit(model, -1)
            try:
                value_of(call)
            except Unavailable as error:
                assert str(error) == "Request timeout expired"
                break
        taken = model.snapshot()
        assert taken["failures"]["REJECTED"] == 1
        assert taken["success"] == taken["inference_count"] == len(gate.batches)


def held_then_expired(own_timeouts, **options):
    """Queue one request per own timeout behind a held instance, let 2 ms pass; return what each came to."""
    gate = Gate()
    ends = []
    with served(gate, **options) as model:
        first = busy(model, gate)
        calls = [submit(model, k, timeout_us=timeout) for k, timeout in enumerate(own_timeouts)]
        let_pass(2_000_000)
        gate.open()
        assert value_of(first) == -1
        for call in calls:
            try:
                ends.append(value_of(call))
            except Unavailable as error:
                ends.append(str(error))
        failures(model, REJECTED=ends.count("Request timeout expired"))
    executed = [value for batch in gate.batches[1:] for value in batch]
    assert executed == [end for end in ends if isinstance(end, int)]
    return ends


EXPIRED = "Request timeout expired"


def test_a_request_may_shorten_its_timeout_and_expires_behind_others():
    ends = held_then_expired([0, 1000, 0, 1000], timeout_us=HOUR_US, timeout_override=True)
    assert ends == [0, EXPIRED, 2, EXPIRED]


def test_all_of_a_queue_may_expire():
    assert held_then_expired([1000, 1000], timeout_us=HOUR_US, timeout_override=True) == [EXPIRED, EXPIRED]


def test_a_request_can_not_lengthen_its_timeout():
    options = {"timeout_us": HOUR_US, "timeout_override": True}
    assert held_then_expired([2 * HOUR_US, 1000], **options) == [0, EXPIRED]


def test_own_timeouts_are_ignored_unless_allowed():
    assert held_then_expired([1, 1], timeout_us=HOUR_US, timeout_override=False) == [0, 1]
    assert held_then_expired([1, 1], timeout_us=0, timeout_override=True) == [0, 1]


def test_expired_requests_of_several_shapes():
    gate = Gate()
    with served(gate, timeout_us=HOUR_US, timeout_override=True, inputs=ANY, outputs=ANY_OUT) as model:
        first = busy(model, gate)
        calls = [submit(model, k, 1, k % 7 + 1, timeout_us=1000 if k % 3 else 0) for k in range(42)]
        let_pass(2_000_000)
        gate.open()
        value_of(first)
        for k, call in enumerate(calls):
            if k % 3:
                with pytest.raises(Unavailable, match=EXPIRED):
                    call.wait(LONG_S)
            else:
                assert value_of(call) == k
        failures(model, REJECTED=28)


@pytest.mark.parametrize("preferred", [(), (4,)])
def test_a_request_that_waits_for_its_batch_expires_in_time(preferred):
    # The delay alone would keep it for an hour.
    with served(Gate(held=False), delay_us=HOUR_US, timeout_us=20_000, preferred=preferred) as model:
        call = submit(model, 0)
        with pytest.raises(Unavailable, match=EXPIRED):
            call.wait(LONG_S)
        assert model.snapshot()["fail_ns"] >= 20_000_000
        failures(model, REJECTED=1)


# --- cancellation -----------------------------------------------------------------------------------------------------


def test_cancel_one_of_a_batch():
    gate = Gate()
    with served(gate) as model:
        first = busy(model, gate)
        calls = [submit(model, k) for k in range(5)]
        assert model.pending == 5
        assert calls[0].cancel() and calls[2].cancel()
        assert model.pending == 3
        assert not calls[2].cancel()
        with pytest.raises(Cancelled, match="the request was cancelled"):
            calls[2].wait(LONG_S)
        assert not first.cancel()  # an instance has it
        gate.open()
        assert value_of(first) == -1
        assert [value_of(calls[k]) for k in (1, 3, 4)] == [1, 3, 4]
        assert not calls[1].cancel()  # it is done
        failures(model, CANCELED=2)
        taken = model.snapshot()
        assert taken["success"] == taken["inference_count"] == 4
    assert gate.batches[1:] == [[1, 3, 4]]


def test_cancel_the_last_of_each_shape():
    gate = Gate()
    with served(gate, inputs=ANY, outputs=ANY_OUT) as model:
        first = busy(model, gate)
        for _ in range(3):
            calls = [submit(model, k, 1, k + 1) for k in range(100)]
            assert all(call.cancel() for call in reversed(calls[::2]))
            assert all(call.cancel() for call in calls[1::2])
            assert model.pending == 0
        kept = submit(model, 4, 1, 4)
        gate.open()
        assert [value_of(first), value_of(kept)] == [-1, 4]
        failures(model, CANCELED=300)


def test_cancel_wakes_who_waits():
    gate = Gate()
    with served(gate) as model:
        first = busy(model, gate)
        for _ in range(50):
            call = submit(model, 0)
            ends = []

            def wait(call=call, ends=ends):
                try:
                    call.wait(LONG_S)
                except Cancelled as error:
                    ends.append(str(error))

            waiting = threading.Thread(target=wait)
            waiting.start()
            assert call.cancel()
            waiting.join()
            assert ends == ["the request was cancelled"]
        gate.open()
        value_of(first)
        failures(model, CANCELED=50)


def test_cancelled_requests_do_not_complete_a_waiting_batch():
    gate = Gate(held=False)
    with served(gate, max_batch=2, delay_us=HOUR_US) as model:
        assert submit(model, 0).cancel()
        pair = [submit(model, k) for k in (1, 2)]
        assert [value_of(call) for call in pair] == [1, 2]
    assert gate.batches == [[1, 2]]


def test_a_dropped_call_still_runs():
    gate = Gate()
    with served(gate) as model:
        first = busy(model, gate)
        submit(model, 1)
        gate.open()
        value_of(first)
    assert gate.batches == [[-1], [1]]


def test_wait_times_out_and_goes_on():
    gate = Gate()
    with served(gate) as model:
        first = busy(model, gate)
        with pytest.raises(TimeoutError, match="no response within 0"):
            first.wait(0)
        gate.open()
        assert value_of(first) == -1
        assert first.wait(1e30)  # done: longer than any clock is no matter


# --- the backend's errors ---------------------------------------------------------------------------------------------


class Rude(Exception):
    def __str__(self):
        raise RuntimeError("no text")


def fail_on(error):
    """Raise ``error`` for a whole batch that has request 13 in it."""

    def answer(requests):
        if any(first_number(inputs) == 13 for inputs in requests):
            raise error
        return [echo(inputs) for inputs in requests]

    return answer


@pytest.mark.parametrize(
    ("error", "expected", "text"),
    [
        (RuntimeError("bad day"), Internal, "^bad day$"),
        (InvalidArg("bad input"), InvalidArg, "^bad input$"),
        (KeyError(), Internal, "^KeyError$"),
        (Rude(), Internal, "^Rude$"),
        (SystemExit("no"), Internal, "^no$"),
    ],
)
def test_an_execute_that_raises_fails_its_batch_only(error, expected, text):
    gate = Gate(answer=fail_on(error))
    with served(gate, max_batch=3) as model:
        first = busy(model, gate)
        calls = [submit(model, number) for number in (1, 13, 2, 3, 4, 5)]
        gate.open()
        assert value_of(first) == -1
        for call in calls[:3]:
            with pytest.raises(expected, match=text):
                call.wait(LONG_S)
        assert [value_of(call) for call in calls[3:]] == [3, 4, 5]
        failures(model, BACKEND=3)
        assert model.snapshot()["success"] == 4
    gate.answer = None


def test_one_request_of_a_batch_may_fail():
    gate = Gate(answer=lambda requests: [
        InvalidArg(f"no {n}") if (n := first_number(inputs)) % 2 == 0 else echo(inputs) for inputs in requests
    ])  # fmt: skip
    with served(gate) as model:
        first = busy(model, gate)
        calls = [submit(model, k) for k in range(6)]
        gate.open()
        value_of(first)
        for k, call in enumerate(calls):
            if k % 2:
                assert value_of(call) == k
            else:
                with pytest.raises(InvalidArg, match=f"^no {k}$"):
                    call.wait(LONG_S)
        failures(model, BACKEND=3)
    assert gate.batches[1:] == [list(range(6))]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (lambda requests: [], "expected 1 results for 1 requests, got 0"),
        (lambda requests: None, "has no len"),
        (lambda requests: ["x"], "dict"),
        (lambda requests: [{"OUT": 1}], "not iterable"),
        (lambda requests: [{"OUT": (8, ("x",), b"")}], "int"),
    ],
)
def test_nonsense_from_a_backend_fails_the_request(answer, text):
    with served(Gate(held=False, answer=answer)) as model:
        with pytest.raises(Internal, match=text):
            submit(model, 0).wait(LONG_S)
        failures(model, BACKEND=1)


def test_an_instance_without_execute_is_refused():
    with served() as model:
        with pytest.raises(ValueError, match="no execute function"):
            model.start_instance(NativeInstance())
        with pytest.raises(TypeError):
            model.start_instance(None)


# --- stop and abort ---------------------------------------------------------------------------------------------------


def refused_at_last(model):
    """Submit until the model is stopping; return the calls that were still accepted."""
    accepted = []
    while True:
        try:
            accepted.append(submit(model, 1000 + len(accepted)))
        except Unavailable as error:
            assert str(error) == STOPPED
            return accepted


@pytest.mark.parametrize("options", [{}, {"delay_us": HOUR_US, "max_batch": 64, "preferred": (63,)}])
def test_stop_executes_what_is_queued_and_refuses_the_rest(options):
    gate = Gate()
    model = make_model(gate, **options)
    calls = [submit(model, k) for k in range(3)]
    stopper = threading.Thread(target=model.stop)
    stopper.start()
    calls += refused_at_last(model)
    gate.open()
    stopper.join()
    assert [value_of(call) for call in calls] == [0, 1, 2, *range(1000, 1000 + len(calls) - 3)]
    assert model.n_instances == 0
    failures(model)
    with pytest.raises(Unavailable, match=STOPPED):
        submit(model, 5)
    model.stop()
    model.stop(abort=True)
    with pytest.raises(Internal, match="model 'm' was stopped"):
        model.start_instance(IdentityInstance())


def test_abort_answers_what_is_queued_at_once():
    gate = Gate()
    model = make_model(gate)
    running = busy(model, gate)
    calls = [submit(model, k) for k in range(3)]
    model.abort()
    # The instance is still held, and nobody waits for it.
    for call in calls:
        with pytest.raises(Unavailable, match=STOPPED):
            call.wait(LONG_S)
        assert not call.cancel()
    with pytest.raises(Unavailable, match=STOPPED):
        submit(model, 5)
    failures(model, REJECTED=3)
    gate.open()
    assert value_of(running) == -1
    model.stop()
    assert gate.batches == [[-1]]


def test_stop_from_several_threads_waits_for_the_last_batch():
    gate = Gate()
    model = make_model(gate)
    running = busy(model, gate)
    queued = submit(model, 1)
    stoppers = [threading.Thread(target=model.stop, kwargs={"abort": k == 1}) for k in range(3)]
    for stopper in stoppers:
        stopper.start()
    with pytest.raises(Unavailable, match=STOPPED):
        queued.wait(LONG_S)
    assert model.n_instances == 1  # its instance is kept while it runs
    assert all(stopper.is_alive() for stopper in stoppers)
    gate.open()
    for stopper in stoppers:
        stopper.join()
    assert value_of(running) == -1


def test_stop_without_instances_answers_what_is_queued():
    model = make_model()
    call = submit(model, 1)
    assert model.pending == 1
    model.stop()
    with pytest.raises(Unavailable, match=STOPPED):
        call.wait(LONG_S)
    failures(model, REJECTED=1)


def test_an_instance_can_not_stop_its_own_model():
    box = []

    def answer(requests):
        box[0].stop()

    with served(Gate(held=False, answer=answer)) as model:
        box.append(model)
        with pytest.raises(Internal, match="can not be stopped from one of its own instances"):
            submit(model, 1).wait(LONG_S)
        box.clear()


def test_a_dropped_model_stops_itself():
    gate = Gate()
    model = make_model(gate)
    running = busy(model, gate)
    queued = submit(model, 1)
    gate.open()
    value_of(running)
    value_of(queued)
    del running, queued, model


def test_a_model_in_a_cycle_is_collected_with_its_threads():
    gate = Gate(held=False)
    model = make_model(gate)
    gate.answer = lambda requests, model=model: [echo(inputs) for inputs in requests]
    assert value_of(submit(model, 1)) == 1
    gone = weakref.ref(model)
    del model, gate
    gc.collect()
    assert gone() is None


def test_the_last_reference_may_go_away_inside_an_instance():
    box = []
    gone = threading.Event()

    def execute(requests):
        held.wait(LONG_S)
        box.clear()
        return [echo(inputs) for inputs in requests]

    held = threading.Event()
    box.append(make_model(PyInstance(execute)))
    weakref.finalize(box[0], gone.set)
    box.append(submit(box[0], 1))
    held.set()
    assert gone.wait(LONG_S)


def test_expiry_does_not_wait_for_a_free_instance():
    gate = Gate()
    with served(gate, timeout_us=200_000) as model:
        first = busy(model, gate)
        waiting = [submit(model, number) for number in range(3)]
        # The gate stays shut: only the watcher can answer these.
        for call in waiting:
            with pytest.raises(Unavailable, match=r"^Request timeout expired$"):
                call.wait(LONG_S)
        assert model.pending == 0
        gate.open()
        first.wait(LONG_S)
        failures(model, REJECTED=3)
