"""A Python worker played by the test: speaks docs/python_worker.md over the region of a real ``WorkerChannel``."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.helpers.models import LONG_S, live, make_model
from tests.helpers.pyworker_peer import (
    ANSWERS,
    BLS,
    CANCEL_AT,
    DONE,
    EVENTS,
    HOLD_AT,
    REQUEST,
    RESPONSE,
    SLOTS,
    WORK,
    Peer,
    pad,
)
from triton_fast._native.pyworker import region
from triton_fast._native.pyworker.channel import WorkerChannel
from triton_fast._native.pyworker.instance import PythonInstance
from triton_fast._native.sched.model import NativeModel

EXECUTE, FINALIZE, TRIM = 1, 2, 3
RESPONSE_EVENT, BLS_EVENT, BLS_CANCEL, BLS_CLOSED = 1, 2, 3, 4
BY_SENDER, RESCHEDULED, NO_RESPONSE = 1, 2, 3
GONE = "the worker has gone"


@pytest.fixture(autouse=True)
def everything_at_base() -> Iterator[None]:
    """Import this into a test module: each test must give back what ``models.live`` counts, and its regions."""
    gc.collect()
    before = live() | region.stats()
    yield
    gc.collect()
    assert live() | region.stats() == before


def params(values: dict[str, Any]) -> bytes:
    if not values:
        return b""
    found = struct.pack("<II", len(values), 0)
    for key, value in values.items():
        kind = 0 if isinstance(value, str) else 2 if isinstance(value, bool) else 1
        text = value.encode() if isinstance(value, str) else b""
        number = len(text) if kind == 0 else int(value)
        found += struct.pack("<IIq", kind, len(key.encode()), number) + pad(key.encode()) + pad(text)
    return found


@dataclass
class Given:
    """One request of an execution, as the worker reads it."""

    slot: int
    generation: int
    flags: int
    correlation: int | str
    timeout_us: int
    priority: int
    id: str
    params: str
    inputs: list[tuple[Any, ...]]   # index, dtype number, dims, data, offset
    wanted: list[int]
    trace: str = ""

    @property
    def name(self) -> tuple[int, int]:
        return (self.slot, self.generation)


@dataclass
class Execution:
    batch: int
    off: int
    requests: list[Given]


class ScriptedWorker(Peer):
    """Maps what the server made; its allocations are never reused, so a test sees what became of each."""

    def __init__(self, channel: WorkerChannel) -> None:
        self.fd, *self.fds = channel.fds()
        self.size = channel.region_bytes()
        self.map(self.fd)
        magic, version, size, self.in_off, self.in_bytes, self.out_off, self.out_bytes = struct.unpack_from(
            "<IIQQQQQ", self.memory)
        assert (magic, version, size) == (0x31574654, 1, self.size)
        self.bump, self.taken = self.out_off, [0] * 4
        for k in (WORK, ANSWERS):
            self.put32(self.ring(k) + 128, 1)

    def __exit__(self, *_: object) -> None:
        self.unmap()

    def next(self, k: int, timeout_s: float = LONG_S) -> tuple[int, ...]:
        while True:
            message = self.take(k)
            if message:
                return message
            if not select.select([self.fds[k]], [], [], timeout_s)[0]:
                raise TimeoutError(f"nothing on ring {k}")
            self.empty(self.fds[k])

    @staticmethod
    def empty(fd: int) -> None:
        """Read an eventfd that the server may empty in the same moment."""
        with contextlib.suppress(BlockingIOError):
            os.preadv(fd, [bytearray(8)], -1, os.RWF_NOWAIT)

    @staticmethod
    def fill(fd: int) -> None:
        """Make the next write to an eventfd block."""
        os.set_blocking(fd, False)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(fd, 2**64 - 2)
        os.set_blocking(fd, True)

    def lie(self, k: int, head: int) -> None:
        """Publish a number of messages that a ring can not have."""
        self.put64(self.ring(k), head)
        os.eventfd_write(self.fds[k], 1)

    def has_room(self, k: int) -> bool:
        return self.u64(self.ring(k)) - self.u64(self.ring(k) + 64) < SLOTS

    def inbound(self, data: bytes) -> int:
        """What ``place`` allocates from: the outbound heap, here."""
        off = self.bump + 64
        self.bump = off + (len(data) + 63) // 64 * 64
        assert self.bump <= self.out_off + self.out_bytes, "the script needs a larger outbound heap"
        struct.pack_into("<IIQ", self.memory, off - 64, 1, 0, self.bump - off)
        self.memory[off : off + len(data)] = data
        return off

    def is_cancelled(self, given: Given) -> bool:
        return self.u32(CANCEL_AT + 4 * given.slot) == given.generation

    def is_held(self, given: Given) -> bool:
        return self.u32(HOLD_AT + 4 * given.slot) == given.generation

    # ---- what comes ----

    def execution(self, timeout_s: float = LONG_S) -> Execution:
        kind, batch, off, _, _ = self.next(WORK, timeout_s)
        assert kind == EXECUTE
        at, found = off + 8, []
        for _ in range(self.u32(off)):
            given, at = self.given(at)
            found.append(given)
        return Execution(batch, off, found)

    def given(self, at: int) -> tuple[Given, int]:
        (total, slot, generation, flags, number, timeout, priority, id_len, text_len, params_len, trace_len, inputs,
         wanted) = REQUEST.unpack_from(self.memory, at)
        tensors, here = self.tensors(at + REQUEST.size, inputs)
        indices = list(struct.unpack_from(f"<{wanted}i", self.memory, here))
        here += (wanted * 4 + 7) // 8 * 8
        texts = []
        for n in (id_len, text_len, params_len, trace_len):
            texts.append(self.memory[here : here + n].decode())
            here += (n + 7) // 8 * 8
        assert here == at + total
        return Given(slot, generation, flags, texts[1] or number, timeout, priority, texts[0], texts[2], tensors,
                     indices, texts[3]), here

    def answered(self, timeout_s: float = LONG_S) -> tuple[int, dict[str, Any]]:
        """The next answer to a call: (call, response); its memory is given back."""
        _, call, off, _, _ = self.next(ANSWERS, timeout_s)
        head = RESPONSE.unpack_from(self.memory, off)
        tensors, at = self.tensors(off + RESPONSE.size, head[7])
        text = self.memory[at : at + head[5]].decode()
        at += (head[5] + 7) // 8 * 8
        found = {"kind": head[1], "code": head[4], "error": text, "flags": head[8], "outputs": tensors,
                 "params": self.memory[at : at + head[6]].decode()}
        self.release(off)
        return call, found

    # ---- what goes ----

    def record(self, name: tuple[int, int], outputs: Any = (), *, kind: int = 0, code: int = -1, error: bytes = b"",
               parameters: dict[str, Any] | None = None, final: bool = True, at: int | None = None) -> list[Any]:
        """A response record; with ``at`` its tensors lie there and are not written."""
        tensors = [self.tensor(*tensor) for tensor in outputs]
        extra = params(parameters or {})
        total = RESPONSE.size + sum(len(head) for head, _ in tensors) + len(pad(error)) + len(extra)
        head = RESPONSE.pack(total, kind, *name, code, len(error), len(extra), len(tensors), int(final), 0)
        if at is not None:
            tensors = [record[:8] + struct.pack("<Q", at) + record[16:] for record, _ in tensors]
        return [head, *tensors, pad(error), extra]

    def done(self, execution: Execution, *records: list[Any]) -> int:
        off, n = self.place([struct.pack("<IiII", len(records), -1, 0, 0), *(part for r in records for part in r)])
        self.publish(DONE, 1, execution.batch, off, n)
        return off

    def done_empty(self, execution: Execution) -> None:
        self.publish(DONE, 1, execution.batch)

    def failed(self, execution: Execution, text: bytes, code: int = 1) -> None:
        off, n = self.place([struct.pack("<IiII", 0, code, len(text), 0), pad(text)])
        self.publish(DONE, 1, execution.batch, off, n)

    def event(self, record: list[Any]) -> int:
        off, n = self.place(record)
        self.publish(EVENTS, RESPONSE_EVENT, 0, off, n)
        return off

    def call(self, number: int, model: str, inputs: Any, *, options: int = 0, wanted: tuple[str, ...] = (),
             version: int = -1, request_id: bytes = b"", parameters: dict[str, Any] | None = None,
             trace: bytes = b"") -> int:
        off, n = self.place(self.bls_record(model, inputs, options=options, wanted=wanted, version=version,
                                            request_id=request_id, parameters=parameters, trace=trace))
        self.publish(EVENTS, BLS_EVENT, number, off, n)
        return off

    def bls_record(self, model: str, inputs: Any, *, options: int = 0, wanted: tuple[str, ...] = (), version: int = -1,
                   request_id: bytes = b"", parameters: dict[str, Any] | None = None, trace: bytes = b"") -> list[Any]:
        tensors = [self.tensor(*tensor) for tensor in inputs]
        extra = params(parameters or {})
        names = b"".join(pad(struct.pack("<I", len(name)) + name.encode()) for name in wanted)
        tail = names + pad(model.encode()) + pad(request_id) + pad(extra) + pad(trace)
        total = BLS.size + sum(len(head) for head, _ in tensors) + len(tail)
        head = BLS.pack(total, options, 0, len(tensors), 0, 0, version, len(wanted), len(model.encode()),
                        len(request_id), 0, len(extra), len(trace), 0, 0)
        return [head, *tensors, tail]


@dataclass
class Served:
    model: NativeModel
    instance: PythonInstance
    worker: ScriptedWorker
    channel: WorkerChannel


@contextlib.contextmanager
def python_model(resolve: Any = None, epoch: Any = None, *, in_bytes: int = 1 << 20, out_bytes: int = 1 << 20,
                 wait_ns: int = 30 * 10**9, **options: Any) -> Iterator[Served]:
    """A started model with one instance whose worker is the test; afterwards that has gone and the model is stopped."""
    channel = WorkerChannel(in_bytes, out_bytes)
    instance = PythonInstance("py", resolve, epoch, wait_ns=wait_ns)
    instance.attach(channel)
    model = make_model(instance, **options)
    with ScriptedWorker(channel) as worker:
        try:
            yield Served(model, instance, worker, channel)
        finally:
            instance.fail(GONE)
            instance.give_up(GONE)
            model.stop()
