"""Warm-up: one instance executes requests past the scheduler, before its thread starts. No servers, no sleeps."""

from __future__ import annotations

import struct
import threading

import pytest

from tests.helpers.models import INT32, LONG_S, ONE, OUT, Gate, counters_at_base, numbers, submit, value_of
from triton_fast._native.backends.identity import IdentityInstance
from triton_fast._native.sched import warmup
from triton_fast._native.sched.model import NativeModel
from triton_fast._native.sched.pyinstance import PyInstance
from triton_fast.config import IoSpec
from triton_fast.errors import InvalidArg, Unsupported
from triton_fast.types import DataType

__all__ = ["counters_at_base"]


def test_one_batch_of_equal_requests_and_then_the_thread():
    gate = Gate(held=False)
    model = NativeModel("m", 1, 8, ONE, OUT)
    instance = PyInstance(gate, "m_0")
    assert warmup.execute(model, instance, [numbers(7, 1, 1)], 3) == []
    assert gate.batches == [[7, 7, 7]]
    assert gate.shapes == [[(1, 1)] * 3]
    model.start_instance(instance)
    assert value_of(submit(model, 1)) == 1
    model.stop()
    assert gate.batches == [[7, 7, 7], [1]]


def test_it_counts_as_any_execution():
    """As in Triton, where a model that has just been loaded shows its warm-up in the statistics."""
    model = NativeModel("m", 1, 8, ONE, OUT)
    warmup.execute(model, IdentityInstance(), [numbers(7, 1, 1)], 3)
    taken = model.snapshot()
    assert (taken["inference_count"], taken["execution_count"], taken["success"]) == (3, 1, 3)
    assert [row[:2] for row in taken["batches"]] == [(3, 1)]
    model.stop()


def test_errors_come_in_order():
    def answer(requests):
        return [InvalidArg(f"bad {k}") if k != 1 else {} for k in range(len(requests))]

    model = NativeModel("m", 1, 8, ONE, OUT)
    instance = PyInstance(Gate(held=False, answer=answer), "m_0")
    assert warmup.execute(model, instance, [numbers(7, 1, 1)], 3) == ["bad 0", "bad 2"]
    model.stop()


def test_a_batch_that_fails_fails_each_request():
    def answer(requests):
        raise Unsupported("not this")

    model = NativeModel("m", 1, 8, ONE, OUT)
    instance = PyInstance(Gate(held=False, answer=answer), "m_0")
    assert warmup.execute(model, instance, [numbers(7, 1, 1)], 2) == ["not this", "not this"]
    model.stop()


def test_requests_are_checked_before_anything_is_executed():
    gate = Gate(held=False)
    model = NativeModel("m", 1, 8, ONE, OUT)
    with pytest.raises(InvalidArg, match="expected 1 inputs but got 0 inputs for model 'm'"):
        warmup.execute(model, PyInstance(gate), [], 1)
    with pytest.raises(
        InvalidArg, match=r"unexpected shape for input 'IN' for model 'm'. Expected \[-1,1\], got \[1,2\]"
    ):
        warmup.execute(model, PyInstance(gate), [numbers(7, 1, 2)], 1)
    with pytest.raises(ValueError, match="a batch has 1 to 4096 requests, got 0"):
        warmup.execute(model, PyInstance(gate), [numbers(7, 1, 1)], 0)
    assert gate.batches == []
    model.stop()


def test_all_responses_of_a_decoupled_model_are_waited_for():
    ended = []

    def answer(requests):
        def stream():
            yield {"OUT": (8, (1, 1), struct.pack("<i", 1))}
            yield InvalidArg("in between")
            yield {"OUT": (8, (1, 1), struct.pack("<i", 2))}
            ended.append(len(requests))

        return [stream() for _ in requests]

    model = NativeModel("m", 1, 8, ONE, OUT, True)
    instance = PyInstance(Gate(held=False, answer=answer), "m_0")
    assert warmup.execute(model, instance, [numbers(7, 1, 1)], 2) == ["in between", "in between"]
    assert ended == [2, 2]
    model.stop()


def test_what_an_execution_does_is_waited_for_without_the_gil():
    gate = Gate()
    model = NativeModel("m", 1, 8, ONE, OUT)
    done = threading.Event()

    def warm():
        warmup.execute(model, PyInstance(gate), [numbers(7, 1, 1)], 1)
        done.set()

    worker = threading.Thread(target=warm)
    worker.start()
    assert gate.taken() == [7]
    assert not done.is_set()
    gate.step()
    assert done.wait(LONG_S)
    worker.join()
    model.stop()


def test_what_the_scheduler_adds_is_zero_or_as_given():
    """Controls and states, which no client sends; given by name, else zeros. What can not be held is an error."""
    added = [
        IoSpec("START", INT32, (1,)),
        IoSpec("STATE", DataType.FP32, (-1, 2)),
        IoSpec("NAME", DataType.STRING, (1,)),
    ]
    model = NativeModel("m", 1, 8, ONE, OUT, added_inputs=added)
    assert warmup.added_inputs(model) == [
        ("START", INT32, [1]), ("STATE", DataType.FP32, [-1, 2]), ("NAME", DataType.STRING, [1]),
    ]  # fmt: skip
    given = {"START": ((1, 1), struct.pack("<i", 1))}
    assert warmup.execute(model, IdentityInstance(), [numbers(7, 1, 1)], 2, given) == []
    huge = NativeModel("m", 1, 8, ONE, OUT, added_inputs=[IoSpec("STATE", INT32, (1 << 40, 1 << 40))])
    with pytest.raises(MemoryError):
        warmup.execute(huge, IdentityInstance(), [numbers(7, 1, 1)], 1)
    model.stop()
    huge.stop()
