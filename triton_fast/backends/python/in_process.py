"""Models that ask for EXECUTION_MODE "in_process": no worker, the model runs in the server's own process."""

from __future__ import annotations

from triton_fast.backends.base import BackendModel, LoadContext
from triton_fast.errors import Unsupported


def load(context: LoadContext) -> BackendModel:
    """Open the model in this process. Raises a ServerError when that can not be done."""
    raise Unsupported(f"model '{context.name}' asks for EXECUTION_MODE 'in_process', which this version does not have")
