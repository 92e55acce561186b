"""A one-model repository on disk, opened by the ONNX Runtime backend the way the server opens it.

Knows configs and the backend; no queue and no front end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from triton_fast import config as configs
from triton_fast._native.core.model import ModelHandle
from triton_fast._native.ort import drive
from triton_fast._native.ort.instance import OrtInstance
from triton_fast.backends.base import InstanceSpec, LoadContext
from triton_fast.backends.host import Host
from triton_fast.backends.onnxruntime import OnnxRuntimeBackend
from triton_fast.backends.onnxruntime.backend import OnnxModel
from triton_fast.config import io_specs
from triton_fast.types import DataType

NUMPY: dict[DataType, Any] = {
    DataType.BOOL: np.bool_, DataType.UINT8: np.uint8, DataType.UINT16: np.uint16, DataType.UINT32: np.uint32,
    DataType.UINT64: np.uint64, DataType.INT8: np.int8, DataType.INT16: np.int16, DataType.INT32: np.int32,
    DataType.INT64: np.int64, DataType.FP16: np.float16, DataType.FP32: np.float32, DataType.FP64: np.float64,
}  # fmt: skip
OF_NUMPY = {np.dtype(kind): dtype for dtype, kind in NUMPY.items()}


def wire_strings(items: Sequence[bytes]) -> bytes:
    return b"".join(len(item).to_bytes(4, "little") + item for item in items)


def text_array(data: bytes, shape: Sequence[int]) -> np.ndarray:
    """STRING data as an object array of bytes."""
    items, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        items.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    made = np.empty(len(items), object)
    made[:] = items
    return made.reshape(shape)


def tensor(array: np.ndarray) -> tuple[int, tuple[int, ...], bytes]:
    """A numpy array as an input of ``drive``; object arrays of bytes become STRING."""
    if array.dtype == object:
        return DataType.STRING, array.shape, wire_strings(list(array.reshape(-1)))
    return OF_NUMPY[array.dtype], array.shape, array.tobytes()


def array(output: tuple[int, tuple[int, ...], bytes, int]) -> np.ndarray:
    """An output of ``drive`` as a numpy array."""
    dtype, shape, data, _ = output
    if dtype == DataType.STRING:
        return text_array(data, shape)
    return np.frombuffer(data, NUMPY[DataType(dtype)]).reshape(shape)


def write(root: Path, blob: bytes | None, config: str = "", name: str = "m", filename: str = "model.onnx") -> Path:
    """Write ``root/name/1/filename`` and config.pbtxt; return the model's directory."""
    folder = root / name / "1"
    folder.mkdir(parents=True, exist_ok=True)
    if blob is not None:
        (folder / filename).write_bytes(blob)
    (root / name / "config.pbtxt").write_text(config or 'backend: "onnxruntime"')
    return root / name


def context(
    model_dir: Path, *, settings: Mapping[str, str] | None = None, threads: int = 1, gpus: Sequence[int] = ()
) -> LoadContext:
    """Read, complete and check the config, as the repository does."""
    config = configs.load_model_config(model_dir, strict=False)
    configs.normalize(config, cpu_count=2, gpus=gpus)
    configs.validate(config, model_dir, gpus=gpus, io=False)
    host = Host(gpus=tuple(gpus), use_gpu=lambda _: None) if gpus else Host()
    made = LoadContext(config.name, 1, model_dir, model_dir / "1", config, dict(settings or {}), threads, host=host)
    made = dataclasses.replace(made, config=OnnxRuntimeBackend().complete_config(made))
    configs.normalize(made.config, cpu_count=2, gpus=gpus)
    configs.validate(made.config, model_dir, gpus=gpus)
    return made


@dataclass
class Opened:
    model: OnnxModel
    handle: ModelHandle
    instance: OrtInstance
    config: Any

    def run(self, *requests: Mapping[str, np.ndarray], **options: Any) -> list[Any]:
        """Execute one batch; each answer is {name: array}, or the error."""
        made = [{key: tensor(value) for key, value in request.items()} for request in requests]
        answers = drive.run_batch(self.instance, self.handle, made, **options)
        return [
            answer if isinstance(answer, Exception) else {key: array(value) for key, value in answer.items()}
            for answer in answers
        ]

    def raw(self, *requests: Mapping[str, Any], **options: Any) -> list[Any]:
        return drive.run_batch(self.instance, self.handle, list(requests), **options)


def open_model(root: Path, blob: bytes, config: str = "", **options: Any) -> Opened:
    """Write a model and open it."""
    return open_written(write(root, blob, config), **options)


def open_written(model_dir: Path, **options: Any) -> Opened:
    """Open what is in a model's directory, with one instance."""
    return _opened(context(model_dir, **options), InstanceSpec("m_0", "KIND_CPU"))


def open_on_gpu(model_dir: Path, device: int = 0, **options: Any) -> Opened:
    """The same on a GPU; CUDA's driver has to be open."""
    return _opened(context(model_dir, gpus=[device], **options), InstanceSpec("m_0", "KIND_GPU", device))


def _opened(made: LoadContext, spec: InstanceSpec) -> Opened:
    model = OnnxRuntimeBackend().load(made)
    assert isinstance(model, OnnxModel)
    inputs, outputs = io_specs(made.config)
    handle = ModelHandle(made.name, 1, made.config.max_batch_size, inputs, outputs)
    return Opened(model, handle, model.create_instance(spec), made.config)
