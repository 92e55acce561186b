"""Backends: adapters from the engine's batches to the frameworks that run models."""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path

from triton_fast.backends.base import Backend

# Name -> module and class. A module is imported when a model first asks for it, so that a missing framework costs
# nothing until then.
_BUILT_IN = {
    "fil": ("triton_fast.backends.fil", "FilBackend"),
    "identity": ("triton_fast.backends.identity", "IdentityBackend"),
    "onnxruntime": ("triton_fast.backends.onnxruntime", "OnnxRuntimeBackend"),
    "openvino": ("triton_fast.backends.openvino", "OpenVinoBackend"),
    "python": ("triton_fast.backends.python", "PythonBackend"),
    "pytorch": ("triton_fast.backends.pytorch", "PyTorchBackend"),
    "repeat": ("triton_fast.backends.repeat", "RepeatBackend"),
    "tensorrt": ("triton_fast.backends.tensorrt", "TensorRtBackend"),
}
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")

NAMES: tuple[str, ...] = tuple(_BUILT_IN)


@cache
def get(name: str) -> Backend | None:
    """Return the backend of this name; None when there is none."""
    if name not in _BUILT_IN:
        return None
    module, attribute = _BUILT_IN[name]
    backend: Backend = getattr(importlib.import_module(module), attribute)()
    return backend


def find(name: str, directory: Path | None) -> Backend | None:
    """As ``get``; else the Python-based backend ``<directory>/<name>/model.py``, ``directory`` being that of a flag."""
    found = get(name)
    if found is not None or directory is None or not _PLAIN.fullmatch(name):
        return found
    return _python_based(name, directory / name) if (directory / name / "model.py").is_file() else None


@cache
def _python_based(name: str, directory: Path) -> Backend:
    from triton_fast.backends.python import PythonBackend

    return PythonBackend(name, directory)
