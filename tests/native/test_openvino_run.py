"""Batches through the OpenVINO instance against the openvino package run directly."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import openvino_models as models
from tests.helpers.openvino_models import NUMPY, io, open_model, open_written, parameter, reference, write
from triton_fast._native.core import memory, request
from triton_fast._native.core import model as structs
from triton_fast._native.openvino import model as opened_models
from triton_fast._native.ort import drive
from triton_fast.backends.base import InstanceSpec
from triton_fast.errors import Internal, InvalidArg, Unavailable
from triton_fast.types import DataType

BACKEND = 'backend: "openvino"\n'
PADDED = parameter("SKIP_OV_DYNAMIC_BATCHSIZE", "YES") + parameter("ENABLE_BATCH_PADDING", "YES")


def live() -> tuple[int, int, int, int]:
    gc.collect()
    return (
        memory.stats()["live_blocks"], request.stats()["live_requests"], structs.stats()["live_models"],
        opened_models.live(),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Blocks, requests, models and compiled models are back to where they were when the test has ended."""
    before = live()
    yield
    assert live() == before


def random_array(kind: str, shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "BOOL":
        return rng.integers(0, 2, shape).astype(bool)
    if kind in ("FP16", "FP32", "FP64", "BF16"):
        return rng.standard_normal(shape).astype(NUMPY[kind])
    dtype = np.dtype(NUMPY[kind])
    return np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)


def rows(n: int, width: int = 4, start: float = 1) -> np.ndarray:
    return np.arange(start, start + n * width, dtype=np.float32).reshape(n, width)


def same(found: Any, expected: np.ndarray) -> bool:
    return bool(
        found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes()
    )


@pytest.mark.parametrize("kind", sorted(NUMPY))
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("config", ["given", "none"])
def test_every_datatype(tmp_path: Path, kind: str, batched: bool, config: str) -> None:
    text = BACKEND
    if config == "given":
        dims = (2, 3)
        text += f"max_batch_size: {8 if batched else 0}" + io("input", "IN", kind, dims)
        text += io("output", "OUT", kind, dims[::-1])
    opened = open_model(tmp_path, models.swap(kind, (-1, 2, 3) if batched else (2, 3)), text)
    assert opened.config.max_batch_size == ((8 if config == "given" else 4) if batched else 0)
    arrays = [random_array(kind, (n, 2, 3) if batched else (2, 3), seed=n) for n in ((1, 2, 1) if batched else (5,))]
    for array, answer in zip(arrays, opened.run(*[{"IN": array} for array in arrays]), strict=True):
        assert same(answer["OUT"], reference(tmp_path / "m/1/model.xml", {"IN": array})["OUT"])


def test_a_single_request_is_not_copied(tmp_path: Path) -> None:
    opened = open_model(tmp_path, models.add_sub())
    a, b = rows(3), rows(3, start=50)
    (answer,) = opened.run({"A": a, "B": b})
    assert same(answer["SUM"], a + b)
    assert same(answer["DIFFERENCE"], a - b)
    assert opened.instance.counters() == {
        "runs": 1, "borrowed": 2, "copied_bytes": 0, "bound": 2, "lent": 0, "copied_outputs": 0,
    }  # fmt: skip


def test_a_batch_is_copied_together_once(tmp_path: Path) -> None:
    opened = open_model(tmp_path, models.add_sub())
    given = [{"A": rows(n, start=n), "B": rows(n, start=100 * n)} for n in (1, 2, 1)]
    for request_, answer in zip(given, opened.run(*given), strict=True):
        assert same(answer["SUM"], request_["A"] + request_["B"])
        assert same(answer["DIFFERENCE"], request_["A"] - request_["B"])
    counted = opened.instance.counters()
    assert (counted["runs"], counted["bound"]) == (1, 2)
    assert counted["copied_bytes"] == 2 * 4 * 4 * 4
    assert counted["copied_outputs"] == 0


def test_outputs_of_unknown_size_are_lent(tmp_path: Path) -> None:
    text = BACKEND + io("input", "IN", "FP32", (-1,)) + io("output", "OUT", "INT64", (-1, 1))
    opened = open_model(tmp_path, models.nonzero(), text)
    large, small = np.ones(20_000, np.float32), np.array([0, 1, 0, 1, 1], np.float32)
    held: list[Any] = []
    answers = [opened.run({"IN": array}, held=held)[0]["OUT"] for array in (large, small)]
    assert (answers[0][:, 0] == np.arange(20_000)).all()
    assert (answers[1][:, 0] == [1, 3, 4]).all()
    counted = opened.instance.counters()
    assert (counted["lent"], counted["copied_outputs"], counted["bound"]) == (1, 3 * 8, 0)
    # What was lent is still there after another run, and after the model is gone.
    opened.run({"IN": np.zeros(30_000, np.float32)})
    opened.model.close()
    del opened
    gc.collect()
    kept = drive.read_held(held)
    assert (np.frombuffer(kept[0], np.int64) == np.arange(20_000)).all()
    drive.release_held(held)


def test_outputs_survive_the_next_run(tmp_path: Path) -> None:
    opened = open_model(tmp_path, models.dense())
    held: list[Any] = []
    first = opened.run({"IN": rows(1, 64)}, held=held)[0]["OUT"].copy()
    opened.run({"IN": rows(1, 64, 1000)})
    assert drive.read_held(held)[0] == first.tobytes()
    drive.release_held(held)


def test_what_is_not_wanted_is_not_answered(tmp_path: Path) -> None:
    opened = open_model(tmp_path, models.add_sub())
    (answer,) = opened.run({"A": rows(1), "B": rows(1)}, wanted=[["DIFFERENCE"]])
    assert set(answer) == {"DIFFERENCE"}
    assert (answer["DIFFERENCE"] == 0).all()


@pytest.mark.parametrize("dims", [(-1, 4), (-1, -1), (1, 4)])
@pytest.mark.parametrize("more", ["", PADDED])
def test_an_input_that_is_an_output(tmp_path: Path, dims: tuple[int, ...], more: str) -> None:
    """OpenVINO gives the two one name; memory set for the output would be read in the input's place, and sent."""
    opened = open_model(tmp_path, models.passing(dims), f"{BACKEND}max_batch_size: 4{more}")
    for sizes in ((2,), (1, 2), (4,)):
        given = [{"A": rows(n, start=10 * n), "B": rows(n, start=100 * n)} for n in sizes]
        for request_, answer in zip(given, opened.run(*given), strict=True):
            assert same(answer["A"], request_["A"])
            assert same(answer["SUM"], request_["A"] + request_["B"])
    (answer,) = opened.run({"A": rows(1), "B": rows(1)}, wanted=[["SUM"]])
    assert set(answer) == {"SUM"}
    assert same(answer["SUM"], 2 * rows(1))


RAGGED = [
    (io("input", "x", "FP32", (-1,), "allow_ragged_batch: true"), "its backend takes no ragged input 'x'"),
    (io("input", "x", "FP32", (-1,)) + " batch_input [{ kind: BATCH_ELEMENT_COUNT target_name: 'n' "
     "data_type: TYPE_FP32 source_input: 'x' }]", "its backend makes no batch_input or batch_output"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "text"), RAGGED)
def test_ragged_inputs_are_refused(tmp_path: Path, given: str, text: str) -> None:
    """Only a shared batch would have failed, or been read with the shape of its first request."""
    x, n = models.ops.parameter([-1], np.float32), models.ops.parameter([-1], np.float32)
    inputs = {"x": x, "n": n} if "batch_input" in given else {"x": x}
    made = models.model(inputs, {"y": models.ops.unsqueeze(models.ops.relu(x), models.ops.constant(np.array([1])))})
    with pytest.raises(InvalidArg, match=text):
        open_model(tmp_path, made, f"{BACKEND}max_batch_size: 4{given}" + io("output", "y", "FP32", (-1,)))


def test_shapes_vary_from_run_to_run(tmp_path: Path) -> None:
    opened = open_model(tmp_path, models.swap("FP32", (-1, -1, -1)))
    for shape in ((1, 2, 3), (2, 5, 1), (4, 3, 3), (1, 2, 3)):
        array = np.random.default_rng(7).standard_normal(shape).astype(np.float32)
        (answer,) = opened.run({"IN": array})
        assert same(answer["OUT"], array.transpose(0, 2, 1))


@pytest.mark.parametrize("misalign", [1, 2, 3])
def test_bytes_that_lie_unaligned(tmp_path: Path, misalign: int) -> None:
    opened = open_model(tmp_path, models.add_sub())
    (answer,) = opened.run({"A": rows(2), "B": rows(2)}, misalign=misalign)
    assert (answer["SUM"] == 2 * rows(2)).all()


def test_a_model_of_one_batch_size_is_made_variable(tmp_path: Path) -> None:
    opened = open_model(tmp_path, models.dense(batch=1), f"{BACKEND}max_batch_size: 8")
    array = rows(5, 64)
    (answer,) = opened.run({"IN": array})
    one = [reference(tmp_path / "m/1/model.xml", {"IN": array[i : i + 1]})["OUT"] for i in range(5)]
    assert np.allclose(answer["OUT"], np.concatenate(one), rtol=1e-5, atol=1e-4)
    assert opened.instance.counters()["bound"] == 1


FIXED = f"{BACKEND}max_batch_size: 4" + parameter("SKIP_OV_DYNAMIC_BATCHSIZE", "YES")


def test_a_fixed_batch_size_refuses_others(tmp_path: Path) -> None:
    opened = open_model(tmp_path, models.dense(), FIXED)
    (answer,) = opened.run({"IN": rows(2, 64)})
    assert isinstance(answer, Internal)
    assert str(answer) == (
        "expected requests with batch size '4', got '2'... this error can be avoided by setting "
        "'ENABLE_BATCH_PADDING' parameter in model configuration to 'YES' at a performance cost."
    )
    (answer,) = opened.run({"IN": rows(4, 64)})
    assert answer["OUT"].shape == (4, 64)


def test_a_fixed_batch_size_is_padded(tmp_path: Path) -> None:
    opened = open_model(tmp_path, models.dense(), FIXED + parameter("ENABLE_BATCH_PADDING", "yes"))
    given = [{"IN": rows(1, 64)}, {"IN": rows(2, 64, 9)}]
    for request_, answer in zip(given, opened.run(*given), strict=True):
        expected = reference(tmp_path / "m/1/model.xml", request_)["OUT"]
        assert answer["OUT"].shape == expected.shape
        assert np.allclose(answer["OUT"], expected, rtol=1e-5, atol=1e-4)
    (answer,) = opened.run({"IN": rows(1, 64)})
    assert answer["OUT"].shape == (1, 64)
    assert opened.instance.counters()["runs"] == 2


def test_io_layers_are_reshaped(tmp_path: Path) -> None:
    text = (
        BACKEND + "max_batch_size: 0" + io("input", "IN", "FP32", (-1, 5, 3)) + io("output", "OUT", "FP32", (-1, 3, 5))
    )
    opened = open_model(tmp_path, models.swap("FP32", (1, 2, 2)), text + parameter("RESHAPE_IO_LAYERS", "yes"))
    array = np.random.default_rng(1).standard_normal((3, 5, 3)).astype(np.float32)
    (answer,) = opened.run({"IN": array})
    assert same(answer["OUT"], array.transpose(0, 2, 1))


def test_reshape_of_the_config(tmp_path: Path) -> None:
    text = BACKEND + "max_batch_size: 4" + io("input", "IN", "FP32", (6,), "reshape { shape: [2, 3] }")
    text += io("output", "OUT", "FP32", (6,), "reshape { shape: [3, 2] }")
    opened = open_model(tmp_path, models.swap(), text)
    array = rows(2, 6)
    (answer,) = opened.run({"IN": array})
    assert same(answer["OUT"], array.reshape(2, 2, 3).transpose(0, 2, 1).reshape(2, 6))


@pytest.mark.parametrize("threads", [1, 2])
def test_errors_of_a_run_end_that_batch_alone(tmp_path: Path, threads: int) -> None:
    # With one thread OpenVINO's synchronous call hides them.
    opened = open_model(tmp_path, models.add_sub("FP32", (-1, -1)), threads=threads)
    for _ in range(3):
        (answer,) = opened.run({"A": rows(2, 3), "B": rows(2, 4)})
        assert isinstance(answer, Internal)
        text = str(answer)
        assert text.startswith("openvino error in inference : ")
        assert "Exception from" not in text
        assert "\n" not in text
        (answer,) = opened.run({"A": rows(2, 3), "B": rows(2, 3)})
        assert (answer["SUM"] == 2 * rows(2, 3)).all()


def test_an_input_that_does_not_fit(tmp_path: Path) -> None:
    opened = open_model(tmp_path, models.add_sub())
    (answer,) = opened.run({"A": rows(1), "B": rows(1, 7)})
    assert isinstance(answer, Internal)
    assert "are incompatible" in str(answer)
    (answer,) = opened.run({"A": rows(1)})
    assert isinstance(answer, InvalidArg)
    (answer,) = opened.run({"A": rows(1), "B": rows(1)})
    assert (answer["SUM"] == 2 * rows(1)).all()


def test_instances_share_a_compiled_model(tmp_path: Path) -> None:
    text = BACKEND + "instance_group [{ count: 2 kind: KIND_CPU }]"
    before = opened_models.live()
    opened = open_model(tmp_path, models.dense(), text)
    second = opened.model.create_instance(InstanceSpec("m_1", "KIND_CPU"))
    assert opened_models.live() == before + 1
    arrays = {"IN": (DataType.FP32, (1, 64), rows(1, 64).tobytes())}
    answers = [drive.run_batch(each, opened.handle, [arrays])[0] for each in (opened.instance, second)]
    assert answers[0]["OUT"][2] == answers[1]["OUT"][2]
    compiled = opened.model._compiled
    assert compiled.property("NUM_STREAMS") == "2"
    assert compiled.property("INFERENCE_NUM_THREADS") == "2"


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"device 'GPU' is requested but OpenVINO finds only CPU"):
        open_model(tmp_path, models.dense(), BACKEND + parameter("TARGET_DEVICE", "GPU"))
    opened = open_written(write(tmp_path, models.dense(), BACKEND + parameter("TARGET_DEVICE", "AUTO:CPU"), "auto"))
    assert opened.run({"IN": rows(1, 64)})[0]["OUT"].shape == (1, 64)
    with pytest.raises(Unavailable, match=r"unable to load model 'one', device 'GPU.1' is requested"):
        open_written(write(tmp_path, models.dense(), BACKEND + parameter("TARGET_DEVICE", "GPU.1"), "one"))
