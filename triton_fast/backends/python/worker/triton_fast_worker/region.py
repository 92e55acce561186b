"""The memory shared with the server: leases of what it wrote, and the heap for what this process writes."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from typing import Any, Optional

import numpy as np

from triton_fast_worker import layout

_PAGE = 4096
_MADV_REMOVE = 9
# How long to wait for the server to let go of memory before a message is given up.
_FULL_S = 10.0


class Lease(np.ndarray):
    """The bytes of one message from the server; they are its again when the last view of them has gone."""

    _words: Any
    _index: int

    def __del__(self) -> None:
        # Views of it are of this class as well, but only the first has the word.
        words = self.__dict__.get("_words")
        if words is not None:
            words[self._index] = 0


class OutOfMemory(Exception):
    """The heap for what goes to the server is full."""


class Region:
    """Maps the region. Raises ValueError when it is not one of this version."""

    def __init__(self, fd: int) -> None:
        self.map = mmap.mmap(fd, os.fstat(fd).st_size)
        self.view = memoryview(self.map)
        self.words = self.view[: len(self.view) & ~7].cast("I")
        self.longs = self.view[: len(self.view) & ~7].cast("Q")
        magic, version, size, self.in_off, self.in_bytes, self.out_off, self.out_bytes = layout.CONTROL.unpack_from(
            self.map, 0
        )
        if magic != layout.MAGIC or version != layout.VERSION or size != len(self.view):
            raise ValueError("the server's shared memory is of another version")
        self.base = int(np.frombuffer(self.map, np.uint8, 1).__array_interface__["data"][0])
        self._lock = threading.Lock()
        self._bump = 0
        self._free: dict[int, list[int]] = {}
        self._out: list[tuple[int, int]] = []

    # ---- from the server

    def lease(self, off: int, nbytes: int) -> Lease:
        """Return the bytes of a message."""
        if off < self.in_off + layout.HEADER or nbytes > self.in_off + self.in_bytes - off:
            raise ValueError("a message lies outside of the server's memory")
        found = Lease((nbytes,), np.uint8, self.map, off)
        found._words = self.words
        found._index = (off - layout.HEADER) >> 2
        return found

    def lease_of(self, array: np.ndarray) -> Optional[tuple[Lease, int]]:
        """Return the lease that holds an array, and the array's offset in the region; None if none does."""
        address = int(array.__array_interface__["data"][0]) - self.base
        if not self.in_off <= address < self.in_off + self.in_bytes:
            return None
        owner: Any = array
        while owner is not None:
            if type(owner) is Lease and "_words" in owner.__dict__:
                return owner, address
            owner = owner.obj if isinstance(owner, memoryview) else getattr(owner, "base", None)
        return None

    # ---- to the server

    def allocate(self, nbytes: int) -> int:
        """Return the offset of fresh memory, in use until the server clears its word. Raises OutOfMemory."""
        size = _size_class(nbytes + layout.HEADER)
        deadline = 0.0
        while True:
            with self._lock:
                at = self._take(size)
                if at is not None:
                    self._out.append((at, size))
                    break
            now = time.monotonic()
            deadline = deadline or now + _FULL_S
            if size > self.out_bytes or now > deadline:
                raise OutOfMemory
            time.sleep(0.001)
        self.words[at >> 2] = 1
        self.longs[(at >> 3) + 1] = nbytes
        return at + layout.HEADER

    def _take(self, size: int) -> Optional[int]:
        free = self._free.get(size)
        if not free:
            self._sweep()
            free = self._free.get(size)
        if free:
            return free.pop()
        if size > self.out_bytes - self._bump:
            return None
        at = self.out_off + self._bump
        self._bump += size
        return at

    def _sweep(self) -> None:
        words = self.words
        kept = []
        for at, size in self._out:
            if words[at >> 2]:
                kept.append((at, size))
            else:
                self._free.setdefault(size, []).append(at)
        self._out = kept
        if not kept:
            self._free.clear()
            self._bump = 0

    def trim(self, keep: int) -> None:
        """Give free memory back to the system, but for ``keep`` bytes."""
        with self._lock:
            used = self._bump
            self._sweep()
            if not self._out:
                start = -(-keep // _PAGE) * _PAGE
                if used > start:
                    self._remove(self.out_off + start, used - start)
                return
            for size, offsets in self._free.items():
                for at in offsets:
                    if size <= keep:
                        keep -= size
                    else:
                        self._remove(at, size)

    def _remove(self, at: int, size: int) -> None:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(self.base + at), ctypes.c_size_t(size), _MADV_REMOVE)


def _size_class(nbytes: int) -> int:
    """Return the size to take: whole pages, four sizes per power of two."""
    pages = -(-nbytes // _PAGE)
    if pages > 4:
        step = 1 << max(0, (pages - 1).bit_length() - 3)
        pages = -(-pages // step) * step
    return pages * _PAGE


class Ring:
    """One ring, as its producer or its consumer. A consumer always waits on the eventfd, so ``asleep`` stays 1."""

    def __init__(self, region: Region, number: int, fd: int) -> None:
        self._region = region
        self._at = layout.RINGS_AT + number * layout.RING_BYTES
        self._slots = self._at + layout.RING_SLOTS_AT
        self._head = self._at >> 3
        self._tail = (self._at + layout.RING_TAIL) >> 3
        self._fd = fd
        self._n = 0
        self._lock = threading.Lock()
        # Leases whose bytes a message refers to: they must outlive the moment when the server reads it.
        self._held: list[tuple[int, Any]] = []

    def expect(self) -> None:
        """Say that this process waits on the eventfd; the consumer calls it once, first."""
        self._region.words[(self._at + layout.RING_ASLEEP) >> 2] = 1

    def publish(self, kind: int, number: int, off: int = 0, nbytes: int = 0, arg: int = 0, hold: Any = None) -> None:
        """Append a message, waiting while the ring is full."""
        longs = self._region.longs
        with self._lock:
            while self._n - longs[self._tail] >= layout.RING_SLOTS:
                time.sleep(0.0005)
            layout.MESSAGE.pack_into(
                self._region.map, self._slots + self._n % layout.RING_SLOTS * layout.MESSAGE.size,
                kind, number, off, nbytes, arg,
            )  # fmt: skip
            self._n += 1
            longs[self._head] = self._n
            if self._held:
                tail = longs[self._tail]
                self._held = [(n, held) for n, held in self._held if n > tail]
            if hold:
                self._held.append((self._n, hold))
        os.eventfd_write(self._fd, 1) if _HAS_EVENTFD else os.write(self._fd, _ONE)

    def take(self) -> Optional[tuple[int, int, int, int, int]]:
        """Return the next message, or None. One consumer at a time."""
        longs = self._region.longs
        if longs[self._head] == self._n:
            return None
        found = layout.MESSAGE.unpack_from(
            self._region.map, self._slots + self._n % layout.RING_SLOTS * layout.MESSAGE.size
        )
        self._n += 1
        longs[self._tail] = self._n
        return found

    def wait(self) -> tuple[int, int, int, int, int]:
        """Return the next message, waiting for it."""
        while True:
            found = self.take()
            if found is not None:
                return found
            os.read(self._fd, 8)


_ONE = (1).to_bytes(8, "little")
_HAS_EVENTFD = hasattr(os, "eventfd_write")
