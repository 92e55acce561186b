"""Imports a model's file as Triton does."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any


def load_class(model_path: str) -> Any:
    """Return ``TritonPythonModel`` of a file, imported as ``<its directory>.<its name>``. Raises what the import does."""
    directory = os.path.dirname(os.path.abspath(model_path))
    stem = os.path.splitext(os.path.basename(model_path))[0]
    for path in (os.path.dirname(directory), directory):
        if path not in sys.path:
            sys.path.append(path)
    importlib.invalidate_caches()
    module = importlib.import_module(f"{os.path.basename(directory)}.{stem}")
    return module.TritonPythonModel
