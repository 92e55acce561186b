"""Finds and opens libonnxruntime once per process, and forwards ORT's log lines to the server's log.

The Python package onnxruntime is never imported: only its shared library is used. Knows no model.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Mapping
from pathlib import Path

from triton_fast._native.ort import capi
from triton_fast.backends.onnxruntime.values import flag, whole
from triton_fast.errors import Unavailable
from triton_fast.observability import log

_lock = threading.Lock()
_pump: threading.Thread | None = None


def find_library() -> Path:
    """Return the library of the installed onnxruntime wheel.

    Raises
    ------
    Unavailable
        No such package, or one without a library that exports the C API.
    """
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable("ONNX Runtime is not installed: pip install 'triton_fast[cpu]' or 'triton_fast[gpu]'")
    folders = [Path(location) / "capi" for location in spec.submodule_search_locations]
    # Early GPU wheels keep the whole runtime inside the Python extension.
    for pattern in ("libonnxruntime.so*", "onnxruntime_pybind11_state*.so"):
        found = sorted(path for folder in folders for path in folder.glob(pattern) if path.is_file())
        if found:
            return found[-1]
    raise Unavailable("the installed onnxruntime package has no libonnxruntime.so: reinstall onnxruntime")


def open_library() -> str:
    """Open the library if that has not been done; return its version."""
    return capi.open_library(str(find_library()))


def prepare(settings: Mapping[str, str]) -> bool:
    """Make the process-wide environment; return whether sessions share one thread pool.

    The first model that is opened decides: ``enable-global-threadpool`` can not change afterwards.
    """
    open_library()
    wanted = flag(settings.get("enable-global-threadpool", "0"), "enable-global-threadpool")
    shared = capi.init_env(
        wanted,
        whole(settings.get("intra_op_thread_count", "0"), "intra_op_thread_count"),
        whole(settings.get("inter_op_thread_count", "0"), "inter_op_thread_count"),
        False,
        2,
    )
    _start_pump()
    if shared != wanted:
        log.warning("enable-global-threadpool is fixed by the first ONNX model opened in this process", wanted=wanted)
    return shared


def flush_log() -> None:
    """Write what ORT has logged so far."""
    for severity, model, location, text in capi.drain_log():
        file, _, rest = location.partition(":")
        line = rest.split(" ", 1)[0]
        source = (file or "onnxruntime", int(line) if line.isdigit() else 0)
        if severity >= 3:
            log.error(text, source=source, model=model)
        elif severity == 2:
            log.warning(text, source=source, model=model)
        else:
            log.verbose(1, text, source=source, model=model)


def _start_pump() -> None:
    global _pump  # noqa: PLW0603
    with _lock:
        if _pump is not None and _pump.is_alive():
            return
        fd = os.eventfd(0, os.EFD_CLOEXEC)
        _pump = threading.Thread(target=_run_pump, args=(fd,), name="onnxruntime-log", daemon=True)
        _pump.start()
        capi.watch_log(fd)


def _run_pump(fd: int) -> None:
    while True:
        os.eventfd_read(fd)
        flush_log()
