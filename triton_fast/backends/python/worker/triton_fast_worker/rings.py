"""One end of a ring in the region, and the eventfd beside it.

A consumer here always waits on the eventfd, so the ring's ``asleep`` word stays 1. Stores are in program order on x86;
elsewhere the system call that wakes the consumer orders them.
"""

from __future__ import annotations

import os
import select
import time

from .layout import RING_ASLEEP, RING_HEAD, RING_SLOTS, RING_STRIDE, RING_TAIL, RINGS_OFF, SLOT, SLOT_BYTES, SLOTS
from .region import Region

Message = tuple[int, int, int, int, int]  # kind, id, off, len, arg
_ONE = (1).to_bytes(8, "little")


class Ring:
    __slots__ = ("_asleep", "_at", "_fd", "_head", "_map", "_poll", "_quads", "_slots", "_tail", "_words")

    def __init__(self, region: Region, index: int, fd: int) -> None:
        base = RINGS_OFF + index * RING_STRIDE
        self._map = region.map
        self._quads = region.quads
        self._words = region.words
        self._head = (base + RING_HEAD) >> 3
        self._tail = (base + RING_TAIL) >> 3
        self._asleep = (base + RING_ASLEEP) >> 2
        self._slots = base + RING_SLOTS
        self._fd = fd
        self._at = 0
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def publish(self, kind: int, number: int, off: int, length: int, arg: int = 0) -> int:
        """Write a message; waits while the ring is full. Returns its number. One producer at a time."""
        quads, at = self._quads, self._at
        while at - quads[self._tail] >= SLOTS:
            time.sleep(0.0005)
        SLOT.pack_into(self._map, self._slots + (at % SLOTS) * SLOT_BYTES, kind, number, off, length, arg)
        self._at = quads[self._head] = at + 1
        if self._words[self._asleep]:
            os.write(self._fd, _ONE)
        return at

    def taken(self) -> int:
        """How many messages the consumer has taken."""
        return self._quads[self._tail]

    def listen(self) -> None:
        """As the consumer: ask for wake-ups, before the first ``take``."""
        self._words[self._asleep] = 1

    def take(self) -> Message | None:
        at = self._at
        if self._quads[self._head] == at:
            return None
        message = SLOT.unpack_from(self._map, self._slots + (at % SLOTS) * SLOT_BYTES)
        self._at = self._quads[self._tail] = at + 1
        return message

    def wait(self, timeout: float | None = None) -> Message | None:
        """The next message; None when none came within ``timeout`` seconds."""
        message = self.take()
        while message is None:
            if timeout is not None and not self._poll.poll(timeout * 1000):
                return self.take()
            os.read(self._fd, 8)
            message = self.take()
        return message
