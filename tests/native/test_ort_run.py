"""Batches through the ONNX Runtime instance against the onnxruntime Python package run directly."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import onnx_models as models
from tests.helpers.onnx_repository import NUMPY, Opened, open_model, wire_strings
from triton_fast._native.core import memory, request
from triton_fast._native.core import model as structs
from triton_fast._native.ort import drive, session
from triton_fast.backends.base import InstanceSpec
from triton_fast.errors import Internal, InvalidArg
from triton_fast.types import DataType


def live() -> tuple[int, int, int, int]:
    gc.collect()
    return (
        memory.stats()["live_blocks"], request.stats()["live_requests"], structs.stats()["live_models"], session.live(),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Blocks, requests, models and sessions are back to where they were when the test has ended."""
    before = live()
    yield
    assert live() == before


def reference(blob: bytes, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    made = onnxruntime.InferenceSession(blob, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in made.get_outputs()]
    return dict(zip(names, made.run(names, feeds), strict=True))


def random_array(kind: str, shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "BOOL":
        return rng.integers(0, 2, shape).astype(bool)
    dtype = np.dtype(NUMPY[DataType[kind]])
    # Any bit pattern: NaNs with payloads and subnormals must come back as they went in.
    return np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)


@pytest.mark.parametrize("kind", sorted(set(models.ELEMENT) - {"STRING", "BF16"}))
@pytest.mark.parametrize("batched", [True, False])
def test_identity_of_every_datatype(tmp_path: Path, kind: str, batched: bool) -> None:
    blob = models.identity(kind, ("batch", 3, 5) if batched else (3, 5))
    opened = open_model(tmp_path, blob, "max_batch_size: 8" if batched else "")
    sizes = (1, 2, 3) if batched else (0,)
    arrays = [random_array(kind, (n, 3, 5) if batched else (3, 5), seed=n) for n in sizes]
    answers = opened.run(*[{"INPUT0": a} for a in arrays])
    for a, answer in zip(arrays, answers, strict=True):
        expected = reference(blob, {"INPUT0": a})["OUTPUT0"]
        assert answer["OUTPUT0"].dtype == expected.dtype
        assert answer["OUTPUT0"].shape == expected.shape
        assert answer["OUTPUT0"].tobytes() == expected.tobytes() == a.tobytes()


def test_bfloat16(tmp_path: Path) -> None:
    opened = open_model(tmp_path, models.identity("BF16"), "max_batch_size: 4")
    data = np.array([[1.5, -2.25, np.inf, 3e-39]], ml_dtypes.bfloat16)
    answers = opened.raw(*[{"INPUT0": (DataType.BF16, (1, 4), data.tobytes())}] * 2)
    assert [answer["OUTPUT0"][:3] for answer in answers] == [(DataType.BF16, (1, 4), data.tobytes())] * 2


@pytest.mark.parametrize("kind", ["INT32", "INT64", "FP32", "FP64"])
def test_two_inputs_and_outputs(tmp_path: Path, kind: str) -> None:
    blob = models.add_sub(kind)
    opened = open_model(tmp_path, blob)
    a = np.arange(32).reshape(2, 16).astype(NUMPY[DataType[kind]])
    b = (a * 3)[::-1].copy()
    for first, second in (((0, 2), ()), ((0, 1), (1, 2))):
        parts = [part for part in (first, second) if part]
        answers = opened.run(*[{"INPUT0": a[i:j], "INPUT1": b[i:j]} for i, j in parts])
        for (i, j), answer in zip(parts, answers, strict=True):
            expected = reference(blob, {"INPUT0": a[i:j], "INPUT1": b[i:j]})
            for name, value in expected.items():
                np.testing.assert_array_equal(answer[name], value)


def test_any_split_of_a_batch(tmp_path: Path) -> None:
    blob = models.mlp()
    opened = open_model(tmp_path, blob, "max_batch_size: 64")

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(0, 2**32 - 1))
    def check(sizes: list[int], seed: int) -> None:
        whole = np.random.default_rng(seed).standard_normal((sum(sizes), 16)).astype(np.float32)
        answers = opened.run(*[{"INPUT": part} for part in np.split(whole, np.cumsum(sizes)[:-1])])
        expected = reference(blob, {"INPUT": whole})["OUTPUT"]
        np.testing.assert_array_equal(np.concatenate([answer["OUTPUT"] for answer in answers]), expected)
        assert [answer["OUTPUT"].shape for answer in answers] == [(n, 4) for n in sizes]

    check()


def test_only_wanted_outputs(tmp_path: Path) -> None:
    opened = open_model(tmp_path, models.add_sub("FP32"))
    a = np.ones((1, 16), np.float32)
    feeds = {"INPUT0": a, "INPUT1": a}
    (answer,) = opened.run(feeds, wanted=[["OUTPUT1"]])
    assert list(answer) == ["OUTPUT1"]
    assert opened.instance.counters()["bound"] == 1
    answers = opened.run(feeds, feeds, feeds, wanted=[["OUTPUT1"], None, ["OUTPUT1", "OUTPUT0"]])
    assert [list(answer) for answer in answers] == [["OUTPUT1"], ["OUTPUT0", "OUTPUT1"], ["OUTPUT1", "OUTPUT0"]]
    for answer in answers:
        assert not answer["OUTPUT1"].any()
    answers = opened.run(feeds, feeds, wanted=[["OUTPUT1"], ["OUTPUT0"]])
    assert [list(answer) for answer in answers] == [["OUTPUT1"], ["OUTPUT0"]]
    np.testing.assert_array_equal(answers[1]["OUTPUT0"], 2 * a)


def test_one_request_is_not_copied(tmp_path: Path) -> None:
    opened = open_model(tmp_path, models.identity("FP32", ("batch", 1024)), "max_batch_size: 8")
    feeds = {"INPUT0": np.arange(2048, dtype=np.float32).reshape(2, 1024)}
    opened.run(feeds)
    counters = opened.instance.counters()
    assert (counters["borrowed"], counters["copied_bytes"], counters["bound"]) == (1, 0, 1)
    opened.run(feeds, misalign=4)
    assert opened.instance.counters()["copied_bytes"] == 0
    (answer,) = opened.run(feeds, misalign=2)
    assert opened.instance.counters()["copied_bytes"] == 8192
    np.testing.assert_array_equal(answer["OUTPUT0"], feeds["INPUT0"])
    opened.run(feeds, feeds)
    counters = opened.instance.counters()
    assert (counters["borrowed"], counters["copied_bytes"]) == (2, 3 * 8192)


def test_outputs_are_slices_of_one_block(tmp_path: Path) -> None:
    opened = open_model(tmp_path, models.identity("FP32", ("batch", 4)), "max_batch_size: 8")
    one = {"INPUT0": (DataType.FP32, (1, 4), bytes(16))}
    two = {"INPUT0": (DataType.FP32, (2, 4), bytes(32))}
    at = [answer["OUTPUT0"][3] for answer in opened.raw(two, one, two)]
    assert [address - at[0] for address in at] == [0, 32, 48]


@pytest.mark.parametrize("dims", [("batch", 4), ("batch", "n")])
def test_outputs_outlive_everything(tmp_path: Path, dims: tuple[str, int | str]) -> None:
    opened = open_model(tmp_path, models.identity("FP32", dims), "max_batch_size: 8")
    assert opened.model is not None
    held: list[drive.Held] = []
    sessions = session.live()
    data = np.arange(8, dtype=np.float32).reshape(2, 4)
    opened.run({"INPUT0": data[:1]}, {"INPUT0": data[1:]}, held=held)
    opened.model.close()
    del opened
    gc.collect()
    # Memory that ORT allocated keeps its session; memory of ours does not.
    assert session.live() == sessions - (dims[1] == 4)
    assert drive.read_held(held) == [data[:1].tobytes(), data[1:].tobytes()]
    drive.release_held(held)


def test_constant_and_passed_through_outputs(tmp_path: Path) -> None:
    opened = open_model(tmp_path, models.constant_output())
    for first in (1, 5, 9):
        # The pool hands CONSTANT the block that held OUTPUT0 before: an output that ORT does not write would show.
        (answer,) = opened.run({"INPUT0": np.array([first, 2], np.float32)})
        assert {name: value.tolist() for name, value in answer.items()} == {
            "OUTPUT0": [first + 3, 6],
            "CONSTANT": [3, 4],
        }
    assert opened.instance.counters()["bound"] == 6
    for dims in (("batch", 4), ("batch", "n")):
        opened = open_model(tmp_path / str(dims[1]), models.passthrough("FP32", dims), "max_batch_size: 8")
        data = np.arange(8, dtype=np.float32).reshape(2, 4)
        for parts in ([data], [data[:1], data[1:]]):
            answers = opened.run(*[{"INPUT0": part} for part in parts])
            for name in ("INPUT0", "COPY"):
                np.testing.assert_array_equal(np.concatenate([answer[name] for answer in answers]), data)


TEXTS = [b"", b"a", b"with\0nul", "grüße".encode(), b"\xff\xfe", b"x" * 70_000]


def test_strings(tmp_path: Path) -> None:
    opened = open_model(tmp_path, models.identity("STRING", ("batch", 3)), "max_batch_size: 8")
    table = np.empty((4, 3), object)
    table[:] = [[TEXTS[(3 * i + j) % len(TEXTS)] for j in range(3)] for i in range(4)]
    for sizes in ([4], [1, 3], [2, 1, 1]):
        answers = opened.run(*[{"INPUT0": part} for part in np.split(table, np.cumsum(sizes)[:-1])])
        assert [answer["OUTPUT0"].shape for answer in answers] == [(n, 3) for n in sizes]
        assert np.concatenate([answer["OUTPUT0"] for answer in answers]).tolist() == table.tolist()


def test_any_strings(tmp_path: Path) -> None:
    config = """
    input { name: "INPUT0" data_type: TYPE_STRING dims: -1 }
    output { name: "OUTPUT0" data_type: TYPE_STRING dims: -1 }
    """
    opened = open_model(tmp_path, models.identity("STRING", ("n",)), config)

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.binary(max_size=40), max_size=50))
    def check(items: list[bytes]) -> None:
        (answer,) = opened.raw({"INPUT0": (DataType.STRING, (len(items),), wire_strings(items))})
        assert answer["OUTPUT0"][:3] == (DataType.STRING, (len(items),), wire_strings(items))

    check()


def test_many_strings(tmp_path: Path) -> None:
    opened = open_model(tmp_path, models.identity("STRING", ("batch", "n")), "max_batch_size: 4")
    items = np.array([str(i).encode() for i in range(100_000)], object).reshape(2, 50_000)
    (answer,) = opened.run({"INPUT0": items})
    assert answer["OUTPUT0"].tolist() == items.tolist()


@pytest.mark.parametrize("data", [b"\x05\0\0\0ab", b"\x01\0\0", wire_strings([b"a"]), wire_strings([b"a"] * 3)])
def test_string_bytes_that_do_not_fit_the_shape(tmp_path: Path, data: bytes) -> None:
    opened = open_model(tmp_path, models.identity("STRING", ("batch", 2)), "max_batch_size: 4")
    (answer,) = opened.raw({"INPUT0": (DataType.STRING, (1, 2), data)})
    assert isinstance(answer, InvalidArg)
    assert "INPUT0" in str(answer)


def test_scalars(tmp_path: Path) -> None:
    opened = open_model(tmp_path, models.scalar())
    assert list(opened.config.input[0].dims) == [1]
    (answer,) = opened.run({"INPUT0": np.array([2.5], np.float32)})
    assert answer["OUTPUT0"].shape == (1,)
    assert answer["OUTPUT0"].tolist() == [5.0]


def test_scalar_per_batch_item(tmp_path: Path) -> None:
    opened = open_model(tmp_path, models.row_sum())
    assert list(opened.config.output[0].dims) == [1]
    assert opened.config.output[0].HasField("reshape")
    data = np.arange(12, dtype=np.float32).reshape(3, 4)
    answers = opened.run({"INPUT0": data[:1]}, {"INPUT0": data[1:]})
    assert [answer["OUTPUT0"].tolist() for answer in answers] == [[[6.0]], [[22.0], [38.0]]]


RESHAPE = """
max_batch_size: 8
input { name: "INPUT0" data_type: TYPE_FP32 dims: [ 2, -1 ] reshape { shape: [ 2, 1, -1 ] } }
output { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 1, 2, -1 ] reshape { shape: [ 2, 1, -1 ] } }
"""


def test_reshape_with_a_variable_dimension(tmp_path: Path) -> None:
    opened = open_model(tmp_path, models.identity("FP32", ("batch", 2, 1, "n")), RESHAPE)
    data = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    answers = opened.run({"INPUT0": data[:1]}, {"INPUT0": data[1:]})
    assert [answer["OUTPUT0"].shape for answer in answers] == [(1, 1, 2, 3), (1, 1, 2, 3)]
    np.testing.assert_array_equal(np.concatenate([answer["OUTPUT0"][:, 0] for answer in answers]), data)


def test_variable_dims(tmp_path: Path) -> None:
    blob = models.add_sub("FP32", ("batch", "n", "k"))
    opened = open_model(tmp_path, blob, "max_batch_size: 8")
    for shape in ((1, 1, 1), (2, 3, 4), (1, 7, 2)):
        a = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        (answer,) = opened.run({"INPUT0": a, "INPUT1": a})
        np.testing.assert_array_equal(answer["OUTPUT0"], a + a)
        assert answer["OUTPUT1"].shape == shape


@pytest.mark.parametrize("kind", ["FP32", "STRING"])
def test_tensors_without_elements(tmp_path: Path, kind: str) -> None:
    opened = open_model(tmp_path, models.identity(kind, ("batch", "n")), "max_batch_size: 8")
    empty = {"INPUT0": (DataType[kind], (2, 0), b"")}
    for answer in (*opened.raw(empty), *opened.raw(empty, empty)):
        assert answer["OUTPUT0"][:3] == (DataType[kind], (2, 0), b"")


def test_size_known_only_after_the_run(tmp_path: Path) -> None:
    config = """
    input { name: "INPUT0" data_type: TYPE_FP32 dims: -1 }
    output { name: "OUTPUT0" data_type: TYPE_INT64 dims: [ 1, -1 ] }
    """
    opened = open_model(tmp_path, models.nonzero(), config)
    (answer,) = opened.run({"INPUT0": np.array([0, 1, 0, 2], np.float32)})
    assert answer["OUTPUT0"].tolist() == [[1, 3]]
    (answer,) = opened.run({"INPUT0": np.zeros(3, np.float32)})
    assert answer["OUTPUT0"].shape == (1, 0)


def test_output_whose_first_dimension_is_not_the_batch(tmp_path: Path) -> None:
    opened = open_model(tmp_path, models.batch_loser(), "max_batch_size: 8")
    x = np.ones((1, 4), np.float32)
    answers = opened.run({"INPUT0": x}, {"INPUT0": x}, wanted=[None, ["OUTPUT1"]])
    assert isinstance(answers[0], Internal)
    assert str(answers[0]) == (
        "failed to split the output tensor 'OUTPUT0' in responses: expected batch size of 2 in model output, got 8"
    )
    np.testing.assert_array_equal(answers[1]["OUTPUT1"], x)


def test_model_that_lies_about_its_batch(tmp_path: Path) -> None:
    opened = open_model(tmp_path, models.batch_loser("batch"), "max_batch_size: 8")
    dense, sparse = np.ones((1, 4), np.float32), np.eye(1, 4, dtype=np.float32)
    answers = opened.run({"INPUT0": dense}, {"INPUT0": dense}, wanted=[None, ["OUTPUT1"]])
    assert "got 8" in str(answers[0])
    np.testing.assert_array_equal(answers[1]["OUTPUT1"], dense)
    assert opened.instance.counters()["reruns"] == 1
    (answer,) = opened.run({"INPUT0": sparse})
    assert answer["OUTPUT0"].tolist() == [[0, 0]]
    opened.run({"INPUT0": dense})
    assert opened.instance.counters()["reruns"] == 1


def test_error_of_the_run_fails_the_batch_and_nothing_else(tmp_path: Path) -> None:
    opened = open_model(tmp_path, models.gather(), "max_batch_size: 8")
    good, bad = {"INDEX": np.array([[3]], np.int64)}, {"INDEX": np.array([[99]], np.int64)}
    answers = opened.run(good, bad)
    for answer in answers:
        assert isinstance(answer, Internal)
        assert str(answer).startswith("onnx runtime error 2: ")
        assert "indices element out of data bounds" in str(answer)
        assert str(tmp_path) not in str(answer)
    (answer,) = opened.run(good)
    assert answer["OUTPUT0"].tolist() == [[3.0]]


def test_wrong_shape_is_an_error_of_ort(tmp_path: Path) -> None:
    opened = open_model(tmp_path, models.mlp(), "max_batch_size: 8")
    (answer,) = opened.run({"INPUT": np.zeros((1, 5), np.float32)})
    assert isinstance(answer, Internal)
    assert str(answer).startswith("onnx runtime error 2: ")


def test_bytes_that_do_not_fill_the_shape(tmp_path: Path) -> None:
    opened = open_model(tmp_path, models.mlp(), "max_batch_size: 8")
    (answer,) = opened.raw({"INPUT": (DataType.FP32, (1, 16), bytes(60))})
    assert isinstance(answer, Internal)
    assert str(answer).startswith("onnx runtime error 2: ")


def test_without_a_batch_dimension_each_request_runs_alone(tmp_path: Path) -> None:
    opened = open_model(tmp_path, models.identity("INT32", (2, 2)))
    arrays = [np.full((2, 2), n, np.int32) for n in range(3)]
    answers = opened.run(*[{"INPUT0": a} for a in arrays])
    for a, answer in zip(arrays, answers, strict=True):
        np.testing.assert_array_equal(answer["OUTPUT0"], a)
    assert opened.instance.counters()["runs"] == 3


def test_optional_input_that_is_an_initializer(tmp_path: Path) -> None:
    config = """
    input { name: "INPUT0" data_type: TYPE_FP32 dims: 2 }
    input { name: "BIAS" data_type: TYPE_FP32 dims: 2 optional: true }
    output { name: "OUTPUT0" data_type: TYPE_FP32 dims: 2 }
    """
    opened = open_model(tmp_path, models.overridable(), config)
    x = np.array([10, 20], np.float32)
    (answer,) = opened.run({"INPUT0": x})
    assert answer["OUTPUT0"].tolist() == [11, 22]
    (answer,) = opened.run({"INPUT0": x, "BIAS": np.array([5, 5], np.float32)})
    assert answer["OUTPUT0"].tolist() == [15, 25]


@pytest.mark.parametrize("intra", [1, 2])
def test_instances_on_threads(tmp_path: Path, intra: int) -> None:
    blob = models.matmul_chain(64, 2)
    opened = open_model(tmp_path, blob, "max_batch_size: 8", threads=intra)
    others = [opened.model.create_instance(InstanceSpec(f"m_{n}", "KIND_CPU")) for n in range(1, 3)]
    assert session.live() == (1 if intra == 1 else 3)
    data = np.random.default_rng(5).standard_normal((3, 64)).astype(np.float32)
    expected = reference(blob, {"INPUT0": data})["OUTPUT0"]
    failures: list[str] = []

    def work(seat: Opened) -> None:
        for _ in range(50):
            (answer,) = seat.run({"INPUT0": data})
            if isinstance(answer, Exception) or not np.allclose(answer["OUTPUT0"], expected, atol=1e-5):
                failures.append(str(answer))

    seats = [Opened(opened.model, opened.handle, made, None) for made in (opened.instance, *others)]
    threads = [threading.Thread(target=work, args=(seat,)) for seat in seats]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_repeat_counts_failures(tmp_path: Path) -> None:
    opened = open_model(tmp_path, models.gather(), "max_batch_size: 8")
    good = {"INDEX": (DataType.INT64, (1, 1), (3).to_bytes(8, "little"))}
    bad = {"INDEX": (DataType.INT64, (1, 1), (99).to_bytes(8, "little"))}
    assert drive.repeat(opened.instance, opened.handle, [good, good], 10)[1] == 0
    assert drive.repeat(opened.instance, opened.handle, [good, bad], 3)[1] == 6
