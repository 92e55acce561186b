"""Device memory from a pool for each GPU. Freed memory is kept up to a budget (64 MiB unless told otherwise)."""

from __future__ import annotations

from typing import TypedDict

class Stats(TypedDict):
    """Bytes that may be kept, are kept, and are in use."""

    budget: int
    kept: int
    live: int

def set_budget(device: int, n: int) -> None:
    """Keep at most ``n`` bytes of freed memory on a device; what is over goes back at once.

    Raises
    ------
    ValueError
        There can be no such device, or ``n`` is negative.
    """

def trim(keep: int = 0) -> None:
    """Give the driver back what is kept, but for ``keep`` bytes on each device."""

def stats(device: int) -> Stats:
    """Return a device's counters; exact when no other thread is at work."""

class DeviceMemory:
    """Memory of a device; given back with the object, when nothing in a stream may touch it any more.

    Raises
    ------
    Unavailable
        Out of memory: says how much was asked for and is free.
    Internal, InvalidArg
        The device can not be used.
    """

    def __init__(self, device: int, n: int) -> None: ...
    @property
    def address(self) -> int:
        """Its first byte, in device memory."""

    @property
    def size(self) -> int:
        """Bytes that may be used; at least those asked for."""

    @property
    def device(self) -> int: ...
