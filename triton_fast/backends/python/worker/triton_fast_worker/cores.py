"""What the classes of pb_utils are made of: the compiled client's cores, or those in pure Python.

A core holds data and gives access to it; checks and texts are the classes' own. ``use`` comes before any of them is
imported: they derive from what it has found.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from .pure_cores import RequestCore, ResponseCore, TensorCore

__all__ = ["RequestCore", "ResponseCore", "TensorCore", "client", "use"]
# The compiled client, None when there is none.
client: Any = None


def use(native: str) -> None:
    """Take the compiled client at that path. Built for another interpreter or machine: slower, not broken."""
    global client  # noqa: PLW0603
    if not native or client is not None:
        return
    try:
        # The last part of the name is the module's own: its init function has it.
        spec = importlib.util.spec_from_file_location("triton_fast_worker.client", native)
        if spec is None or spec.loader is None:
            return
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        client = module
        from . import native_cores
    except Exception:
        client = None
        return
    globals().update(
        TensorCore=module.TensorCore, RequestCore=native_cores.RequestCore, ResponseCore=module.ResponseCore
    )
