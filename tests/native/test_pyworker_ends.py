"""A worker's end and its full rings at every moment: while something waits for room, is kept, is made, is under way."""

from __future__ import annotations

import gc
import struct
import threading
import weakref

import pytest

from tests.helpers.models import (
    INT32,
    LONG_S,
    Gate,
    drain,
    in_threads,
    live,
    make_model,
    numbers,
    served,
    submit,
    value_of,
)
from tests.helpers.pyworker_peer import EVENTS, SLOTS, WORK
from tests.helpers.pyworker_scripted import (  # noqa: F401
    BLS_CANCEL,
    BLS_CLOSED,
    BY_SENDER,
    FINALIZE,
    GONE,
    NO_RESPONSE,
    ScriptedWorker,
    everything_at_base,
    python_model,
)
from tests.helpers.server import until
from triton_fast._native.pyworker.channel import WorkerChannel
from triton_fast._native.pyworker.instance import PythonInstance
from triton_fast._native.sched.inprocess import InferCall, StreamCall
from triton_fast._native.sched.model import Epoch
from triton_fast.errors import Cancelled, Internal, NotFound

STREAM = 1


def out(value):
    return (0, INT32, (1, 1), struct.pack("<i", value))


def send(s, given, value, *, final=False):
    s.worker.event(s.worker.record(given.name, [out(value)], final=final))


def end(s, given):
    s.worker.event(s.worker.record(given.name, kind=NO_RESPONSE))


def begun(s, value=1, **options):
    """A stream whose execution has returned, and its request."""
    stream = StreamCall(s.model, [numbers(value, 1, 1)], **options)
    e = s.worker.execution()
    s.worker.done_empty(e)
    return stream, e.requests[0]



# --- room in the work ring --------------------------------------------------------------------------------------------


def fill_work(s):
    for _ in range(SLOTS):
        assert s.instance.finalize()
    assert not s.instance.finalize()


def test_an_execution_waits_for_room():
    with python_model() as s:
        fill_work(s)
        call = submit(s.model, 1)
        assert until(lambda: s.instance.executing)
        for _ in range(SLOTS):
            assert s.worker.next(WORK)[0] == FINALIZE
        e = s.worker.execution()
        s.worker.done(e, s.worker.record(e.requests[0].name, [out(1)]))
        assert value_of(call) == 1


@pytest.mark.parametrize("decoupled", [False, True])
def test_the_worker_goes_while_an_execution_waits_for_room(decoupled):
    with python_model(decoupled=decoupled) as s:
        fill_work(s)
        stream = StreamCall(s.model, [numbers(1, 1, 1)])
        assert until(lambda: s.instance.executing)
        s.instance.fail(GONE)
        assert drain(stream) == [(Internal, GONE)]


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_kept_requests_and_waiting_responses_go_with_the_worker():
    with python_model(decoupled=True, dynamic=False) as s:
        found = [begun(s, k, max_responses=1) for k in range(3)]
        for k in range(4):
            send(s, found[0][1], k)
            send(s, found[1][1], k)
        send(s, found[1][1], 9, final=True)
        ring = s.worker.ring(EVENTS)
        assert until(lambda: s.worker.is_held(found[1][1]) and s.worker.u64(ring) == s.worker.u64(ring + 64))
        s.instance.fail(GONE)
        assert [drain(stream) for stream, _ in found] == [
            [0, (Internal, GONE)], [0, ("final", 9)], [(Internal, GONE)],
        ]  # fmt: skip
        assert s.instance.in_flight == 0
        # The next worker's holds and slots begin anew.
        channel = WorkerChannel(1 << 20, 1 << 20)
        s.instance.attach(channel)
        with ScriptedWorker(channel) as worker:
            stream = StreamCall(s.model, [numbers(1, 1, 1)])
            e = worker.execution()
            worker.done_empty(e)
            assert not worker.is_held(e.requests[0])
            worker.event(worker.record(e.requests[0].name, kind=NO_RESPONSE))
            assert drain(stream) == [("final", None)]
            s.instance.fail(GONE)


def test_the_end_waits_behind_what_waits():
    with python_model(decoupled=True) as s:
        stream, given = begun(s, max_responses=1)
        for k in range(5):
            send(s, given, k)
        send(s, given, 9, final=True)
        send(s, given, 10)
        assert s.instance.in_flight == 1
        assert drain(stream) == [0, 1, 2, 3, 4, ("final", 9)]
        assert s.instance.drain(LONG_S)
        assert not s.worker.is_held(given)


def test_a_cancel_lets_go_of_what_waits():
    with python_model(decoupled=True) as s:
        stream, given = begun(s, max_responses=1)
        for k in range(5):
            send(s, given, k)
        assert until(lambda: s.worker.is_held(given))
        assert not stream.cancel()
        assert s.worker.is_cancelled(given)
        assert until(lambda: not s.worker.is_held(given))
        s.worker.event(s.worker.record(given.name, code=7, error=b"stopped"))
        assert drain(stream) == [0, (Cancelled, "stopped")]


def test_a_stream_that_is_dropped_is_cancelled():
    with python_model(decoupled=True) as s:
        stream, given = begun(s, max_responses=1)
        for k in range(5):
            send(s, given, k)
        del stream
        gc.collect()
        assert s.worker.is_cancelled(given)
        end(s, given)
        assert s.instance.drain(LONG_S)


def test_several_executions_are_unfinished_at_a_time():
    with python_model(decoupled=True) as s:
        found = [begun(s, k) for k in range(20)]
        assert s.instance.in_flight == 20
        assert not s.instance.drain(0)
        for k in (1, 2):
            for n, (_, given) in reversed(list(enumerate(found))):
                send(s, given, 10 * n + k)
        for _, given in found:
            end(s, given)
        assert [drain(stream) for stream, _ in found] == [
            [10 * n + 1, 10 * n + 2, ("final", None)] for n in range(20)
        ]


def test_what_comes_for_nobody_is_dropped():
    with python_model(decoupled=True) as s:
        stream, given = begun(s)
        end(s, given)
        send(s, given, 9)
        end(s, given)
        assert drain(stream) == [("final", None)]
        for name in [(1, 1), (65536, 1), (2**32 - 1, 1), (0, 0), (0, 9)]:
            s.worker.event(s.worker.record(name, [out(9)]))
        stream, given = begun(s)
        send(s, given, 1, final=True)
        assert drain(stream) == [("final", 1)]
        assert not s.instance.broken


# --- executions that fail ---------------------------------------------------------------------------------------------


def test_an_execution_that_fails_after_an_early_answer():
    with python_model(max_batch=2, preferred=(2,), delay_us=10**9) as s:
        calls = [submit(s.model, k) for k in range(2)]
        e = s.worker.execution()
        send(s, e.requests[0], 5, final=True)
        s.worker.failed(e, b"then it failed")
        assert value_of(calls[0]) == 5
        with pytest.raises(Internal, match="then it failed"):
            calls[1].wait(LONG_S)


def test_an_execution_that_fails_while_responses_wait():
    with python_model(decoupled=True) as s:
        stream = StreamCall(s.model, [numbers(1, 1, 1)], max_responses=1)
        e = s.worker.execution()
        for k in range(4):
            send(s, e.requests[0], k)
        s.worker.failed(e, b"it raised", 2)
        assert drain(stream) == [0, 1, 2, 3, (NotFound, "it raised")]
        assert s.instance.drain(LONG_S)


@pytest.mark.parametrize("final", [False, True])
def test_a_malformed_response_breaks_the_worker(final):
    with python_model(decoupled=True) as s:
        stream, given = begun(s)
        send(s, given, 1)
        head, *rest = s.worker.record(given.name, final=final)
        head = bytearray(head)
        struct.pack_into("<I", head, 28, 1)     # an output that is not there
        s.worker.event([bytes(head), *rest])
        assert until(lambda: s.instance.broken)
        s.instance.fail(GONE)
        assert drain(stream) == [1, (Internal, "the worker's response is malformed" if final else GONE)]


# --- models and instances that go -------------------------------------------------------------------------------------


@pytest.mark.parametrize("abort", [False, True])
def test_a_model_that_is_stopped_does_not_wait_for_a_worker(abort):
    with python_model() as s:
        s.instance.fail(GONE)
        stopped = threading.Thread(target=s.model.stop, kwargs={"abort": abort})
        stopped.start()
        stopped.join(LONG_S)
        assert not stopped.is_alive()


def test_a_cycle_of_model_instance_and_resolver_is_collected():
    class Owner:
        def __init__(self):
            self.instance = PythonInstance("p", self.resolve)
            self.model = make_model(self.instance)
            self.channel = WorkerChannel(1 << 20, 1 << 20)
            self.instance.attach(self.channel)

        def resolve(self, name, version):
            raise KeyError(self.model.name)

    for _ in range(5):
        owner = Owner()
        with ScriptedWorker(owner.channel) as worker:
            call = InferCall(owner.model, [numbers(1, 1, 1)])
            worker.execution()
            # The name is looked up while the last references go.
            for k in range(20):
                worker.call(k, "any", [("IN", INT32, (1, 1), bytes(4))])
            alive = weakref.ref(owner)
            del owner, call
            assert until(lambda alive=alive: gc.collect() >= 0 and alive() is None)


def test_failed_from_several_threads():
    with python_model() as s:
        worker = s.worker
        for _ in range(30):
            calls = [submit(s.model, k) for k in range(5)]
            worker.execution()
            in_threads(4, lambda k: s.instance.fail(f"{GONE} {k}"))
            s.instance.give_up(f"{GONE} at last")
            for call in calls:
                with pytest.raises(Internal, match=GONE):
                    call.wait(LONG_S)
            if worker is not s.worker:
                worker.unmap()
            channel = WorkerChannel(1 << 16, 1 << 16)
            s.instance.attach(channel)
            worker = ScriptedWorker(channel)
        worker.unmap()


def test_workers_come_and_go_under_load():
    with python_model(delay_us=100) as s:
        stop = threading.Event()
        outcomes = []

        def client(k):
            n = 0
            while not stop.is_set():
                n = n % 1000 + 1
                call = submit(s.model, 1000 * k + n)
                try:
                    assert value_of(call) == 1000 * k + n
                    outcomes.append("ok")
                except Internal as error:
                    assert str(error).startswith(GONE)
                    outcomes.append("failed")

        def serve(worker, e, by_sender):
            for given in e.requests:
                given.record = worker.record(given.name, [(0, *given.inputs[0][1:4])])
            if by_sender:
                worker.done(e, *(worker.record(given.name, kind=BY_SENDER) for given in e.requests))
                for given in e.requests:
                    worker.event(given.record)
            else:
                worker.done(e, *(given.record for given in e.requests))

        clients = [threading.Thread(target=client, args=(k,)) for k in range(3)]
        for thread in clients:
            thread.start()
        worker = s.worker
        for turn in range(25):
            for k in range(turn * 3 % 11):
                serve(worker, worker.execution(), k % 3 == 2)
            s.instance.fail(f"{GONE} {turn}")
            if worker is not s.worker:
                worker.unmap()
            channel = WorkerChannel(1 << 20, 1 << 20)
            s.instance.attach(channel)
            worker = ScriptedWorker(channel)
        stop.set()
        while any(thread.is_alive() for thread in clients):
            try:
                serve(worker, worker.execution(0.01), False)
            except TimeoutError:
                continue
        for thread in clients:
            thread.join()
        s.instance.fail(GONE)
        worker.unmap()
        assert {"ok", "failed"} == set(outcomes)


# --- callers ----------------------------------------------------------------------------------------------------------


def test_callers_go_while_they_are_answered():
    with served(Gate(held=False), Gate(held=False)) as target:
        def work(k):
            for _ in range(10):
                with python_model(lambda name, version: target, Epoch()) as s:
                    for n in range(30):
                        s.worker.call(n, "t", [("IN", INT32, (1, 1), bytes(4))])
                    for _ in range(k * 9):
                        s.worker.answered()
                    s.instance.fail(GONE)

        in_threads(3, work)
        assert until(lambda: target.pending == 0)


def test_the_instance_goes_before_the_calls_it_made():
    gate = Gate()
    with served(gate) as target:
        with python_model(lambda name, version: target, Epoch()) as s:
            s.worker.call(1, "t", [("IN", INT32, (1, 1), bytes(4))])
            gate.taken()
        del s
        gc.collect()
        gate.open()
        assert until(lambda: target.snapshot()["success"] == 1)


def test_unknown_calls_are_ended_without_harm():
    with served(Gate(held=False)) as target, python_model(lambda name, version: target, Epoch()) as s:
        for number in (0, 1, 2**32 - 1):
            s.worker.publish(EVENTS, BLS_CLOSED, number)
            s.worker.publish(EVENTS, BLS_CANCEL, number)
        s.worker.call(1, "t", [("IN", INT32, (1, 1), bytes(4))])
        assert s.worker.answered()[1]["code"] == -1
        assert not s.instance.broken
        s.instance.fail(GONE)


def test_the_queue_of_the_model_called_is_full():
    gate = Gate()
    with served(gate, max_queue_size=1) as target, python_model(lambda name, version: target, Epoch()) as s:
        for number in (1, 2, 3):
            s.worker.call(number, "t", [("IN", INT32, (1, 1), bytes(4))])
            if number == 1:
                gate.taken()
        number, answer = s.worker.answered()
        assert (number, answer["code"]) == (3, 4)
        assert answer["error"].endswith("Exceeds maximum queue size")
        gate.open()
        assert sorted(s.worker.answered()[0] for _ in range(2)) == [1, 2]
        s.instance.fail(GONE)


@pytest.mark.parametrize("in_bytes", [1 << 20, 64 << 20])
def test_more_answers_than_there_is_room_for_wait(in_bytes):
    """Of 4 KiB each: neither the heap nor, with a larger one, the ring has room for all."""
    def answer(requests):
        return [[{"OUT": (INT32, (1, 1), struct.pack("<i", k))} for k in range(500)] for _ in requests]

    n = 2 * SLOTS // 500 + 1
    with served(Gate(held=False, answer=answer), decoupled=True) as target, \
            python_model(lambda name, version: target, Epoch(), in_bytes=in_bytes) as s:
        for number in range(n):
            s.worker.call(number, "t", [("IN", INT32, (1, 1), bytes(4))], options=STREAM)
        assert until(lambda: target.snapshot()["success"] == n)
        found = {number: [] for number in range(n)}
        for _ in range(n * 501):
            number, response = s.worker.answered()
            found[number].append("final" if response["flags"] else struct.unpack("<i", response["outputs"][0][3])[0])
        assert found == {number: [*range(500), "final"] for number in range(n)}
        assert s.instance.calls() == []
        s.instance.fail(GONE)


def test_closed_calls_whose_responses_wait_for_room():
    def answer(requests):
        return [[{"OUT": (INT32, (1, 1), bytes(4))}] * 500 for _ in requests]

    n = 2 * SLOTS // 500 + 1
    with served(Gate(held=False, answer=answer), decoupled=True) as target, \
            python_model(lambda name, version: target, Epoch()) as s:
        for number in range(n):
            s.worker.call(number, "t", [("IN", INT32, (1, 1), bytes(4))], options=STREAM)
        assert until(lambda: target.snapshot()["success"] == n)
        for number in range(n):
            s.worker.publish(EVENTS, BLS_CLOSED, number)
        assert until(lambda: s.instance.calls() == [])
        assert until(lambda: live()["requests"] == 0)
        s.instance.fail(GONE)
