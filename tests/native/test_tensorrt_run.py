"""Batches through the TensorRT instance, on the stand-ins for TensorRT and libcuda."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import standin_cuda, trt_plans
from tests.helpers.models import counters_at_base  # noqa: F401
from tests.helpers.trt_models import NUMPY, StandIns, on_stand_ins
from tests.helpers.trt_plans import add_sub, between, plan, spread, swap, tensor
from triton_fast.errors import Internal, InvalidArg, Unavailable
from triton_fast.observability import log

GRAPHS = "optimization { cuda { graphs: true } }\n"
TWO_PROFILES = (between((1, 1), (8, 8), (4, 4)), between((1, 9), (8, 64), (4, 32)))


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[StandIns]:
    with on_stand_ins(tmp_path) as opener:
        yield opener


def random_array(kind: str, shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "BOOL":
        return rng.integers(0, 2, shape).astype(bool)
    if kind in ("FP16", "FP32", "BF16"):
        return rng.standard_normal(shape).astype(NUMPY[kind])
    dtype = np.dtype(NUMPY[kind])
    return np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)


def rows(n: int, width: int = 4, start: float = 1) -> np.ndarray:
    return np.arange(start, start + n * width, dtype=np.float32).reshape(n, width)


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(
        found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes()
    )


@pytest.mark.parametrize("kind", sorted(NUMPY))
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("config", ["given", "none"])
def test_every_datatype(opened: StandIns, kind: str, batched: bool, config: str) -> None:
    text = ""
    if config == "given":
        text = f"max_batch_size: {8 if batched else 0}\n"
        text += f'input [{{ name: "IN" data_type: TYPE_{kind} dims: [2, 3] }}]\n'
        text += f'output [{{ name: "OUT" data_type: TYPE_{kind} dims: [3, 2] }}]\n'
    if batched:
        made = opened(swap(kind, (-1, 2, 3)), text)
        arrays = [random_array(kind, (n, 2, 3), seed=n) for n in (1, 2, 1)]
    else:
        ops = [{"op": "swap", "in": ["IN"], "out": "OUT"}]
        tensors = [tensor("IN", kind, (2, 3), given=True), tensor("OUT", kind, (3, 2), given=False)]
        made = opened(plan(tensors, ops), text or "max_batch_size: 0\n")
        arrays = [random_array(kind, (2, 3), seed=5)]
    for array, answer in zip(arrays, made.run(*[{"IN": array} for array in arrays]), strict=True):
        assert same(answer["OUT"], np.ascontiguousarray(array.swapaxes(-1, -2)))


def test_an_unchanged_batch_costs_one_call(opened: StandIns) -> None:
    made = opened(add_sub())
    a, b = rows(3), rows(3, start=50)
    made.run({"A": a, "B": b})
    opened.trt.counts.clear()
    for start in (7, 8):
        (answer,) = made.run({"A": rows(3, start=start), "B": b})
        assert same(answer["SUM"], rows(3, start=start) + b)
        assert same(answer["DIFFERENCE"], rows(3, start=start) - b)
    assert opened.trt.counts == {"execute_async_v3": 2}
    # Back to a shape that was seen: it is told, and its outputs' shapes are known.
    made.run({"A": a[:1], "B": b[:1]})
    opened.trt.counts.clear()
    made.run({"A": a, "B": b})
    assert opened.trt.counts == {"execute_async_v3": 1, "set_input_shape": 2}


def test_small_requests_are_gathered_and_large_ones_go_as_they_are(opened: StandIns) -> None:
    made = opened(add_sub("FP32", (-1, 40_000)))
    given = [{"A": rows(n, 40_000, n), "B": rows(n, 40_000, 9 * n)} for n in (1, 2)]
    for request, answer in zip(given, made.run(*given), strict=True):
        assert same(answer["SUM"], request["A"] + request["B"])
    assert made.counted("gathered", "copied_in") == (0, 2 * 3 * 160_000)
    small = opened(add_sub())
    given = [{"A": rows(n, start=n), "B": rows(n, start=100 * n)} for n in (1, 2, 1)]
    for request, answer in zip(given, small.run(*given), strict=True):
        assert same(answer["SUM"], request["A"] + request["B"])
        assert same(answer["DIFFERENCE"], request["A"] - request["B"])
    assert small.counted("runs", "enqueued", "gathered", "copied_out") == (1, 1, 2 * 4 * 16, 2 * 4 * 16)


def test_only_wanted_outputs_come_back(opened: StandIns) -> None:
    made = opened(add_sub())
    (answer,) = made.run({"A": rows(2), "B": rows(2)}, wanted=[["SUM"]])
    assert list(answer) == ["SUM"]
    assert made.counted("copied_out") == (32,)


def test_two_profiles(opened: StandIns) -> None:
    made = opened(add_sub("FP32", (-1, -1), TWO_PROFILES), 'instance_group [{ profile: ["0", "1"] }]\n')
    for width in (3, 40, 8, 9, 64):
        a = rows(2, width)
        (answer,) = made.run({"A": a, "B": a})
        assert same(answer["SUM"], a + a)
    # Each profile has its own context: going back tells nothing where it is the shape of its last run.
    made.run({"A": rows(2, 8), "B": rows(2, 8)})
    opened.trt.counts.clear()
    made.run({"A": rows(2, 64), "B": rows(2, 64)})
    made.run({"A": rows(2, 8), "B": rows(2, 8)})
    assert opened.trt.counts == {"execute_async_v3": 2}


def test_a_shape_outside_of_all_profiles_is_refused(opened: StandIns) -> None:
    two = opened(add_sub("FP32", (-1, -1), TWO_PROFILES), 'instance_group [{ profile: ["0", "1"] }]\n')
    (error,) = two.run({"A": rows(1, 65), "B": rows(1, 65)})
    assert isinstance(error, InvalidArg)
    assert "failed to find any Optimization Profile of m_0_0 to support the requested dimensions" in str(error)
    assert (
        "profile 1, input 'A': model expected the shape of dimension 1 to be between 9 and 64 but received 65"
        in str(error)
    )
    one = opened(add_sub("FP32", (-1, -1), TWO_PROFILES))
    (error,) = one.run({"A": rows(1, 9), "B": rows(1, 9)})
    assert isinstance(error, InvalidArg)
    assert str(error) == (
        "request specifies invalid shape for input 'A' for m_0. Error details: model expected the shape of dimension 1 "
        "to be between 1 and 8 but received 9"
    )
    (answer,) = one.run({"A": rows(1, 8), "B": rows(1, 8)})
    assert same(answer["SUM"], 2 * rows(1, 8))


def test_an_engine_that_gives_a_profile_to_one_context_is_opened_again(opened: StandIns) -> None:
    made = opened(swap(exclusive=True), "instance_group [{ count: 2 }]\n")
    for number in (0, 1):
        array = random_array("FP32", (2, 2, 3), number)
        (answer,) = made.run({"IN": array}, of=number)
        assert same(answer["OUT"], np.ascontiguousarray(array.swapaxes(1, 2)))


def test_instances_on_two_devices(opened: StandIns) -> None:
    made = opened(swap(), gpus=(0, 1))
    assert [instance.name for instance in made.instances] == ["m_0", "m_1"]
    for number in (0, 1):
        array = random_array("FP32", (2, 2, 3), number)
        assert same(made.run({"IN": array}, of=number)[0]["OUT"], np.ascontiguousarray(array.swapaxes(1, 2)))


# --- outputs whose shapes depend on data, shape tensors --------------------------------------------------------------


def test_outputs_of_unknown_size(opened: StandIns) -> None:
    made = opened(trt_plans.nonzero(), "max_batch_size: 0\n")
    made.run({"IN": np.array([0, 1], np.float32)})
    opened.cuda.limit(memory=700_000)
    (error,) = made.run({"IN": np.ones(99_000, np.float32)})
    assert isinstance(error, Internal)
    assert "allocation of output OUT failed" in str(error)
    opened.cuda.limit()
    for array in (np.array([0, 1, 0, 1, 1], np.float32), np.ones(99_000, np.float32), np.zeros(7, np.float32)):
        (answer,) = made.run({"IN": array})
        assert same(answer["OUT"], np.flatnonzero(array).astype(np.int64)[:, None])


@pytest.mark.parametrize("kind", ["INT32", "INT64"])
def test_shape_tensors_of_a_batch(opened: StandIns, kind: str) -> None:
    made = opened(spread(kind))
    assert [entry.is_shape_tensor for entry in made.config.input] == [False, True]
    assert list(made.config.input[1].dims) == [2]
    given = [
        {"IN": np.full((n, 1), 7, np.float32), "S": np.array([[2, k]] * n, NUMPY[kind])}
        for n, k in ((1, 3), (2, 3), (1, 5))
    ]
    answers = made.run(*given)
    assert made.counted("runs", "enqueued") == (2, 2)  # the first two say the same
    for request, answer in zip(given, answers, strict=True):
        n, (two, k) = len(request["IN"]), request["S"][0]
        assert same(answer["OUT"], np.full((n, two, k), 7, np.float32))
        assert same(answer["AS"], np.array([[two, k]] * n, np.int64))


def test_shape_tensors_without_a_batch(opened: StandIns) -> None:
    made = opened(spread("INT64", batched=False), "max_batch_size: 0\n")
    (answer,) = made.run({"IN": np.array([3], np.float32), "S": np.array([4, 5, 6], np.int64)})
    assert same(answer["OUT"], np.full((4, 5, 6), 3, np.float32))
    assert same(answer["AS"], np.array([4, 5, 6], np.int64))
    (error,) = made.run({"IN": np.array([3], np.float32), "S": np.array([4, 6, 6], np.int64)})
    assert isinstance(error, InvalidArg)
    assert "input 'S'" in str(error)
    assert "model expected shape value 1 to be between 1 and 5 but received 6" in str(error)


# --- CUDA graphs -----------------------------------------------------------------------------------------------------


def test_graphs_are_captured_behind_the_second_run(opened: StandIns) -> None:
    made = opened(add_sub(), GRAPHS)
    for start in range(4):
        (answer,) = made.run({"A": rows(8, start=start), "B": rows(8)})
        assert same(answer["SUM"], rows(8, start=start) + rows(8))
    assert made.counted("enqueued", "captured", "launched") == (2, 1, 2)
    opened.trt.counts.clear()
    (answer,) = made.run({"A": rows(8, start=-9), "B": rows(8)})
    assert same(answer["DIFFERENCE"], rows(8, start=-9) - rows(8))
    assert opened.trt.counts == {}  # no call of TensorRT, so no GIL
    # 7 rows are none of those that are captured.
    for _ in range(3):
        (answer,) = made.run({"A": rows(7), "B": rows(7)})
        assert same(answer["SUM"], 2 * rows(7))
    assert made.counted("captured") == (1,)


def test_graph_spec_says_which_shapes(opened: StandIns) -> None:
    spec = 'graph_spec { batch_size: 2 input { key: "A" value { dim: [3] } } }'
    ranges = [between((1, 1), (8, 8))]
    made = opened(add_sub("FP32", (-1, -1), ranges), f"optimization {{ cuda {{ graphs: true {spec} }} }}\n")
    for width in (3, 4, 3, 4, 3):
        (answer,) = made.run({"A": rows(2, width), "B": rows(2, width)})
        assert same(answer["SUM"], 2 * rows(2, width))
    assert made.counted("captured", "launched", "enqueued") == (1, 1, 4)


@pytest.mark.parametrize("cause", ["cuStreamBeginCapture_v2", "cuGraphInstantiateWithFlags", "TensorRT"])
def test_a_capture_that_fails_is_told_once(opened: StandIns, monkeypatch: pytest.MonkeyPatch, cause: str) -> None:
    told: list[str] = []
    monkeypatch.setattr(log, "warning", lambda text, **_: told.append(text))
    made = opened(add_sub(fails_on={"3": "operation not permitted when stream is capturing"}), GRAPHS)
    if cause != "TensorRT":
        made = opened(add_sub(), GRAPHS)
    made.run({"A": rows(1), "B": rows(1)})
    if cause != "TensorRT":
        opened.cuda.fail(cause, 901)
    for _ in range(2):
        (answer,) = made.run({"A": rows(1), "B": rows(1)})
        assert same(answer["SUM"], 2 * rows(1))
    assert len(told) == 1
    assert told[0].startswith("CUDA graphs are not used for m_0: ")
    assert ("when stream is capturing" if cause == "TensorRT" else "STREAM_CAPTURE_INVALIDATED") in told[0]
    assert made.counted("captured", "launched", "enqueued") == (0, 0, 3)


def test_what_depends_on_values_is_not_captured(opened: StandIns) -> None:
    made = opened(spread(), GRAPHS)
    for _ in range(3):
        made.run({"IN": np.ones((1, 1), np.float32), "S": np.array([[2, 2]], np.int32)})
    assert made.counted("captured", "enqueued") == (0, 3)


def test_graphs_give_way_when_all_places_are_taken(opened: StandIns) -> None:
    ranges = [between((1, 1), (8, 1000))]
    made = opened(add_sub("FP32", (-1, -1), ranges), GRAPHS)
    for width in range(1, 300):
        for _ in range(2):
            (answer,) = made.run({"A": rows(1, width), "B": rows(1, width)})
        assert same(answer["SUM"], 2 * rows(1, width))
    assert made.counted("captured") == (299,)
    assert opened.cuda.held()["graphs"] == 256


@pytest.mark.parametrize(("name", "priority"), [("PRIORITY_MAX", -5), ("PRIORITY_MIN", 0)])
def test_priority_of_the_stream(opened: StandIns, name: str, priority: int) -> None:
    made = opened(add_sub(), f"optimization {{ priority: {name} cuda {{ busy_wait_events: true }} }}\n")
    assert opened.cuda.last_priority() == priority
    waits = opened.cuda.calls("cuStreamSynchronize")
    (answer,) = made.run({"A": rows(2), "B": rows(2)})
    assert same(answer["SUM"], 2 * rows(2))
    assert opened.cuda.calls("cuStreamSynchronize") == waits + 1


# --- what fails ------------------------------------------------------------------------------------------------------


def test_what_tensorrt_refuses_ends_the_batch_with_its_words(opened: StandIns) -> None:
    made = opened(swap(fails="Error Code 2: Internal Error (Assertion no implementation)"))
    errors = made.run(*[{"IN": random_array("FP32", (1, 2, 3))}] * 2)
    assert [type(error) for error in errors] == [Internal] * 2
    assert str(errors[0]) == (
        "unable to enqueue for inference m_0: Error Code 2: Internal Error (Assertion no implementation)"
    )


def test_what_tensorrt_raises_ends_the_batch(opened: StandIns) -> None:
    (error,) = opened(swap(raises="something of its own")).run({"IN": random_array("FP32", (1, 2, 3))})
    assert isinstance(error, Internal)
    assert "something of its own" in str(error)


@pytest.mark.parametrize("function", ["cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "cuEventSynchronize"])
def test_a_failing_device_ends_the_batch_and_not_the_next(opened: StandIns, function: str) -> None:
    made = opened(add_sub())
    made.run({"A": rows(1), "B": rows(1)})
    opened.cuda.fail(function, standin_cuda.ILLEGAL_ADDRESS)
    (error,) = made.run({"A": rows(1), "B": rows(1)})
    assert isinstance(error, Internal)
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in str(error)
    (answer,) = made.run({"A": rows(2), "B": rows(2)})
    assert same(answer["SUM"], 2 * rows(2))


def test_too_little_memory_for_an_instance(opened: StandIns) -> None:
    opened.cuda.limit(memory=1 << 20)
    with pytest.raises(Unavailable, match="failed to allocate 3200000 bytes on GPU 0: out of memory"):
        opened(add_sub("FP32", (-1, 100_000)))
    opened.cuda.limit()
    opened(add_sub("FP32", (-1, 100_000)))


def test_too_little_memory_for_a_context(opened: StandIns) -> None:
    opened.cuda.limit(memory=1 << 20)
    with pytest.raises(Internal, match="unable to create TensorRT context: Requested amount of GPU memory"):
        opened(swap(memory=1 << 24))
