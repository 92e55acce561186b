"""The server's side of a Python worker: requests out, responses in, back-pressure, cancelling, the worker's end.

The test plays the worker, step by step and in one thread, so every order of events is the one written down.
"""

from __future__ import annotations

import contextlib
import gc
import struct

import pytest

from tests.helpers.models import ANY, ANY_OUT, INT32, LONG_S, ONE, OUT, in_threads, numbers, submit, value_of
from tests.helpers.pyworker_peer import DONE, EVENTS, strings
from tests.helpers.pyworker_scripted import (  # noqa: F401
    BY_SENDER,
    FINALIZE,
    GONE,
    NO_RESPONSE,
    RESCHEDULED,
    TRIM,
    WORK,
    ScriptedWorker,
    everything_at_base,
    python_model,
)
from tests.helpers.server import until
from triton_fast._native.pyworker.channel import WorkerChannel
from triton_fast._native.pyworker.instance import PythonInstance
from triton_fast._native.sched.inprocess import InferCall, StreamCall
from triton_fast.config import IoSpec
from triton_fast.errors import Cancelled, Internal, NotFound, ServerError, Unavailable
from triton_fast.types import DataType


def out(value, rows=1):
    return (0, INT32, (rows, 1), struct.pack("<i", value) * rows)


def take(stream):
    """The next of a stream: a number, "final" for one without outputs, or the error."""
    try:
        taken = stream.take(LONG_S)
    except ServerError as error:
        return error
    if taken is None:
        return None
    return struct.unpack("<i", taken[0]["OUT"][2])[0] if taken[0] else "final"


def send(s, given, value, **options):
    return s.worker.event(s.worker.record(given.name, [out(value)], final=False, **options))


def end(s, given):
    s.worker.event(s.worker.record(given.name, kind=NO_RESPONSE))


# --- what goes and what comes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [d for d in DataType if d not in (DataType.INVALID, DataType.STRING)])
def test_every_fixed_size_type_goes_both_ways(dtype):
    io = {"inputs": (IoSpec("IN", dtype, (-1,)),), "outputs": (IoSpec("OUT", dtype, (-1,)),)}
    size = {"1": 1, "8": 1, "6": 2, "2": 4, "4": 8, "L": 1}[dtype.name[-1]]
    data = bytes(range(3 * size))
    with python_model(**io) as s:
        call = InferCall(s.model, [("IN", dtype, (1, 3), data)])
        e = s.worker.execution()
        assert e.requests[0].inputs[0][:4] == (0, dtype, (1, 3), data)
        s.worker.done(e, s.worker.record(e.requests[0].name, [(0, dtype, (1, 3), data[::-1])]))
        assert call.wait(LONG_S) == {"OUT": (dtype, (1, 3), data[::-1])}


def test_strings_are_checked_and_copied():
    io = {"inputs": (IoSpec("IN", DataType.STRING, (-1,)),), "outputs": (IoSpec("OUT", DataType.STRING, (-1,)),)}
    good = strings(b"", b"abc", "é".encode())
    with python_model(**io) as s:
        for data, dims in [(good, (1, 3)), (good, (1, 2)), (good[:-1], (1, 3)), (b"", (1, 0)), (b"", (1, 1)),
                           (struct.pack("<I", 2**32 - 1), (1, 1))]:
            call = InferCall(s.model, [("IN", DataType.STRING, (1, 3), good)])
            e = s.worker.execution()
            assert e.requests[0].inputs[0][3] == good
            off = s.worker.done(e, s.worker.record(e.requests[0].name, [(0, DataType.STRING, dims, data)]))
            if (data, dims) in [(good, (1, 3)), (b"", (1, 0))]:
                assert call.wait(LONG_S) == {"OUT": (DataType.STRING, dims, data)}
            else:
                with pytest.raises(Internal, match="data size does not match the shape of output 'OUT' of model 'm'"):
                    call.wait(LONG_S)
            assert s.worker.in_use(off) == 0        # although the response lives


def test_what_a_request_says_reaches_the_worker():
    inputs = (IoSpec("IN", INT32, (1,)), IoSpec("IN1", INT32, (1,), optional=True))
    outputs = (*OUT, IoSpec("OUT1", INT32, (1,)))
    with python_model(inputs=inputs, outputs=outputs, dynamic=False) as s:
        call = InferCall(s.model, [numbers(5, 1, 1)], ["OUT1"], id="n7", priority=0, timeout_us=1234, flags=3,
                         correlation="seq", params=[("a", 1), ("b", True), ("c", 'x"é')])
        e = s.worker.execution()
        given = e.requests[0]
        assert (given.id, given.timeout_us, given.flags, given.correlation) == ("n7", 1234, 3, "seq")
        assert given.params == '{"a":1,"b":true,"c":"x\\"é"}'
        assert [tensor[0] for tensor in given.inputs] == [0]        # the optional one is absent
        assert given.wanted == [1]
        # OUT was not asked for, and OUT1 comes by name.
        s.worker.done(e, s.worker.record(given.name, [out(1), ("OUT1", INT32, (1, 1), struct.pack("<i", 9))],
                                         parameters={"k": "v", "n": -3, "t": True}))
        assert call.wait(LONG_S) == {"OUT1": (INT32, (1, 1), struct.pack("<i", 9))}
        call = InferCall(s.model, [numbers(5, 1, 1), ("IN1", *numbers(6, 1, 1)[1:])], correlation=77)
        e = s.worker.execution()
        assert e.requests[0].correlation == 77
        assert e.requests[0].wanted == [0, 1]
        assert [tensor[0] for tensor in e.requests[0].inputs] == [0, 1]
        s.worker.done(e, s.worker.record(e.requests[0].name, [("NONE", INT32, (1, 1), bytes(4))]))
        with pytest.raises(Internal, match="unexpected inference output 'NONE' for model 'm'"):
            call.wait(LONG_S)


def test_errors_one_by_one_and_of_the_whole_batch():
    with python_model(dynamic=True, max_batch=2, preferred=(2,), delay_us=10**9) as s:
        calls = [submit(s.model, k) for k in range(2)]
        e = s.worker.execution()
        assert len(e.requests) == 2
        s.worker.done(e, s.worker.record(e.requests[0].name, code=2, error=b"no such thing"),
                      s.worker.record(e.requests[1].name, [out(4)]))
        with pytest.raises(NotFound, match="no such thing"):
            calls[0].wait(LONG_S)
        assert value_of(calls[1]) == 4
        for code, kind in [(4, Unavailable), (-7, Internal)]:
            calls = [submit(s.model, k) for k in range(2)]
            s.worker.failed(s.worker.execution(), b"all of it", code)
            for call in calls:
                with pytest.raises(kind, match="all of it"):
                    call.wait(LONG_S)
        call, other = [submit(s.model, k) for k in range(2)]
        e = s.worker.execution()
        s.worker.done(e, s.worker.record(e.requests[0].name, kind=RESCHEDULED),
                      s.worker.record(e.requests[1].name, [(0, INT32, (1, 1), bytes(8))]))
        with pytest.raises(Internal, match="RELEASE_RESCHEDULE"):
            call.wait(LONG_S)
        with pytest.raises(Internal, match="data size does not match"):
            other.wait(LONG_S)
        assert not s.channel.broken


# --- memory -----------------------------------------------------------------------------------------------------------


def test_outbound_memory_is_free_when_the_response_is():
    with python_model() as s:
        call = submit(s.model, 1)
        e = s.worker.execution()
        off = s.worker.done(e, s.worker.record(e.requests[0].name, [out(7)]))
        assert value_of(call) == 7
        assert s.worker.in_use(off) == 1
        del call
        gc.collect()
        assert s.worker.in_use(off) == 0


def test_an_output_may_lie_in_an_input_and_keeps_it():
    with python_model(inputs=ANY, outputs=ANY_OUT) as s:
        call = submit(s.model, 3, 1, 8)
        e = s.worker.execution()
        at = e.requests[0].inputs[0][4]
        record = s.worker.record(e.requests[0].name, [(0, INT32, (1, 4), bytes(16))], at=at + 8)
        s.worker.done(e, record)
        assert call.wait(LONG_S)["OUT"] == (INT32, (1, 4), struct.pack("<i", 3) * 4)
        s.worker.release(e.off)         # the worker needs it no longer, the response does
        other = submit(s.model, 4, 1, 8)
        f = s.worker.execution()
        assert f.off != e.off
        del call
        gc.collect()
        s.worker.done(f, s.worker.record(f.requests[0].name, [(0, INT32, (1, 1), bytes(4))]))
        other.wait(LONG_S)
        third = submit(s.model, 5, 1, 8)
        g = s.worker.execution()
        assert g.off == e.off           # given out again
        # Not aligned to its type: copied, so the input is free at once.
        s.worker.done(g, s.worker.record(g.requests[0].name, [(0, INT32, (1, 1), bytes(4))],
                                         at=g.requests[0].inputs[0][4] + 1))
        assert third.wait(LONG_S)["OUT"][2] == (struct.pack("<i", 5) * 2)[1:5]


def test_a_free_part_of_the_inbound_heap_is_nobodys_output():
    with python_model() as s:
        call = submit(s.model, 1)
        e = s.worker.execution()
        at = e.requests[0].inputs[0][4]
        s.worker.release(e.off)
        s.instance.trim(1 << 20)        # the sweep
        assert s.worker.next(WORK)[0] == TRIM
        s.worker.put32(e.off - 64, 1)   # what only the server may say
        s.worker.done(e, s.worker.record(e.requests[0].name, [out(1)], at=at))
        assert until(lambda: s.channel.broken)
        s.instance.fail(GONE)
        with pytest.raises(Internal, match="malformed"):
            call.wait(LONG_S)


def test_inputs_larger_than_the_heap_fail_alone():
    with python_model(inputs=ANY, outputs=ANY_OUT, in_bytes=1 << 16) as s:
        with pytest.raises(Unavailable, match="shm-max-byte-size"):
            submit(s.model, 1, 1, 1 << 15).wait(LONG_S)
        call = submit(s.model, 1)
        e = s.worker.execution()
        s.worker.done(e, s.worker.record(e.requests[0].name, [out(1)]))
        assert value_of(call) == 1


def test_a_heap_given_out_in_large_parts_takes_small_ones():
    with python_model(inputs=ANY, outputs=ANY_OUT, in_bytes=1 << 16, dynamic=False) as s:
        for size in (12000, 1, 1, 1):
            call = submit(s.model, 1, 1, size)
            e = s.worker.execution()
            if size > 1:
                s.worker.release(e.off)     # the small ones stay in use
            s.worker.done(e, s.worker.record(e.requests[0].name, [out(1)]))
            assert value_of(call) == 1


# --- senders ----------------------------------------------------------------------------------------------------------


def test_a_sender_of_a_model_that_answers_once_may_be_early_or_late():
    with python_model() as s:
        early, late = submit(s.model, 1), None
        e = s.worker.execution()
        s.worker.event(s.worker.record(e.requests[0].name, [out(11)]))
        assert value_of(early) == 11
        s.worker.done(e, s.worker.record(e.requests[0].name, kind=BY_SENDER))
        late = submit(s.model, 2)
        f = s.worker.execution()
        s.worker.done(f, s.worker.record(f.requests[0].name, kind=BY_SENDER))
        third = submit(s.model, 3)      # another execution begins meanwhile
        g = s.worker.execution()
        s.worker.event(s.worker.record(f.requests[0].name, [out(12)]))
        s.worker.event(s.worker.record(f.requests[0].name, [out(13)]))      # too late
        assert value_of(late) == 12
        # Both an event and a full response: the first wins, the other is dropped.
        s.worker.event(s.worker.record(g.requests[0].name, [out(14)]))
        assert value_of(third) == 14
        s.worker.done(g, s.worker.record(g.requests[0].name, [out(15)]))
        assert s.instance.drain(LONG_S)
        taken = s.model.snapshot()
        assert taken["success"] == 3
        assert not any(taken["failures"].values())


@pytest.mark.parametrize("n", [0, 1, 5])
def test_a_decoupled_request_has_any_number_of_responses(n):
    with python_model(decoupled=True) as s:
        stream = StreamCall(s.model, [numbers(1, 1, 1)])
        e = s.worker.execution()
        for k in range(n):
            send(s, e.requests[0], k)
        s.worker.done_empty(e)
        end(s, e.requests[0])
        assert [take(stream) for _ in range(n + 2)] == [*range(n), "final", None]


def test_the_final_response_may_have_outputs_and_others_errors():
    with python_model(decoupled=True) as s:
        stream = StreamCall(s.model, [numbers(1, 1, 1)])
        e = s.worker.execution()
        s.worker.done_empty(e)
        s.worker.event(s.worker.record(e.requests[0].name, code=4, error=b"not now", final=False))
        s.worker.event(s.worker.record(e.requests[0].name, [out(2)]))
        error = take(stream)
        assert isinstance(error, Unavailable)
        assert str(error) == "not now"
        assert [take(stream), take(stream)] == [2, None]


def test_an_execution_that_fails_after_events_ends_what_is_open():
    with python_model(decoupled=True, max_batch=2, preferred=(2,), delay_us=10**9) as s:
        streams = [StreamCall(s.model, [numbers(k, 1, 1)]) for k in range(2)]
        e = s.worker.execution()
        send(s, e.requests[0], 5)
        send(s, e.requests[1], 6)
        end(s, e.requests[1])
        s.worker.failed(e, b"Traceback", 1)
        assert take(streams[0]) == 5
        assert str(take(streams[0])) == "Traceback"
        assert [take(streams[1]), take(streams[1])] == [6, "final"]
        send(s, e.requests[0], 7)       # of a request that is over
        assert s.instance.drain(LONG_S)


def test_a_slow_taker_makes_the_worker_hold():
    with python_model(decoupled=True) as s:
        stream = StreamCall(s.model, [numbers(1, 1, 1)], max_responses=2)
        e = s.worker.execution()
        given = e.requests[0]
        s.worker.done_empty(e)
        for k in range(5):
            send(s, given, k)
        end(s, given)
        while not s.worker.is_held(given):
            pass
        assert [take(stream) for _ in range(7)] == [0, 1, 2, 3, 4, "final", None]
        assert not s.worker.is_held(given)
        # One that is held when its execution fails, and one that is held when the worker goes.
        stream = StreamCall(s.model, [numbers(1, 1, 1)], max_responses=1)
        e = s.worker.execution()
        for k in range(3):
            send(s, e.requests[0], k)
        s.worker.failed(e, b"broke off")
        found = [take(stream) for _ in range(4)]
        assert found[:3] == [0, 1, 2]
        assert str(found[3]) == "broke off"
        stream = StreamCall(s.model, [numbers(1, 1, 1)], max_responses=1)
        e = s.worker.execution()
        for k in range(3):
            send(s, e.requests[0], k)
        s.worker.done_empty(e)
        while not s.worker.is_held(e.requests[0]):
            pass
        s.instance.fail(GONE)
        assert take(stream) == 0
        assert str(take(stream)) == GONE


def test_a_worker_that_does_not_hold_is_broken():
    with python_model(decoupled=True, out_bytes=8 << 20) as s:
        stream = StreamCall(s.model, [numbers(1, 1, 1)], max_responses=1)
        e = s.worker.execution()
        s.worker.done_empty(e)
        off, n = s.worker.place(s.worker.record(e.requests[0].name, final=False))
        while not s.channel.broken:
            if s.worker.has_room(EVENTS):
                s.worker.publish(EVENTS, 1, 0, off, n)
        s.instance.fail(GONE)
        assert take(stream) == "final"      # a response without outputs
        assert str(take(stream)) == GONE


# --- cancelling -------------------------------------------------------------------------------------------------------


def test_a_cancel_is_written_where_the_worker_looks():
    with python_model(decoupled=True) as s:
        stream = StreamCall(s.model, [numbers(1, 1, 1)])
        e = s.worker.execution()
        assert not s.worker.is_cancelled(e.requests[0])
        assert not stream.cancel()
        assert s.worker.is_cancelled(e.requests[0])
        s.worker.event(s.worker.record(e.requests[0].name, code=7, error=b"cancelled"))
        s.worker.done_empty(e)
        assert isinstance(take(stream), Cancelled)


def test_a_request_cancelled_in_the_queue_never_reaches_the_worker():
    with python_model(dynamic=False) as s:
        first, second = submit(s.model, 1), None
        e = s.worker.execution()
        second = submit(s.model, 2)
        assert second.cancel()
        s.worker.done(e, s.worker.record(e.requests[0].name, [out(1)]))
        third = submit(s.model, 3)
        f = s.worker.execution()
        assert f.requests[0].inputs[0][3] == struct.pack("<i", 3)
        assert f.requests[0].generation != e.requests[0].generation or f.requests[0].slot != e.requests[0].slot
        s.worker.done(f, s.worker.record(f.requests[0].name, [out(3)]))
        assert (value_of(first), value_of(third)) == (1, 3)
        with pytest.raises(Cancelled):
            second.wait(LONG_S)


# --- the worker's end -------------------------------------------------------------------------------------------------


def test_what_is_in_flight_fails_and_the_next_worker_takes_what_waits():
    with python_model(dynamic=False) as s:
        lost, waits = submit(s.model, 1), submit(s.model, 2)
        s.worker.execution()
        s.instance.fail("killed", 4)
        with pytest.raises(Unavailable, match="killed"):
            lost.wait(LONG_S)
        channel = WorkerChannel(1 << 16, 1 << 16)
        s.instance.attach(channel)
        with pytest.raises(Internal, match="has a worker already"):
            s.instance.attach(channel)
        with ScriptedWorker(channel) as worker:
            e = worker.execution()
            worker.done(e, worker.record(e.requests[0].name, [out(22)]))
            assert value_of(waits) == 22
            assert s.instance.drain(LONG_S)
            s.instance.fail(GONE)
        s.instance.give_up("no hope", 4)
        with pytest.raises(Unavailable, match="no hope"):
            submit(s.model, 3).wait(LONG_S)


def test_fail_ends_requests_that_their_senders_have():
    with python_model(max_batch=2, preferred=(2,), delay_us=10**9) as s:
        calls = [submit(s.model, k) for k in range(2)]
        e = s.worker.execution()
        s.worker.done(e, *(s.worker.record(given.name, kind=BY_SENDER) for given in e.requests))
        assert not s.instance.drain(0)
        s.worker.event(s.worker.record(e.requests[1].name, [out(9)]))
        assert value_of(calls[1]) == 9
        s.instance.fail(GONE)
        with pytest.raises(Internal, match=GONE):
            calls[0].wait(LONG_S)


def test_attach_and_fail_from_several_threads():
    with python_model() as s:
        s.instance.fail(GONE)

        def work(k):
            for _ in range(50):
                with contextlib.suppress(Internal):     # another thread was first
                    s.instance.attach(WorkerChannel(1 << 16, 1 << 16))
                s.instance.fail(f"{GONE} {k}")

        in_threads(3, work)


def test_dealloc_with_everything_in_flight():
    channel = WorkerChannel(1 << 16, 1 << 16)
    instance = PythonInstance("py", None)
    instance.attach(channel)
    del instance
    with python_model(decoupled=True) as s:
        streams = [StreamCall(s.model, [numbers(k, 1, 1)], max_responses=1) for k in range(3)]
        e = s.worker.execution()
        for given in e.requests:
            for k in range(3):
                send(s, given, k)
        del streams


def test_finalize_and_trim_are_told():
    with python_model() as s:
        assert s.instance.finalize()
        assert s.worker.next(WORK)[0] == FINALIZE
        s.instance.trim(4096)
        assert s.worker.next(WORK)[::4] == (TRIM, 4096)
        s.instance.fail(GONE)
        assert not s.instance.finalize()


# --- what no worker writes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [
    lambda w, e: w.publish(DONE, 9, e.batch),
    lambda w, e: w.publish(DONE, 1, e.batch + 1),
    lambda w, e: w.publish(DONE, 1, e.batch),
    lambda w, e: w.publish(DONE, 1, e.batch, 3, 2**63),
    lambda w, e: w.publish(DONE, 1, e.batch, 2**64 - 8, 64),
    lambda w, e: w.publish(DONE, 1, e.batch, w.out_off, 64),
    lambda w, e: w.publish(DONE, 1, e.batch, w.out_off + w.out_bytes, 64),
    lambda w, e: w.done(e),
    lambda w, e: w.done(e, *[w.record(e.requests[0].name, [out(1)])] * 2),
    lambda w, e: w.done(e, w.record(e.requests[0].name, kind=9)),
    lambda w, e: w.done(e, w.record(e.requests[0].name, code=99)),
    lambda w, e: w.done(e, w.record(e.requests[0].name, [out(1)], at=w.out_off + w.out_bytes)),
    lambda w, e: w.done(e, w.record(e.requests[0].name, [out(1)], at=w.in_off)),
    lambda w, e: w.done(e, w.record(e.requests[0].name, [(7, INT32, (1, 1), bytes(4))])),
    lambda w, e: w.done(e, w.record(e.requests[0].name, [(0, 99, (1, 1), bytes(4))])),
    lambda w, e: w.failed(e, b"x", 99),
    lambda w, e: w.lie(DONE, 2**63),
    lambda w, e: w.lie(EVENTS, 2**63),
    lambda w, e: w.publish(EVENTS, 77, 0),
    lambda w, e: w.publish(EVENTS, 1, 0, 8, 64),
    lambda w, e: w.publish(EVENTS, 2, 0, w.out_off + 64, 8),
])  # fmt: skip
def test_nonsense_breaks_the_worker_alone(write):
    with python_model(inputs=ONE) as s:
        call = submit(s.model, 1)
        write(s.worker, s.worker.execution())
        while not s.instance.broken:
            pass
        s.instance.fail(GONE)
        with pytest.raises(Internal):
            call.wait(LONG_S)
        assert s.instance.in_flight == 0


def test_answers_before_the_execution_reach_nobody():
    with python_model() as s:
        off = s.worker.event(s.worker.record((0, 1), [out(66)]))
        while s.worker.in_use(off):
            pass
        call = submit(s.model, 1)
        e = s.worker.execution()
        s.worker.done(e, s.worker.record(e.requests[0].name, [out(1)]))
        assert value_of(call) == 1


def test_a_full_eventfd_blocks_nobody():
    with python_model() as s:
        for fd in s.worker.fds:
            ScriptedWorker.fill(fd)
        call = submit(s.model, 1)
        assert s.instance.finalize()
        s.instance.fail(GONE)
        s.instance.give_up(GONE)        # if it was not pulled before
        with pytest.raises(Internal, match=GONE):
            call.wait(LONG_S)
