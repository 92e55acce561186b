"""Models that ask for EXECUTION_MODE "in_process": no worker, the model runs in the server's own process.

The door to in_process_model.py, which needs numpy and the worker's package and is imported with the first such model.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from triton_fast.backends.base import BackendModel
from triton_fast.backends.python.plan import WORKER, ModelPlan
from triton_fast.errors import InvalidArg, Unsupported

MODELS = "triton_fast.backends.python.in_process_model"


def check(name: str, env_path: str) -> None:
    """Refuse an environment of the model's own. Raises InvalidArg."""
    if env_path:
        raise InvalidArg(
            f"model '{name}': EXECUTION_ENV_PATH can not be used with EXECUTION_MODE 'in_process', where the model "
            "runs in the server's own interpreter"
        )


def load(plan: ModelPlan) -> BackendModel:
    """Open the model in this process. Raises a ServerError when that can not be done."""
    make: Callable[[ModelPlan], BackendModel] = _models().PythonInProcessModel
    return make(plan)


def auto_complete(plan: ModelPlan) -> object:
    """Return the config as JSON. Raises a ServerError with the model's text."""
    return _models().auto_complete(plan)


def _models() -> Any:
    # Models import triton_python_backend_utils from there, and so does what runs them.
    folder = str(WORKER.parent)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        return importlib.import_module(MODELS)
    except ImportError as error:
        raise Unsupported(f"Python models can not run in the server's process: {error}") from None
