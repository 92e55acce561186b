"""PyTorch itself: imported when a model first needs it, and what of it belongs to the whole process.

Knows no model. torch has no types here: the server is checked, and runs, without it.
"""

from __future__ import annotations

import importlib
import threading
from typing import Any

from triton_fast.backends.pytorch.settings import Settings
from triton_fast.errors import Unavailable, Unsupported
from triton_fast.observability import log

MISSING = "PyTorch is not installed: pip install 'triton_fast[pytorch]' (or pip install torch)"
_lock = threading.Lock()
_inter = 0


def torch() -> Any:
    """Return the package. Raises Unavailable where it is not installed, or can not be imported."""
    try:
        return importlib.import_module("torch")
    except ModuleNotFoundError as error:
        if error.name == "torch":
            raise Unavailable(MISSING) from None
        raise Unavailable(f"the installed PyTorch can not be imported: no module '{error.name}'") from None
    except (ImportError, OSError) as error:
        raise Unavailable(f"the installed PyTorch can not be imported: {type(error).__name__}") from None


def why_no_cuda() -> str:
    """Return why the installed PyTorch uses no GPU; empty where it does."""
    try:
        found = torch()
    except Unavailable as error:
        return error.message
    if found.version.cuda is None:
        return "this build of PyTorch is for CPUs only"
    return "" if found.cuda.is_available() else "PyTorch finds no CUDA GPU: the driver may be too old for it"


def apply(module: Any, settings: Settings, model: str) -> None:
    """Set what is the process's: the inter-op pool, whose first size stays, and switches of the TorchScript engine."""
    global _inter  # noqa: PLW0603
    with _lock:
        if settings.inter and settings.inter != _inter:
            try:
                module.set_num_interop_threads(settings.inter)
                _inter = settings.inter
            except RuntimeError:
                log.warning("INTER_OP_THREAD_COUNT is fixed by the first model that PyTorch ran in this process",
                            model=model, wanted=settings.inter, is_=module.get_num_interop_threads())  # fmt: skip
        for value, name in (
            (settings.jit_profiling, "_jit_set_profiling_mode"),
            (settings.jit_executor, "_jit_set_profiling_executor"),
            (settings.tensor_fuser, "_jit_set_texpr_fuser_enabled"),
        ):
            # Private names of torch, the only ones it has for these.
            if value is not None and hasattr(module._C, name):
                getattr(module._C, name)(value)
    if settings.nvfuser:
        log.warning("ENABLE_NVFUSER has no effect: PyTorch has no NvFuser any more", model=model)


def device(module: Any, kind: str, number: int, model: str) -> Any:
    """Return where an instance runs; None: where the model has put itself. Raises Unsupported without that GPU."""
    if kind == "KIND_MODEL":
        return None
    if kind != "KIND_GPU":
        return module.device("cpu")
    if not module.cuda.is_available():
        why = "this build of PyTorch is for CPUs only" if module.version.cuda is None else "PyTorch finds no CUDA GPU"
        raise Unsupported(f"unable to load model '{model}', an instance group asks for KIND_GPU and {why}")
    if number >= module.cuda.device_count():
        raise Unsupported(
            f"unable to load model '{model}', an instance group asks for GPU {number}, PyTorch finds "
            f"{module.cuda.device_count()}"
        )
    return module.device("cuda", number)
