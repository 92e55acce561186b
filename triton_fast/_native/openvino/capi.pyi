"""The OpenVINO library of this process: opened once, never closed.

Source: ext/triton_fast/_native/openvino/capi.pyx.
"""

def open_library(path: str) -> str:
    """Load libopenvino_c at ``path``, bind its functions and return its version; again is harmless.

    Raises
    ------
    Internal
        The file can not be loaded, or another file is already loaded.
    Unsupported
        The library is too old.
    """

def element_types() -> dict[int, int]:
    """Return the number of each datatype's element type in this release."""

class Core:
    """What models are read and compiled with. Compiled models outlive it."""

    def __init__(self) -> None: ...
    def extend(self, path: str) -> None:
        """Load a library of custom operators; it runs code of its own."""

    def devices(self) -> list[str]:
        """Return the devices that are there, such as ``CPU`` and ``GPU.0``."""
