"""The response cache before a gated model: hits and misses, what the key holds, one flight for equal requests, and
every way a leader or a follower ends. Each test gives back all blocks and requests."""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Iterator

import pytest

from tests.helpers.models import (
    ANY,
    ANY_OUT,
    INT32,
    LONG_S,
    STOPPED,
    Gate,
    counters_at_base,
    in_threads,
    live,
    make_model,
    numbers,
    served,
    submit,
    value_of,
)
from triton_fast._native.sched.cache import CacheLayer
from triton_fast._native.sched.inprocess import InferCall
from triton_fast._native.sched.model import NativeModel
from triton_fast._native.sched.store import NativeCache
from triton_fast.config import IoSpec
from triton_fast.errors import Cancelled, Internal, InvalidArg, Unavailable
from triton_fast.types import DataType

__all__ = ["counters_at_base"]

SIZE = 1 << 20


@contextlib.contextmanager
def cached(*gates: Gate, cache: NativeCache | None = None, **options: object) -> Iterator[NativeModel]:
    with served(*gates, **options) as model:
        model.add_layer(CacheLayer(cache or NativeCache(SIZE)))
        yield model


def counted(model: NativeModel, hits: int, misses: int, **more: int) -> None:
    """Hits, misses, and what else the model's statistics must say."""
    taken = model.snapshot()
    assert taken["cache"][0] == hits
    assert taken["cache"][2] == misses
    assert (taken["cache"][1] > 0) == (hits > 0)
    assert (taken["cache"][3] > 0) == (misses > 0)
    for name, value in more.items():
        assert (taken["failures"][name] if name.isupper() else taken[name]) == value, name


def fail_on(*numbers_: int):
    """A gate's answer: an echo, but an error for these numbers."""

    def answer(requests):
        results = []
        for inputs in requests:
            dtype, shape, view = inputs["IN"]
            number = struct.unpack_from("<i", view)[0]
            results.append(Internal("no") if number in numbers_ else {"OUT": (dtype, shape, bytes(view))})
        return results

    return answer


# --- hits and misses --------------------------------------------------------------------------------------------------


def test_the_second_time_is_a_hit():
    gate = Gate(held=False)
    with cached(gate) as model:
        assert [value_of(submit(model, k)) for k in (1, 2, 1, 1, 2)] == [1, 2, 1, 1, 2]
        assert gate.batches == [[1], [2]]
        counted(model, 3, 2, success=5, inference_count=2, execution_count=2)
        taken = model.snapshot()
        counts = {phase: sum(buckets) for phase, (buckets, _) in taken["histograms"].items()}
        assert counts == {"request": 5, "queue": 5, "compute_input": 2, "compute_infer": 2, "compute_output": 2}


def test_errors_are_not_stored():
    gate = Gate(held=False, answer=fail_on(9))
    with cached(gate) as model:
        for _ in range(3):
            with pytest.raises(Internal, match="no"):
                submit(model, 9).wait(LONG_S)
        assert gate.batches == [[9]] * 3
        counted(model, 0, 3, success=0, BACKEND=3)


def test_shape_is_part_of_the_key():
    gate = Gate(held=False)
    with cached(gate, inputs=ANY, outputs=ANY_OUT) as model:
        data = struct.pack("<4i", 1, 2, 3, 4)
        for shape in ((1, 4), (2, 2), (4, 1), (1, 4)):
            assert InferCall(model, [("IN", INT32, shape, data)]).wait(LONG_S)["OUT"] == (INT32, shape, data)
        counted(model, 1, 3)


def test_parameters_and_correlation_are_part_of_the_key():
    gate = Gate(held=False)
    with cached(gate) as model:
        options = (
            {}, {"params": [("k", 1)]}, {"params": [("k", "1")]}, {"params": [("k", True)]}, {"params": [("kk", 1)]},
            {"params": [("k", 1), ("l", 2)]}, {"correlation": 7}, {"correlation": "7"},
        )  # fmt: skip
        for given in options:
            value_of(submit(model, 5, **given))
        counted(model, 0, len(options))
        for given in options:
            value_of(submit(model, 5, id="another", priority=1, timeout_us=10**9, **given))
        counted(model, len(options), len(options))


def test_wanted_outputs_are_a_set():
    gate = Gate(held=False)
    pair = (IoSpec("IN", INT32, (1,)), IoSpec("IN1", INT32, (1,)))
    outputs = (IoSpec("OUT", INT32, (1,)), IoSpec("OUT1", INT32, (1,)))
    with cached(gate, inputs=pair, outputs=outputs) as model:
        one, other = numbers(1, 1, 1), ("IN1", *numbers(2, 1, 1)[1:])

        def ask(inputs, *wanted):
            return sorted(InferCall(model, inputs, wanted).wait(LONG_S))

        assert ask([one, other]) == ["OUT", "OUT1"]
        assert ask([other, one], "OUT1", "OUT") == ["OUT", "OUT1"]
        counted(model, 1, 1)
        assert ask([one, other], "OUT") == ["OUT"]
        assert ask([one, other], "OUT1") == ["OUT1"]
        assert ask([one, other], "OUT") == ["OUT"]
        counted(model, 2, 3)


def test_an_absent_optional_input_is_not_an_empty_one():
    gate = Gate(held=False)
    inputs = (IoSpec("IN", INT32, (1,)), IoSpec("IN1", INT32, (-1,), optional=True))
    with cached(gate, inputs=inputs) as model:
        value_of(submit(model, 1))
        InferCall(model, [numbers(1, 1, 1), ("IN1", INT32, (1, 0), b"")]).wait(LONG_S)
        counted(model, 0, 2)


def test_models_and_loads_do_not_share():
    cache, gates = NativeCache(SIZE), [Gate(held=False), Gate(held=False)]
    with cached(gates[0], cache=cache) as one, cached(gates[1], cache=cache) as other:
        value_of(submit(one, 1))
        value_of(submit(other, 1))
        assert [len(gate.batches) for gate in gates] == [1, 1]
        assert cache.stats()["entries"] == 2
        value_of(submit(one, 1))
        assert [len(gate.batches) for gate in gates] == [1, 1]
    del one, other
    assert cache.stats()["entries"] == 0
    assert cache.stats()["used"] == NativeCache(SIZE).stats()["used"]


def test_an_answer_outlives_its_entry():
    """A hit hands out the entry's own memory; clearing or evicting does not take it away."""
    cache, gate = NativeCache(64 << 10), Gate(held=False)
    with cached(gate, cache=cache, inputs=ANY, outputs=ANY_OUT) as model:
        value_of(submit(model, 3, 1, 5000))
        before = live()["bytes"]
        call = submit(model, 3, 1, 5000)  # its answer is there, and not read yet
        assert live()["bytes"] - before < 30_000  # the input's copy; no second copy of the output
        cache.clear()
        for k in range(10, 20):
            value_of(submit(model, k, 1, 5000))
        assert value_of(call) == 3
        del call


@pytest.mark.parametrize(
    ("dtype", "data", "count"),
    [
        (DataType.STRING, struct.pack("<I3sI", 3, b"\0ab", 0), 2), (DataType.BOOL, b"\1\0\0\1", 4),
        (DataType.FP64, bytes(range(16)), 2), (DataType.BF16, b"abcd", 2), (DataType.UINT8, bytes(range(129)), 129),
    ],
)  # fmt: skip
def test_what_comes_back_is_what_was_stored(dtype, data, count):
    gate = Gate(held=False)
    with cached(gate, inputs=(IoSpec("IN", dtype, (-1,)),), outputs=(IoSpec("OUT", dtype, (-1,)),)) as model:
        for _ in range(2):
            found = InferCall(model, [("IN", dtype, (1, count), data)]).wait(LONG_S)["OUT"]
            assert found == (dtype, (1, count), data)
        for _ in range(2):
            assert InferCall(model, [("IN", dtype, (1, 0), b"")]).wait(LONG_S)["OUT"] == (dtype, (1, 0), b"")
        counted(model, 2, 2)


def test_a_cache_must_hold_its_own_table():
    with pytest.raises(ValueError, match="at least 512 bytes, got 100"):
        NativeCache(100)


# --- single flight ----------------------------------------------------------------------------------------------------


def test_equal_requests_are_executed_once():
    gate = Gate()
    with cached(gate) as model:
        calls = [submit(model, 4)]
        gate.taken()
        calls += [submit(model, 4) for _ in range(20)]
        assert model.pending == 20
        assert all(call.queued for call in calls[1:])
        gate.step()
        assert [value_of(call) for call in calls] == [4] * 21
        assert gate.batches == [[4]]
        assert model.pending == 0
        counted(model, 20, 1, success=21, inference_count=1)


def test_a_stampede_of_threads_is_one_execution():
    gate = Gate()
    with cached(gate) as model:
        left = threading.Semaphore(0)

        def ask(_):
            call = submit(model, 8)
            left.release()
            assert value_of(call) == 8

        runner = threading.Thread(target=in_threads, args=(50, ask))
        runner.start()
        for _ in range(50):
            assert left.acquire(timeout=LONG_S)
        gate.open()
        runner.join(LONG_S)
        assert gate.batches == [[8]]
        counted(model, 49, 1, success=50)


def test_after_a_failed_leader_the_next_leads():
    gate = Gate(answer=fail_on(1))
    with cached(gate) as model:
        calls = [submit(model, 1)]
        gate.taken()
        calls += [submit(model, 1) for _ in range(3)]
        for k, call in enumerate(calls):
            gate.step()
            with pytest.raises(Internal, match="no"):
                call.wait(LONG_S)
            if k < 3:
                assert gate.taken() == [1]
        counted(model, 0, 4, success=0, BACKEND=4)


def test_the_next_leads_and_answers_the_others():
    answers = [[Internal("no")]]
    gate = Gate(answer=lambda requests: answers.pop() if answers else fail_on()(requests))
    with cached(gate) as model:
        calls = [submit(model, 1)]
        gate.taken()
        calls += [submit(model, 1) for _ in range(5)]
        gate.step()
        with pytest.raises(Internal):
            calls[0].wait(LONG_S)
        gate.taken()
        assert calls[1].cancel() is False
        gate.step()
        assert [value_of(call) for call in calls[1:]] == [1] * 5
        counted(model, 4, 2, success=5, BACKEND=1)


def test_a_cancelled_follower_leaves():
    gate = Gate()
    with cached(gate) as model:
        calls = [submit(model, 1)]
        gate.taken()
        calls += [submit(model, 1) for _ in range(4)]
        for k in (1, 4, 2):  # the first, the last, one between
            assert calls[k].cancel()
            with pytest.raises(Cancelled):
                calls[k].wait(LONG_S)
        assert model.pending == 1
        gate.step()
        assert [value_of(calls[k]) for k in (0, 3)] == [1, 1]
        counted(model, 1, 1, success=2, CANCELED=3)


def test_a_cancelled_queued_leader_makes_the_next_lead():
    gate = Gate()
    with cached(gate) as model:
        first = submit(model, 0)
        gate.taken()
        calls = [submit(model, 1) for _ in range(3)]  # the leader is queued behind
        assert calls[0].cancel()
        gate.open()
        assert value_of(first) == 0
        assert [value_of(call) for call in calls[1:]] == [1, 1]
        assert gate.batches == [[0], [1]]
        counted(model, 1, 3, success=3, CANCELED=1)


def test_cancelling_all_leaves_nothing():
    gate = Gate()
    with cached(gate) as model:
        first = submit(model, 0)
        gate.taken()
        calls = [submit(model, 1) for _ in range(3)]
        assert all(call.cancel() for call in calls)
        again = submit(model, 1)  # leads a flight of its own
        gate.open()
        assert [value_of(first), value_of(again)] == [0, 1]
        assert gate.batches == [[0], [1]]


def test_a_running_leader_that_others_wait_for_is_not_told_to_stop():
    gate = Gate()
    with cached(gate) as model:
        calls = [submit(model, 1), None]
        gate.taken()
        calls[1] = submit(model, 1)
        assert calls[0].cancel() is False
        gate.step()
        assert [value_of(call) for call in calls] == [1, 1]
        assert calls[0].cancel() is False
        assert calls[1].cancel() is False


def test_a_refused_leader_is_refused_as_ever():
    gate = Gate()
    with cached(gate, max_queue_size=1) as model:
        calls = [submit(model, 0)]
        gate.taken()
        calls += [submit(model, 1), submit(model, 1)]  # the second takes no place
        with pytest.raises(Unavailable, match="Exceeds maximum queue size"):
            submit(model, 2)
        assert calls[1].cancel()  # its follower takes the place
        with pytest.raises(Unavailable, match="Exceeds maximum queue size"):
            submit(model, 3)
        gate.open()
        assert [value_of(calls[0]), value_of(calls[2])] == [0, 1]
        counted(model, 0, 5, success=2, REJECTED=2, CANCELED=1)


def test_followers_whose_turn_is_refused_get_the_error():
    gate = Gate(answer=fail_on(0))
    with cached(gate, max_queue_size=1) as model:
        calls = [submit(model, 0)]
        gate.taken()
        calls += [submit(model, 0) for _ in range(3)]
        blocker = submit(model, 5)  # the only place
        gate.step()
        with pytest.raises(Internal):
            calls[0].wait(LONG_S)
        for call in calls[1:]:
            with pytest.raises((Unavailable, Internal)):
                call.wait(LONG_S)
        gate.open()
        assert value_of(blocker) == 5


def test_an_answer_larger_than_the_cache_is_shared_once():
    cache, gate = NativeCache(4096), Gate()
    with cached(gate, cache=cache, inputs=ANY, outputs=ANY_OUT) as model:
        calls = [submit(model, 1, 1, 4000)]
        gate.taken()
        calls += [submit(model, 1, 1, 4000) for _ in range(3)]
        gate.open()
        assert [value_of(call) for call in calls] == [1] * 4
        assert gate.batches == [[1]]
        assert cache.stats()["entries"] == 0
        value_of(submit(model, 1, 1, 4000))
        assert gate.batches == [[1], [1]]


def test_without_a_size_flights_are_still_shared():
    cache, gate = NativeCache(), Gate()
    with cached(gate, cache=cache) as model:
        calls = [submit(model, 1)]
        gate.taken()
        calls.append(submit(model, 1))
        gate.open()
        assert [value_of(call) for call in calls] == [1, 1]
        value_of(submit(model, 1))
        counted(model, 1, 2)
        assert cache.stats()["used"] == 0


# --- ends of the model ------------------------------------------------------------------------------------------------


def test_an_aborted_model_answers_followers_at_once():
    gate = Gate()
    with cached(gate) as model:
        calls = [submit(model, 1)]
        gate.taken()
        calls += [submit(model, 1) for _ in range(3)]
        model.abort()
        for call in calls[1:]:
            with pytest.raises(Unavailable, match=STOPPED):
                call.wait(LONG_S)
        with pytest.raises(Unavailable, match=STOPPED):
            submit(model, 1)
        gate.open()
        assert value_of(calls[0]) == 1
        assert model.pending == 0


def test_a_stopping_model_still_answers_what_it_took():
    gate = Gate()
    model = make_model(gate)
    model.add_layer(CacheLayer(NativeCache(SIZE)))
    calls = [submit(model, 1)]
    gate.taken()
    calls += [submit(model, 1) for _ in range(3)]
    stopper = threading.Thread(target=model.stop)
    stopper.start()
    while True:
        try:
            calls.append(submit(model, 1))  # until it stops, one more that follows
        except Unavailable as error:
            assert str(error) == STOPPED
            break
    gate.open()
    assert {value_of(call) for call in calls} == {1}
    assert gate.batches == [[1]]
    stopper.join(LONG_S)
    assert not stopper.is_alive()


def test_wrong_requests_are_refused_before():
    gate = Gate(held=False)
    with cached(gate) as model:
        for _ in range(2):
            with pytest.raises(InvalidArg):
                InferCall(model, [("IN", INT32, (1, 2), bytes(8))])
        counted(model, 0, 0)


def test_cancels_and_failures_in_a_storm():
    """Threads submit few numbers, some fail, some are cancelled: each call ends once, and counts agree."""
    gate = Gate(held=False, answer=fail_on(3))
    ends = {"ok": 0, "failed": 0, "cancelled": 0}
    lock = threading.Lock()
    cache = NativeCache(3000)  # four entries at most
    with cached(gate, Gate(held=False, answer=fail_on(3)), cache=cache) as model:

        def work(k):
            for n in range(300):
                value = (n * 7 + k) % 8
                call = submit(model, value)
                if n % 3 == 0 and call.cancel():
                    end = "cancelled"
                else:
                    try:
                        assert value_of(call) == value
                        end = "ok"
                    except Internal:
                        assert value == 3
                        end = "failed"
                with lock:
                    ends[end] += 1

        in_threads(8, work)
        assert sum(ends.values()) == 2400
        taken = model.snapshot()
        assert taken["success"] == ends["ok"]
        assert taken["failures"]["BACKEND"] == ends["failed"]
        assert taken["failures"]["CANCELED"] == ends["cancelled"]
        assert model.pending == 0
        assert 0 < cache.stats()["entries"] <= 4
