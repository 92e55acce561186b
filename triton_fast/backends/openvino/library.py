"""Finds and opens libopenvino_c once per process.

The Python package openvino is never imported: only its shared libraries are used. Knows no model.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

from triton_fast._native.openvino import capi
from triton_fast.errors import Unavailable

INSTALL = "pip install 'triton_fast[openvino]'"


def find_library() -> Path:
    """Return the C library of the installed openvino wheel.

    Raises
    ------
    Unavailable
        No such package, or one without the library.
    """
    spec = importlib.util.find_spec("openvino")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable(f"OpenVINO is not installed: {INSTALL}")
    folders = [Path(location) / "libs" for location in spec.submodule_search_locations]
    found = sorted(path for folder in folders for path in folder.glob("libopenvino_c.so*") if path.is_file())
    if not found:
        raise Unavailable("the installed openvino package has no libopenvino_c.so: reinstall openvino")
    return found[-1]


def open_library() -> str:
    """Open the library if that has not been done; return its version."""
    return capi.open_library(str(find_library()))


@cache
def core() -> capi.Core:
    """Return the core that models without extensions of their own share."""
    open_library()
    return capi.Core()
