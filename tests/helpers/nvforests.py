"""Stand-ins of what runs forests on GPUs (fake_nvforest/, fake_cuml/): in this process, or for others.

``installed`` has ``import nvforest`` (or ``cuml``) and ``import cupy`` give them, on top of the one for libcuda.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from tests.helpers import standin_cuda

FOLDER = Path(__file__).with_name("fake_nvforest")
OLDER = Path(__file__).with_name("fake_cuml")
_NAMES = ("nvforest", "cupy", "cuml", "cuml.fil", "cuml.forests")


def environment(devices: int = 2, *, faults: str = "", **more: object) -> dict[str, str]:
    """Return the environment in which a server finds the stand-ins. ``faults``: see fake_nvforest/nvforest.py."""
    paths = os.pathsep.join(filter(None, (str(FOLDER), str(FOLDER.parents[2]), os.environ.get("PYTHONPATH", ""))))
    return {**standin_cuda.environment(devices, **more), "PYTHONPATH": paths, "FAKE_NVFOREST_FAULTS": faults}


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
