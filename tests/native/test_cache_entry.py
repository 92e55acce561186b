"""Packed responses that come from elsewhere: whole ones are read, nothing else is, whatever is done to the bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.models import counters_at_base
from triton_fast._native.core.model import ModelHandle
from triton_fast._native.sched.entry import read
from triton_fast.config import IoSpec
from triton_fast.types import DataType

__all__ = ["counters_at_base"]

OUTPUTS = (IoSpec("A", DataType.INT32, (-1, -1)), IoSpec("S", DataType.STRING, (-1,)), IoSpec("B", DataType.BOOL, ()))


def handle() -> ModelHandle:
    return ModelHandle("m", 1, 0, (), OUTPUTS)


def pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 64)


def packed(*rows: tuple[int, int, tuple[int, ...], bytes], count: int | None = None) -> bytes:
    head = b"TFC\x01" + struct.pack("<I", len(rows) if count is None else count)
    for output, dtype, shape, data in rows:
        head += struct.pack(f"<IIIIQ{len(shape)}q", output, dtype, len(shape), 0, len(data), *shape)
    return pad(head) + b"".join(pad(data) for _, _, _, data in rows)


A = (0, DataType.INT32, (2, 3), bytes(range(24)))
S = (1, DataType.STRING, (2,), struct.pack("<I2sI", 2, b"ab", 0))
B = (2, DataType.BOOL, (), b"\1")


def test_whole_responses_are_read():
    model = handle()
    assert read(model, packed(A, S, B)) == {
        "A": (DataType.INT32, (2, 3), A[3]), "S": (DataType.STRING, (2,), S[3]), "B": (DataType.BOOL, (), b"\1"),
    }  # fmt: skip
    assert read(model, packed()) == {}
    assert read(model, packed((0, DataType.INT32, (0, 2**62), b""))) == {"A": (DataType.INT32, (0, 2**62), b"")}


@pytest.mark.parametrize(
    "data",
    [
        b"", b"TFC\x01", b"TFC\x02" + packed(A)[4:], b"XFC\x01" + packed(A)[4:], packed(A) + bytes(64), packed(A)[:-1],
        packed(A)[:-64], packed(A, count=2), packed(A, S, count=1), packed(count=2**32 - 1), packed(A, A, A, A),
        packed((3, *A[1:])), packed((0, DataType.FP32, *A[2:])), packed((0, 99, *A[2:])), packed((0, 0, (0,), b"")),
        packed((0, DataType.INT32, (2, 3), bytes(20))), packed((0, DataType.INT32, (2, -3), A[3])),
        packed((0, DataType.INT32, (2**62, 2**62), A[3])), packed((0, DataType.INT32, (1,) * 65, bytes(4))),
        packed((0, DataType.INT32, (2**62,), b"")), packed((1, DataType.STRING, (2,), S[3][:-1])),
        packed((1, DataType.STRING, (1,), S[3])), packed((1, DataType.STRING, (3,), S[3])),
        packed((1, DataType.STRING, (1,), struct.pack("<I", 2**32 - 1))),
        packed((1, DataType.STRING, (2**62,), b"")), packed((1, DataType.STRING, (-1,), b"")),
    ],
)  # fmt: skip
def test_everything_else_is_refused(data):
    assert read(handle(), data) is None


def test_lengths_that_lie_are_refused():
    for length in (25, 64, 65, 2**31, 2**63, 2**64 - 1, 2**64 - 63):
        data = bytearray(packed(A))
        struct.pack_into("<Q", data, 24, length)
        assert read(handle(), bytes(data)) is None


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_change_is_refused_or_harmless(data):
    whole = bytearray(packed(A, S, B))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    for piece in (bytes(whole), bytes(whole[:cut])):
        found = read(handle(), piece)
        assert found is None or set(found) <= {"A", "S", "B"}
