"""Backends: adapters from the engine's batches to the frameworks that run models."""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path

from triton_fast.backends.base import Backend
from triton_fast.backends.paths import PathParameter

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
}
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")

NAMES: tuple[str, ...] = tuple(_BUILT_IN)


@cache
def get(name: str) -> Backend | None:
    """Return the backend of this name; None when there is none."""
    if name not in _BUILT_IN:
        return None
    return _class(name)()


@cache
def _class(name: str) -> type[Backend]:
    module, attribute = _BUILT_IN[name]
    found: type[Backend] = getattr(importlib.import_module(module), attribute)
    return found


def path_parameters(name: str) -> tuple[PathParameter, ...]:
    """Return the places of a config by which this backend is led to files; its framework need not be installed."""
    # What is not built in is Python-based.
    return _class(name if name in _BUILT_IN else "python").path_parameters


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
