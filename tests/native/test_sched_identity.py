"""The identity instance: outputs are the inputs' own memory, for every datatype, several inputs and wanted outputs."""

from __future__ import annotations

import struct

import pytest

from tests.helpers.models import INT32, LONG_S, Gate, counters_at_base, live, make_model, served
from triton_fast._native.backends.identity import IdentityInstance
from triton_fast._native.sched.inprocess import InferCall, infer
from triton_fast.config import IoSpec
from triton_fast.errors import InvalidArg
from triton_fast.types import TYPES, DataType

__all__ = ["counters_at_base"]

MIB = 1 << 20


def pair(dtype, *dims):
    return {"inputs": [IoSpec("IN", dtype, dims)], "outputs": [IoSpec("OUT", dtype, dims)]}


@pytest.mark.parametrize("dtype", [dtype for dtype in TYPES if dtype != DataType.STRING])
def test_bytes_come_back_as_they_are(dtype):
    data = bytes((7 * k + 1) % 256 for k in range(6 * TYPES[dtype].size))
    with served(IdentityInstance(), **pair(dtype, 3)) as model:
        assert infer(model, [("IN", dtype, (2, 3), data)]) == {"OUT": (dtype, (2, 3), data)}


def test_strings_come_back_as_they_are():
    data = b"".join(struct.pack("<I", len(text)) + text for text in (b"", b"a", b"\xff\x00" * 70000))
    with served(IdentityInstance(), **pair(DataType.STRING, -1)) as model:
        given = ("IN", DataType.STRING, (1, 3), data)
        assert infer(model, [given]) == {"OUT": given[1:]}


def test_empty_tensors():
    with served(IdentityInstance(), **pair(INT32, -1)) as model:
        assert infer(model, [("IN", INT32, (2, 0), b"")]) == {"OUT": (INT32, (2, 0), b"")}


def test_nothing_is_copied():
    data = bytes(range(256)) * (MIB // 256)
    with served(IdentityInstance(), **pair(DataType.UINT8, -1), max_batch=4) as model:
        before = live()
        calls = [InferCall(model, [("IN", DataType.UINT8, (1, MIB), data)]) for _ in range(4)]
        for call in calls:
            assert call.wait(LONG_S)["OUT"] == (DataType.UINT8, (1, MIB), data)
        # All answered and held: one block each, of exactly the input's size.
        assert live()["blocks"] - before["blocks"] == 4
        assert live()["bytes"] - before["bytes"] == 4 * MIB
        del calls, call
        assert live()["bytes"] == before["bytes"]


def test_a_python_echo_does_copy():
    """The counter that test_nothing_is_copied trusts does see a copy."""
    data = bytes(MIB)
    with served(Gate(held=False), **pair(DataType.UINT8, -1), max_batch=4) as model:
        before = live()
        call = InferCall(model, [("IN", DataType.UINT8, (1, MIB), data)])
        call.wait(LONG_S)
        assert live()["bytes"] - before["bytes"] == 2 * MIB


def test_inputs_go_to_outputs_by_position():
    names = ("B", "A", "C")
    inputs = [IoSpec(name, INT32, (1,)) for name in names]
    outputs = [IoSpec(f"OUT_{name}", INT32, (1,)) for name in ("Z", "Y", "X")]
    values = dict(zip(names, (b"bbbb", b"aaaa", b"cccc"), strict=True))
    with served(IdentityInstance(), inputs=inputs, outputs=outputs) as model:
        given = [(name, INT32, (1, 1), values[name]) for name in ("A", "C", "B")]
        made = infer(model, given)
        assert {name: data for name, (_, _, data) in made.items()} == {
            "OUT_Z": b"bbbb", "OUT_Y": b"aaaa", "OUT_X": b"cccc",
        }  # fmt: skip
        assert infer(model, given, ["OUT_X", "OUT_Z"]) == {name: made[name] for name in ("OUT_X", "OUT_Z")}


def test_an_output_without_its_optional_input():
    inputs = [IoSpec("A", INT32, (1,)), IoSpec("B", INT32, (1,), optional=True)]
    outputs = [IoSpec("OA", INT32, (1,)), IoSpec("OB", INT32, (1,))]
    with served(IdentityInstance(), inputs=inputs, outputs=outputs) as model:
        given = [("A", INT32, (1, 1), b"aaaa")]
        assert infer(model, given, ["OA"]) == {"OA": (INT32, (1, 1), b"aaaa")}
        with pytest.raises(InvalidArg, match="the optional input of a wanted output was not given"):
            infer(model, given)
        assert model.snapshot()["failures"]["BACKEND"] == 1


def test_a_delay_is_spent_in_compute():
    delay_ns = 5_000_000
    with served(IdentityInstance("slow", delay_ns), **pair(INT32, 1)) as model:
        infer(model, [("IN", INT32, (1, 1), b"abcd")])
        taken = model.snapshot()
    assert taken["ns"]["compute_infer"] >= delay_ns
    assert taken["ns"]["request"] >= taken["ns"]["compute_infer"]


def test_an_instance_outlives_the_callers_reference():
    instance = IdentityInstance("mine", 1)
    assert instance.name == "mine"
    model = make_model(instance, **pair(INT32, 1))
    del instance
    assert infer(model, [("IN", INT32, (1, 1), b"abcd")])["OUT"][2] == b"abcd"
    model.stop()
