"""Memory of GPUs that clients register by its CUDA IPC handle. Source: spec/http.md section 7."""

from __future__ import annotations

from triton_fast._native.core.regions import SharedRegions

def register(regions: SharedRegions, name: str, handle: bytes, device: int, byte_size: int) -> str:
    """Map the first ``byte_size`` bytes of what another process exported, and list them under a name.

    Returns the reason when the driver does not open the handle, else "". The driver must be open.

    Raises
    ------
    AlreadyExists
        The name is taken, maybe by a region that requests still use.
    InvalidArg
        There are fewer bytes, or the handle has not 64.
    Internal, Unavailable
        The GPU can not be used, or there are 4096 regions.
    """

def settle(regions: SharedRegions | None = None, name: str = "") -> None:
    """Wait until regions that nothing uses any more are unmapped, or unmap them, which else a thread of its own does.

    Those of that name, all of ``regions`` where there is none, or all of the process.
    """
