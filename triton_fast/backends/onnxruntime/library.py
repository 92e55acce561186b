"""Finds and opens libonnxruntime once per process, and forwards ORT's log lines to the server's log.

The Python package onnxruntime is never imported: only its shared library is used. Knows no model.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from triton_fast._native.ort import capi
from triton_fast.backends.values import flag, threads
from triton_fast.errors import Unavailable
from triton_fast.observability import log

CUDA_PROVIDER = "libonnxruntime_providers_cuda.so"
_lock = threading.Lock()
_pump: threading.Thread | None = None
_told_dropped = 0


def find_library() -> Path:
    """Return the library of the installed onnxruntime package, of the one for GPUs where both are installed.

    Raises
    ------
    Unavailable
        No such package, or one without a library that exports the C API.
    """
    folders = _folders()
    if not folders:
        raise Unavailable("ONNX Runtime is not installed: pip install 'triton_fast[cpu]' or 'triton_fast[gpu]'")
    found = [file for file in map(_library_in, folders) if file is not None]
    if not found:
        raise Unavailable("the installed onnxruntime package has no libonnxruntime.so: reinstall onnxruntime")
    return next((file for file in found if file.with_name(CUDA_PROVIDER).is_file()), found[0])


def _folders() -> list[Path]:
    """The folders with libraries, in Python's order. The package of onnxruntime-gpu has the same name."""
    try:
        spec = importlib.util.find_spec("onnxruntime")
    except ValueError:  # a module put in its place
        spec = None
    locations = list(spec.submodule_search_locations or ()) if spec is not None else []
    locations += [os.path.join(entry, "onnxruntime") for entry in sys.path if entry]
    folders = dict.fromkeys(Path(location) / "capi" for location in locations)
    return [folder for folder in folders if folder.is_dir()]


def _library_in(folder: Path) -> Path | None:
    found = sorted((path for path in folder.glob("libonnxruntime.so*") if path.is_file()), key=_version)
    if len(found) > 1 and (folder / CUDA_PROVIDER).is_file():
        # Both distributions put their files into one folder; the provider fits only the library it came with.
        for distribution in metadata.distributions(name="onnxruntime-gpu"):
            own = [path for path in found if path.name == f"libonnxruntime.so.{distribution.version}"]
            if own and Path(str(distribution.locate_file("onnxruntime/capi"))) == folder:
                return own[0]
    # Early GPU wheels keep the whole runtime inside the Python extension.
    found = found or sorted(path for path in folder.glob("onnxruntime_pybind11_state*.so") if path.is_file())
    return found[-1] if found else None


def _version(path: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in path.name.split(".so")[1].split(".") if part.isdigit())


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
        threads(settings.get("intra_op_thread_count", "0"), "intra_op_thread_count"),
        threads(settings.get("inter_op_thread_count", "0"), "inter_op_thread_count"),
        False,
        2,
    )
    _start_pump()
    if shared != wanted:
        log.warning("enable-global-threadpool is fixed by the first ONNX model opened in this process", wanted=wanted)
    return shared


def flush_log() -> None:
    """Write what ORT has logged so far, and how many lines came too fast to be kept."""
    global _told_dropped
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
    with _lock:
        dropped = capi.log_dropped()
        new, _told_dropped = dropped - _told_dropped, dropped
    if new:
        log.warning("lines of ONNX Runtime's log were lost: too many at once", lines=new)


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
