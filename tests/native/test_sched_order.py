"""preserve_ordering: responses leave as the requests came, with several instances, streams, failures and cancels."""

from __future__ import annotations

import random
import threading

import pytest

from tests.helpers.models import (
    ANY,
    ANY_OUT,
    HOUR_US,
    LONG_S,
    STOPPED,
    Gate,
    counters_at_base,
    echo,
    in_threads,
    numbers,
    served,
    submit,
    value_of,
)
from triton_fast._native.sched.inprocess import StreamCall
from triton_fast._native.sched.queue_driver import QueueDriver
from triton_fast.errors import Internal, ResourceExhausted, Unavailable

__all__ = ["counters_at_base"]


def test_a_later_request_waits_for_an_earlier_one():
    slow, fast = Gate(), Gate()
    with served(slow, fast, max_batch=1, preserve_ordering=True) as model:
        first = submit(model, 1)
        # Either instance may have it.
        second = submit(model, 2)
        taken = {gate.taken()[0]: gate for gate in (slow, fast)}
        taken[2].step()
        third = submit(model, 3)
        assert taken[2].taken() == [3]  # the second is done, and its instance goes on
        with pytest.raises(TimeoutError):
            second.wait(0)
        taken[1].step()
        assert [value_of(call) for call in (first, second)] == [1, 2]
        taken[2].step()
        assert value_of(third) == 3


@pytest.mark.parametrize("end", ["cancel", "expire", "abort"])
def test_who_is_not_executed_holds_nobody_up(end):
    gate = Gate()
    with served(
        gate,
        max_batch=1,
        preserve_ordering=True,
        timeout_us=HOUR_US,
        timeout_override=True,
        inputs=ANY,
        outputs=ANY_OUT,
    ) as model:
        running = submit(model, 1)
        gate.taken()
        gone = submit(model, 2, timeout_us=1000 if end == "expire" else 0)
        if end == "cancel":
            assert gone.cancel()
        elif end == "abort":
            model.abort()
        if end != "cancel":
            # Its error does not wait for the first.
            with pytest.raises(Unavailable, match=STOPPED if end == "abort" else "Request timeout expired"):
                gone.wait(LONG_S)
        kept = [] if end == "abort" else [submit(model, 3)]
        gate.open()
        assert [value_of(call) for call in [running, *kept]] == [1, 3][: 1 + len(kept)]


def test_a_failed_request_keeps_its_place():
    def answer(requests):
        raise RuntimeError("bad day")

    bad, good = Gate(answer=answer), Gate()
    with served(bad, good, max_batch=1, preserve_ordering=True) as model:
        calls = [submit(model, k) for k in (1, 2)]
        taken = {gate.taken()[0]: gate for gate in (bad, good)}
        taken[2].step()
        taken[1].step()
        ends = []
        for call in calls:
            try:
                ends.append(value_of(call))
            except Internal as error:
                ends.append(str(error))
        assert sorted(ends, key=str) == sorted(["bad day", 1 if taken[1] is good else 2], key=str)


def test_a_stream_behind_another_of_its_batch_does_not_stop_the_instance():
    """The later one has more responses than its client lets wait; the earlier one ends with the execution of both."""
    gate = Gate(answer=lambda requests: [[echo(inputs)] * 20 for inputs in requests])
    with served(gate, decoupled=True, preserve_ordering=True) as model:
        calls = [StreamCall(model, [numbers(0, 1, 1)])]
        gate.taken()
        calls += [StreamCall(model, [numbers(k, 1, 1)], max_responses=limit) for k, limit in ((1, 0), (2, 2))]
        gate.step()
        assert gate.taken() == [1, 2]
        gate.open()
        for call in calls:
            finals = [final for _, final in call]
            assert finals == [False] * 20 + [True]


def test_the_limit_of_responses_rests_while_they_are_held_back():
    queue = QueueDriver(ordered=True)
    for k in (1, 2):
        queue.submit(k, 1, max_responses=3)
    assert [queue.limits(1), queue.limits(2)] == [(3, 0), (0, 0)]
    assert queue.take(2) == [1, 2]
    for _ in range(5):
        assert queue.send(2)
    assert queue.delivered == []
    queue.finish(1)
    # Five were held back, and are taken and freed at once here.
    assert queue.delivered == [(1, None, True)] + [(2, None, False)] * 5
    assert queue.limits(2) == (3, 0)
    assert queue.send(2)
    queue.finish(2)
    assert queue.delivered[6:] == [(2, None, False), (2, None, True)]


CARRIER = 4096


def held_text(limit: int) -> str:
    return (
        f"Exceeds maximum queue size: responses of {limit} bytes wait for an earlier request (max_held_bytes: {limit})"
    )


def test_who_holds_most_fails_when_too_much_is_held_back():
    limit = 4 * CARRIER
    queue = QueueDriver(ordered=True, max_held=limit)
    for k in (1, 2, 3, 4):
        queue.submit(k, 1)
    assert queue.take(2) == [1, 2, 3, 4]
    assert queue.send(1)  # the first holds nothing back
    assert all(queue.send(k) for k in (2, 2, 3, 3))
    assert (queue.held, len(queue.delivered)) == (limit, 1)
    assert queue.send(3)
    # What it held is let go, and its model is told to stop.
    assert queue.held == 2 * CARRIER
    assert not queue.send(3)
    assert len(queue.delivered) == 1
    # The error of its end waits for nobody.
    queue.finish(3)
    assert queue.delivered[1:] == [(3, held_text(limit), True)]
    queue.finish(4)
    queue.finish(1)
    assert queue.delivered[2:] == [(1, None, True), (2, None, False), (2, None, False)]
    assert queue.send(2)  # the first now
    queue.finish(2)
    assert queue.delivered[5:] == [(2, None, False), (2, None, True), (4, None, True)]
    assert queue.held == 0


def test_a_whole_answer_that_is_too_much_fails_at_once():
    queue = QueueDriver(ordered=True, max_held=CARRIER)
    for k in (1, 2, 3):
        queue.submit(k, 1)
    queue.take(2)
    queue.finish(3)
    assert (queue.held, queue.delivered) == (CARRIER, [])
    queue.finish(2)
    # Both hold the same: the earlier one goes.
    assert (queue.held, queue.delivered) == (CARRIER, [(2, held_text(CARRIER), True)])
    queue.finish(1)
    assert queue.delivered[1:] == [(1, None, True), (3, None, True)]
    assert (queue.held, queue.requests) == (0, {})


def test_a_request_that_has_failed_so_may_become_the_first():
    queue = QueueDriver(ordered=True, max_held=CARRIER)
    for k in (1, 2):
        queue.submit(k, 1, max_responses=3)
    queue.take(2)
    assert queue.send(2) and queue.send(2)
    queue.finish(1)
    assert queue.delivered == [(1, None, True)]
    assert not queue.send(2)
    queue.submit(3, 1)
    queue.take(3)
    queue.finish(3)
    queue.finish(2)
    assert queue.delivered[1:] == [(2, held_text(CARRIER), True), (3, None, True)]


def test_an_instance_that_answers_by_turns_goes_on_without_the_request_that_held_too_much():
    gate = Gate(answer=lambda requests: [[echo(inputs)] * 20 for inputs in requests])
    with served(gate, decoupled=True, preserve_ordering=True, max_held_bytes=5 * CARRIER, full_code=8) as model:
        calls = [StreamCall(model, [numbers(0, 1, 1)])]
        gate.taken()
        calls += [StreamCall(model, [numbers(k, 1, 1)]) for k in (1, 2)]
        gate.step()
        assert gate.taken() == [1, 2]
        gate.open()
        assert [final for _, final in calls[1]] == [False] * 20 + [True]
        with pytest.raises(ResourceExhausted, match=r"^Exceeds maximum queue size: responses of 20480 bytes wait"):
            list(calls[2])
        assert value_of_stream(StreamCall(model, [numbers(3, 1, 1)])) == 20


def test_who_fails_for_holding_too_much_is_counted_as_refused():
    slow, fast = Gate(), Gate()
    with served(slow, fast, max_batch=1, preserve_ordering=True, max_held_bytes=CARRIER + 4) as model:
        first = submit(model, 1)
        second = submit(model, 2)
        taken = {gate.taken()[0]: gate for gate in (slow, fast)}
        taken[2].step()
        third = submit(model, 3)
        assert taken[2].taken() == [3]
        # What is held back is not counted before it is known what becomes of it.
        counted = model.snapshot()
        assert (counted["success"], sum(counted["failures"].values()), counted["execution_count"]) == (0, 0, 1)
        taken[2].step()
        with pytest.raises(Unavailable, match="max_held_bytes"):
            value_of(second)
        counted = model.snapshot()
        assert (counted["success"], counted["failures"]["REJECTED"]) == (0, 1)
        assert counted["fail_ns"] > 0
        taken[1].step()
        assert [value_of(call) for call in (first, third)] == [1, 3]
        counted = model.snapshot()
        assert (counted["success"], sum(counted["failures"].values()), counted["execution_count"]) == (2, 1, 3)
        assert sum(counted["histograms"]["request"][0]) == 2
        assert counted["ns"]["request"] >= counted["ns"]["queue"] > 0


def test_failures_of_models_in_order_are_counted_once():
    gate = Gate(held=False, answer=lambda requests: [Internal("no luck") for _ in requests])
    with served(gate, max_batch=1, preserve_ordering=True) as model:
        with pytest.raises(Internal, match="no luck"):
            value_of(submit(model, 1))
        counted = model.snapshot()
        assert (counted["success"], counted["failures"]["BACKEND"]) == (0, 1)
        assert sum(counted["failures"].values()) == 1


def value_of_stream(call: StreamCall) -> int:
    return sum(not final for _, final in call)


def test_order_holds_among_many_threads_and_instances():
    gates = [Gate(held=False) for _ in range(3)]
    with served(*gates, max_batch=4, preserve_ordering=True, inputs=ANY, outputs=ANY_OUT) as model:
        lock = threading.Lock()
        calls = []

        def work(k: int) -> None:
            rng = random.Random(k)
            for n in range(100):
                with lock:  # the order of arrival is that of the list
                    call = submit(model, k * 1000 + n, rng.randint(1, 4), rng.randint(1, 3))
                    calls.append((k * 1000 + n, call))
                if rng.random() < 0.1 and call.cancel():
                    with lock:
                        calls.remove((k * 1000 + n, call))

        in_threads(6, work)
        # When the last has come, so have all before it.
        number, last = calls[-1]
        assert value_of(last) == number
        for number, call in calls:
            call.wait(0)
            assert value_of(call) == number
