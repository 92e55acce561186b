"""Batches that are split: equal to what a client gets that cuts them itself, counted once, and every way one ends while
its parts are queued or run. Each test gives back all blocks and requests."""

from __future__ import annotations

import contextlib
import itertools
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.models import (
    ANY,
    ANY_OUT,
    HOUR_US,
    INT32,
    LONG_S,
    STOPPED,
    Gate,
    busy,
    counters_at_base,
    in_threads,
    live,
    numbers,
    served,
    submit,
    value_of,
)
from triton_fast._native.backends.identity import IdentityInstance
from triton_fast._native.sched.cache import CacheLayer
from triton_fast._native.sched.inprocess import InferCall
from triton_fast._native.sched.model import NativeModel
from triton_fast._native.sched.split import SplitLayer
from triton_fast._native.sched.store import NativeCache
from triton_fast.config import IoSpec
from triton_fast.errors import Cancelled, Internal, InvalidArg, Unavailable, Unsupported
from triton_fast.types import TYPES, DataType

__all__ = ["counters_at_base"]

MOST = 4


@contextlib.contextmanager
def splitting(
    *instances: object, most_rows: int = 1000, max_batch: int = MOST, **options: object
) -> Iterator[NativeModel]:
    with served(*instances, max_batch=max_batch, **options) as model:
        model.add_layer(SplitLayer(model, most_rows))
        yield model


def rows(n: int, first: int = 0) -> tuple[str, DataType, tuple[int, int], bytes]:
    """An input of n rows, each with its number."""
    return "IN", INT32, (n, 1), struct.pack(f"<{n}i", *range(first, first + n))


def ask(model: NativeModel, n: int, first: int = 0, **options: object) -> InferCall:
    return InferCall(model, [rows(n, first)], **options)


def check(call: InferCall, n: int, first: int = 0) -> None:
    assert call.wait(LONG_S)["OUT"] == (INT32, *rows(n, first)[2:])


def failures(model: NativeModel, **expected: int) -> None:
    counts = {"REJECTED": 0, "CANCELED": 0, "BACKEND": 0, "OTHER": 0, **expected}
    assert model.snapshot()["failures"] == counts
    assert model.pending == 0


# --- what comes back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("n", [1, 3, 4, 5, 8, 9, 400])
def test_rows_come_back_in_order_and_count_once(n, dynamic):
    gate = Gate(held=False)
    with splitting(gate, dynamic=dynamic) as model:
        check(ask(model, n), n)
        taken = model.snapshot()
        assert taken["success"] == 1
        assert taken["inference_count"] == n
        assert taken["execution_count"] == len(gate.batches) == -(-n // MOST)
        assert sum(taken["histograms"]["request"][0]) == 1
        assert all(shape[0] <= MOST for batch in gate.shapes for shape in batch)
        failures(model)


def tensor(dtype: DataType, shape: tuple[int, ...], seed: int) -> tuple[list[bytes], bytes]:
    """The elements and the wire form."""
    count = 1
    for dim in shape:
        count *= dim
    if dtype == DataType.STRING:
        items = [struct.pack("<I", (k + seed) % 5) + bytes([k % 256]) * ((k + seed) % 5) for k in range(count)]
    else:
        size = TYPES[dtype].size
        items = [
            bytes((seed + k + i) % (2 if dtype == DataType.BOOL else 256) for i in range(size)) for k in range(count)
        ]
    return items, b"".join(items)


@settings(max_examples=60, deadline=None)
@given(
    dtypes=st.lists(st.sampled_from([d for d in DataType if d != DataType.INVALID]), min_size=1, max_size=3),
    inner=st.lists(st.integers(0, 3), min_size=0, max_size=2), n=st.integers(1, 30), most=st.integers(1, 7),
    seed=st.integers(0, 200), wanted=st.integers(1, 7),
)  # fmt: skip
def test_it_equals_what_a_client_gets_that_cuts(dtypes, inner, n, most, seed, wanted):  # noqa: PLR0917
    dims = tuple(-1 for _ in inner)
    inputs = tuple(IoSpec(f"IN{k}", dtype, dims) for k, dtype in enumerate(dtypes))
    outputs = tuple(IoSpec(f"OUT{k}", dtype, dims) for k, dtype in enumerate(dtypes))
    names = [f"OUT{k}" for k in range(len(dtypes)) if wanted >> k & 1]
    made = [tensor(dtype, (n, *inner), seed + k) for k, dtype in enumerate(dtypes)]
    each = len(made[0][0]) // n
    with splitting(
        IdentityInstance("a"),
        IdentityInstance("b"),
        inputs=inputs,
        outputs=outputs,
        max_batch=most,
        most_rows=most + 30,
    ) as model:

        def run(first: int, count: int) -> dict[str, object]:
            cut = [
                (f"IN{k}", dtype, (count, *inner), b"".join(made[k][0][first * each : (first + count) * each]))
                for k, dtype in enumerate(dtypes)
            ]
            return InferCall(model, cut, names).wait(LONG_S)

        whole = run(0, n)
        parts = [run(at, min(most, n - at)) for at in range(0, n, most)]
        for name, (dtype, shape, data) in whole.items():
            assert {part[name][0] for part in parts} == {dtype}
            assert shape == (n, *inner)
            assert data == b"".join(part[name][2] for part in parts)
        assert set(whole) == set(names or [spec.name for spec in outputs])


def test_parts_are_gone_when_the_answer_comes():
    """They hold the inputs: a client may unregister their region as soon as it has the answer."""
    n = 40_000
    with splitting(IdentityInstance(), most_rows=n) as model:
        before = live()["requests"]
        call = ask(model, n)
        check(call, n)
        assert live()["requests"] == before + 1, "the whole, which the call holds"


def test_all_instances_work_on_one_request():
    gates = [Gate(), Gate()]
    with splitting(*gates) as model:
        call = ask(model, 8)
        assert sorted(gate.taken()[0] for gate in gates) == [0, 4]
        for gate in gates:
            gate.open()
        check(call, 8)


def test_a_small_request_is_not_touched():
    with splitting(IdentityInstance("i"), inputs=ANY, outputs=ANY_OUT) as model:
        assert value_of(submit(model, 3, MOST, 2)) == 3
        assert model.snapshot()["execution_count"] == 1


def test_the_limit_of_rows_is_said():
    with splitting(Gate(held=False), most_rows=9) as model:
        check(ask(model, 9), 9)
        with pytest.raises(InvalidArg, match="inference request batch-size must be <= 9 for 'm'"):
            ask(model, 10)


def test_parts_are_limited_in_number():
    with splitting(Gate(held=False), max_batch=1, most_rows=1 << 40) as model:
        with pytest.raises(InvalidArg, match="batch-size must be <= 16384 for 'm'"):
            ask(model, 16385)
        check(ask(model, 3), 3)


def test_models_that_can_not_be_split_are_refused():
    for options in ({"max_batch": 0}, {"decoupled": True}):
        model = NativeModel("m", 1, **{"max_batch": 4, "inputs": (), "outputs": (), **options})
        with pytest.raises(ValueError, match="only batches of models with one response"):
            SplitLayer(model, 100)
    with pytest.raises(ValueError, match="over the largest batch, 4, got 4"):
        SplitLayer(NativeModel("m", 1, 4, (), ()), 4)


def test_parts_can_be_cached_as_one():
    gate = Gate(held=False)
    with splitting(gate) as model:
        model.add_layer(CacheLayer(NativeCache(1 << 20)))
        for _ in range(3):
            check(ask(model, 10), 10)
        assert len(gate.batches) == 3
        assert model.snapshot()["success"] == 3
        assert model.snapshot()["cache"][0] == 2


# --- outputs that do not fit together ---------------------------------------------------------------------------------


def misfit(change):
    """An answer whose parts differ: change(number of the part, shape, bytes) -> an output, or several."""
    seen = itertools.count()

    def answer(requests):
        results = []
        for inputs in requests:
            dtype, shape, view = inputs["IN"]
            results.append(change(next(seen), dtype, shape, bytes(view)))
        return results

    return answer


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda k, dtype, shape, data: {"OUT": (dtype, (shape[0], k + 1), data * (k + 1))}, Unsupported,
         "output 'OUT' of model 'm' has another shape for one part than for another: all dimensions but the first"),
        (lambda k, dtype, shape, data: {"OUT": (dtype, (*shape, 1) if k else shape, data)}, Unsupported,
         "output 'OUT' of model 'm' differs between the parts in datatype or rank"),
        (lambda k, dtype, shape, data: {"OUT": (DataType.UINT32 if k else dtype, shape, data)}, Unsupported,
         "differs between the parts in datatype or rank"),
        (lambda k, dtype, shape, data: {"OUT": (dtype, (1, shape[0]), data)}, Unsupported,
         "the request was cut into parts of at most 4 rows, and output 'OUT' of model 'm' does not have one row for"),
        (lambda k, dtype, shape, data: {} if k else {"OUT": (dtype, shape, data)}, Internal,
         "different numbers of outputs"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_an_error(change, error, text):
    with splitting(Gate(held=False, answer=misfit(change))) as model:
        with pytest.raises(error, match=text):
            ask(model, 8).wait(LONG_S)
        failures(model, BACKEND=1)
        assert model.snapshot()["success"] == 0


# --- ends -------------------------------------------------------------------------------------------------------------


def test_an_error_of_a_part_fails_the_whole_and_withdraws_the_rest():
    gate = Gate(answer=lambda requests: [Internal("part is bad")] * len(requests))
    with splitting(gate) as model:
        call = ask(model, 40)
        gate.taken()
        gate.step()
        with pytest.raises(Internal, match="part is bad"):
            call.wait(LONG_S)
        gate.open()
    assert len(gate.batches) <= 2  # the failed one, and at most one that was taken meanwhile
    failures(model, BACKEND=1)


def test_a_failed_whole_is_answered_while_a_part_still_runs():
    slow = Gate()
    bad = Gate(answer=lambda requests: [Internal("part is bad")] * len(requests))
    with splitting(slow, bad) as model:
        call = ask(model, 8)
        slow.taken()
        bad.taken()
        bad.step()
        with pytest.raises(Internal, match="part is bad"):
            call.wait(LONG_S)
        del call  # what its other part still borrows outlives it
        slow.step()
        model.stop()
        failures(model, BACKEND=1)


def test_cancelling_a_queued_one_takes_all_parts_back():
    gate = Gate()
    with splitting(gate) as model:
        first = busy(model, gate)
        call = ask(model, 40)
        assert model.pending == 10
        assert call.queued
        assert call.cancel()
        assert model.pending == 0
        with pytest.raises(Cancelled):
            call.wait(LONG_S)
        gate.open()
        assert value_of(first) == -1
        failures(model, CANCELED=1)
        assert model.snapshot()["execution_count"] == 1


def test_cancelling_one_that_runs_ends_it_at_once():
    gate = Gate()
    with splitting(gate) as model:
        call = ask(model, 12)
        gate.taken()
        assert call.cancel()
        with pytest.raises(Cancelled):
            call.wait(LONG_S)
        del call
        assert model.pending == 0
        gate.open()
        model.stop()
        failures(model, CANCELED=1)
        assert len(gate.batches) == 1


def test_one_place_in_the_queue_is_enough():
    gate = Gate()
    with splitting(gate, max_queue_size=2) as model:
        first = busy(model, gate)
        small = submit(model, 7)
        call = ask(model, 40)  # takes the second place; its other parts come along
        assert model.pending == 11
        with pytest.raises(Unavailable, match="Exceeds maximum queue size"):
            ask(model, 40)
        with pytest.raises(Unavailable, match="Exceeds maximum queue size"):
            submit(model, 8)
        gate.open()
        assert [value_of(first), value_of(small)] == [-1, 7]
        check(call, 40)
        failures(model, REJECTED=2)
        assert model.snapshot()["success"] == 3


def test_a_queue_timeout_ends_the_whole():
    gate = Gate()
    with splitting(gate, timeout_us=HOUR_US, timeout_override=True) as model:
        first = busy(model, gate)
        call = ask(model, 40, timeout_us=1000)
        with pytest.raises(Unavailable, match="Request timeout expired"):
            call.wait(LONG_S)
        assert model.pending == 0
        gate.open()
        assert value_of(first) == -1
        failures(model, REJECTED=1)
        assert model.snapshot()["execution_count"] == 1


def test_aborting_answers_once():
    gate = Gate()
    with splitting(gate) as model:
        call = ask(model, 40)
        gate.taken()
        model.abort()
        with pytest.raises(Unavailable, match=STOPPED):
            call.wait(LONG_S)
        with pytest.raises(Unavailable, match=STOPPED):
            ask(model, 40)
        gate.open()
        model.stop()
        failures(model, REJECTED=1)


def test_stopping_executes_what_was_taken():
    gate = Gate(held=False)
    with splitting(gate) as model:
        calls = [ask(model, 30, 100 * k) for k in range(5)]
        model.stop()
        for k, call in enumerate(calls):
            check(call, 30, 100 * k)


def test_a_storm_of_splits_cancels_and_failures():
    """Each call ends once, the counts agree, nothing is left over (the fixture looks)."""

    def answer(requests):
        results = []
        for inputs in requests:
            dtype, shape, view = inputs["IN"]
            values = struct.unpack(f"<{shape[0]}i", view)
            results.append(Internal("no") if 13 in values else {"OUT": (dtype, shape, bytes(view))})
        return results

    ends = {"success": 0, "BACKEND": 0, "CANCELED": 0}
    with splitting(Gate(held=False, answer=answer), Gate(held=False, answer=answer)) as model:

        def work(k):
            mine = dict.fromkeys(ends, 0)
            for n in range(60):
                first, count = (14 if n % 4 else 0), 1 + (n * 5 + k) % 30
                call = ask(model, count, first)
                if n % 5 == 0 and call.cancel():
                    mine["CANCELED"] += 1
                    continue
                try:
                    check(call, count, first)
                    mine["success"] += 1
                except Internal:
                    assert first == 0
                    assert count > 13
                    mine["BACKEND"] += 1
            for name, value in mine.items():
                ends[name] += value

        in_threads(6, work)
        model.stop()
        taken = model.snapshot()
        found = {"success": taken["success"], **{name: taken["failures"][name] for name in ("BACKEND", "CANCELED")}}
        assert found == ends
        assert sum(ends.values()) == 360
        failures(model, BACKEND=ends["BACKEND"], CANCELED=ends["CANCELED"])


def test_numbers_of_other_shapes_may_share_the_queue():
    gate = Gate(held=False)
    with splitting(gate, inputs=ANY, outputs=ANY_OUT) as model:
        calls = [InferCall(model, [numbers(k, 9, k + 1)]) for k in range(6)]
        for k, call in enumerate(calls):
            assert value_of(call) == k
