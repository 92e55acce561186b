"""Requests that a Python model makes of other models: answers, waits, cancels, the caller's end in the middle.

The test plays the worker; the models called are gates, repeaters and other workers of this process.
"""

from __future__ import annotations

import contextlib
import struct
from types import SimpleNamespace

import pytest

from tests.helpers.models import (
    ANY,
    ANY_OUT,
    INT32,
    LONG_S,
    Gate,
    make_model,
    numbers,
    served,
    submit,
    value_of,
)
from tests.helpers.pyworker_peer import EVENTS
from tests.helpers.pyworker_scripted import (  # noqa: F401
    BLS_CANCEL,
    BLS_CLOSED,
    GONE,
    NO_RESPONSE,
    everything_at_base,
    python_model,
)
from tests.helpers.server import until
from triton_fast._native.sched.inprocess import StreamCall
from triton_fast._native.sched.model import Epoch
from triton_fast.errors import Internal, ServerError

STREAM, WAITS = 1, 2


def number(value):
    return ("IN", INT32, (1, 1), struct.pack("<i", value))


def out(value):
    return (0, INT32, (1, 1), struct.pack("<i", value))


def value(response):
    assert response["code"] == -1, response
    return struct.unpack("<i", response["outputs"][0][3])[0]


@contextlib.contextmanager
def caller(target=None, *, epoch=True, **options):
    """A served Python model that calls ``target`` by the name "t", with a counter of look-ups."""
    asked = []

    def resolve(name, version):
        asked.append((name, version))
        if name != "t":
            raise LookupError(name)
        return models["t"]

    models = {"t": target}
    with python_model(resolve, Epoch() if epoch is True else epoch, **options) as s:
        yield SimpleNamespace(**vars(s), asked=asked, models=models)
        s.instance.fail(GONE)       # while the target still runs
    models.clear()


def event(s, kind, call):
    s.worker.publish(EVENTS, kind, call)


def test_a_call_is_answered_and_its_memory_given_back():
    with served(Gate(held=False)) as target, caller(target) as s:
        offs = [s.worker.call(k, "t", [number(k)], options=WAITS, wanted=("OUT",) if k else (), request_id=b"i",
                              parameters={"a": 1, "b": "x", "c": True}) for k in range(3)]
        found = dict(s.worker.answered() for _ in range(3))
        assert {k: value(response) for k, response in found.items()} == {0: 0, 1: 1, 2: 2}
        assert all(response["flags"] == 1 for response in found.values())
        assert [s.worker.in_use(off) for off in offs] == [0, 0, 0]
        assert s.asked == [("t", -1)]       # once for the epoch
        assert until(lambda: s.instance.calls() == [])  # the answer is written before the call is taken off


def test_without_an_epoch_each_call_asks():
    with served(Gate(held=False)) as target, caller(target, epoch=None) as s:
        for k in range(3):
            s.worker.call(k, "t", [number(k)])
            assert value(s.worker.answered()[1]) == k
        assert len(s.asked) == 3


UNSENT = "Model {} - Error when running inference: {}"


def test_calls_that_can_not_be_made_are_answered_with_why():
    with served(Gate(held=False)) as target, caller(target) as s:
        for k in range(20):     # each is let go of
            s.worker.call(k, "nothing", [number(1)])
            s.worker.call(k, "t", [("WRONG", INT32, (1, 1), bytes(4))])
            s.worker.call(k, "t", [("IN", INT32, (1, 1), bytes(8))])
            texts = [s.worker.answered()[1] for _ in range(3)]
            assert [t["flags"] for t in texts] == [1, 1, 1]
            assert texts[0]["error"] == UNSENT.format(
                "nothing", "Failed for execute the inference request. Model 'nothing' is not ready."
            )
            assert "WRONG" in texts[1]["error"]
            assert texts[2]["error"] == UNSENT.format("t", "data size does not match the shape of input 'IN'")
        s.models["t"] = None
        s.worker.call(1, "t", [number(1)], version=3)
        assert "not ready" in s.worker.answered()[1]["error"]
        s.worker.call(2, "t" * 70000, [number(1)])
        assert s.worker.answered()[1]["error"].startswith("Model ttt")
        assert not s.channel.broken


def test_a_malformed_call_is_answered_or_breaks_the_worker():
    with served(Gate(held=False)) as target, caller(target) as s:
        head, *rest = s.worker.bls_record("t", [number(1)])
        for at, word in [(12, 70000), (40, 9), (44, 2**31), (48, 2**32 - 1), (56, 2**32 - 1), (12, 2)]:
            broken = bytearray(head)
            struct.pack_into("<I", broken, at, word)
            off, n = s.worker.place([bytes(broken), *rest])
            s.worker.publish(EVENTS, 2, 5, off, n)
            call, response = s.worker.answered()
            assert call == 5
            assert "malformed" in response["error"]
        assert not s.channel.broken


def test_inputs_of_a_call_that_are_the_same_memory_many_times():
    """Each is copied, so there must be a bound: as much as the region has, for each input of the model."""
    data, count = bytes(1 << 18), 64
    with served(Gate(held=False)) as target, caller(target) as s:
        head, tensor, tail = s.worker.bls_record("t", [("IN", INT32, (1, 1 << 16), data)])
        record = tensor[0]
        size = len(head) + count * len(record) + len(tail)
        at = s.worker.bump + 64 + (size + 63) // 64 * 64
        again = record[:8] + struct.pack("<Q", at) + record[16:]
        fresh = bytearray(head)
        struct.pack_into("<I", fresh, 0, size)
        struct.pack_into("<I", fresh, 12, count)
        off, n = s.worker.place([bytes(fresh), tensor, *[again] * (count - 1), tail])
        s.worker.publish(EVENTS, 2, 5, off, n)
        assert "malformed" in s.worker.answered()[1]["error"]


def test_a_stream_of_a_decoupled_model():
    def answer(requests):
        return [[{"OUT": (INT32, (1, 1), struct.pack("<i", k))} for k in range(3)] for _ in requests]

    with served(Gate(held=False, answer=answer), decoupled=True) as target, caller(target) as s:
        s.worker.call(1, "t", [number(1)], options=STREAM)
        found = [s.worker.answered()[1] for _ in range(4)]
        assert [value(response) for response in found[:3]] == [0, 1, 2]
        assert [response["flags"] for response in found] == [0, 0, 0, 1]
        assert found[3]["kind"] == NO_RESPONSE
        s.worker.call(2, "t", [number(1)])
        assert "decoupled=True" in s.worker.answered()[1]["error"]


def test_calls_are_seen_and_can_be_failed_while_they_wait():
    gate = Gate()
    with served(gate, dynamic=False) as target, caller(target) as s:
        s.worker.call(1, "t", [number(1)], options=WAITS)
        gate.taken()
        s.worker.call(2, "t", [number(2)])
        while len(s.instance.calls()) < 2 or target.pending < 1:
            pass
        seen = {call[0]: call[2:4] for call in s.instance.calls()}
        assert seen == {1: (True, "running"), 2: (False, "queued")}
        assert not s.instance.fail_call(1, "deadlock")
        assert not s.instance.fail_call(3, "deadlock")
        assert s.instance.fail_call(2, "deadlock", 4)
        assert not s.instance.fail_call(2, "deadlock")
        call, response = s.worker.answered()
        assert (call, response["code"], response["error"]) == (2, 4, "deadlock")
        gate.step()
        assert value(s.worker.answered()[1]) == 1


def test_a_cancelled_call_ends_at_once_when_it_waits():
    gate = Gate()
    with served(gate, dynamic=False) as target, caller(target) as s:
        s.worker.call(1, "t", [number(1)])
        gate.taken()
        s.worker.call(2, "t", [number(2)])
        event(s, BLS_CANCEL, 2)
        event(s, BLS_CANCEL, 99)
        call, response = s.worker.answered()
        assert (call, response["code"]) == (2, 7)
        event(s, BLS_CANCEL, 1)
        gate.step()
        assert s.worker.answered()[0] == 1


def test_nobody_hears_of_a_closed_call():
    gate = Gate()
    with served(gate, dynamic=False) as target, caller(target) as s:
        s.worker.call(1, "t", [number(1)])
        gate.taken()
        event(s, BLS_CLOSED, 1)
        s.worker.call(2, "t", [number(2)])
        gate.step(2)
        call, response = s.worker.answered()
        assert (call, value(response)) == (2, 2)
        assert until(lambda: s.instance.calls() == [])


def test_many_closed_calls_while_others_are_made():
    with served(Gate(held=False)) as target, caller(target, out_bytes=4 << 20) as s:
        for k in range(0, 2000, 2):
            s.worker.call(k, "t", [number(k)])
            event(s, BLS_CLOSED, k)
            s.worker.call(k + 1, "t", [number(k + 1)])
            while True:             # of the even ones some are answered before they are closed
                call, response = s.worker.answered()
                if call == k + 1:
                    break
            assert value(response) == k + 1


def test_a_model_that_stops_is_looked_up_again():
    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(served(Gate(held=False))) for _ in range(2))
        s = stack.enter_context(caller(first))
        s.worker.call(1, "t", [number(1)])
        assert value(s.worker.answered()[1]) == 1
        first.stop()
        s.models["t"] = second
        s.worker.call(2, "t", [number(2)])
        assert value(s.worker.answered()[1]) == 2
        second.stop()
        s.worker.call(3, "t", [number(3)])
        assert "stopping" in s.worker.answered()[1]["error"]
        assert len(s.asked) == 3    # for each model that turned out to be stopped once more


def test_a_model_that_calls_itself_and_waits_is_seen():
    with caller(dynamic=False) as s:
        s.models["t"] = s.model
        call = submit(s.model, 1)
        e = s.worker.execution()
        s.worker.call(1, "t", [number(2)], options=WAITS)
        while not s.instance.calls():
            pass
        [(number_, target, waits, state, runner, *_)] = s.instance.calls()
        assert (number_, target, waits, state, runner) == (1, s.instance.model_key, True, "queued", 0)
        assert s.instance.fail_call(1, "it waits for itself")
        assert s.worker.answered()[1]["error"] == "it waits for itself"
        s.worker.done(e, s.worker.record(e.requests[0].name, [out(1)]))
        assert value_of(call) == 1
        # Without waiting it works.
        s.worker.call(2, "t", [number(4)])
        e = s.worker.execution()
        assert s.instance.calls()[0][3:5] == ("running", s.instance.key)
        s.worker.done(e, s.worker.record(e.requests[0].name, [out(5)]))
        assert value(s.worker.answered()[1]) == 5


def test_from_worker_to_worker_and_what_no_room_does():
    with python_model(inputs=ANY, outputs=ANY_OUT) as t, \
            caller(t.model, in_bytes=1 << 16, inputs=ANY, outputs=ANY_OUT) as s:
        s.worker.call(1, "t", [number(3)], options=WAITS)
        e = t.worker.execution()
        assert s.instance.calls()[0][3:5] == ("running", t.instance.key)
        off = t.worker.done(e, t.worker.record(e.requests[0].name, [out(6)]))
        assert value(s.worker.answered()[1]) == 6
        while t.worker.in_use(off):
            pass
        s.worker.call(2, "t", [number(3)])
        e = t.worker.execution()
        big = 1 << 17
        t.worker.done(e, t.worker.record(e.requests[0].name, [(0, INT32, (1, big // 4), bytes(big))]))
        assert s.worker.answered()[1]["error"] == "not enough memory shared with the model's worker for the response"
        # Answers that are not taken wait for room: the inbound heap takes 16 of them.
        for k in range(40):
            s.worker.call(k, "nothing", [number(1)])
        assert sorted(s.worker.answered()[0] for _ in range(40)) == list(range(40))


@pytest.mark.parametrize("state", ["queued", "running", "answered", "closed"])
def test_the_caller_goes_in_the_middle(state):
    gate = Gate()
    with served(gate, dynamic=False) as target, caller(target) as s:
        s.worker.call(1, "t", [number(1)])
        gate.taken()
        s.worker.call(2, "t", [number(2)])
        while len(s.instance.calls()) < 2:
            pass
        if state == "closed":
            event(s, BLS_CLOSED, 1)
            event(s, BLS_CLOSED, 2)
            while s.instance.calls():
                pass
        if state in ("running", "answered"):
            gate.step()
            gate.taken()
        if state == "answered":
            gate.step()
        s.instance.fail(GONE)
        assert not s.instance.fail_call(2, "late")
        gate.open()


def test_the_called_one_goes_in_the_middle():
    with python_model() as t, caller(t.model) as s:
        s.worker.call(1, "t", [number(3)])
        t.worker.execution()
        t.instance.fail("killed", 4)
        response = s.worker.answered()[1]
        assert (response["code"], response["error"]) == (4, "killed")


def test_a_decoupled_target_stops_when_its_caller_goes():
    with python_model(decoupled=True) as t, caller(t.model) as s:
        s.worker.call(1, "t", [number(3)], options=STREAM)
        e = t.worker.execution()
        t.worker.event(t.worker.record(e.requests[0].name, [out(6)], final=False))
        assert value(s.worker.answered()[1]) == 6
        assert not t.worker.is_cancelled(e.requests[0])
        s.instance.fail(GONE)
        assert t.worker.is_cancelled(e.requests[0])
        t.worker.event(t.worker.record(e.requests[0].name, kind=NO_RESPONSE))
        t.worker.done_empty(e)
        assert t.instance.drain(LONG_S)


def test_the_target_outlives_its_owner_while_it_is_called():
    gate = Gate()
    target = make_model(gate)
    with caller(target) as s:
        s.worker.call(1, "t", [number(1)])
        gate.taken()
        s.models["t"] = None
        del target
        gate.open()
        assert value(s.worker.answered()[1]) == 1


def test_resolve_goes_with_its_instance_in_a_cycle():
    kept = {}

    def resolve(name, version):
        raise LookupError(kept)

    with python_model(resolve, Epoch()) as s:
        kept["instance"] = s.instance       # a cycle through resolve
        s.worker.call(1, "t", [number(1)])
        s.worker.answered()
    del s, resolve
    kept.clear()


def test_events_of_a_request_and_calls_keep_their_order():
    with served(Gate(held=False)) as target, caller(target, decoupled=True) as s:
        stream = StreamCall(s.model, [numbers(1, 1, 1)])
        e = s.worker.execution()
        for k in range(5):
            s.worker.call(k, "t", [number(k)])
            s.worker.event(s.worker.record(e.requests[0].name, [out(k)], final=False))
        s.worker.failed(e, b"the end")
        assert [struct.unpack("<i", stream.take(LONG_S)[0]["OUT"][2])[0] for _ in range(5)] == list(range(5))
        with pytest.raises(Internal, match="the end"):
            stream.take(LONG_S)
        assert sorted(value(s.worker.answered()[1]) for _ in range(5)) == list(range(5))


def test_an_error_of_the_target_is_the_calls():
    def answer(requests):
        raise ValueError("no")

    with served(Gate(held=False, answer=answer)) as target, caller(target) as s:
        s.worker.call(1, "t", [number(1)])
        response = s.worker.answered()[1]
        assert response["code"] == 1
        assert "no" in response["error"]
        with pytest.raises(ServerError):
            submit(target, 1).wait(LONG_S)
