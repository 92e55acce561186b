"""Finds and opens libtreelite once per process. The Python package is never imported: only its library is used."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from triton_fast._native.fil import treelite
from triton_fast.errors import Unavailable


def find_library() -> Path:
    """Return the library of the installed treelite wheel. Raises Unavailable when there is none."""
    spec = importlib.util.find_spec("treelite")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable("treelite is not installed: pip install 'triton_fast[fil]'")
    for location in spec.submodule_search_locations:
        path = Path(location) / "lib" / "libtreelite.so"
        if path.is_file():
            return path
    raise Unavailable("the installed treelite package has no libtreelite.so: reinstall treelite")


def open_library() -> str:
    """Open the library if that has not been done; return its path."""
    path = str(find_library())
    treelite.open_library(path)
    return path
