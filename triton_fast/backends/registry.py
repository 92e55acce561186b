"""Where a backend's name leads: built in, a folder of --backend-directory, or an entry point of an installed package.

In this order; the first wins, and nothing takes a built-in's name. Knows no model. Source: spec/model_config.md 1.
"""

from __future__ import annotations

import importlib
import os
import re
import threading
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from triton_fast._version import __version__
from triton_fast.backends import foreign
from triton_fast.backends.base import Backend
from triton_fast.backends.paths import PathParameter
from triton_fast.errors import Unsupported
from triton_fast.observability import log

GROUP = "triton_fast.backends"
# A Python-based backend as Triton knows them, in workers; and one file with a class for this process.
TRITON_FILE = "model.py"
CLASS_FILE = "backend.py"


class BuiltIn(NamedTuple):
    """Module and class, and the packages that have the framework, of which one is enough; none: the server's own."""

    module: str
    attribute: str
    packages: tuple[str, ...] = ()


# A module is imported when a model first asks for it, so that a missing framework costs nothing until then.
BUILT_IN = {
    "fil": BuiltIn("triton_fast.backends.fil", "FilBackend", ("treelite",)),
    "identity": BuiltIn("triton_fast.backends.identity", "IdentityBackend"),
    "onnxruntime": BuiltIn(
        "triton_fast.backends.onnxruntime", "OnnxRuntimeBackend", ("onnxruntime", "onnxruntime-gpu")
    ),
    "openvino": BuiltIn("triton_fast.backends.openvino", "OpenVinoBackend", ("openvino",)),
    "python": BuiltIn("triton_fast.backends.python", "PythonBackend"),
    "pytorch": BuiltIn("triton_fast.backends.pytorch", "PyTorchBackend", ("torch",)),
    "repeat": BuiltIn("triton_fast.backends.repeat", "RepeatBackend"),
    "tensorrt": BuiltIn("triton_fast.backends.tensorrt", "TensorRtBackend", ("tensorrt",)),
}
NAMES: tuple[str, ...] = tuple(BUILT_IN)
# Backends of Triton that are not here, and what becomes of their models (docs/backends.md); without it the nearest name
# is taken for what was meant.
INSTEAD = {
    "dali": "a Python model can do its work: see examples/image_pipeline",
    "tensorflow": "export the model to ONNX (tf2onnx), or serve it with backend: \"openvino\"",
    "vllm": "put Triton's vllm backend, a model.py, into <backend-directory>/vllm",
}
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")


class Listed(NamedTuple):
    """A backend as the start table shows it; ``version`` is the framework's, "not installed" where it is missing."""

    name: str
    path: str
    version: str


class _Kept:
    """Foreign backends are made once; one lock for each, so that a file that hangs holds up nobody else."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._locks: dict[tuple[str, ...], threading.Lock] = {}
        self._made: dict[tuple[str, ...], Backend] = {}

    def get(self, source: foreign.Source) -> Backend:
        key = source.key
        with self._lock:
            own = self._locks.setdefault(key, threading.Lock())
        with own:
            if key not in self._made:
                self._made[key] = foreign.load(source)
            return self._made[key]


_kept = _Kept()


@cache
def get(name: str) -> Backend | None:
    """Return the built-in backend of this name; None when there is none."""
    if name not in BUILT_IN:
        return None
    return _class(name)()


@cache
def _class(name: str) -> type[Backend]:
    module, attribute, _ = BUILT_IN[name]
    found: type[Backend] = getattr(importlib.import_module(module), attribute)
    return found


def path_parameters(name: str, directory: Path | None = None) -> tuple[PathParameter, ...]:
    """Return the places of a config by which this backend is led to files; a built-in's framework need not be there.

    Raises
    ------
    ServerError
        There is such a backend in ``directory`` or a package, but it can not be used.
    """
    if name in BUILT_IN:
        return _class(name).path_parameters
    backend = find(name, directory)
    return () if backend is None else backend.path_parameters


def find(name: str, directory: Path | None) -> Backend | None:
    """Return the backend of this name, ``directory`` being that of the flag; None when there is none.

    Raises
    ------
    ServerError
        There is one, but it can not be used.
    """
    found = get(name)
    if found is not None or not _PLAIN.fullmatch(name):
        return found
    folder = None if directory is None else directory / name
    if folder is not None and os.path.isfile(folder / TRITON_FILE):
        return _python_based(name, folder)
    if folder is not None and os.path.isfile(folder / CLASS_FILE):
        return _kept.get(foreign.File(name, folder / CLASS_FILE))
    offered = [point for point in _entry_points() if point.name == name]
    if offered:
        return _kept.get(foreign.EntryPoint(name, offered))
    library = f"libtriton_{name}.so"
    if folder is not None and os.path.isfile(folder / library):
        raise Unsupported(f"backend '{name}' is the compiled library '{library}', which this version can not load")
    return None


def names(directory: Path | None) -> list[str]:
    """Return the names that lead somewhere, sorted. Reads the directory and the installed packages' lists."""
    found = {*NAMES, *(point.name for point in _entry_points()), *(folder.name for folder, _ in _folders(directory))}
    return sorted(name for name in found if _PLAIN.fullmatch(name))


def listed(directory: Path | None) -> tuple[list[Listed], list[str]]:
    """Return every backend there is, by name, without importing any, and what is odd about some of them."""
    rows = {name: Listed(name, "built in", _version(one.packages)) for name, one in BUILT_IN.items()}
    notes = []
    for folder, file in _folders(directory):
        name = folder.name
        if name not in BUILT_IN:
            rows[name] = Listed(name, str(folder / file), "")
        elif file == CLASS_FILE:
            notes.append(f"'{folder / file}' is not used: backend '{name}' is built in")
    for point in sorted(_entry_points(), key=lambda one: (one.name, foreign.package(one))):
        owner = foreign.package(point)
        row = rows.get(point.name)
        if point.name in BUILT_IN:
            notes.append(f"backend '{point.name}' of package {owner} is not used: the name is that of a built-in one")
        elif row is not None and not row.path.startswith("package "):
            notes.append(f"backend '{point.name}' of package {owner} is not used: '{row.path}' goes before it")
        elif row is not None:
            notes.append(f"backend '{point.name}' can not be used: {row.path} and package {owner} both have it")
        else:
            rows[point.name] = Listed(point.name, f"package {owner}", foreign.release(point))
    return [rows[name] for name in sorted(rows)], notes


def _entry_points() -> list[metadata.EntryPoint]:
    # Of two copies of a package on the path the first is the one that is imported.
    seen: dict[tuple[str, str, str], metadata.EntryPoint] = {}
    try:
        found = metadata.entry_points(group=GROUP)
    except Exception as error:
        # One package's broken files must not take the server with them.
        log.warning(f"backends of installed packages are not found: {foreign.cause(error)}")
        return []
    for point in found:
        seen.setdefault((point.name, point.value, foreign.package(point)), point)
    return list(seen.values())


def _folders(directory: Path | None) -> Iterable[tuple[Path, str]]:
    """Give the folders of Python backends and the file that makes each one."""
    try:
        folders = sorted(directory.iterdir()) if directory is not None else []
    except OSError:
        return
    for folder in folders:
        if _PLAIN.fullmatch(folder.name):
            for file in (TRITON_FILE, CLASS_FILE):
                if os.path.isfile(folder / file):
                    yield folder, file
                    break


def _version(packages: Iterable[str]) -> str:
    is_own = True
    for package in packages:
        is_own = False
        try:
            return str(metadata.version(package) or "")
        except metadata.PackageNotFoundError:
            continue
        except Exception:
            return ""
    return __version__ if is_own else "not installed"


@cache
def _python_based(name: str, directory: Path) -> Backend:
    from triton_fast.backends.python import PythonBackend

    return PythonBackend(name, directory)
