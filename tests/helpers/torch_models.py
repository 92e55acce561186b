"""PyTorch models as files, and opened by the backend the way the server opens them; needs PyTorch.

Knows configs and the backend; no queue and no front end.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch

from tests.helpers.onnx_repository import NUMPY, text_array, wire_strings
from triton_fast import config as configs
from triton_fast._native.core.model import ModelHandle
from triton_fast._native.ort import drive
from triton_fast.backends.base import InstanceSpec, LoadContext
from triton_fast.backends.pytorch import PyTorchBackend
from triton_fast.backends.pytorch.backend import TorchModel
from triton_fast.config import io_specs
from triton_fast.types import DataType

KINDS: dict[str, torch.dtype] = {
    "BOOL": torch.bool, "UINT8": torch.uint8, "UINT16": torch.uint16, "UINT32": torch.uint32, "UINT64": torch.uint64,
    "INT8": torch.int8, "INT16": torch.int16, "INT32": torch.int32, "INT64": torch.int64, "FP16": torch.float16,
    "FP32": torch.float32, "FP64": torch.float64, "BF16": torch.bfloat16,
}  # fmt: skip
ARRAYS: dict[DataType, Any] = {**NUMPY, DataType.BF16: ml_dtypes.bfloat16}
OF_ARRAY = {np.dtype(kind): dtype for dtype, kind in ARRAYS.items()}
Save = Callable[[str], Any]


class Linear(torch.nn.Module):
    """(x[n,4], y[n,3]) -> x W + b + y, x - 1."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor):
        return self.layer(x) + y, x - 1


def script(module: torch.nn.Module) -> Any:
    """The module as TorchScript; torch warns that this is old."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(module.eval())


def saving(module: torch.nn.Module) -> Save:
    scripted = script(module)

    def save(path: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(scripted, path)

    return save


def exporting(module: torch.nn.Module, *samples: Any, dynamic: bool = True, **named: Any) -> Save:
    """Save as an exported program; ``dynamic``: the first dimension of every tensor is variable."""

    def shape(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return {0: torch.export.Dim("rows", min=1, max=64)}
        if isinstance(value, dict):
            return {key: shape(one) for key, one in value.items()}
        return type(value)(shape(one) for one in value)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = (*map(shape, samples), *map(shape, named.values())) if dynamic else None
        program = torch.export.export(module.eval(), samples, named or None, dynamic_shapes=shapes)

    def save(path: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(program, path)

    save.program = program  # type: ignore[attr-defined]
    return save


def io(side: str, **tensors: str) -> str:
    """``io("input", x="FP32 4,-1")``"""
    rows = []
    for name, text in tensors.items():
        kind, _, dims = text.partition(" ")
        more = ""
        if dims == "[]":
            dims, more = "1", " reshape { shape: [ ] }"
        rows.append(f'{{ name: "{name}" data_type: TYPE_{kind} dims: [{dims}]{more} }}')
    return f"{side} [{', '.join(rows)}]\n"


def write(
    root: Path, save: Save | bytes | None, config: str | None, name: str = "m", filename: str = "model.pt"
) -> Path:
    folder = root / name / "1"
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(save, bytes):
        (folder / filename).write_bytes(save)
    elif save is not None:
        save(str(folder / filename))
    if config is not None:
        (root / name / "config.pbtxt").write_text(config)
    return root / name


def context(model_dir: Path, *, settings: Mapping[str, str] | None = None, threads: int = 1) -> LoadContext:
    """Read, complete and check the config, as the repository does."""
    parsed = configs.read_model_config(model_dir, strict=False)
    config = parsed.config
    configs.normalize(config, cpu_count=2)
    configs.validate(config, model_dir, io=False)
    made = LoadContext(
        config.name, 1, model_dir, model_dir / "1", config, dict(settings or {}), threads, given=parsed.given
    )
    PyTorchBackend().complete_config(made)
    configs.normalize(config, cpu_count=2)
    configs.validate(config, model_dir)
    return made


@dataclass
class Opened:
    model: TorchModel
    handle: ModelHandle
    instance: Any
    config: Any

    def run(self, *requests: Mapping[str, Any], **options: Any) -> list[Any]:
        """Execute one batch; each answer is {name: array}, or the error."""
        made = [{key: _tensor(value) for key, value in request.items()} for request in requests]
        answers = drive.run_batch(self.instance, self.handle, made, **options)
        return [
            answer if isinstance(answer, Exception) else {key: _array(value) for key, value in answer.items()}
            for answer in answers
        ]


def open_model(
    root: Path, save: Save | bytes | None, config: str | None = None, filename: str = "model.pt", **options: Any
) -> Opened:
    return open_written(write(root, save, config, filename=filename), **options)


def open_written(model_dir: Path, *, kind: str = "KIND_CPU", **options: Any) -> Opened:
    """Open what is in a model's directory, with one instance."""
    made = context(model_dir, **options)
    model = PyTorchBackend().load(made)
    assert isinstance(model, TorchModel)
    inputs, outputs = io_specs(made.config)
    handle = ModelHandle(made.name, 1, made.config.max_batch_size, inputs, outputs)
    return Opened(model, handle, model.create_instance(InstanceSpec("m_0", kind)), made.config)


def to_array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """A tensor of any datatype as numpy has it."""
    kind = next(name for name, dtype in KINDS.items() if dtype == tensor.dtype)
    data = bytes(tensor.detach().contiguous().untyped_storage())
    start = tensor.storage_offset() * tensor.element_size() if tensor.is_contiguous() else 0
    return np.frombuffer(data[start : start + tensor.nbytes], ARRAYS[DataType[kind]]).reshape(tensor.shape)


def same(found: np.ndarray[Any, Any], expected: torch.Tensor) -> bool:
    array = to_array(expected)
    return found.dtype == array.dtype and found.shape == array.shape and found.tobytes() == array.tobytes()


def _tensor(value: Any) -> tuple[int, tuple[int, ...], bytes]:
    array = to_array(value) if isinstance(value, torch.Tensor) else np.asarray(value)
    if array.dtype == object:
        return DataType.STRING, array.shape, wire_strings(list(array.reshape(-1)))
    return OF_ARRAY[array.dtype], array.shape, array.tobytes()


def _array(output: tuple[int, tuple[int, ...], bytes, int]) -> Any:
    dtype, shape, data, _ = output
    if dtype == DataType.STRING:
        return text_array(data, shape)
    return np.frombuffer(data, ARRAYS[DataType(dtype)]).reshape(shape)
