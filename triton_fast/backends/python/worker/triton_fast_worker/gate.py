"""A lock for state that finalizers want to change too.

A finalizer runs in any thread between two instructions, also in one that holds the lock: it must not wait. What it
wants is noted down and done at once when the lock is free, else by the holder on leaving.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, Callable


class Gate:
    __slots__ = ("_lock", "_noted")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._noted: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *failure: object) -> None:
        self._lock.release()
        if self._noted:
            self._do()

    def later(self, function: Callable[..., Any], *args: Any) -> None:
        """Call it with the lock held, now or soon; it must not take the lock itself."""
        self._noted.append((function, args))
        self._do()

    def _do(self) -> None:
        # Looked at again after the release: a note that was made meanwhile found the lock taken.
        while self._noted and self._lock.acquire(False):
            try:
                while self._noted:
                    function, args = self._noted.popleft()
                    function(*args)
            finally:
                self._lock.release()
