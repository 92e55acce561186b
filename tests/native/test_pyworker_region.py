"""The heap that the server manages in a worker's region: nothing that somebody holds is given out again."""

from __future__ import annotations

import contextlib
import gc

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.models import LONG_S
from tests.helpers.pyworker_scripted import GONE, TRIM, WORK, everything_at_base, python_model  # noqa: F401
from triton_fast._native.sched.inprocess import InferCall
from triton_fast.config import IoSpec
from triton_fast.errors import Unavailable
from triton_fast.types import DataType

HEAP, PAGE = 1 << 17, 4096
UINT8 = DataType.UINT8
IO = {"inputs": (IoSpec("IN", UINT8, (-1,)),), "outputs": (IoSpec("OUT", UINT8, (-1,)),), "dynamic": False}


class Heap:
    """``held``: by the worker, offset of an execution to its tensor's offset and bytes. ``answers``: by the server."""

    def __init__(self, served):
        self.s = served
        self.worker = served.worker
        self.held: dict[int, tuple[int, bytes]] = {}
        self.answers: list[tuple[InferCall, bytes]] = []
        self.count = 0

    def next(self):
        while (message := self.worker.next(WORK))[0] == TRIM:
            pass
        return message

    def allocate(self, size: int, keeps: bool, refers: bool) -> bool:
        """One request: the worker may keep its input, and may answer with a part of it, which the server then has."""
        self.count += 1
        data = bytes([self.count % 255 + 1]) * size
        call = InferCall(self.s.model, [("IN", UINT8, (1, size), data)])
        try:
            call.wait(0)
        except Unavailable:
            return False
        except TimeoutError:
            pass
        _, batch, off, _, _ = self.next_or_none(call)
        if batch is None:
            return False
        given, _ = self.worker.given(off + 8)
        at = given.inputs[0][4]
        held = [(place, bytes_) for place, bytes_ in self.held.values()]
        assert all(at + size <= place or place + len(old) <= at for place, old in held if size and old)
        if refers and size:
            record = self.worker.record(given.name, [(0, UINT8, (1, size), data)], at=at)
        else:
            record = self.worker.record(given.name)
        self.worker.bump = self.worker.out_off
        out, n = self.worker.place([b"\1\0\0\0\xff\xff\xff\xff" + bytes(8), *record])
        self.worker.publish(2, 1, batch, out, n)
        outputs = call.wait(LONG_S)
        if refers and size:
            assert outputs["OUT"][2] == data
            self.answers.append((call, data))
        if keeps:
            self.held[off] = (at, data)
        else:
            self.worker.release(off)
        return True

    def next_or_none(self, call):
        """The execution of a call; no batch if it failed for want of memory."""
        while True:
            with contextlib.suppress(TimeoutError):
                while (message := self.worker.next(WORK, 0.001))[0] == TRIM:
                    pass
                return message
            try:
                call.wait(0)
            except Unavailable:
                return 0, None, 0, 0, 0
            except TimeoutError:
                continue

    def check(self):
        for at, data in self.held.values():
            assert self.worker.memory[at : at + len(data)] == data
        for call, data in self.answers:
            assert call.wait(0)["OUT"][2] == data


SIZES = st.one_of(st.integers(0, 9000), st.sampled_from([0, PAGE - 200, PAGE, 4 * PAGE, 30_000, HEAP // 2, HEAP]))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("allocate"), SIZES, st.booleans(), st.booleans()),
        st.tuples(st.just("release"), st.integers(0, 50)), st.tuples(st.just("forget"), st.integers(0, 50)),
        st.tuples(st.just("trim"), st.integers(0, HEAP)),
    ),
    max_size=40,
)  # fmt: skip


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(STEPS)
def test_the_heap_under_any_use(steps):
    with python_model(in_bytes=HEAP, **IO) as s:
        heap = Heap(s)
        for name, *arguments in steps:
            if name == "allocate":
                heap.allocate(*arguments)
            elif name == "release" and heap.held:
                off = list(heap.held)[arguments[0] % len(heap.held)]
                s.worker.release(off)
                del heap.held[off]
            elif name == "forget" and heap.answers:
                heap.answers.pop(arguments[0] % len(heap.answers))
            elif name == "trim":
                s.instance.trim(arguments[0])
            heap.check()
        for off in heap.held:
            s.worker.release(off)
        heap.held.clear()
        heap.answers.clear()
        gc.collect()
        # All of it is free, so all of it can be had, however it was cut.
        assert heap.allocate(HEAP - 2 * PAGE, False, False)
        s.instance.fail(GONE)


def test_a_heap_that_is_free_again_is_one_piece():
    with python_model(in_bytes=HEAP, **IO) as s:
        heap = Heap(s)
        while heap.allocate(100, True, False):
            pass
        assert len(heap.held) == HEAP // PAGE
        assert not heap.allocate(5000, False, False)
        *most, last = heap.held
        for off in most:
            s.worker.release(off)
            del heap.held[off]
        assert not heap.allocate(5000, False, False)
        assert heap.allocate(100, False, False)
        heap.check()
        s.worker.release(last)
        heap.held.clear()
        assert heap.allocate(HEAP - 2 * PAGE, False, False)


def test_a_worker_that_clears_words_early_harms_only_itself():
    with python_model(in_bytes=HEAP, **IO) as s:
        heap = Heap(s)
        for n in range(100):
            call = InferCall(s.model, [("IN", UINT8, (1, n), bytes(n))])
            _, batch, off, _, _ = heap.next()
            given, _ = s.worker.given(off + 8)
            s.worker.release(off)
            s.instance.trim(0)
            s.worker.bump = s.worker.out_off
            out, size = s.worker.place([b"\1\0\0\0\xff\xff\xff\xff" + bytes(8), *s.worker.record(given.name)])
            s.worker.publish(2, 1, batch, out, size)
            assert call.wait(LONG_S) == {}
