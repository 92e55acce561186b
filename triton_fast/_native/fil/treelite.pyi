"""The treelite library of this process: opened once, never closed. Source: ext/triton_fast/_native/fil/treelite.pyx."""

def open_library(path: str) -> None:
    """Load the shared library at ``path`` and bind its functions; again is harmless.

    Raises
    ------
    Internal
        The file can not be loaded, or another file is already loaded.
    Unsupported
        The library lacks a function.
    """
