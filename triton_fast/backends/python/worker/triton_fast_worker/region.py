"""The shared region as this process maps it, and the leases that keep inbound allocations in use.

A lease is the memory of one inbound allocation as an array. All views of its tensors have it at the end of their chain
of bases, so it goes, and gives the allocation back, with the last of them.
"""

from __future__ import annotations

import contextlib
import mmap
from typing import Any

import numpy as np

from .layout import ALLOC_HEADER, MAGIC, REGION_HEADER, VERSION


class Region:
    __slots__ = ("address", "bytes", "in_bytes", "in_off", "map", "out_bytes", "out_off", "quads", "words")

    def __init__(self, fd: int) -> None:
        self.map = mmap.mmap(fd, 0)
        magic, version, size, *bounds = REGION_HEADER.unpack_from(self.map)
        self.in_off, self.in_bytes, self.out_off, self.out_bytes = bounds
        if (magic, version) != (MAGIC, VERSION) or size != len(self.map):
            raise ValueError("the region does not begin as this version of the worker expects")
        self.bytes = size
        self.words = memoryview(self.map).cast("I")
        self.quads = memoryview(self.map).cast("Q")
        self.address = int(np.frombuffer(self.map, np.uint8, 1).__array_interface__["data"][0])

    def lease(self, off: int) -> Any:
        """Everything of the inbound allocation at ``off`` as bytes; given back when nothing views it any more."""
        size = self.quads[(off - ALLOC_HEADER + 8) >> 3]
        if off < self.in_off or size > self.in_off + self.in_bytes - off:
            raise ValueError("an allocation that does not lie in the inbound heap")
        lease = Lease((size,), np.uint8, self.map, off)
        lease.word = (off - ALLOC_HEADER) >> 2
        lease.region = self
        return lease

    def release(self, off: int) -> None:
        """Give an inbound allocation back that no lease was made of."""
        self.words[(off - ALLOC_HEADER) >> 2] = 0


class Lease(np.ndarray):
    # Without the attributes for an array that numpy derives from a lease.
    __slots__ = ("region", "word")
    region: Region
    word: int

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            self.region.words[self.word] = 0


def leased(array: Any, region: Region) -> tuple[int, Any] | None:
    """Offset in the region and lease of a C-contiguous array over an inbound allocation; None for other memory."""
    base = array
    while type(base) is np.ndarray:
        base = base.base
    if type(base) is not Lease or getattr(base, "region", None) is not region:
        return None
    return int(array.__array_interface__["data"][0]) - region.address, base

