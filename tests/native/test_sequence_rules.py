"""Requests of sequences: what is refused and how, ids, slots and the backlog, timeouts, cancelling, stopping.

Time is the test's own; instances stand at a gate where the order matters.
"""

from __future__ import annotations

import threading

import pytest

from tests.helpers.models import ANY_OUT, INT32, LONG_S, STOPPED, counters_at_base
from tests.helpers.sequences import (
    CONTROLS,
    CORRID,
    END,
    IDLE_US,
    SECOND,
    START,
    STATE,
    TYPES,
    Recorder,
    number,
    sequenced,
)  # fmt: skip
from triton_fast._native.sched.model import NativeModel
from triton_fast._native.sched.sequence import NativeSequences
from triton_fast.config import IoSpec
from triton_fast.errors import Cancelled, InvalidArg, ResourceExhausted, ServerError, Unavailable, Unsupported
from triton_fast.types import DataType

__all__ = ["counters_at_base"]

NO_ID = "inference request to model 'm' must specify a non-zero or non-empty correlation ID"
ROWS = "inference request to model 'm' must specify batch-size 1 due to requirements of sequence batcher"
EXPIRED = "timeout of the corresponding sequence has been expired"
HOLE = "a request of the same sequence was cancelled"


def no_start(name):
    return (
        f"inference request for sequence {name} to model 'm' must specify the START flag on the first request of the "
        "sequence"
    )


def refused(m, *args, **options):
    """The error of one request, as (class, text)."""
    with pytest.raises(ServerError) as caught:
        m.ask(*args, **options)
    return type(caught.value), str(caught.value)


def ended(call):
    with pytest.raises(ServerError) as caught:
        call.wait(LONG_S)
    return type(caught.value), str(caught.value)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direct", [False, True])
def test_requests_keep_to_the_rules(direct):
    with sequenced(Recorder(), direct=direct) as m:
        assert refused(m, 1, 0) == refused(m, 1, "") == refused(m, 1, 0, START) == (InvalidArg, NO_ID)
        assert refused(m, 1, 7) == refused(m, 1, 7, END) == (InvalidArg, no_start(7))
        assert refused(m, 1, 1 << 63) == (InvalidArg, no_start(1 << 63))
        assert refused(m, 1, "ab") == (InvalidArg, no_start("ab"))
        assert m.ask(1, 7, START) == 1
        assert m.ask(2, 7) == 2
        assert m.ask(3, 7, END) == 3
        assert refused(m, 4, 7) == (InvalidArg, no_start(7))
        assert m.ask(5, 7, START | END) == 5
        assert refused(m, 6, 7, END) == (InvalidArg, no_start(7))
        assert m.batcher.counts()["named"] == 0


def test_the_batch_size_is_looked_at_first():
    with sequenced(Recorder()) as m:
        for id_, flags in ((0, 0), (7, 0), (7, START)):
            with pytest.raises(InvalidArg, match=ROWS):
                number(rows(m, 2, id_, flags))
        assert m.batcher.counts()["known"] == 0


def rows(m, n, id_, flags):
    from tests.helpers.models import numbers
    from triton_fast._native.sched.inprocess import InferCall

    return InferCall(m.model, [numbers(1, n, 1)], flags=flags, correlation=id_)


def test_a_text_and_a_number_are_not_the_same_id():
    with sequenced(Recorder()) as m:
        m.ask(1, 5, START)
        assert refused(m, 1, "5") == (InvalidArg, no_start("5"))
        m.ask(1, "5", START)
        m.ask(1, 5, END)
        assert refused(m, 1, 5) == (InvalidArg, no_start(5))
        m.ask(1, "5", END)


def test_long_ids():
    with sequenced(Recorder()) as m:
        name = "é" * 64
        m.ask(1, name, START)
        m.ask(1, name, END)
        assert refused(m, 1, name + "x", START) == (
            Unsupported, "string correlation ID cannot be longer than 128 characters"
        )  # fmt: skip


def test_ids_that_differ_in_any_byte_are_different():
    names = [*range(1, 200), *("x" * n for n in range(1, 129)), *(f"a{n:04}" for n in range(200)), "a\0", "a\0\0", "\0"]
    with sequenced(Recorder(), slots=1000) as m:
        for k, name in enumerate(names):
            m.ask(k, name, START)
        assert m.batcher.counts()["named"] == len(names)
        for k, name in enumerate(names):
            m.ask(k, name, END)
        assert m.batcher.counts()["named"] == 0


@pytest.mark.parametrize("dtype", ["UINT64", "INT64", "UINT32", "INT32"])
def test_a_text_id_is_nothing_for_a_number(dtype):
    types = {**TYPES, "CORRID": DataType[dtype]}
    corrid = ("CORRID", 3, int(DataType[dtype]), b"", b"")
    with sequenced(Recorder(), controls=(*CONTROLS, corrid), control_types=types) as m:
        assert refused(m, 1, "abc", START) == (
            InvalidArg,
            f"sequence batching control 'CORRID' data-type is 'BYTES', but model 'm' expects '{dtype}'",
        )
        m.ask(1, 5, START | END)


# --- order, restarting ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direct", [False, True])
def test_requests_of_a_sequence_run_one_after_another(direct):
    gate = Recorder(held=True)
    with sequenced(gate, direct=direct) as m:
        calls = [m.send(0, 1, START), *(m.send(k, 1) for k in range(1, 5)), m.send(5, 1, END)]
        for k in range(6):
            (row,) = gate.taken()
            assert (row["IN"], row["START"], row["END"]) == (k, k == 0, k == 5)
            assert m.model.pending == 5 - k
            gate.step()
        assert [number(call) for call in calls] == list(range(6))


def test_start_on_a_live_id_begins_again_in_the_same_slot():
    gate = Recorder(held=True)
    with sequenced(gate, direct=True) as m:
        first = m.send(1, 1, START)
        gate.taken()
        calls = [m.send(2, 2, START), m.send(3, 1), m.send(4, 1, START), m.send(5, 1, END)]
        found = []
        for _ in range(5):
            gate.step()
            found.append(gate.taken() if len(found) < 3 else None)
        assert [[row["IN"] for row in batch] for batch in found[:3]] == [[3, 2], [4], [5]]
        assert [number(call) for call in (first, *calls)] == [1, 2, 3, 4, 5]


def test_an_id_can_begin_anew_while_its_old_sequence_ends():
    gate = Recorder(held=True)
    with sequenced(gate, slots=1) as m:
        calls = [m.send(1, 1, START), m.send(2, 1, END), m.send(3, 1, START), m.send(4, 1, END)]
        assert m.batcher.counts()["waiting"] == 1
        for k in range(1, 5):
            assert [row["IN"] for row in gate.taken()] == [k]
            gate.step()
        assert [number(call) for call in calls] == [1, 2, 3, 4]


def test_an_error_ends_its_request_not_its_sequence():
    def answer(values):
        return InvalidArg("no") if values["IN"] == 2 else {"OUT": (DataType.INT32, (1, 1), bytes(4))}

    with sequenced(Recorder(answer=answer)) as m:
        m.ask(1, 1, START)
        assert refused(m, 2, 1) == (InvalidArg, "no")
        m.ask(3, 1)
        assert refused(m, 2, 1, END) == (InvalidArg, "no")
        assert m.batcher.counts()["named"] == m.batcher.counts()["seated"] == 0


# --- slots, instances, backlog ----------------------------------------------------------------------------------------


def test_a_sequence_stays_with_its_instance():
    one, other = Recorder(), Recorder()
    with sequenced(one, other, direct=True, slots=2, max_batch=2) as m:
        for k in range(4):
            m.ask(k, 10 + k, START)
        for _ in range(3):
            for k in (3, 1, 2, 0):
                m.ask(k, 10 + k)
    for recorder in (one, other):
        assert len({row["IN"] for batch in recorder.batches for row in batch if row["READY"]}) == 2


def test_the_lowest_free_slot_is_taken():
    gate = Recorder()
    with sequenced(gate, direct=True, slots=4) as m:
        for k in (1, 2, 3):
            m.ask(k, k, START)
        m.ask(2, 2, END)
        m.ask(4, 4, START)
        assert [row["READY"] for row in gate.batches[-1]] == [0, 1]
        m.ask(5, 5, START)
        assert [row["READY"] for row in gate.batches[-1]] == [0, 0, 0, 1]


@pytest.mark.parametrize("direct", [False, True])
def test_who_waits_longest_gets_the_slot(direct):
    gate = Recorder()
    with sequenced(gate, direct=direct, slots=1, max_batch=1) as m:
        m.ask(1, 1, START)
        waiting = [m.send(2, 2, START), m.send(3, 3, START), m.send(20, 2), m.send(21, 2, END), m.send(30, 3, END)]
        assert m.batcher.counts()["waiting"] == 2
        assert m.model.pending == 5
        m.ask(10, 1, END)
        assert [number(call) for call in waiting] == [2, 3, 20, 21, 30]
        assert [row["IN"] for (row,) in gate.batches] == [1, 10, 2, 20, 21, 3, 30]


def test_a_timeout_of_any_request_ends_a_sequence_that_waits():
    with sequenced(Recorder(), slots=1, idle_us=3600_000_000) as m:
        m.ask(1, 1, START)
        two = [m.send(1, 2, START), m.send(1, 2, timeout_us=2_000_000), m.send(1, 2, timeout_us=5_000_000)]
        three = m.send(1, 3, START, timeout_us=1_000_000)
        four = m.send(1, 4, START, timeout_us=3_000_000)
        five = m.send(1, 5, START)
        assert m.batcher.counts()["deadlines"] == 3
        m.pass_time(SECOND)
        assert ended(three) == (Unavailable, EXPIRED)
        assert refused(m, 1, 3) == (InvalidArg, no_start(3))
        m.pass_time(SECOND)
        assert [ended(call) for call in two] == [(Unavailable, EXPIRED)] * 3
        m.ask(1, 1, END)
        assert number(four) == 1  # a slot in time: its timeout has no meaning any more
        m.pass_time(5 * SECOND)
        m.ask(1, 4, END)
        assert number(five) == 1
        assert m.model.snapshot()["failures"]["REJECTED"] == 4


@pytest.mark.parametrize(("code", "kind"), [(4, Unavailable), (8, ResourceExhausted)])
def test_no_more_may_wait_than_was_said(code, kind):
    full = "Exceeds maximum queue size: 2 sequences wait for a slot of model 'm'"
    with sequenced(Recorder(), slots=1, idle_us=3600_000_000, max_waiting=2, full_code=code) as m:
        m.ask(1, 1, START)
        two, three = m.send(1, 2, START), m.send(1, 3, START)
        assert refused(m, 1, 4, START) == (kind, full)
        assert m.model.snapshot()["failures"]["REJECTED"] == 1
        assert m.batcher.counts()["waiting"] == 2 and m.batcher.counts()["known"] == 3
        # Sequences that are there are not concerned, and a place that becomes free is one.
        more = m.send(2, 2, END)
        assert m.ask(2, 1) == 2
        assert three.cancel()
        four = m.send(1, 4, START)
        assert refused(m, 1, 5, START | END) == (kind, full)
        m.ask(3, 1, END)
        assert (number(two), number(more), number(four)) == (1, 2, 1)
        assert m.batcher.counts()["waiting"] == 0
        assert refused(m, 1, 5) == (InvalidArg, no_start(5))


@pytest.mark.parametrize(("code", "kind"), [(4, Unavailable), (8, ResourceExhausted)])
@pytest.mark.parametrize("id_", [1, "one"])
def test_no_more_requests_of_a_sequence_may_wait_than_was_said(id_, code, kind):
    full = f"Exceeds maximum queue size: 2 requests of sequence {id_} wait for model 'm'"
    gate = Recorder(held=True)
    with sequenced(gate, controls=CONTROLS, max_requests=2, full_code=code) as m:
        calls = [m.send(1, id_, START)]
        gate.taken()
        calls += [m.send(k, id_) for k in (2, 3)]
        # What is executed does not wait; what waits is full, for its end too.
        assert refused(m, 4, id_) == (kind, full)
        assert refused(m, 4, id_, END) == (kind, full)
        assert m.model.snapshot()["failures"]["REJECTED"] == 2
        # Another sequence is not concerned, and this one goes on when there is room.
        calls.append(m.send(7, 9, START | END))
        gate.step()
        gate.taken()
        calls.append(m.send(5, id_, END))
        gate.open()
        assert [number(call) for call in calls] == [1, 2, 3, 7, 5]


def test_bytes_that_wait_are_those_of_all_sequences():
    full = "Exceeds maximum queue size: its requests have 12 bytes of inputs (max_queue_bytes: 12)"
    large = "the request has 16 bytes of inputs, more than the queue may hold (max_queue_bytes: 12)"
    any_shape = (IoSpec("IN", INT32, (-1,)),)
    gate = Recorder(held=True)
    with sequenced(gate, slots=2, max_bytes=12, states=[STATE], inputs=any_shape, outputs=ANY_OUT) as m:
        calls = [m.send(1, 1, START)]
        gate.taken()
        calls += [m.send(2, 1), m.send(3, 2, START), m.send(4, 3, START)]  # the last has no slot
        assert m.batcher.bytes == 12
        assert refused(m, 5, 1) == (Unavailable, full)
        assert refused(m, 5, 4, START) == (Unavailable, full)
        assert refused(m, 5, 1, dims=(4,)) == (InvalidArg, large)
        assert m.batcher.counts()["named"] == 3  # none was begun
        assert calls.pop().cancel()
        calls.append(m.send(5, 1, END))
        gate.open()
        assert [number(call) for call in calls] == [1, 2, 3, 5]
        # States and controls are not the client's.
        assert m.batcher.bytes == 0


def test_deadlines_in_any_order():
    with sequenced(Recorder(), slots=1, idle_us=3600_000_000) as m:
        m.ask(1, 1, START)
        order = [(k * 37) % 101 for k in range(1, 101)]
        calls = {k: m.send(1, 100 + k, START, timeout_us=k * 1_000_000) for k in order}
        for k in (50, 1, 100, 77):
            assert calls.pop(k).cancel()
        for k in range(1, 101):
            m.pass_time(SECOND)
            assert m.batcher.counts()["waiting"] == sum(1 for left in calls if left > k)
            if k in calls:
                assert ended(calls[k]) == (Unavailable, EXPIRED)


# --- idle -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direct", [False, True])
def test_an_idle_sequence_loses_its_slot(direct):
    gate = Recorder()
    with sequenced(gate, direct=direct, slots=1, max_batch=1) as m:
        m.ask(1, 1, START)
        m.pass_time(SECOND - 1)
        m.ask(2, 1)
        m.pass_time(SECOND - 1)
        waiting = m.send(3, 2, START)
        assert m.batcher.counts() == {
            "seated": 1, "idle": 1, "waiting": 1, "named": 2, "known": 2, "spare": 0, "deadlines": 0,
        }  # fmt: skip
        m.pass_time(1)
        assert number(waiting) == 3
        assert refused(m, 4, 1) == (InvalidArg, no_start(1))
        assert [row["END"] for (row,) in gate.batches] == [0, 0, 0]  # its end was told to nobody
        m.ask(5, 2, END)


def test_a_sequence_is_not_idle_while_it_has_requests():
    gate = Recorder(held=True)
    with sequenced(gate) as m:
        calls = [m.send(1, 1, START), m.send(2, 1)]
        gate.taken()
        m.pass_time(100 * SECOND)
        gate.step()
        gate.taken()
        m.pass_time(100 * SECOND)
        gate.step()
        assert [number(call) for call in calls] == [1, 2]
        m.pass_time(SECOND - 1)
        gate.open()
        assert m.ask(3, 1) == 3
        m.pass_time(SECOND)
        assert refused(m, 4, 1) == (InvalidArg, no_start(1))


def test_only_what_is_due_is_looked_at():
    """Sequences lie in the order of their last activity: each second takes exactly those of that second."""
    with sequenced(Recorder(), slots=1000) as m:
        for k in range(100):
            m.ask(1, 1 + k, START)
            m.pass_time(SECOND // 100)
        for k in range(99):
            assert m.batcher.counts()["idle"] == 99 - k
            m.pass_time(SECOND // 100)


def test_the_reaper_thread_keeps_the_time():
    """With the real clock: an idle sequence's slot goes to the one that waits, and a timeout is answered."""
    gate = Recorder()
    with sequenced(gate, slots=1, idle_us=20_000, clock=None) as m:
        m.ask(1, 1, START)
        assert m.ask(2, 2, START) == 2
        assert m.ask(3, 3, START | END) == 3
    gate = Recorder(held=True)
    with sequenced(gate, slots=1, idle_us=3600_000_000, clock=None) as m:
        first = m.send(1, 1, START)
        gate.taken()  # the instance is busy: who says so is no instance
        late = m.send(2, 2, START, timeout_us=10_000)
        assert ended(late) == (Unavailable, EXPIRED)
        gate.open()
        assert number(first) == 1


# --- cancelling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direct", [False, True])
def test_cancelling_one_request_ends_the_sequence(direct):
    gate = Recorder(held=True)
    with sequenced(gate, direct=direct, slots=1, max_batch=1) as m:
        running = m.send(1, 1, START)
        gate.taken()
        before, victim, after = m.send(2, 1), m.send(3, 1), m.send(4, 1)
        waiting = m.send(5, 2, START | END)
        assert victim.cancel()
        assert ended(before) == ended(after) == (Cancelled, HOLE)
        assert refused(m, 6, 1) == (InvalidArg, no_start(1))
        gate.open()
        assert number(running) == 1
        assert number(waiting) == 5
        assert m.model.snapshot()["failures"]["CANCELED"] == 3
    assert [row["IN"] for (row,) in gate.batches] == [1, 5]


def test_cancelling_in_the_backlog():
    with sequenced(Recorder(), slots=1) as m:
        m.ask(1, 1, START)
        other = m.send(1, 2, START)
        calls = [m.send(1, 3, START, timeout_us=1000), m.send(2, 3)]
        assert calls[0].cancel()
        assert ended(calls[1]) == (Cancelled, HOLE)
        assert m.batcher.counts()["waiting"] == 1
        assert m.batcher.counts()["deadlines"] == 0
        m.ask(1, 1, END)
        assert number(other) == 1


def test_a_running_request_is_only_told():
    gate = Recorder(held=True)
    with sequenced(gate) as m:
        call = m.send(1, 1, START)
        gate.taken()
        assert not call.cancel()
        gate.open()
        assert number(call) == 1
        assert m.ask(2, 1) == 2


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_what_runs_may_finish_when_the_model_stops():
    gate = Recorder(held=True)
    with sequenced(gate, slots=1) as m:
        running = m.send(1, 1, START)
        gate.taken()
        waiting = m.send(10, 2, START | END)
        stopper = threading.Thread(target=m.model.stop)
        stopper.start()
        # New sequences are refused from some moment on; those that are known go on.
        while not isinstance(started(m), Unavailable):
            pass
        more, last = m.send(2, 1), m.send(3, 1, END)
        gate.open()
        assert [number(call) for call in (running, more, last, waiting)] == [1, 2, 3, 10]
        stopper.join()
        assert refused(m, 1, 1, START) == refused(m, 1, 1) == (Unavailable, STOPPED)


def started(m):
    """Start another sequence, which waits in the backlog, and take it back; or the refusal."""
    try:
        assert m.send(9, 9, START).cancel()
    except Unavailable as error:
        return error
    return None


@pytest.mark.parametrize("direct", [False, True])
def test_abort_answers_all_that_waits(direct):
    gate = Recorder(held=True)
    with sequenced(gate, direct=direct, slots=2, max_batch=2) as m:
        running = m.send(1, 1, START)
        gate.taken()
        calls = [m.send(2, 1), m.send(3, 2, START), m.send(4, 3, START), m.send(5, 3, timeout_us=1000)]
        m.model.abort()
        assert [ended(call) for call in calls] == [(Unavailable, STOPPED)] * 4
        assert refused(m, 6, 1) == (Unavailable, STOPPED)
        gate.open()
        assert number(running) == 1


# --- the constructor --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"instances": 0}, {"slots": 0}, {"slots": 4097, "direct": True}, {"controls": [CORRID]},
        {"preferred": range(1, 66)}, {"states": [("S", "T", 8, (1,), (1,), b"")]},
    ],
)  # fmt: skip
def test_nonsense_is_refused(options):
    model = NativeModel("m", 1, 4, [], [])
    with pytest.raises(ValueError, match=r"."):
        NativeSequences(model, **{"instances": 1, "slots": 1, "direct": False, "idle_us": IDLE_US, **options})
