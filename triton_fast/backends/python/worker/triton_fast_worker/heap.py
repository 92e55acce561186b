"""The outbound heap: blocks in size classes, found free by looking at the words that the server clears.

Not thread-safe: its users hold the transport's gate.
"""

from __future__ import annotations

import mmap
from collections import deque

from .errors import TritonModelException
from .layout import ALLOC_HEADER
from .region import Region

_SMALLEST = 4096
_PAGE = mmap.PAGESIZE


def size_class(nbytes: int) -> int:
    """The size of the block for so many bytes, its header included: four sizes per power of two."""
    wanted = nbytes + ALLOC_HEADER
    if wanted <= _SMALLEST:
        return _SMALLEST
    step = 1 << max((wanted - 1).bit_length() - 3, 10)
    return (wanted + step - 1) & -step


def no_space(total: int) -> TritonModelException:
    """Why there is no memory for a message; ``total``: bytes with which there would be."""
    return TritonModelException(
        f"Failed to increase the shared memory pool size to {total} bytes. If you are running Triton inside "
        "docker, use '--shm-size' flag to control the shared memory region size. Error: No space left on device"
    )


class Heap:
    __slots__ = ("_bump", "_end", "_free", "_high", "_region", "_start", "_used")

    def __init__(self, region: Region) -> None:
        self._region = region
        self._start = self._bump = self._high = region.out_off
        self._end = region.out_off + region.out_bytes
        self._free: dict[int, list[int]] = {}
        # Blocks that the server may still read, oldest first.
        self._used: deque[tuple[int, int]] = deque()

    def allocate(self, nbytes: int) -> int:
        """Offset of the data of a new allocation. TritonModelException when nothing fits."""
        size = size_class(nbytes)
        words, used, free = self._region.words, self._used, self._free
        while used and words[used[0][0] >> 2] == 0:
            block, its = used.popleft()
            free.setdefault(its, []).append(block)
        if not used:
            # All is free: begin again, where memory is warm and was taken already.
            free.clear()
            self._bump = self._start
        fitting = free.get(size)
        if fitting:
            block = fitting.pop()
        elif size <= self._end - self._bump:
            block = self._bump
            self._bump += size
            self._high = max(self._high, self._bump)
        else:
            block, size = self._search(size)
        used.append((block, size))
        words[block >> 2] = 1
        words[(block >> 2) + 1] = 0
        self._region.quads[(block + 8) >> 3] = nbytes
        return block + ALLOC_HEADER

    def may_fit(self, nbytes: int) -> bool:
        """Whether there may be place for what was refused once the server has cleared more words."""
        return bool(self._used) and size_class(nbytes) <= self._end - self._start

    def sweep(self) -> None:
        """Find everything that is free again."""
        words = self._region.words
        still: deque[tuple[int, int]] = deque()
        for block, size in self._used:
            if words[block >> 2]:
                still.append((block, size))
            else:
                self._free.setdefault(size, []).append(block)
        self._used = still
        if not still:
            self._free.clear()
            self._bump = self._start

    def trim(self, keep: int) -> None:
        """Give the pages of free memory back, but for about ``keep`` bytes."""
        self.sweep()
        spare = keep
        for size in sorted(self._free):
            for block in self._free[size]:
                if size <= spare:
                    spare -= size
                else:
                    self._punch(block, block + size)
        self._punch(self._bump + spare, self._high)
        self._high = max(self._bump, min(self._high, self._bump + spare))

    def outstanding(self) -> int:
        """Blocks that the server has not cleared, as of the last look."""
        return len(self._used)

    def _search(self, size: int) -> tuple[int, int]:
        self.sweep()
        if size <= self._end - self._bump:
            block = self._bump
            self._bump += size
            return block, size
        for its in sorted(self._free):
            if its >= size and self._free[its]:
                return self._free[its].pop(), its
        raise no_space(self._end - self._start + size)

    def _punch(self, start: int, end: int) -> None:
        start = (start + _PAGE - 1) & -_PAGE
        end &= -_PAGE
        if end > start:
            self._region.map.madvise(mmap.MADV_REMOVE, start, end - start)
