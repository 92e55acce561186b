"""Fuzz the server's side of Python workers with a hostile one: no crash, each request ends once, nothing leaks.

A thread plays a worker that answers some requests as it should and for the rest writes what it likes, where it likes,
while another flips bytes of what it has written. Run for TF_FUZZ_SECONDS (default 5); TF_FUZZ_SEED repeats the
choices, though not the timing.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import random
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.helpers.models import INT32, Gate, live, make_model
from tests.helpers.pyworker_peer import ANSWERS, CANCEL_AT, CONTROL, DONE, EVENTS, WORK, strings
from tests.helpers.pyworker_scripted import Execution, ScriptedWorker
from triton_fast._native.backends.repeat import RepeatInstance
from triton_fast._native.pyworker import region
from triton_fast._native.pyworker.channel import WorkerChannel
from triton_fast._native.pyworker.instance import PythonInstance
from triton_fast._native.sched.inprocess import InferCall, StreamCall
from triton_fast._native.sched.model import Epoch, NativeModel
from triton_fast.config import IoSpec
from triton_fast.errors import ServerError
from triton_fast.types import DataType

SECONDS = float(os.environ.get("TF_FUZZ_SECONDS", "5"))
PATIENCE_S = 60.0
WORDS = [0, 1, 2, 3, 4, 7, 8, 13, 64, 65, 255, 4096, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 8, 2**32 - 1]
NUMBERS = [*WORDS, 2**32, 2**48, 2**63 - 8, 2**63, 2**64 - 64, 2**64 - 8, 2**64 - 1]
INPUTS = (IoSpec("IN", INT32, (-1,)),)
OUTPUTS = (IoSpec("OUT", INT32, (-1,)), IoSpec("OUT1", DataType.STRING, (-1,)))


class Hostile(ScriptedWorker):
    """Its heap begins again when it is used up, whatever the server still has of it."""

    def __init__(self, channel: WorkerChannel, rng: random.Random, decoupled: bool) -> None:
        super().__init__(channel)
        self.rng, self.decoupled = rng, decoupled
        self.executions: list[Execution] = []
        self.names: list[tuple[int, int]] = [(0, 1)]
        self.calls = 0
        self.stop = threading.Event()
        self.errors: list[BaseException] = []
        self.threads = [threading.Thread(target=self.run, args=(body,)) for body in (self.act, self.flip)]
        for thread in self.threads:
            thread.start()

    def run(self, body: Any) -> None:
        try:
            while not self.stop.is_set():
                body()
        except BaseException as error:
            self.errors.append(error)

    def end(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()
        self.unmap()
        if self.errors:
            raise self.errors[0]

    def inbound(self, data: bytes) -> int:
        if len(data) + 128 > self.out_off + self.out_bytes - self.bump:
            self.bump = self.out_off
        return super().inbound(data)

    def place(self, parts: list[Any]) -> tuple[int, int]:
        size = sum(len(part) if isinstance(part, bytes) else sum(map(len, part)) + 64 for part in parts)
        if size + 256 > self.out_off + self.out_bytes - self.bump:
            self.bump = self.out_off
        return super().place(parts)

    def publish(self, k: int, *message: int, **options: int) -> None:
        while not self.stop.is_set() and not self.has_room(k):
            pass
        if not self.stop.is_set():
            super().publish(k, *message, **options)

    # ---- what it sends ----

    def where(self) -> int:
        """An offset: of something, near the edge of something, or of nothing."""
        rng = self.rng
        base = rng.choice([self.in_off, self.out_off, self.out_off + self.out_bytes, self.bump, 0])
        return (base + rng.choice([-64, -8, 0, 8, 64, 72, 4096, 4160, 1])) % 2**64

    def outputs(self) -> list[tuple[Any, ...]]:
        rng, found = self.rng, []
        for _ in range(rng.choice([0, 1, 1, 2, 3])):
            n = rng.choice([0, 1, 3, 40, 600])
            found.append(rng.choice([
                (rng.choice([0, "OUT"]), INT32, (1, n), bytes(4 * n)),
                (1, DataType.STRING, (1, 3), strings(b"a", b"", b"bcd")),
                (rng.choice(["OUT1", "X", "", 2, 9]), rng.randrange(16), (rng.choice([0, 1, 2**62, -1]),), bytes(n)),
            ]))  # fmt: skip
        return found

    def some_record(self, name: tuple[int, int] | None = None) -> list[Any]:
        rng = self.rng
        if name is None:
            name = rng.choice(self.names[-20:])
            name = (name[0], (name[1] + rng.choice([0, 0, 0, 0, 1, 2])) % 2**32)
        return self.record(
            name, self.outputs(), kind=rng.choice([0, 0, 0, 0, 1, 2, 3]), code=rng.choice([-1, -1, -1, 1, 4, -9]),
            error=rng.choice([b"", b"error", b"\xff" * 70]), final=rng.random() < 0.4,
            parameters=rng.choice([{}, {}, {"a": 1, "": "", "b": True}]),
            at=self.where() if rng.random() < 0.1 else None)  # fmt: skip

    def good(self, name: tuple[int, int]) -> list[Any]:
        return self.record(name, [(0, INT32, (1, 2), bytes(8))])

    def mutated(self, parts: list[Any]) -> list[Any]:
        flat = bytearray(b"".join(part if isinstance(part, bytes) else part[0] for part in parts))
        for _ in range(self.rng.choice([1, 1, 2, 6])):
            if len(flat) >= 8:
                if self.rng.random() < 0.6:
                    struct.pack_into("<I", flat, self.rng.randrange(len(flat) // 4) * 4, self.rng.choice(WORDS))
                else:
                    struct.pack_into("<Q", flat, self.rng.randrange(len(flat) // 8) * 8, self.rng.choice(NUMBERS))
        return [bytes(flat)]

    def act(self) -> None:
        rng = self.rng
        with contextlib.suppress(TimeoutError, AssertionError, struct.error, UnicodeDecodeError, ValueError,
                                 IndexError, MemoryError, OverflowError):
            if rng.random() < 0.5 or not self.executions:
                e = self.execution(0.001)
                self.executions.append(e)
                self.names += [given.name for given in e.requests]
            if rng.random() < 0.3 and self.take(ANSWERS):
                pass
            rng.choices([self.answer, self.send, self.make_call, self.end_call, self.scribble, self.nonsense],
                        [30, 30, 20, 10, 8, 0.5])[0]()

    def answer(self) -> None:
        rng = self.rng
        if not self.executions:
            return
        e = self.executions.pop(0)
        names = [given.name for given in e.requests]
        if rng.random() < 0.6:
            self.release(e.off)
        if rng.random() < 0.2:
            for name in names:
                self.event(self.some_record(name))
        choice = rng.random()
        if choice < 0.15:
            self.failed(e, b"all of it", rng.choice([1, 4, -3, 7]))
        elif self.decoupled and choice < 0.8:
            self.done_empty(e)
            for name in names:
                for _ in range(rng.choice([0, 1, 3])):
                    self.event(self.record(name, [(0, INT32, (1, 2), bytes(8))], final=False))
                self.event(self.record(name, kind=3))
        elif choice < 0.9:
            self.done(e, *(self.good(name) if rng.random() < 0.7 else self.record(name, kind=1) for name in names))
        elif choice < 0.96:
            self.done(e, *(self.some_record(name) for name in names))
        else:
            parts = [struct.pack("<IiII", len(names), -1, 0, 0), *(part for n in names for part in self.some_record(n))]
            off, n = self.place(self.mutated(parts))
            self.publish(DONE, 1, e.batch, off, n)

    def send(self) -> None:
        if self.rng.random() < 0.95:
            self.event(self.some_record())
        else:
            off, n = self.place(self.mutated(self.some_record()))
            self.publish(EVENTS, 1, 0, off, n)

    def make_call(self) -> None:
        rng = self.rng
        self.calls += 1
        parts = self.bls_record(
            rng.choice(["t", "t", "r", "self", "none", ""]),
            [(rng.choice(["IN", "IN", "IN", "X"]), INT32, (1, 2), bytes(8))],
            options=rng.randrange(4), wanted=rng.choice([(), (), ("OUT",), ("Y", "")]),
            request_id=rng.choice([b"", b"7"]), parameters=rng.choice([{}, {"a": 1, "b": "c"}]))  # fmt: skip
        off, n = self.place(self.mutated(parts) if rng.random() < 0.3 else parts)
        self.publish(EVENTS, 2, rng.choice([self.calls, self.calls, 1]), off, n)

    def end_call(self) -> None:
        self.publish(EVENTS, self.rng.choice([3, 4]), max(0, self.calls - self.rng.randrange(4)))

    def scribble(self) -> None:
        """Write what the server writes, or what only some may write."""
        rng = self.rng
        choice = rng.randrange(7)
        if choice == 0:         # words before allocations of either heap
            off = rng.choice([self.in_off, self.in_off, self.out_off])
            self.put32(off + rng.randrange(16) * 4096, rng.choice([0, 1, 1, 2**32 - 1]))
        elif choice == 1:
            self.put32(rng.randrange(CANCEL_AT, CONTROL, 4), rng.choice(WORDS))
        elif choice == 2:       # tails, and whether anybody sleeps
            self.put32(self.ring(rng.randrange(4)) + rng.choice([64, 64, 128]), rng.choice(WORDS))
        elif choice == 3:
            self.fill(rng.choice(self.fds))
        elif choice == 4:
            self.empty(rng.choice(self.fds))
        elif choice == 5 and rng.random() < 0.05:
            self.lie(rng.choice([DONE, EVENTS]), rng.choice(NUMBERS))
        elif choice == 6:
            self.put32(self.ring(WORK) + 4096 + rng.randrange(4096) * 32, rng.choice(WORDS))

    def nonsense(self) -> None:
        rng = self.rng
        self.publish(rng.choice([DONE, EVENTS]), rng.choice([0, 1, 1, 2, 3, 9]), rng.choice(WORDS), self.where(),
                     rng.choice(NUMBERS))

    def flip(self) -> None:
        """What was written a moment ago is another thing now."""
        at = random.randrange(max(self.out_off, self.bump - 2048), self.bump + 64)
        with contextlib.suppress(IndexError):
            self.memory[at] = random.choice([0, 1, 0xFF, self.memory[at] ^ 1, self.memory[at]])
        self.stop.wait(random.choice([0, 0.0001, 0.002]))


def outcome(call: Any) -> None:
    """Wait for the end of a request, whatever it is."""
    if isinstance(call, InferCall):
        with contextlib.suppress(ServerError):
            call.wait(PATIENCE_S)
        return
    while True:
        try:
            taken = call.take(PATIENCE_S)
        except ServerError:
            if call.ended:
                return
            continue
        if taken is None:
            return


class Stream:
    """A stream that knows when it was cancelled before it began: then nothing comes."""

    def __init__(self, call: StreamCall) -> None:
        self.call, self.ended = call, False

    def cancel(self) -> bool:
        self.ended = self.call.cancel() or self.ended
        return self.ended

    def take(self, timeout_s: float) -> Any:
        return self.call.take(timeout_s)


def session(rng: random.Random) -> int:
    decoupled = rng.random() < 0.5
    models: dict[str, NativeModel] = {}

    def resolve(name: str, version: int) -> NativeModel:
        return models[name]

    epoch = rng.choice([None, Epoch(), Epoch()])
    instance = PythonInstance("py", resolve, epoch, wait_ns=rng.choice([0, 10**6, 10**12]))
    times = (IoSpec(name, DataType.UINT32, (-1,), optional=True) for name in ("DELAY", "WAIT"))
    models["t"] = make_model(Gate(held=False), inputs=INPUTS, outputs=OUTPUTS[:1])
    models["r"] = make_model(RepeatInstance("r"), inputs=(*INPUTS, *times), decoupled=True, max_batch=0,
                             outputs=(OUTPUTS[0], IoSpec("IDX", DataType.UINT32, (1,))))
    models["self"] = make_model(instance, inputs=INPUTS, outputs=OUTPUTS, decoupled=decoupled,
                                dynamic=rng.random() < 0.7)
    submitted = 0
    calls: list[Any] = []
    for _ in range(rng.choice([1, 2, 3])):      # workers, one after another
        channel = WorkerChannel(rng.choice([1 << 16, 1 << 18]), rng.choice([1 << 16, 1 << 19]))
        instance.attach(channel)
        worker = Hostile(channel, random.Random(rng.getrandbits(32)), decoupled)
        until = time.monotonic() + rng.choice([0.01, 0.1, 0.3])
        while time.monotonic() < until and not instance.broken and submitted - len(calls) < 2000:
            data = ("IN", INT32, (1, n := rng.choice([1, 2, 500])), bytes(4 * n))
            if decoupled or rng.random() < 0.3:
                calls.append(Stream(StreamCall(models["self"], [data], max_responses=rng.choice([0, 1, 5]))))
            else:
                calls.append(InferCall(models["self"], [data], rng.choice([(), ("OUT",), ("OUT1",)])))
            submitted += 1
            if rng.random() < 0.1:
                rng.choice(calls).cancel()
            if rng.random() < 0.05:
                instance.trim(rng.choice([0, 65536]))
            if rng.random() < 0.05:
                for call in instance.calls()[:3]:
                    instance.fail_call(call[0], "failed", 4)
            if rng.random() < 0.05 and epoch is not None:
                epoch.advance()
            if len(calls) > 40:
                instance.drain(0.002)
                if rng.random() < 0.5:
                    del calls[: rng.randrange(10)]      # nobody waits for these
        instance.fail("the worker has gone")
        worker.end()
    instance.give_up("no more workers")
    for call in calls:
        outcome(call)
    for model in (models["self"], models["t"], models["r"]):
        model.stop()
    assert instance.in_flight == 0
    assert instance.calls() == []
    models.clear()
    return submitted


def counters() -> dict[str, int]:
    return live() | region.stats()


def main() -> int:
    faulthandler.enable()
    faulthandler.dump_traceback_later(SECONDS * 2 + 60, exit=True)
    seed = int(os.environ.get("TF_FUZZ_SEED", str(time.time_ns() % 2**32)))
    rng = random.Random(seed)
    total = sessions = 0
    stop = time.monotonic() + SECONDS
    try:
        while time.monotonic() < stop or not sessions:
            before = counters()
            total += session(rng)
            sessions += 1
            gc.collect()
            assert counters() == before, (counters(), before)
    except BaseException:
        sys.stderr.write(f"fuzz_pyworker: seed {seed}, session {sessions}\n")
        raise
    sys.stdout.write(f"fuzz_pyworker: {total} requests, {sessions} sessions, seed {seed}, no finding\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
