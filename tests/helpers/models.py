"""Engine models for tests: an instance held at a gate, numbered requests, and a fixture that finds leaks.

Knows the native engine only: no config files, no repository, no protocol.
"""

from __future__ import annotations

import contextlib
import gc
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any

import pytest

from triton_fast._native.core import memory, request
from triton_fast._native.core import model as structs
from triton_fast._native.sched.inprocess import InferCall
from triton_fast._native.sched.instance import NativeInstance
from triton_fast._native.sched.model import NativeModel
from triton_fast._native.sched.pyinstance import PyInstance
from triton_fast.config import IoSpec
from triton_fast.errors import ServerError
from triton_fast.types import DataType

LONG_S = 60.0
HOUR_US = 3_600_000_000
EMPTY = -2  # the number of a request without elements
INT32 = DataType.INT32
STOPPED = "Server is stopping, scheduler for model has stopped accepting new inference requests"

ONE = (IoSpec("IN", INT32, (1,)),)
OUT = (IoSpec("OUT", INT32, (1,)),)
ANY = (IoSpec("IN", INT32, (-1,)),)
ANY_OUT = (IoSpec("OUT", INT32, (-1,)),)

# name, DataType, shape, bytes
Input = tuple[str, DataType, Sequence[int], bytes]


def live() -> dict[str, int]:
    """Return the debug counters that go up and down: blocks, bytes, requests, models."""
    pool = memory.stats()
    return {
        "blocks": pool["live_blocks"], "bytes": pool["live_bytes"],
        "requests": request.stats()["live_requests"], "models": structs.stats()["live_models"],
    }  # fmt: skip


@pytest.fixture(autouse=True)
def counters_at_base() -> Iterator[None]:
    """Import this into a test module: each test must give back all blocks, requests and models."""
    gc.collect()
    before = live()
    yield
    gc.collect()
    after = live()
    assert after == before, f"left over: {({name: after[name] - before[name] for name in after})}"


def echo(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return one request's inputs as outputs: IN as OUT, IN1 as OUT1."""
    return {name.replace("IN", "OUT"): (dtype, shape, bytes(view)) for name, (dtype, shape, view) in inputs.items()}


def first_number(inputs: dict[str, Any]) -> int:
    view = inputs["IN"][2]
    return int(struct.unpack_from("<i", view)[0]) if view else EMPTY


class Gate:
    """A callable for ``PyInstance`` that echoes, after it was let through.

    Parameters
    ----------
    held : bool
        Each execution waits for one ``step`` or for ``open``.
    answer : callable, optional
        What makes the results of a batch instead of an echo.

    Attributes
    ----------
    batches : list of list of int
        The first number of each request, batch by batch, as they were taken.
    shapes : list of list of tuple
        IN's shapes of the same.
    """

    def __init__(self, *, held: bool = True, answer: Callable[[list[Any]], Any] | None = None) -> None:
        self.batches: list[list[int]] = []
        self.shapes: list[list[tuple[int, ...]]] = []
        self.entered: SimpleQueue[list[int]] = SimpleQueue()
        self.answer = answer
        self._held = held
        self._permits = threading.Semaphore(0)
        self._lock = threading.Lock()

    def __call__(self, requests: list[Any]) -> Any:
        batch = [first_number(inputs) for inputs in requests]
        with self._lock:
            self.batches.append(batch)
            self.shapes.append([inputs["IN"][1] for inputs in requests])
        self.entered.put(batch)
        if self._held and not self._permits.acquire(timeout=LONG_S):
            raise TimeoutError("nobody opened the gate")
        return self.answer(requests) if self.answer else [echo(inputs) for inputs in requests]

    def taken(self) -> list[int]:
        """Wait until an instance has taken its next batch and return it."""
        return self.entered.get(timeout=LONG_S)

    def step(self, n: int = 1) -> None:
        """Let n executions through."""
        self._permits.release(n)

    def open(self) -> None:
        """Let everything through from now on."""
        self._held = False
        self._permits.release(1000)


def make_model(
    *instances: NativeInstance | Gate,
    inputs: Sequence[IoSpec] = ONE,
    outputs: Sequence[IoSpec] = OUT,
    max_batch: int = 8,
    dynamic: bool = True,
    spin_ns: int = 0,
    **policy: Any,
) -> NativeModel:
    """Return a started model; a ``Gate`` becomes a ``PyInstance``."""
    model = NativeModel("m", 1, max_batch, inputs, outputs, dynamic=dynamic, **policy)
    for instance in instances:
        model.start_instance(PyInstance(instance, "gate") if isinstance(instance, Gate) else instance, spin_ns)
    return model


@contextlib.contextmanager
def served(*instances: NativeInstance | Gate, **options: Any) -> Iterator[NativeModel]:
    """Yield a started model; afterwards open its gates and stop it."""
    model = make_model(*instances, **options)
    try:
        yield model
    finally:
        for instance in instances:
            if isinstance(instance, Gate):
                instance.open()
        model.stop()


def numbers(value: int, *shape: int) -> Input:
    """Return an input IN of this shape, each element ``value``."""
    count = 1
    for dim in shape:
        count *= dim
    return ("IN", INT32, shape, struct.pack("<i", value) * count)


def submit(model: NativeModel, value: int, rows: int = 1, *dims: int, **options: Any) -> InferCall:
    """Submit a request of ``rows`` rows whose elements are all ``value``; dims default to (1,)."""
    return InferCall(model, [numbers(value, rows, *(dims or (1,)))], **options)


def value_of(call: InferCall) -> int:
    """Wait for a request made by ``submit``; return its number after checking that each element carries it."""
    _, shape, data = call.wait(LONG_S)["OUT"]
    count = len(data) // 4
    value: int = struct.unpack_from("<i", data)[0]
    assert data == struct.pack("<i", value) * count
    assert shape[0] >= 1
    return value


def busy(model: NativeModel, gate: Gate) -> InferCall:
    """Submit request -1 and return once the instance holds it at its gate."""
    call = submit(model, -1)
    assert gate.taken() == [-1]
    return call


def in_threads(n: int, work: Callable[[int], None]) -> None:
    """Run ``work(k)`` on n threads that start together; raise what one of them raised."""
    errors: list[BaseException] = []
    start = threading.Barrier(n)

    def body(k: int) -> None:
        try:
            start.wait(LONG_S)
            work(k)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=body, args=(k,)) for k in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def drain(call: Any) -> list[Any]:
    """All that comes of a StreamCall: numbers, errors as (class, text), then ("final", number or None)."""
    found: list[Any] = []
    while True:
        try:
            taken = call.take(LONG_S)
        except ServerError as error:
            found.append((type(error), str(error)))
            continue
        if taken is None:
            return found
        outputs, is_final = taken
        value = struct.unpack("<i", outputs["OUT"][2])[0] if outputs else None
        found.append(("final", value) if is_final else value)
