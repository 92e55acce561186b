"""How the engine forms batches: row limits, shapes, optional inputs, order, delay, preferred sizes, several instances.

An instance is held at a gate while requests queue up, so that what it takes next is exactly known.
"""

from __future__ import annotations

import random
import struct

import pytest

from tests.helpers.models import (
    ANY,
    ANY_OUT,
    HOUR_US,
    INT32,
    LONG_S,
    ONE,
    OUT,
    Gate,
    busy,
    counters_at_base,
    in_threads,
    numbers,
    served,
    submit,
    value_of,
)
from triton_fast._native.sched.inprocess import InferCall, infer
from triton_fast.config import IoSpec
from triton_fast.errors import InvalidArg

__all__ = ["counters_at_base"]


def run_queued(rows: list[int], **options):
    """Queue requests of these rows behind a held instance; return the batches they were executed in."""
    gate = Gate()
    with served(gate, **options) as model:
        first = busy(model, gate)
        calls = [submit(model, k, n) for k, n in enumerate(rows)]
        assert model.pending == len(rows)
        gate.open()
        assert value_of(first) == -1
        assert [value_of(call) for call in calls] == list(range(len(rows)))
        assert model.pending == 0
    return gate.batches[1:]


def test_a_spinning_instance_takes_what_comes():
    gate = Gate(held=False)
    with served(gate, gate, spin_ns=1_000_000) as model:
        assert [value_of(submit(model, k)) for k in range(300)] == list(range(300))
    assert gate.batches == [[k] for k in range(300)]


def test_a_batch_forms_while_the_instance_is_busy():
    assert run_queued([1] * 6) == [[0, 1, 2, 3, 4, 5]]


def test_batches_stop_at_max_batch():
    assert run_queued([1] * 20, max_batch=8) == [list(range(8)), list(range(8, 16)), list(range(16, 20))]


def test_rows_count_not_requests():
    assert run_queued([3, 3, 3, 8, 1, 1], max_batch=8) == [[0, 1], [2], [3], [4, 5]]


@pytest.mark.parametrize("seed", range(5))
def test_max_batch_holds_for_any_rows(seed):
    rng = random.Random(seed)
    limit = rng.randint(1, 16)
    rows = [rng.randint(1, limit) for _ in range(200)]
    batches = run_queued(rows, max_batch=limit)
    assert [value for batch in batches for value in batch] == list(range(200))
    for batch, after in zip(batches, [*batches[1:], []], strict=True):
        total = sum(rows[value] for value in batch)
        assert total <= limit
        # Nothing that would have fitted was left for the next.
        assert not after or total + rows[after[0]] > limit


@pytest.mark.parametrize("options", [{"dynamic": False}, {"dynamic": False, "max_batch": 8, "delay_us": HOUR_US}])
def test_without_dynamic_batching_each_runs_alone(options):
    assert run_queued([1, 2, 3], **options) == [[0], [1], [2]]


def test_without_a_batch_dimension_each_runs_alone():
    gate = Gate(held=False)
    with served(gate, max_batch=0, dynamic=True, delay_us=HOUR_US) as model:
        calls = [InferCall(model, [numbers(k, 1)]) for k in range(3)]
        assert [value_of(call) for call in calls] == [0, 1, 2]
    assert gate.batches == [[0], [1], [2]]


def test_preferred_sizes_are_cut_to():
    assert run_queued([1] * 7, max_batch=8, preferred=(4,), delay_us=0) == [[0, 1, 2, 3], [4, 5, 6]]


def test_preferred_sizes_need_no_order():
    assert run_queued([1] * 7, max_batch=8, preferred=(6, 2), delay_us=0) == [[0, 1, 2, 3, 4, 5], [6]]


def test_a_preferred_size_ends_the_wait():
    gate = Gate(held=False)
    with served(gate, max_batch=8, preferred=(3,), delay_us=HOUR_US) as model:
        calls = [submit(model, k) for k in range(3)]
        assert [value_of(call) for call in calls] == [0, 1, 2]
    assert gate.batches == [[0, 1, 2]]


def test_rows_past_the_largest_preferred_size_end_the_wait():
    gate = Gate(held=False)
    with served(gate, max_batch=8, preferred=(4,), delay_us=HOUR_US) as model:
        assert [value_of(call) for call in [submit(model, 0, 3), submit(model, 1, 3)]] == [0, 1]
    assert gate.batches == [[0, 1]]


def test_a_full_batch_ends_the_wait():
    gate = Gate(held=False)
    with served(gate, max_batch=4, delay_us=HOUR_US) as model:
        calls = [submit(model, k) for k in range(8)]
        assert [value_of(call) for call in calls] == list(range(8))
    # None went alone: each waited for its batch.
    assert gate.batches == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_lone_request_waits_out_the_delay_and_goes():
    delay_us = 20_000
    with served(Gate(held=False), delay_us=delay_us) as model:
        assert value_of(submit(model, 5)) == 5
        taken = model.snapshot()
        assert taken["ns"]["queue"] >= delay_us * 1000
        assert taken["success"] == taken["execution_count"] == 1


def test_the_oldest_request_sets_the_wait():
    delay_us = 20_000
    gate = Gate(held=False)
    with served(gate, delay_us=delay_us, max_batch=8) as model:
        calls = [submit(model, k) for k in range(3)]
        assert sorted(value_of(call) for call in calls) == [0, 1, 2]
        assert model.snapshot()["ns"]["queue"] >= delay_us * 1000
    assert [value for batch in gate.batches for value in batch] == [0, 1, 2]


def test_a_whole_batch_of_one_shape_does_not_wait_for_the_oldest_of_another():
    gate = Gate(held=False)
    with served(gate, max_batch=2, delay_us=HOUR_US, inputs=ANY, outputs=ANY_OUT) as model:
        lone = submit(model, 0, 1, 7)
        pair = [submit(model, k, 1, 3) for k in (1, 2)]
        assert [value_of(call) for call in pair] == [1, 2]
        assert lone.cancel()
    assert gate.batches == [[1, 2]]


def test_delays_and_timeouts_beyond_the_clock_are_accepted():
    with served(Gate(held=False), max_batch=2, delay_us=2**64 - 1, timeout_us=2**64 - 1) as model:
        calls = [submit(model, k) for k in range(2)]
        assert [value_of(call) for call in calls] == [0, 1]


def test_a_thousand_shapes_never_mix():
    rng = random.Random(17)
    gate = Gate()
    inputs = (IoSpec("IN", INT32, (-1, -1)),)
    with served(gate, inputs=inputs, outputs=(IoSpec("OUT", INT32, (-1, -1)),), max_batch=64) as model:
        first = submit(model, -1, 1, 1, 1)
        gate.taken()
        shapes = [(a, b) for a in range(1, 41) for b in range(1, 26)]
        assert len(shapes) == 1000
        wanted = shapes + [rng.choice(shapes[:50]) for _ in range(1000)]
        rng.shuffle(wanted)
        calls = [submit(model, k, rng.randint(1, 4), *shape) for k, shape in enumerate(wanted)]
        gate.open()
        assert value_of(first) == -1
        assert [value_of(call) for call in calls] == list(range(len(wanted)))
    batches = list(zip(gate.batches[1:], gate.shapes[1:], strict=True))
    for values, full in batches:
        assert len({shape[1:] for shape in full}) == 1
        assert sum(shape[0] for shape in full) <= 64
        assert values == sorted(values)
    assert sorted(value for values, _ in batches for value in values) == list(range(len(wanted)))
    # Requests of one shape did share batches.
    assert len(batches) < 1500


def test_optional_inputs_never_mix():
    gate = Gate(answer=lambda requests: [{"OUT": inputs["IN"]} for inputs in requests])
    seen: list[set[tuple[str, ...]]] = []
    answer = gate.answer
    gate.answer = lambda requests: seen.append({tuple(inputs) for inputs in requests}) or answer(requests)
    inputs = (*ONE, IoSpec("IN1", INT32, (1,), optional=True), IoSpec("IN2", INT32, (1,), optional=True))
    with served(gate, inputs=inputs) as model:
        first = busy(model, gate)
        rng = random.Random(3)
        calls = []
        for k in range(100):
            given = [numbers(k, 1, 1)]
            given += [(name, *numbers(k, 1, 1)[1:]) for name in ("IN1", "IN2") if rng.random() < 0.5]
            calls.append(InferCall(model, given))
        gate.open()
        value_of(first)
        assert [value_of(call) for call in calls] == list(range(100))
    assert all(len(kinds) == 1 for kinds in seen)
    assert {kinds.pop() for kinds in seen} == {("IN",), ("IN", "IN1"), ("IN", "IN2"), ("IN", "IN1", "IN2")}


def test_the_oldest_shape_goes_first():
    gate = Gate()
    with served(gate, inputs=ANY, outputs=ANY_OUT) as model:
        first = busy(model, gate)
        calls = [submit(model, k, 1, dim) for k, dim in enumerate([5, 6, 5, 7, 5, 6])]
        gate.open()
        for call in [first, *calls]:
            value_of(call)
    assert gate.batches[1:] == [[0, 2, 4], [1, 5], [3]]


def test_a_flood_of_one_shape_does_not_starve_another():
    gate = Gate()
    with served(gate, inputs=ANY, outputs=ANY_OUT, max_batch=2) as model:
        first = busy(model, gate)
        calls = [submit(model, k, 1, 5) for k in range(4)]
        calls.append(submit(model, 100, 1, 9))
        for k in range(4, 12):
            gate.step()
            gate.taken()
            calls.append(submit(model, k, 1, 5))
        gate.open()
        for call in [first, *calls]:
            value_of(call)
    # Two whole batches were older; those that came later were not.
    assert gate.batches[3] == [100]


def test_instances_run_in_parallel():
    gates = [Gate() for _ in range(3)]
    with served(*gates, dynamic=False) as model:
        assert model.n_instances == 3
        calls = [submit(model, k) for k in range(3)]
        # Each holds one at the same time, before any is let through.
        assert sorted(gate.taken()[0] for gate in gates) == [0, 1, 2]
        for gate in gates:
            gate.open()
        assert [value_of(call) for call in calls] == [0, 1, 2]


def test_many_threads_and_instances():
    gates = [Gate(held=False) for _ in range(3)]
    with served(*gates, max_batch=8, inputs=ANY, outputs=ANY_OUT) as model:

        def work(k):
            rng = random.Random(k)
            for number in range(k * 1000, k * 1000 + 150):
                assert value_of(submit(model, number, rng.randint(1, 8), rng.randint(1, 3))) == number

        in_threads(8, work)
        taken = model.snapshot()
    done = [value for gate in gates for batch in gate.batches for value in batch]
    assert sorted(done) == sorted(k * 1000 + n for k in range(8) for n in range(150))
    assert taken["success"] == 1200
    assert taken["execution_count"] == sum(len(gate.batches) for gate in gates)
    for gate in gates:
        for shapes in gate.shapes:
            assert len({shape[1:] for shape in shapes}) == 1
            assert sum(shape[0] for shape in shapes) <= 8


def test_outputs_come_back_as_made():
    with served(Gate(held=False), inputs=ANY, outputs=ANY_OUT) as model:
        data = struct.pack("<6i", *range(6))
        assert infer(model, [("IN", INT32, (2, 3), data)], timeout_s=LONG_S) == {"OUT": (INT32, (2, 3), data)}
        # Asking again gives the same.
        call = InferCall(model, [("IN", INT32, (1, 0), b"")], ["OUT"])
        assert call.wait(LONG_S) == call.wait() == {"OUT": (INT32, (1, 0), b"")}


def test_only_wanted_outputs_come_back():
    inputs = (*ONE, IoSpec("IN1", INT32, (1,)))
    with served(Gate(held=False), inputs=inputs, outputs=(*OUT, IoSpec("OUT1", INT32, (1,)))) as model:
        both = [numbers(1, 1, 1), ("IN1", *numbers(2, 1, 1)[1:])]
        assert set(infer(model, both)) == {"OUT", "OUT1"}
        assert set(infer(model, both, ["OUT1"])) == {"OUT1"}


@pytest.mark.parametrize(
    ("inputs", "outputs", "text"),
    [
        ([("IN", INT32, (9, 1), bytes(36))], (), "batch-size must be <= 8 for 'm'"),
        ([("IN", INT32, (0, 1), bytes(4))], (), "batch-size must be >= 1 for 'm'"),
        ([("IN", INT32, (1, 1), bytes(3))], (), "Expected 4, got 3"),
        ([("NO", INT32, (1, 1), bytes(4))], (), "NO"),
        ([], (), "expected 1 inputs but got 0 inputs for model 'm'"),
        ([numbers(1, 1, 1)], ["NO"], "unexpected inference output 'NO' for model 'm'"),
    ],
)
def test_bad_requests_never_reach_the_queue(inputs, outputs, text):
    gate = Gate(held=False)
    with served(gate) as model:
        with pytest.raises(InvalidArg, match=text):
            InferCall(model, inputs, outputs)
        assert model.snapshot()["failures"] == {"REJECTED": 0, "CANCELED": 0, "BACKEND": 0, "OTHER": 0}
    assert gate.batches == []


def test_garbage_arguments_leak_nothing():
    with served(Gate(held=False)) as model:
        for inputs in ([("IN", INT32, ("x", 1), bytes(4))], [("IN", INT32, (1, 1), "text")], [(1, INT32, (1,), b"")]):
            with pytest.raises((TypeError, AttributeError, ValueError)):
                InferCall(model, inputs)
        with pytest.raises(TypeError):
            InferCall(None, [])
