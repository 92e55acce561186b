"""Device memory shared between processes by 64-byte handles (``cudaIpcMemHandle_t``)."""

from __future__ import annotations

def export(device: int, address: int) -> bytes:
    """Return the handle of the allocation that ``address`` lies in; whoever opens it gets the allocation's start."""

def opened() -> int:
    """Return how many mappings are open."""

class Mapping:
    """Memory of another process; unmapped by `close` or with the object.

    Raises
    ------
    InvalidArg
        The bytes are no handle, the process that exported it has ended, or it is this one.
    """

    size: int
    device: int

    def __init__(self, device: int, handle: bytes) -> None: ...
    @property
    def address(self) -> int:
        """Its first byte, in device memory."""

    def close(self) -> None:
        """Unmap; nothing may use it any more. Again does nothing."""
