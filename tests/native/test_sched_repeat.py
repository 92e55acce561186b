"""The repeat instance: one response for each element, delays that a cancel ends, inputs that do not fit."""

from __future__ import annotations

import struct

import pytest

from tests.helpers.models import LONG_S, counters_at_base, in_threads, served
from triton_fast._native.backends.repeat import RepeatInstance
from triton_fast._native.sched.inprocess import StreamCall
from triton_fast.config import IoSpec
from triton_fast.errors import Cancelled, InvalidArg
from triton_fast.types import DataType

__all__ = ["counters_at_base"]

INT32, UINT32 = DataType.INT32, DataType.UINT32
HOUR_MS = 3_600_000
SPECS = {
    "IN": IoSpec("IN", INT32, (-1,)), "DELAY": IoSpec("DELAY", UINT32, (-1,)), "WAIT": IoSpec("WAIT", UINT32, (1,)),
    "OUT": IoSpec("OUT", INT32, (1,)), "IDX": IoSpec("IDX", UINT32, (1,)),
}  # fmt: skip


def repeating(instances=1, inputs=("IN", "DELAY", "WAIT"), outputs=("OUT", "IDX")):
    made = [
        RepeatInstance(
            "r",
            tuple(inputs.index(name) for name in ("IN", "DELAY", "WAIT")),
            tuple(outputs.index(name) for name in ("OUT", "IDX")),
        )
        for _ in range(instances)
    ]
    specs = {"inputs": [SPECS[name] for name in inputs], "outputs": [SPECS[name] for name in outputs]}
    return served(*made, **specs, max_batch=0, dynamic=False, decoupled=True)


def ask(model, values, delays=None, wait=0, outputs=(), **options):
    delays = [0] * len(values) if delays is None else delays
    given = [
        ("IN", INT32, (len(values),), struct.pack(f"<{len(values)}i", *values)),
        ("DELAY", UINT32, (len(delays),), struct.pack(f"<{len(delays)}I", *delays)),
        ("WAIT", UINT32, (1,), struct.pack("<I", wait)),
    ]
    return StreamCall(model, given, outputs, **options)


def response(value, index):
    return {"OUT": (INT32, (1,), struct.pack("<i", value)), "IDX": (UINT32, (1,), struct.pack("<I", index))}, False


def all_of(call):
    found = []
    while (taken := call.take(LONG_S)) is not None:
        found.append(taken)
    return found


@pytest.mark.parametrize("values", [[], [7], [-1, 2**31 - 1, -(2**31)], list(range(1000))])
def test_one_response_for_each_element(values):
    with repeating() as model:
        expected = [*(response(value, k) for k, value in enumerate(values)), ({}, True)]
        assert all_of(ask(model, values)) == expected
        assert all_of(ask(model, values, max_responses=1)) == expected
        assert model.snapshot()["success"] == model.snapshot()["execution_count"] == 2


def test_tensors_are_found_in_any_order():
    with repeating(inputs=("WAIT", "IN", "DELAY"), outputs=("IDX", "OUT")) as model:
        assert all_of(ask(model, [5, 6])) == [response(5, 0), response(6, 1), ({}, True)]


@pytest.mark.parametrize("name", ["OUT", "IDX"])
def test_only_wanted_outputs_come(name):
    with repeating() as model:
        found = all_of(ask(model, [5, 6], outputs=[name]))
        expected = [response(5, 0), response(6, 1)]
        assert found == [*(({name: outputs[name]}, False) for outputs, _ in expected), ({}, True)]


def test_delays_and_the_wait_are_kept():
    with repeating() as model:
        assert len(all_of(ask(model, [1, 2], [10, 10]))) == 3
        assert model.snapshot()["ns"]["compute_infer"] + model.snapshot()["ns"]["compute_input"] >= 20_000_000
    with repeating() as model:
        assert len(all_of(ask(model, [1], wait=20))) == 2
        assert model.snapshot()["ns"]["compute_infer"] >= 20_000_000


@pytest.mark.parametrize(
    ("delays", "wait"), [([0, HOUR_MS], 0), ([0, HOUR_MS], HOUR_MS), ([0, 2**32 - 1], 0)]
)
def test_cancel_ends_a_delay(delays, wait):
    with repeating() as model:
        call = ask(model, [1, 2], delays, wait)
        assert call.take(LONG_S) == response(1, 0)
        assert not call.cancel()
        with pytest.raises(Cancelled, match="the request was cancelled"):
            call.take(LONG_S)
        assert call.take(LONG_S) is None
        assert model.snapshot()["failures"]["CANCELED"] == 1


def test_cancel_ends_the_wait():
    with repeating() as model:
        call = ask(model, [1], wait=HOUR_MS)
        assert call.take(LONG_S) == response(1, 0)
        with pytest.raises(TimeoutError):
            call.take(0)
        call.cancel()
        with pytest.raises(Cancelled):
            call.take(LONG_S)


def test_cancel_wakes_who_waits_for_room():
    with repeating() as model:
        call = ask(model, list(range(10)), max_responses=2)
        assert call.take(LONG_S) == response(0, 0)
        call.cancel()
        found = []
        with pytest.raises(Cancelled):
            while True:
                found.append(call.take(LONG_S))
        # Of the ten at most the two that had room beside the one taken.
        assert found == [response(k, k) for k in range(1, 1 + len(found))]
        assert len(found) <= 2


@pytest.mark.parametrize(("values", "delays"), [([1, 2, 3], [0, 0]), ([], [0]), ([1], [])])
def test_other_shapes_of_delays_fail_the_request(values, delays):
    with repeating() as model:
        call = ask(model, values, delays)
        text = rf"^expected IN and DELAY shape to match, got \[{len(values)}\] and \[{len(delays)}\]$"
        with pytest.raises(InvalidArg, match=text):
            call.take(LONG_S)
        assert call.take(LONG_S) is None
        assert all_of(ask(model, [4])) == [response(4, 0), ({}, True)]


def test_optional_inputs_count_as_zero():
    specs = {
        "inputs": [IoSpec(name, dtype, (-1,), optional=True) for name, dtype in
                   (("IN", INT32), ("DELAY", UINT32), ("WAIT", UINT32))],
        "outputs": [SPECS["OUT"], SPECS["IDX"]],
    }  # fmt: skip
    with served(RepeatInstance(), **specs, max_batch=0, dynamic=False, decoupled=True) as model:
        values = ("IN", INT32, (2,), struct.pack("<2i", 5, 6))
        assert all_of(StreamCall(model, [values])) == [response(5, 0), response(6, 1), ({}, True)]
        empty = ("WAIT", UINT32, (0,), b"")
        assert all_of(StreamCall(model, [empty])) == [({}, True)]


def test_several_requests_are_repeated_at_once():
    with repeating(instances=4) as model:

        def work(k):
            for n in range(30):
                values = [k * 1000 + n + i for i in range(n)]
                limit = (0, 1, 5)[n % 3]
                assert all_of(ask(model, values, max_responses=limit))[:-1] == [
                    response(value, i) for i, value in enumerate(values)
                ]

        in_threads(6, work)
        assert model.snapshot()["success"] == 180
