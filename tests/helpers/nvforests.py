"""Stand-ins of what runs forests on GPUs (fake_nvforest/, fake_cuml/): in this process, or for others.

``installed`` has ``import nvforest`` (or ``cuml``) and ``import cupy`` give them, on top of the one for libcuda.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.helpers import standin_cuda

FOLDER = Path(__file__).with_name("fake_nvforest")
OLDER = Path(__file__).with_name("fake_cuml")
_NEEDED = inspect.Parameter.empty
# What the server calls, and the rest of it: as in the sources in the wheel nvforest_cu12-26.10.0.
SIGNATURES: dict[str, dict[str, Any]] = {
    "load_from_treelite_model": {
        "tl_model": _NEEDED, "device": "auto", "layout": "depth_first", "default_chunk_size": None,
        "align_bytes": None, "precision": None, "device_id": None, "handle": None,
    },
    "GPUForestInferenceClassifier.predict_proba": {
        "self": _NEEDED, "X": _NEEDED, "chunk_size": None,
    },
    "GPUForestInferenceClassifier.predict": {
        "self": _NEEDED, "X": _NEEDED, "chunk_size": None, "threshold": None,
    },
    "GPUForestInferenceRegressor.predict": {
        "self": _NEEDED, "X": _NEEDED, "chunk_size": None,
    },
}  # fmt: skip
_NAMES = ("nvforest", "cupy", "cuml", "cuml.fil", "cuml.forests")


def environment(devices: int = 2, *, faults: str = "", **more: object) -> dict[str, str]:
    """Return the environment in which a server finds the stand-ins. ``faults``: see fake_nvforest/nvforest.py."""
    paths = os.pathsep.join(filter(None, (str(FOLDER), str(FOLDER.parents[2]), os.environ.get("PYTHONPATH", ""))))
    return {**standin_cuda.environment(devices, **more), "PYTHONPATH": paths, "FAKE_NVFOREST_FAULTS": faults}


def check_signatures(package: Any, *, exact: bool = True) -> None:
    """Compare a package with the one of which the stand-in was made; a later one may have more arguments."""
    for name, expected in SIGNATURES.items():
        found: Any = package
        for part in name.split("."):
            found = getattr(found, part)
        own = {key: one.default for key, one in inspect.signature(found).parameters.items()}
        assert {key: default for key, default in own.items() if exact or key in expected} == expected, name


def _load(name: str, path: Path) -> ModuleType:
    folders = [str(path.parent)] if path.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folders)
    assert spec is not None
    assert spec.loader is not None
    made = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@contextmanager
def installed(*, older: bool = False) -> Iterator[ModuleType]:
    """Have the stand-in of nvforest, or of cuML alone, for a while, whatever is installed; yields that of nvforest."""
    from triton_fast.backends.fil import gpu_library

    before = {name: sys.modules.pop(name) for name in _NAMES if name in sys.modules}
    gpu_library._find.cache_clear()
    try:
        _load("cupy", FOLDER / "cupy.py").cuda_path = str(standin_cuda.library())  # type: ignore[attr-defined]
        forests = _load("cuml.forests" if older else "nvforest", FOLDER / "nvforest.py")
        if older:
            _load("cuml", OLDER / "cuml" / "__init__.py").forests = forests  # type: ignore[attr-defined]
        yield forests
    finally:
        for name in _NAMES:
            sys.modules.pop(name, None)
        sys.modules.update(before)
        gpu_library._find.cache_clear()
