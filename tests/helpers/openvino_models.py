"""Small OpenVINO models for tests, made with the openvino package, and repositories that hold them.

``write`` saves a model as IR; ``reference`` is what OpenVINO itself computes. ``NUMPY``: config name -> numpy type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.helpers.onnx_repository import wire_strings
from triton_fast import config as configs
from triton_fast._native.core.model import ModelHandle
from triton_fast._native.ort import drive
from triton_fast.backends.base import InstanceSpec, LoadContext
from triton_fast.config import io_specs
from triton_fast.types import DataType

ov = pytest.importorskip("openvino", reason="openvino is missing: pip install 'triton_fast[openvino]'")
ops = ov.opset13

NUMPY: dict[str, Any] = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "FP16": np.float16, "FP32": np.float32,
    "FP64": np.float64, "BF16": ml_dtypes.bfloat16,
}  # fmt: skip
OF_NUMPY = {np.dtype(kind): DataType[name] for name, kind in NUMPY.items()}
ELEMENT: dict[str, Any] = {
    "BOOL": ov.Type.boolean, "UINT8": ov.Type.u8, "UINT16": ov.Type.u16, "UINT32": ov.Type.u32, "UINT64": ov.Type.u64,
    "INT8": ov.Type.i8, "INT16": ov.Type.i16, "INT32": ov.Type.i32, "INT64": ov.Type.i64, "FP16": ov.Type.f16,
    "FP32": ov.Type.f32, "FP64": ov.Type.f64, "BF16": ov.Type.bf16, "STRING": ov.Type.string,
}  # fmt: skip


def model(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Any:
    """A model of named parameters and named nodes."""
    for name, node in inputs.items():
        node.output(0).set_names({name})
        node.set_friendly_name(name)
    results = []
    for name, node in outputs.items():
        node.output(0).set_names({name})
        results.append(ops.result(node))
    return ov.Model(results, list(inputs.values()), "m")


def swap(kind: str = "FP32", dims: Sequence[int] = (-1, 2, 3)) -> Any:
    """OUT = IN with its last two dimensions exchanged: of any datatype, and no node that can be left out."""
    given = ops.parameter(list(dims), ELEMENT[kind])
    order = [*range(len(dims) - 2), len(dims) - 1, len(dims) - 2]
    return model({"IN": given}, {"OUT": ops.transpose(given, ops.constant(np.array(order, np.int64)))})


def add_sub(kind: str = "FP32", dims: Sequence[int] = (-1, 4)) -> Any:
    """SUM = A + B, DIFFERENCE = A - B."""
    a, b = (ops.parameter(list(dims), ELEMENT[kind]) for _ in range(2))
    return model({"A": a, "B": b}, {"SUM": ops.add(a, b), "DIFFERENCE": ops.subtract(a, b)})


def dense(size: int = 64, depth: int = 3, batch: int = -1, seed: int = 3) -> Any:
    """OUT = IN times ``depth`` square matrices; batches of ``batch`` rows."""
    rng = np.random.default_rng(seed)
    given = ops.parameter([batch, size], np.float32)
    node = given
    for _ in range(depth):
        weights = (rng.standard_normal((size, size)) / size**0.5).astype(np.float32)
        node = ops.matmul(node, ops.constant(weights), False, False)
    return model({"IN": given}, {"OUT": node})


def nonzero(dims: Sequence[int] = (-1,)) -> Any:
    """OUT = indices of the elements that are not zero: its size is known only after the run."""
    given = ops.parameter(list(dims), np.float32)
    return model({"IN": given}, {"OUT": ops.transpose(ops.non_zero(given, "i64"), ops.constant(np.array([1, 0])))})


def passing(dims: Sequence[int] = (-1, 4)) -> Any:
    """A goes through as it is; SUM = A + B."""
    a, b = (ops.parameter(list(dims), np.float32) for _ in range(2))
    return model({"A": a, "B": b}, {"A": a, "SUM": ops.add(a, b)})


def write(root: Path, made: Any, config: str | None = None, name: str = "m", filename: str = "model.xml") -> Path:
    """Save the model as ``root/name/1/model.xml``; return the model's directory."""
    folder = root / name / "1"
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(made, bytes):
        (folder / filename).write_bytes(made)
    elif made is not None:
        ov.save_model(made, folder / filename, compress_to_fp16=False)
    if config is not None:
        (root / name / "config.pbtxt").write_text(config)
    return root / name


def parameter(key: str, value: str) -> str:
    return f'\nparameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


def io(side: str, name: str, kind: str, dims: Sequence[int], more: str = "") -> str:
    return f'\n{side} [{{ name: "{name}" data_type: TYPE_{kind} dims: [{", ".join(map(str, dims))}] {more} }}]'


def reference(path: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What OpenVINO computes of the file. Tensors carry the bytes: numpy has no BF16."""
    compiled = ov.Core().compile_model(str(path), "CPU", {"INFERENCE_NUM_THREADS": 1})
    request = compiled.create_infer_request()
    for name, array in inputs.items():
        tensor = ov.Tensor(ELEMENT[OF_NUMPY[array.dtype].name], list(array.shape))
        tensor.data[:] = array.view(tensor.data.dtype)
        request.set_tensor(name, tensor)
    request.infer()
    found = {}
    for port in compiled.outputs:
        tensor = request.get_tensor(port)
        kind = next(name for name, element in ELEMENT.items() if element == tensor.element_type)
        found[port.get_any_name()] = np.array(tensor.data).view(NUMPY[kind]).reshape(tuple(tensor.shape))
    return found


def context(model_dir: Path, *, settings: Mapping[str, str] | None = None, threads: int = 1) -> LoadContext:
    """Read, complete and check the config, as the repository does."""
    from triton_fast.backends.openvino import OpenVinoBackend

    parsed = configs.load_model_config(model_dir, strict=False)
    configs.normalize(parsed, cpu_count=2)
    configs.validate(parsed, model_dir, io=False)
    made = LoadContext(parsed.name, 1, model_dir, model_dir / "1", parsed, dict(settings or {}), threads)
    OpenVinoBackend().complete_config(made)
    configs.normalize(made.config, cpu_count=2)
    configs.validate(made.config, model_dir)
    return made


def tensor(array: np.ndarray) -> tuple[int, tuple[int, ...], bytes]:
    if array.dtype == object:
        return DataType.STRING, array.shape, wire_strings(list(array.flat))
    return OF_NUMPY[array.dtype], array.shape, array.tobytes()


@dataclass
class Opened:
    model: Any
    handle: ModelHandle
    instance: Any
    config: Any

    def run(self, *requests: Mapping[str, np.ndarray], **options: Any) -> list[Any]:
        """Execute one batch; each answer is {name: array}, or the error."""
        made = [{key: tensor(value) for key, value in request.items()} for request in requests]
        return [
            answer if isinstance(answer, Exception) else {
                name: np.frombuffer(data, NUMPY[DataType(dtype).name]).reshape(shape)
                for name, (dtype, shape, data, _) in answer.items()
            }
            for answer in drive.run_batch(self.instance, self.handle, made, **options)
        ]  # fmt: skip


def open_written(model_dir: Path, **options: Any) -> Opened:
    """Open what is in a model's directory, with one instance."""
    from triton_fast.backends.openvino import OpenVinoBackend

    made = context(model_dir, **options)
    opened = OpenVinoBackend().load(made)
    inputs, outputs = io_specs(made.config)
    handle = ModelHandle(made.name, 1, made.config.max_batch_size, inputs, outputs)
    return Opened(opened, handle, opened.create_instance(InstanceSpec("m_0", "KIND_CPU")), made.config)


def open_model(root: Path, made: Any, config: str = "", **options: Any) -> Opened:
    """Save a model and open it."""
    return open_written(write(root, made, config or 'backend: "openvino"'), **options)
