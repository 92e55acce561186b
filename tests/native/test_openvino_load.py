"""Models that the OpenVINO backend opens or refuses, with the cause and without absolute paths; parameters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import onnx_models
from tests.helpers import openvino_models as models
from tests.helpers.openvino_models import context, io, open_model, open_written, ov, parameter, write
from triton_fast._native.openvino import capi
from triton_fast.backends.openvino import library
from triton_fast.backends.openvino.plan import make_plan
from triton_fast.errors import Internal, InvalidArg, ServerError, Unavailable, Unsupported
from triton_fast.types import DataType

BACKEND = 'backend: "openvino"\n'
GIVEN = f"{BACKEND}max_batch_size: 4" + io("input", "IN", "FP32", (2, 3)) + io("output", "OUT", "FP32", (3, 2))


def ir(root: Path, made: Any = None) -> Path:
    """A good model of its own, and its version directory."""
    return write(root, made or models.dense(), BACKEND) / "1"


def truncate_xml(folder: Path) -> None:
    path = folder / "model.xml"
    path.write_bytes(path.read_bytes()[:700])


def no_weights(folder: Path) -> None:
    (folder / "model.bin").unlink()


def short_weights(folder: Path) -> None:
    path = folder / "model.bin"
    path.write_bytes(path.read_bytes()[:100])


def other(content: bytes) -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        (folder / "model.xml").write_bytes(content)

    return put


BROKEN: dict[str, tuple[Callable[[Path], object], type[ServerError], str]] = {
    "missing": (lambda folder: (folder / "model.xml").unlink(), Unavailable,
                "unable to find 'm/1/model.xml' for model instance 'm'"),
    "empty": (other(b""), InvalidArg, "unable to load model 'm', 'm/1/model.xml' is empty"),
    "garbage": (other(b"nonsense"), InvalidArg, "'m/1/model.xml' is not an OpenVINO IR: it has no element <net>"),
    "another framework": (other(onnx_models.identity()), InvalidArg, "'m/1/model.xml' is not an OpenVINO IR"),
    "lfs": (other(b"version https://git-lfs.github.com/spec/v1\n"), InvalidArg, "is a Git LFS pointer"),
    "truncated": (truncate_xml, Internal, "'m/1/model.xml': openvino error in reading model : "),
    "no weights": (no_weights, Internal, "there is no 'm/1/model.bin'"),
    "short weights": (short_weights, Internal, "Incorrect weights in bin file!"),
    "unknown operator": (lambda folder: (folder / "model.xml").write_text(
        (folder / "model.xml").read_text().replace('type="MatMul"', 'type="NoSuchOp"')), Internal, "NoSuchOp"),
}  # fmt: skip


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(tmp_path: Path, name: str, given: bool) -> None:
    harm, kind, text = BROKEN[name]
    folder = ir(tmp_path)
    if given:
        tensors = io("input", "IN", "FP32", (64,)) + io("output", "OUT", "FP32", (64,))
        (folder.parent / "config.pbtxt").write_text(f"{BACKEND}max_batch_size: 4{tensors}")
    harm(folder)
    with pytest.raises(kind) as caught:
        open_written(folder.parent)
    assert text in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert "Exception from" not in str(caught.value)


WRONG = {
    "datatype": (GIVEN.replace("TYPE_FP32 dims: [2", "TYPE_INT32 dims: [2"), "configuration expects datatype "
                 "TYPE_INT32 for input 'IN', model provides TYPE_FP32"),
    "input name": (GIVEN.replace('"IN"', '"OTHER"'), "unexpected inference input 'OTHER', allowed inputs are: IN"),
    "output name": (GIVEN.replace('"OUT"', '"OTHER"'), "unexpected inference output 'OTHER', allowed outputs are: OUT"),
    "count": (GIVEN + io("input", "MORE", "FP32", (1,)), "configuration expects 2 inputs, model provides 1"),
    "dims": (GIVEN.replace("[2, 3]", "[2, 4]"), "the model expects 3 dimensions (shape [-1,2,3])"),
    "rank": (GIVEN.replace("[2, 3]", "[6]"), "the model expects 3 dimensions (shape [-1,2,3])"),
    "unbatched": (GIVEN.replace("size: 4", "size: 0"), "the model expects 3 dimensions (shape [-1,2,3])"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_configs_that_do_not_fit(tmp_path: Path, name: str) -> None:
    config, text = WRONG[name]
    with pytest.raises(ServerError) as caught:
        open_model(tmp_path, models.swap(), config)
    assert text in str(caught.value)


def test_strings_are_refused_with_the_reason(tmp_path: Path) -> None:
    given = models.ops.parameter([-1], ov.Type.string)
    text = models.model({"IN": given}, {"OUT": given})
    for config in (BACKEND, BACKEND + io("input", "IN", "STRING", (-1,)) + io("output", "OUT", "STRING", (-1,))):
        with pytest.raises(Unsupported, match="C API does not give out the elements of string tensors"):
            open_model(tmp_path, text, config)


def test_auto_complete(tmp_path: Path) -> None:
    config = open_model(tmp_path, models.swap("INT64")).config
    assert (config.max_batch_size, list(config.input[0].dims), list(config.output[0].dims)) == (4, [2, 3], [3, 2])
    assert config.input[0].data_type == config.output[0].data_type == DataType.INT64
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    config = open_written(write(tmp_path, models.swap("FP16", (5, 2, 3)), BACKEND, "fixed")).config
    assert (config.max_batch_size, list(config.input[0].dims)) == (0, [5, 2, 3])
    config = open_written(write(tmp_path, models.swap(), BACKEND, "more"), settings={
        "default-max-batch-size": "16"}).config  # fmt: skip
    assert config.max_batch_size == 16


def test_a_model_whose_batch_can_not_vary(tmp_path: Path) -> None:
    given = models.ops.parameter([2, 3], np.float32)
    fixed = models.ops.add(given, models.ops.constant(np.ones((2, 3), np.float32)))
    made = models.model({"IN": given}, {"OUT": fixed})
    assert open_model(tmp_path, made).run({"IN": np.zeros((2, 3), np.float32)})[0]["OUT"].shape == (2, 3)
    with pytest.raises(ServerError):
        open_written(write(tmp_path, models.model({"IN": models.ops.parameter([], np.float32)}, {
            "OUT": models.ops.constant(np.ones(2, np.float32))}), f"{BACKEND}max_batch_size: 2", "scalar"))  # fmt: skip


def test_other_forms(tmp_path: Path) -> None:
    blob = onnx_models.add_sub("FP32", ("batch", 4))
    text = f'{BACKEND}default_model_filename: "model.onnx"'
    opened = open_written(write(tmp_path, blob, text, "onnx", "model.onnx"))
    array = np.arange(8, dtype=np.float32).reshape(2, 4)
    (answer,) = opened.run({"INPUT0": array, "INPUT1": array})
    assert (answer["OUTPUT0"] == 2 * array).all()
    with pytest.raises(Internal, match=r"'cut/1/model.onnx': openvino error in reading model"):
        open_written(write(tmp_path, blob[:40], text, "cut", "model.onnx"))


PLANS: dict[str, tuple[str, dict[str, str]]] = {
    "": ("", {"INFERENCE_NUM_THREADS": "2", "NUM_STREAMS": "2", "ENABLE_CPU_PINNING": "NO"}),
    "hint": (parameter("PERFORMANCE_HINT", "latency"),
             {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": "2", "ENABLE_CPU_PINNING": "NO"}),
    "streams": (parameter("NUM_STREAMS", "auto") + parameter("INFERENCE_NUM_THREADS", "1"),
                {"NUM_STREAMS": "AUTO", "INFERENCE_NUM_THREADS": "1", "ENABLE_CPU_PINNING": "NO"}),
    "old names": (parameter("CPU_THREADS_NUM", "3") + parameter("CPU_THROUGHPUT_STREAMS", "1")
                  + parameter("ENFORCE_BF16", "yes") + parameter("CPU_BIND_THREAD", "numa"),
                  {"INFERENCE_NUM_THREADS": "3", "NUM_STREAMS": "1", "INFERENCE_PRECISION_HINT": "bf16",
                   "ENABLE_CPU_PINNING": "YES"}),
    "passed on": (parameter("INFERENCE_PRECISION_HINT", "f32") + parameter("NOT_ONE", "x"),
                  {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "2", "NUM_STREAMS": "2",
                   "ENABLE_CPU_PINNING": "NO"}),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
def test_parameters(tmp_path: Path, name: str) -> None:
    more, expected = PLANS[name]
    text = f"{BACKEND}instance_group [{{ count: 2 kind: KIND_CPU }}]{more}"
    made = context(write(tmp_path, models.dense(), text))
    plan = make_plan(made)
    assert (plan.device, plan.properties) == ("CPU", expected)
    elsewhere = make_plan(context(write(tmp_path, models.dense(), text + parameter("TARGET_DEVICE", "GPU.1"))))
    assert (elsewhere.device, elsewhere.properties) == ("GPU.1", plan.given)
    write(tmp_path, models.dense(), text)
    assert open_written(tmp_path / "m").instance is not None


BAD = {
    "NUM_STREAMS": ("many", "expected the parameter 'NUM_STREAMS' to be a non-negative number or AUTO/NUMA, got many"),
    "INFERENCE_NUM_THREADS": ("-1", "expected the parameter 'INFERENCE_NUM_THREADS' to be a non-negative number"),
    "HINT_BF16": ("maybe", "expected the parameter 'HINT_BF16' to be either YES or NO, got maybe"),
    "PERFORMANCE_HINT": ("FAST", "expected the parameter 'PERFORMANCE_HINT' to be one of"),
    "INFERENCE_PRECISION_HINT": ("f7", "openvino error in compiling the model : "),
    "CPU_EXTENSION_PATH": ("none.so", "openvino error in loading the extension : "),
}


@pytest.mark.parametrize("key", BAD)
def test_parameters_that_can_not_be_used(tmp_path: Path, key: str) -> None:
    value, text = BAD[key]
    with pytest.raises(ServerError) as caught:
        open_model(tmp_path, models.dense(), BACKEND + parameter(key, value))
    assert text in str(caught.value)


def test_element_types_have_numbers_of_their_own() -> None:
    library.open_library()
    numbers = capi.element_types()
    assert set(numbers) == set(DataType) - {DataType.INVALID}
    assert len(set(numbers.values())) == len(numbers)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Unavailable, match=r"OpenVINO is not installed: pip install 'triton_fast\[openvino\]'"):
        library.find_library()


def test_a_library_that_is_none(tmp_path: Path) -> None:
    library.open_library()
    with pytest.raises(Internal, match="already loaded from another file"):
        capi.open_library(str(tmp_path / "libopenvino_c.so"))
