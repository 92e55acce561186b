"""The NVIDIA driver: opened when asked for, devices described, contexts made at their first use.

Nothing of CUDA has to be installed but the driver itself (libcuda.so.1). Source: CUDA Driver API.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

LIBRARY: str

class Device(NamedTuple):
    """One GPU.

    Attributes
    ----------
    id
        CUDA's ordinal, after CUDA_VISIBLE_DEVICES.
    name
        Such as ``NVIDIA H100 80GB HBM3``.
    uuid
        ``GPU-`` and 36 characters, as NVML and nvidia-smi spell it.
    capability
        Compute capability, major and minor.
    total_bytes
        Size of its memory.
    """

    id: int
    name: str
    uuid: str
    capability: tuple[int, int]
    total_bytes: int

def open_driver(path: str | None = None) -> int:
    """Open ``libcuda.so.1`` and return how many GPUs there are. Calling again is free; process-wide.

    ``path`` is another library of the same functions: tests give their stand-in.

    Raises
    ------
    NotFound
        There is no driver, or it finds no GPU.
    Unavailable
        It can not be started.
    Unsupported
        The driver is too old.
    """

def devices() -> list[Device]:
    """Return the GPUs that `open_driver` found; none before it was called or when it failed."""

def lost() -> list[tuple[int, str]]:
    """Return the GPUs whose context has ended by an error, each with the driver's name of it.

    They answer every call with that error until the process is started anew.
    """

def version() -> tuple[int, int]:
    """Return the release of CUDA that the driver is for; (0, 0) before `open_driver`."""

def enter(device: int) -> None:
    """Make a device's primary context current on this thread; made at its first use, which takes some 100 ms.

    Raises
    ------
    Internal, InvalidArg, Unavailable
        With the driver's words.
    """

def memory_info(device: int) -> tuple[int, int]:
    """Return free and all bytes of a device's memory."""

def enable_peer_access(ids: Iterable[int]) -> list[tuple[int, int]]:
    """Let these devices read each other's memory where they can; return the pairs that do."""

def _close() -> None:
    """Release the contexts and close the library (tests only): nothing of it may be in use."""
