"""Models with the native sequence batcher for tests: a clock to set, controls and states by name, a recording gate.

Knows the native engine only.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from threading import Semaphore
from typing import Any

from tests.helpers.models import INT32, LONG_S, numbers
from triton_fast._native.sched.inprocess import InferCall, StreamCall
from triton_fast._native.sched.model import NativeModel
from triton_fast._native.sched.pyinstance import PyInstance
from triton_fast._native.sched.sequence import NativeSequences
from triton_fast.config import IoSpec
from triton_fast.types import DataType

START, END = 1, 2
SECOND = 1_000_000_000
IDLE_US = 1_000_000
KINDS = {"START": 0, "READY": 1, "END": 2}
FALSE_TRUE = (struct.pack("<i", 0), struct.pack("<i", 1))
CONTROLS = tuple((name, kind, int(INT32), *FALSE_TRUE) for name, kind in KINDS.items())
CORRID = ("CORRID", 3, int(DataType.UINT64), b"", b"")
TYPES = {**dict.fromkeys(KINDS, INT32), "CORRID": DataType.UINT64}
STATE = ("STATE_IN", "STATE_OUT", int(INT32), (1,), (1,), struct.pack("<i", 0))
IN = (IoSpec("IN", INT32, (1,)),)
OUT = (IoSpec("OUT", INT32, (1,)),)


def seen(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the value of each input that has one element; a text id as bytes."""
    found: dict[str, Any] = {}
    for name, (dtype, _, view) in inputs.items():
        data = bytes(view)
        if dtype == DataType.STRING:
            found[name] = data[4:]
        elif len(data) == 8:
            found[name] = int.from_bytes(data, "little")
        else:
            found[name] = struct.unpack("<i", data)[0] if len(data) == 4 else data
    return found


def out(value: int, shape: Sequence[int] = (1, 1)) -> tuple[int, Sequence[int], bytes]:
    return INT32, shape, struct.pack("<i", value)


class Recorder:
    """A callable for ``PyInstance``: notes what each request of a batch looked like, then answers.

    ``held``: each execution waits for ``step`` or ``open``. ``answer(values, inputs)`` gives one request's result; else
    OUT is IN.
    """

    def __init__(self, *, held: bool = False, answer: Callable[[dict[str, Any]], Any] | None = None) -> None:
        self.batches: list[list[dict[str, Any]]] = []
        self.shapes: list[list[dict[str, Any]]] = []
        self.entered: SimpleQueue[list[dict[str, Any]]] = SimpleQueue()
        self.answer = answer
        self._held = held
        self._permits = Semaphore(0)

    def __call__(self, requests: list[Any]) -> Any:
        batch = [seen(inputs) for inputs in requests]
        self.batches.append(batch)
        self.shapes.append([{name: value[1] for name, value in inputs.items()} for inputs in requests])
        self.entered.put(batch)
        if self._held and not self._permits.acquire(timeout=LONG_S):
            raise TimeoutError("nobody opened the gate")
        if self.answer is not None:
            return [self.answer(values) for values in batch]
        return [{"OUT": (INT32, inputs["IN"][1], bytes(inputs["IN"][2]))} for inputs in requests]

    def taken(self) -> list[dict[str, Any]]:
        """Wait until an instance has taken its next batch and return it."""
        return self.entered.get(timeout=LONG_S)

    def step(self, n: int = 1) -> None:
        self._permits.release(n)

    def open(self) -> None:
        self._held = False
        self._permits.release(1000)


class Sequenced:
    """A model, its batcher and its clock. ``now`` is in ns."""

    def __init__(self, model: NativeModel, batcher: NativeSequences, now: int) -> None:
        self.model, self.batcher, self.now = model, batcher, now

    def pass_time(self, ns: int) -> None:
        self.now += ns
        self.batcher.set_clock(self.now)

    def send(self, value: int, correlation: Any = 1, flags: int = 0, dims: Sequence[int] = (), **options: Any) -> Any:
        shape = (*((1,) if self.batched else ()), *(dims or (1,)))
        maker = StreamCall if self.decoupled else InferCall
        return maker(self.model, [numbers(value, *shape)], flags=flags, correlation=correlation, **options)

    def ask(self, value: int, correlation: Any = 1, flags: int = 0, **options: Any) -> int:
        """Send one request and wait: the number in OUT."""
        return number(self.send(value, correlation, flags, **options))

    batched = True
    decoupled = False


def number(call: InferCall) -> int:
    return int(struct.unpack_from("<i", call.wait(LONG_S)["OUT"][2])[0])


def make(
    *instances: Any, direct: bool = False, slots: int = 4, max_batch: int = 4, controls: Sequence[Any] = CONTROLS,
    states: Sequence[Any] = (), inputs: Sequence[IoSpec] = IN, outputs: Sequence[IoSpec] = OUT, idle_us: int = IDLE_US,
    clock: int | None = SECOND, decoupled: bool = False, control_types: Any = TYPES, **options: Any,
) -> Sequenced:  # fmt: skip
    shown = {spec.name for spec in outputs}
    model = NativeModel(
        "m", 1, max_batch, inputs, outputs, decoupled,
        added_inputs=[
            *(IoSpec(state[0], DataType(state[2]), tuple(state[3])) for state in states),
            *(IoSpec(control[0], control_types[control[0]], (1,)) for control in controls),
        ],
        added_outputs=[
            IoSpec(state[1], DataType(state[2]), tuple(state[3]), kept=True)
            for state in states if state[1] not in shown
        ],
    )  # fmt: skip
    batcher = NativeSequences(
        model, instances=len(instances), slots=slots, direct=direct, idle_us=idle_us, controls=controls, states=states,
        clock=clock, **options,
    )  # fmt: skip
    model.use(batcher)
    for instance in instances:
        model.start_instance(PyInstance(instance, "recorder") if isinstance(instance, Recorder) else instance)
    made = Sequenced(model, batcher, clock or 0)
    made.batched, made.decoupled = max_batch > 0, decoupled
    return made


@contextlib.contextmanager
def sequenced(*instances: Any, **options: Any) -> Iterator[Sequenced]:
    """Yield a started model; afterwards open its gates and stop it."""
    made = make(*instances, **options)
    try:
        yield made
    finally:
        for instance in instances:
            if isinstance(instance, Recorder):
                instance.open()
        made.model.stop()
