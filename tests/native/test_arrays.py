"""Batches as arrays, against numpy: what a function gets, what its outputs become, who keeps which memory how long."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from tests.helpers.models import LONG_S, counters_at_base, served
from tests.helpers.onnx_repository import NUMPY, wire_strings
from triton_fast._native.arrays.pyarrays import ArrayInstance, drop
from triton_fast._native.sched.inprocess import InferCall
from triton_fast.config import IoSpec
from triton_fast.errors import Internal, InvalidArg, ServerError
from triton_fast.types import DataType

__all__ = ["counters_at_base"]

FP32 = DataType.FP32
IN = [IoSpec("IN", FP32, (-1,))]
OUT = [IoSpec("OUT", FP32, (-1,))]


def output(array: np.ndarray, dtype: DataType = FP32) -> tuple[int, tuple[int, ...], int, int, Any]:
    array = np.ascontiguousarray(array)
    return int(dtype), array.shape, array.ctypes.data, array.nbytes, array


def array_of(given: Any) -> np.ndarray:
    dtype, shape, view = given
    return np.frombuffer(view, NUMPY[DataType(dtype)]).reshape(shape)


class Echo:
    """Gives the input back, plus one; ``entered`` and ``gate`` hold it where asked."""

    def __init__(self, *, held: bool = False) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Semaphore(0 if held else 1 << 20)

    def __call__(self, inputs: list[Any], wanted: tuple[bool, ...]) -> list[Any]:
        self.entered.release()
        assert self.gate.acquire(timeout=LONG_S)
        array = array_of(inputs[0])
        self.shapes.append(array.shape)
        return [output(array + 1)]


def serving(
    function: Callable[..., Any], inputs: Sequence[IoSpec] = IN, outputs: Sequence[IoSpec] = OUT, max_batch: int = 8
) -> Any:
    instance = ArrayInstance(function, len(inputs), len(outputs), max_batch, "a")
    return served(instance, inputs=inputs, outputs=outputs, max_batch=max_batch), instance


def call(model: Any, array: np.ndarray, **named: Any) -> InferCall:
    return InferCall(model, [("IN", FP32, array.shape, array.tobytes())], **named)


def result(made: InferCall, name: str = "OUT") -> np.ndarray:
    dtype, shape, data = made.wait(LONG_S)[name]
    return np.frombuffer(data, NUMPY[DataType(dtype)]).reshape(shape)


def rows(n: int, width: int = 3, start: float = 0) -> np.ndarray:
    return np.arange(start, start + n * width, dtype=np.float32).reshape(n, width)


@pytest.mark.parametrize("width", [3, 20_000])
def test_requests_share_a_call_and_get_their_rows(width: int) -> None:
    echo = Echo(held=True)
    serve, instance = serving(echo)
    with serve as model:
        first = call(model, rows(1, width))
        assert echo.entered.acquire(timeout=LONG_S)
        given = [rows(n, width, 100 * n) for n in (1, 3, 2)]
        calls = [call(model, array) for array in given]
        echo.gate.release(100)
        assert (result(first) == rows(1, width) + 1).all()
        for made, array in zip(calls, given, strict=True):
            assert (result(made) == array + 1).all()
        assert echo.shapes == [(1, width), (6, width)]
        counted = instance.counters()
        assert counted["calls"] == 2
        assert counted["copied_bytes"] >= 6 * width * 4
        assert counted["lent"] == (2 if width > 10_000 else 0)
    del first, calls, made
    gc.collect()
    drop()


def test_an_input_outlives_its_request_when_it_is_kept() -> None:
    kept: list[np.ndarray] = []

    def keep(inputs: list[Any], wanted: tuple[bool, ...]) -> list[Any]:
        kept.append(array_of(inputs[0]))
        return [output(kept[-1] * 2)]

    serve, _ = serving(keep)
    with serve as model:
        for n in range(8):
            assert (result(call(model, rows(1, 1000, n))) == rows(1, 1000, n) * 2).all()
    for n, array in enumerate(kept):
        assert (array == rows(1, 1000, n)).all()
    kept.clear()


def test_large_outputs_are_let_go_after_the_last_response() -> None:
    alive: list[Any] = []

    class Owner(np.ndarray):
        pass

    def make(inputs: list[Any], wanted: tuple[bool, ...]) -> list[Any]:
        array = np.full((1, 50_000), 7, np.float32).view(Owner)
        alive.append(weakref.ref(array))
        return [(int(FP32), array.shape, array.ctypes.data, array.nbytes, array)]

    serve, _ = serving(make)
    with serve as model:
        made = call(model, rows(1))
        assert (result(made) == 7).all()
        del made
    gc.collect()
    drop()
    assert [ref() for ref in alive] == [None]


def test_strings_are_cut_by_rows() -> None:
    specs = [IoSpec("IN", DataType.STRING, (2,))], [IoSpec("OUT", DataType.STRING, (2,))]
    echo = Echo(held=True)

    def same(inputs: list[Any], wanted: tuple[bool, ...]) -> list[Any]:
        echo.entered.release()
        assert echo.gate.acquire(timeout=LONG_S)
        dtype, shape, view = inputs[0]
        array = np.frombuffer(bytes(view), np.uint8)
        return [(dtype, shape, array.ctypes.data, array.nbytes, array)]

    serve, _ = serving(same, *specs)
    texts = [[b"a", b""], [b"ccc", b"dddd"], [b"", b"f"], [b"x" * 40_000, b"y"]]
    with serve as model:
        calls = []
        for n, pair in enumerate(texts):
            calls.append(InferCall(model, [("IN", DataType.STRING, (1, 2), wire_strings(pair))]))
            if n == 0:
                assert echo.entered.acquire(timeout=LONG_S)
        echo.gate.release(100)
        for made, pair in zip(calls, texts, strict=True):
            assert made.wait(LONG_S)["OUT"] == (DataType.STRING, (1, 2), wire_strings(pair))
    del calls, made
    gc.collect()
    drop()


def test_reshape_on_both_sides() -> None:
    shapes = []

    def square(inputs: list[Any], wanted: tuple[bool, ...]) -> list[Any]:
        shapes.append(inputs[0][1])
        return [output(array_of(inputs[0]).reshape(-1, 3, 2))]

    serve, _ = serving(square, [IoSpec("IN", FP32, (6,), reshape=(2, 3))], [IoSpec("OUT", FP32, (6,), reshape=(3, 2))])
    with serve as model:
        assert (result(call(model, rows(2, 6))) == rows(2, 6)).all()
    assert shapes == [(2, 2, 3)]


def test_without_a_batch_dimension_each_request_is_a_call() -> None:
    echo = Echo()
    serve, _ = serving(echo, max_batch=0)
    with serve as model:
        calls = [call(model, np.arange(n, dtype=np.float32)) for n in (1, 4, 2)]
        for made, n in zip(calls, (1, 4, 2), strict=True):
            assert (result(made) == np.arange(n, dtype=np.float32) + 1).all()
    assert sorted(echo.shapes) == [(1,), (2,), (4,)]


def test_what_is_wanted() -> None:
    seen = []

    def two(inputs: list[Any], wanted: tuple[bool, ...]) -> list[Any]:
        seen.append(wanted)
        array = array_of(inputs[0])
        return [output(array + k) if want else None for k, want in enumerate(wanted)]

    serve, _ = serving(two, IN, [IoSpec("A", FP32, (-1,)), IoSpec("B", FP32, (-1,))])
    with serve as model:
        assert (result(call(model, rows(1), outputs=["B"]), "B") == rows(1) + 1).all()
        assert set(call(model, rows(1)).wait(LONG_S)) == {"A", "B"}
    assert seen == [(False, True), (True, True)]


def test_an_optional_input_may_be_absent() -> None:
    def add(inputs: list[Any], wanted: tuple[bool, ...]) -> list[Any]:
        return [output(array_of(inputs[0]) + (100 if inputs[1] is None else 0))]

    serve, _ = serving(add, [*IN, IoSpec("MORE", FP32, (-1,), optional=True)])
    with serve as model:
        assert (result(call(model, rows(1))) == rows(1) + 100).all()


BROKEN: dict[str, tuple[Callable[[np.ndarray], Any], type[ServerError], str]] = {
    "raises": (lambda a: 1 / 0, Internal, "division by zero"),
    "raises ours": (lambda a: (_ for _ in ()).throw(InvalidArg("no")), InvalidArg, "no"),
    "rows": (lambda a: [output(np.zeros((5, 1), np.float32))], Internal, "failed to split the output tensor 'OUT' in "
             "responses: expected batch size of 1 in model output, got 5"),
    "scalar": (lambda a: [(int(FP32), (), a.ctypes.data, 4, a)], Internal, "failed to split the output tensor 'OUT' in "
               "responses: expected batch size of 1 in model output, got a scalar, which has no batch dimension"),
    "type": (lambda a: [output(np.zeros((1, 3), np.int32), DataType.INT32)], InvalidArg, "output 'OUT' has another "
             "datatype than the model configuration says"),
    "missing": (lambda a: [None], Internal, "output tensor 'OUT' is not found"),
    "too few": (lambda a: [], Internal, "expected 1 outputs, got 0"),
    "size": (lambda a: [(int(FP32), (1, 4), a.ctypes.data, a.nbytes, a)], Internal, "output 'OUT' has 12 bytes, its "
             "shape needs 16"),
    "negative": (lambda a: [(int(FP32), (1, -3), a.ctypes.data, a.nbytes, a)], Internal, "output 'OUT' has a shape "
                 "that is no shape"),
    "no tuple": (lambda a: [3], Internal, "int"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_outputs_fail_the_batch_alone(name: str) -> None:
    function, kind, text = BROKEN[name]
    turn = iter([True, False])

    def answer(inputs: list[Any], wanted: tuple[bool, ...]) -> Any:
        array = array_of(inputs[0])
        return function(array) if next(turn) else [output(array)]

    serve, _ = serving(answer)
    with serve as model:
        with pytest.raises(kind, match=text.replace("(", r"\(")):
            call(model, rows(1)).wait(LONG_S)
        assert (result(call(model, rows(1))) == rows(1)).all()


@pytest.mark.parametrize("data", [b"", b"\x01\0\0", b"\x05\0\0\0ab", wire_strings([b"a", b"b", b"c"])])
def test_broken_strings(data: bytes) -> None:
    specs = IN, [IoSpec("OUT", DataType.STRING, (2,))]

    def answer(inputs: list[Any], wanted: tuple[bool, ...]) -> Any:
        array = np.frombuffer(data + b"\0" * 8, np.uint8)
        return [(int(DataType.STRING), (1, 2), array.ctypes.data, len(data), array)]

    serve, _ = serving(answer, *specs)
    with serve as model, pytest.raises(Internal, match="output 'OUT' has string data that does not fit its shape"):
        call(model, rows(1)).wait(LONG_S)


# --- functions that are told of requests ------------------------------------------------------------------------------


def telling(function: Callable[..., Any], max_batch: int = 8) -> Any:
    instance = ArrayInstance(function, 1, 1, max_batch, "a", each=True)
    return served(instance, inputs=IN, outputs=OUT, max_batch=max_batch)


def test_a_function_fails_some_of_a_batch() -> None:
    echo = Echo(held=True)
    told: list[tuple[int, ...]] = []

    def each(inputs: list[Any], wanted: tuple[bool, ...], sizes: tuple[int, ...]) -> Any:
        told.append(sizes)
        return echo(inputs, wanted), [(1, InvalidArg("not this one"))] if len(sizes) > 1 else ()

    with telling(each) as model:
        first = call(model, rows(1))
        assert echo.entered.acquire(timeout=LONG_S)
        calls = [call(model, rows(n, 3, 10 * n)) for n in (1, 3, 2)]
        echo.gate.release(100)
        result(first)
        assert (result(calls[0]) == rows(1, 3, 10) + 1).all()
        with pytest.raises(InvalidArg, match=r"^not this one$"):
            calls[1].wait(LONG_S)
        assert (result(calls[2]) == rows(2, 3, 20) + 1).all()
    assert told == [(1,), (1, 3, 2)]


def test_without_batches_a_request_is_told_as_one_row() -> None:
    told: list[tuple[int, ...]] = []

    def each(inputs: list[Any], wanted: tuple[bool, ...], sizes: tuple[int, ...]) -> Any:
        told.append(sizes)
        return [output(array_of(inputs[0]))], []

    with telling(each, 0) as model:
        assert (result(call(model, rows(1)[0])) == rows(1)[0]).all()
    assert told == [(1,)]


@pytest.mark.parametrize(
    "failed",
    [
        [(1, Internal("x"))], [(-1, Internal("x"))], [(1 << 70, Internal("x"))], [("0", Internal("x"))], [(0,)], [0], 7,
        None,
    ],
)  # fmt: skip
def test_failures_that_name_no_request_fail_the_batch(failed: Any) -> None:
    given = [failed]

    def each(inputs: list[Any], wanted: tuple[bool, ...], sizes: tuple[int, ...]) -> Any:
        return [output(array_of(inputs[0]))], given.pop() if given else []

    with telling(each) as model:
        with pytest.raises(Internal):
            call(model, rows(1)).wait(LONG_S)
        assert (result(call(model, rows(1))) == rows(1)).all()
