"""Backends: adapters from the engine's batches to the frameworks that run models."""

from __future__ import annotations

import importlib
from functools import cache

from triton_fast.backends.base import Backend

# Name -> module and class. A module is imported when a model first asks for it, so that a missing framework costs
# nothing until then.
_BUILT_IN = {
    "identity": ("triton_fast.backends.identity", "IdentityBackend"),
    "onnxruntime": ("triton_fast.backends.onnxruntime", "OnnxRuntimeBackend"),
    "repeat": ("triton_fast.backends.repeat", "RepeatBackend"),
}

NAMES: tuple[str, ...] = tuple(_BUILT_IN)


@cache
def get(name: str) -> Backend | None:
    """Return the backend of this name; None when there is none."""
    if name not in _BUILT_IN:
        return None
    module, attribute = _BUILT_IN[name]
    backend: Backend = getattr(importlib.import_module(module), attribute)()
    return backend
