"""Batches of sequences: places and padding (direct), who goes together and when (oldest), and what controls say."""

from __future__ import annotations

import struct

import pytest

from tests.helpers.models import INT32, counters_at_base
from tests.helpers.sequences import (
    CONTROLS,
    CORRID,
    END,
    SECOND,
    START,
    TYPES,
    Recorder,
    number,
    sequenced,
)  # fmt: skip
from triton_fast.config import IoSpec
from triton_fast.types import DataType

__all__ = ["counters_at_base"]

ANY = {"inputs": (IoSpec("IN", INT32, (-1,)),), "outputs": (IoSpec("OUT", INT32, (-1,)),)}
MS = SECOND // 1000


def held(gate, m, *ids):
    """Start these sequences, one after another, then hold the instance with a request of sequence 99, or the first."""
    gate.step(len(ids))
    for k in ids:
        m.ask(k, k, START)
    while not gate.entered.empty():
        gate.taken()


# --- direct -----------------------------------------------------------------------------------------------------------


def test_a_place_in_the_batch_is_the_slot():
    gate = Recorder(held=True)
    with sequenced(gate, direct=True, controls=(*CONTROLS, CORRID)) as m:
        held(gate, m, 11, 12, 13)
        first = m.send(1, 12)
        assert [(row["READY"], row["CORRID"], row["IN"]) for row in gate.taken()] == [(0, 0, 0), (1, 12, 1)]
        calls = [m.send(3, 13, END), m.send(2, 11), m.send(4, 12)]
        gate.step()
        batch = gate.taken()
        assert [row["IN"] for row in batch] == [2, 4, 3]
        assert [row["CORRID"] for row in batch] == [11, 12, 13]
        assert [row["END"] for row in batch] == [0, 0, 1]
        gate.open()
        assert [number(call) for call in (first, *calls)] == [1, 3, 2, 4]
    taken = m.model.snapshot()
    # Padding counts nowhere.
    assert taken["inference_count"] == taken["success"] == 7
    assert sum(size * count for size, count, *_ in taken["batches"]) == 7


def test_padding_has_the_shapes_of_the_batch_and_zeros():
    gate = Recorder(held=True)
    with sequenced(gate, direct=True, **ANY) as m:
        gate.step(3)
        for k in (1, 2, 3):
            m.ask(k, k, START)
        call = m.send(-1, 3, dims=(1000,))
        for _ in range(4):
            gate.taken()
        gate.open()
        assert call.wait(10)["OUT"][1] == (1, 1000)
        zeros, other, data = gate.batches[3]
        assert zeros["IN"] == other["IN"] == bytes(4000)
        assert data["IN"] == struct.pack("<i", -1) * 1000
        assert gate.shapes[3][0] == gate.shapes[3][2]
        # Other padding later is not what was padded before.
        call = m.send(-1, 3, dims=(2000,))
        assert call.wait(10)["OUT"][1] == (1, 2000)
        assert gate.batches[4][0]["IN"] == bytes(8000)


def test_padding_of_strings_has_empty_elements():
    gate = Recorder()
    io = {"inputs": (IoSpec("IN", INT32, (1,)), IoSpec("TEXT", DataType.STRING, (-1,)))}
    with sequenced(gate, direct=True, **io) as m:
        from triton_fast._native.sched.inprocess import InferCall

        def send(k, flags):
            text = b"".join(struct.pack("<I", n) + b"x" * n for n in (5, 0, 7))
            inputs = [("IN", INT32, (1, 1), bytes(4)), ("TEXT", DataType.STRING, (1, 3), text)]
            return InferCall(m.model, inputs, correlation=k, flags=flags)

        number(send(1, START))
        number(send(2, START))
        padding, row = gate.batches[1]
        assert padding["TEXT"] == bytes(8)      # without the first element's length
        assert row["TEXT"] == b"xxxxx" + bytes(4) + struct.pack("<I", 7) + b"x" * 7


def test_shapes_that_differ_go_one_after_another():
    gate = Recorder(held=True)
    with sequenced(gate, direct=True, **ANY) as m:
        held(gate, m, 1, 2, 3)
        calls = [m.send(0, 1)]
        gate.taken()
        calls += [m.send(5, 2, dims=(2,)), m.send(6, 1), m.send(7, 3, dims=(2,))]
        gate.open()
        for call in calls:
            call.wait(10)
        assert [[row["READY"] for row in batch] for batch in gate.batches[4:]] == [[0, 1, 1], [1]]


def test_utilization_says_when_a_batch_goes_early():
    gate = Recorder()
    with sequenced(gate, direct=True, delay_us=1_000, utilization=0.6, slots=4) as m:
        first = m.send(1, 1, START)
        m.pass_time(MS)
        assert number(first) == 1
        pair = [m.send(1, 1), m.send(2, 2, START)]      # 2 of 4 is less
        m.pass_time(MS - 1)
        assert gate.batches[1:] == []
        m.pass_time(1)
        assert [number(call) for call in pair] == [1, 2]
        three = [m.send(1, 1), m.send(2, 2), m.send(3, 3, START)]   # 3 of 4 is enough
        assert [number(call) for call in three] == [1, 2, 3]
        assert [len(batch) for batch in gate.batches] == [1, 2, 3]


def test_without_a_utilization_the_delay_means_nothing():
    gate = Recorder()
    with sequenced(gate, direct=True, delay_us=10_000_000) as m:
        assert m.ask(1, 1, START) == 1


@pytest.mark.parametrize("direct", [False, True])
def test_without_a_batch_dimension(direct):
    gate = Recorder(held=True)
    with sequenced(gate, direct=direct, max_batch=0, slots=1 if direct else 3) as m:
        calls = [m.send(1, 1, START), m.send(2, 2, START), m.send(3, 3, START)]
        if direct:
            assert m.batcher.counts()["waiting"] == 2
            calls.insert(1, m.send(9, 1, END))
            calls.insert(3, m.send(9, 2, END))
        gate.open()
        assert [number(call) for call in calls] == ([1, 9, 2, 9, 3] if direct else [1, 2, 3])
        assert {len(batch) for batch in gate.batches} == {1}
        assert gate.shapes[0][0] == {"IN": (1,), "START": (1,), "READY": (1,), "END": (1,)}


# --- oldest -----------------------------------------------------------------------------------------------------------


def test_sequences_share_batches_and_have_one_request_in_each():
    gate = Recorder(held=True)
    with sequenced(gate, slots=10, max_batch=3) as m:
        first = m.send(0, 50, START)
        gate.taken()
        calls = [m.send(10 * k + n, k, (START, 0, END)[n]) for k in (1, 2, 3, 4) for n in range(3)]
        gate.open()
        for call in (first, *calls):
            number(call)
        assert [[row["IN"] for row in batch] for batch in gate.batches[1:]] == [
            [10, 20, 30], [40, 11, 21], [31, 41, 12], [22, 32, 42]
        ]  # fmt: skip
        assert all(row["READY"] == 1 for batch in gate.batches for row in batch)


def test_only_candidates_are_batched():
    gate = Recorder(held=True)
    with sequenced(gate, slots=2, max_batch=4) as m:
        calls = [m.send(1, 1, START)]
        gate.taken()
        calls += [m.send(2, 2, START), m.send(3, 3, START), *(m.send(10 + k, k, END) for k in (1, 2, 3))]
        gate.open()
        assert [number(call) for call in calls] == [1, 2, 3, 11, 12, 13]
        # The third comes when the first has ended.
        assert [[row["IN"] for row in batch] for batch in gate.batches] == [[1], [2, 11], [12, 3], [13]]


def test_preferred_sizes_and_delay():
    gate = Recorder()
    with sequenced(gate, slots=10, max_batch=8, preferred=(2, 4), delay_us=1_000) as m:
        alone = m.send(1, 1, START)
        m.pass_time(MS - 1)
        assert gate.batches == []
        m.pass_time(1)
        assert number(alone) == 1
        pair = [m.send(1, 1), m.send(2, 2, START)]
        assert [number(call) for call in pair] == [1, 2]
        assert [len(batch) for batch in gate.batches] == [1, 2]


def test_shapes_that_differ_share_no_batch():
    gate = Recorder(held=True)
    with sequenced(gate, slots=10, **ANY) as m:
        first = m.send(0, 9, START)
        gate.taken()
        calls = [m.send(k, k, START, dims=(1 + k % 2,)) for k in range(1, 7)]
        gate.open()
        for call in (first, *calls):
            call.wait(10)
        assert [len(batch) for batch in gate.shapes[1:]] == [3, 3]
        for batch in gate.shapes[1:]:
            assert len({shapes["IN"] for shapes in batch}) == 1


# --- controls ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "off", "on"),
    [
        (DataType.INT32, struct.pack("<i", -7), struct.pack("<i", 9)),
        (DataType.FP32, struct.pack("<f", 0.5), struct.pack("<f", -1.5)),
        (DataType.BOOL, b"\1", b"\0"),
    ],
)
def test_values_are_the_configured_ones(dtype, off, on):
    gate = Raw()
    controls = [(name, kind, int(dtype), off, on) for name, kind in (("START", 0), ("READY", 1), ("END", 2))]
    types = dict.fromkeys(("START", "READY", "END"), dtype)
    with sequenced(gate, direct=True, controls=controls, control_types=types) as m:
        m.ask(1, 1, START)
        m.ask(1, 2, START)
        m.ask(1, 1, END)
    first, (padding, second), last = gate.raw
    assert first == [{"START": (dtype, (1, 1), on), "READY": (dtype, (1, 1), on), "END": (dtype, (1, 1), off)}]
    assert {name: value[2] for name, value in padding.items()} == {"START": off, "READY": off, "END": off}
    assert {name: value[2] for name, value in second.items()} == {"START": on, "READY": on, "END": off}
    assert {name: value[2] for name, value in last[0].items()} == {"START": off, "READY": on, "END": on}


class Raw(Recorder):
    """Notes the bytes of what was added."""

    def __init__(self):
        super().__init__()
        self.raw = []

    def __call__(self, requests):
        self.raw.append([
            {name: (dtype, shape, bytes(view)) for name, (dtype, shape, view) in inputs.items() if name != "IN"}
            for inputs in requests
        ])  # fmt: skip
        return super().__call__([{"IN": inputs["IN"]} for inputs in requests])


@pytest.mark.parametrize(
    ("dtype", "id_", "data"),
    [
        (DataType.UINT64, (1 << 64) - 1, b"\xff" * 8),
        (DataType.INT64, 5, struct.pack("<q", 5)),
        (DataType.UINT32, (1 << 32) + 1, struct.pack("<I", 1)),
        (DataType.INT32, 70000, struct.pack("<i", 70000)),
        (DataType.STRING, "seq-é", struct.pack("<I", 6) + "seq-é".encode()),
        (DataType.STRING, "x" * 128, struct.pack("<I", 128) + b"x" * 128),
        (DataType.STRING, (1 << 64) - 1, struct.pack("<I", 20) + b"18446744073709551615"),
    ],
)
def test_the_id_in_every_type(dtype, id_, data):
    gate = Raw()
    corrid = ("CORRID", 3, int(dtype), b"", b"")
    with sequenced(gate, direct=True, controls=[corrid], control_types={"CORRID": dtype}) as m:
        m.ask(1, 77, START)
        m.ask(1, id_, START)
        m.ask(1, id_, END)
    size = len(data) if dtype == DataType.STRING else {DataType.UINT64: 8, DataType.INT64: 8}.get(dtype, 4)
    empty = bytes(4 if dtype == DataType.STRING else size)
    assert [row["CORRID"] for row in gate.raw[1]] == [(dtype, (1, 1), empty), (dtype, (1, 1), data)]
    assert gate.raw[2][1]["CORRID"] == (dtype, (1, 1), data)


def test_what_is_added_comes_behind_what_was_sent_in_any_order():
    gate = Recorder()
    io = {"inputs": (IoSpec("A", INT32, (1,), optional=True), IoSpec("IN", INT32, (1,)), IoSpec("B", INT32, (1,)))}
    with sequenced(gate, controls=(*CONTROLS, CORRID), control_types=TYPES, **io) as m:
        from triton_fast._native.sched.inprocess import InferCall

        inputs = [(name, INT32, (1, 1), struct.pack("<i", value)) for name, value in (("B", 2), ("IN", 1))]
        assert number(InferCall(m.model, inputs, correlation=8, flags=START)) == 1
    assert gate.batches == [[{"IN": 1, "B": 2, "START": 1, "READY": 1, "END": 0, "CORRID": 8}]]
