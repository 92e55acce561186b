"""Plans for the stand-in of TensorRT (fake_tensorrt/), and the stand-in itself: in this process, or for others.

``plan`` gives a file's bytes; ``installed`` has ``import tensorrt`` give the stand-in on top of the one for libcuda.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.helpers import standin_cuda

FOLDER = Path(__file__).with_name("fake_tensorrt")
VERSION = "11.4.0.106"
# Our names of datatypes -> TensorRT's.
OF_TRT = {
    "FP32": "FLOAT", "FP16": "HALF", "BF16": "BF16", "INT8": "INT8", "UINT8": "UINT8", "INT32": "INT32",
    "INT64": "INT64", "BOOL": "BOOL",
}  # fmt: skip
Shape = Sequence[int]

_made: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends


@cache
def kernels() -> Path:
    """Return the compiled kernels, made once in a process."""
    _made.append(tempfile.TemporaryDirectory(prefix="fake_trt_"))
    target = Path(_made[0].name) / "kernels.so"
    compiler = os.environ.get("CC", "gcc").split()
    flags = ["-std=gnu11", "-O1", "-shared", "-fPIC", "-fvisibility=hidden"]
    subprocess.run([*compiler, *flags, "-o", str(target), str(FOLDER / "kernels.c")], check=True)
    return target


def environment(devices: int = 2, **more: object) -> dict[str, str]:
    """Return the environment in which a server finds both stand-ins."""
    paths = os.pathsep.join((str(FOLDER), str(FOLDER.parents[2])))
    return {**standin_cuda.environment(devices, **more), "FAKE_TRT_KERNELS": str(kernels()), "PYTHONPATH": paths}


@cache
def module() -> ModuleType:
    """Return the stand-in's module, for this process."""
    spec = importlib.util.spec_from_file_location("tensorrt", FOLDER / "tensorrt.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    made.cuda_path = str(standin_cuda.library())  # type: ignore[attr-defined]
    made.kernels_path = str(kernels())  # type: ignore[attr-defined]
    return made


@contextmanager
def installed() -> Iterator[ModuleType]:
    """Have ``import tensorrt`` give the stand-in, whatever is installed."""
    from triton_fast.backends.tensorrt import library, rooms

    def forget() -> None:
        for cached in (library.module, library._logger_class, library._register_own, rooms._room_class):
            cached.cache_clear()

    before = sys.modules.get("tensorrt")
    made = module()
    made.counts.clear()
    sys.modules["tensorrt"] = made
    forget()
    try:
        yield made
    finally:
        if before is None:
            del sys.modules["tensorrt"]
        else:
            sys.modules["tensorrt"] = before
        forget()


def tensor(name: str, kind: str, shape: Shape, *, given: bool, **more: Any) -> dict[str, Any]:
    return {"name": name, "input": given, "dtype": OF_TRT.get(kind, kind), "shape": list(shape), **more}


def plan(
    tensors: Sequence[Mapping[str, Any]],
    ops: Sequence[Mapping[str, Any]],
    profiles: Sequence[Mapping[str, Sequence[Shape]]] = ({},),
    **more: Any,
) -> bytes:
    made = {"version": VERSION, "tensors": tensors, "ops": ops, "profiles": profiles, **more}
    return b"FAKEPLAN" + json.dumps(made).encode()


def between(low: Shape, high: Shape, best: Shape | None = None) -> list[list[int]]:
    return [list(low), list(best or high), list(high)]


def swap(kind: str = "FP32", dims: Shape = (-1, 2, 3), rows: int = 8, **more: Any) -> bytes:
    """OUT = IN with its last two dimensions exchanged, up to ``rows`` where the first dimension varies."""
    profile = {}
    if dims[0] == -1:
        profile = {"IN": between((1, *dims[1:]), (rows, *dims[1:]))}
    tensors = [
        tensor("IN", kind, dims, given=True),
        tensor("OUT", kind, (*dims[:-2], dims[-1], dims[-2]), given=False),
    ]
    return plan(tensors, [{"op": "swap", "in": ["IN"], "out": "OUT"}], [profile], **more)


def add_sub(
    kind: str = "FP32", dims: Shape = (-1, 4), profiles: Sequence[Sequence[Shape]] | None = None, **more: Any
) -> bytes:
    """SUM = A + B, DIFFERENCE = A - B; profiles as ranges that both inputs have."""
    ranges = profiles or [between((1, *dims[1:]), (8, *dims[1:]))]
    tensors = [tensor(name, kind, dims, given=True) for name in "AB"]
    tensors += [tensor(name, kind, dims, given=False) for name in ("SUM", "DIFFERENCE")]
    ops = [{"op": op, "in": ["A", "B"], "out": out} for op, out in (("add", "SUM"), ("sub", "DIFFERENCE"))]
    return plan(tensors, ops, [{"A": one, "B": one} for one in ranges], **more)


def whereabouts() -> bytes:
    """OUT = IN, up to 4096 floats; WHERE: the address that TensorRT was given for IN."""
    tensors = [
        tensor("IN", "FP32", (-1,), given=True), tensor("OUT", "FP32", (-1,), given=False),
        tensor("WHERE", "INT64", (1,), given=False),
    ]  # fmt: skip
    ops = [{"op": "copy", "in": ["IN"], "out": "OUT"}, {"op": "address", "in": ["IN"], "out": "WHERE"}]
    return plan(tensors, ops, [{"IN": between((1,), (4096,))}])


def nonzero() -> bytes:
    """OUT: where IN, a vector of up to 100000 elements, is not 0."""
    tensors = [tensor("IN", "FP32", (-1,), given=True), tensor("OUT", "INT64", (-1, 1), given=False)]
    return plan(tensors, [{"op": "nonzero", "in": ["IN"], "out": "OUT"}], [{"IN": between((0,), (100_000,))}])


def spread(kind: str = "INT32", *, batched: bool = True) -> bytes:
    """OUT: the first element of IN in the shape that S says; AS is S again. Batched, S begins with the batch's size."""
    first: Shape = (-1,) if batched else ()
    tensors = [
        tensor("IN", "FP32", (*first, 1), given=True),
        tensor("S", kind, (3,), given=True, shape_tensor=True),
        tensor("OUT", "FP32", (-1, -1, -1), given=False),
        tensor("AS", "INT64", (3,), given=False, shape_tensor=True),
    ]
    ops = [
        {"op": "spread", "in": ["IN", "S"], "out": "OUT"}, {"op": "values", "in": ["S"], "out": "AS"},
    ]  # fmt: skip
    profile = {"IN": between((1, 1), (8, 1))} if batched else {}
    return plan(tensors, ops, [profile], values=[{"S": between((1, 1, 1), (8, 5, 6), (2, 2, 2))}])


def write(root: Path, data: bytes, config: str = 'backend: "tensorrt"\n', name: str = "m") -> Path:
    """Write a model to the repository ``root`` and return its directory."""
    folder = root / name
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "1" / "model.plan").write_bytes(data)
    (folder / "config.pbtxt").write_text(config)
    return folder
