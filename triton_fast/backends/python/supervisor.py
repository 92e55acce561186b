"""The one thread that starts all workers of this process and watches them.

It starts them itself, because the kernel sends a worker its death signal when the *thread* that made it ends; so it
lives as long as any worker. It never waits for a worker, a lock that is held for long, or a model. Knows no message.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from triton_fast.observability import log

T = TypeVar("T")
LOOK_S = 0.2
# How long the thread goes on for what is kept when nothing is watched: between the workers of a load, for instance.
LINGER_S = 10.0


class Watched(Protocol):
    """A process under supervision; all of it is called on the supervisor's thread."""

    def look(self) -> None:
        """Find out whether it hangs; called every 200 ms."""


class Resident(Protocol):
    """A process that is of use while there are workers and does no work of its own."""

    def close(self) -> None:
        """End it; called on the supervisor's thread, before that ends."""


class Timer:
    """A function that is due; ``cancel`` may be called on the supervisor's thread only."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function: Callable[[], None] | None = function

    def cancel(self) -> None:
        self.function = None


class Supervisor:
    """``clock``: monotonic seconds. The thread runs while something is watched or there is something to do."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._jobs: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._watched: set[Watched] = set()
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._selector: selectors.BaseSelector | None = None
        self._wake_fd = -1
        self._look_at = 0.0
        self._idle_since: float | None = None
        self._hurried = False
        self.resident: Resident | None = None

    # ---- any thread

    def post(self, job: Callable[[], None]) -> None:
        """Have ``job`` run on the supervisor's thread."""
        with self._lock:
            self._jobs.append(job)
            if self._thread is None:
                self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                self._thread = threading.Thread(target=self._run, name="py-supervisor", daemon=True)
                self._thread.start()
            elif len(self._jobs) == 1:
                os.eventfd_write(self._wake_fd, 1)

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run ``function`` on the supervisor's thread; its result or exception goes to the future."""
        future: Future[T] = Future()

        def job() -> None:
            try:
                result = function()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self.post(job)
        return future

    @property
    def watching(self) -> int:
        return len(self._watched)

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread's end, which comes by itself once nothing is watched; False when it has not come."""
        thread = self._thread
        if thread is not None:
            self.post(self._hurry)
            thread.join(timeout_s)
        return thread is None or not thread.is_alive()

    # ---- the supervisor's thread

    def watch(self, process: Watched) -> None:
        self._watched.add(process)

    def forget(self, process: Watched) -> None:
        self._watched.discard(process)

    def keep(self, resident: Resident) -> None:
        """Have it closed before the thread ends, and not soon: it is wanted now. One at a time."""
        self._idle_since = None
        self.resident = resident

    def register(self, fd: int, events: int, ready: Callable[[int], None]) -> None:
        """Have ``ready(events)`` called whenever ``fd`` is. ``events`` 0: not for now."""
        assert self._selector is not None
        if events:
            try:
                self._selector.modify(fd, events, ready)
            except KeyError:
                self._selector.register(fd, events, ready)
        else:
            self.unregister(fd)

    def unregister(self, fd: int) -> None:
        assert self._selector is not None
        with contextlib.suppress(KeyError):
            self._selector.unregister(fd)

    def later(self, delay_s: float, function: Callable[[], None]) -> Timer:
        timer = Timer(function)
        heapq.heappush(self._timers, (self.clock() + delay_s, next(self._numbers), timer))
        return timer

    def _run(self) -> None:
        selector = self._selector = selectors.DefaultSelector()
        selector.register(self._wake_fd, selectors.EVENT_READ, self._woken)
        while not self._is_done():
            self._take_events(selector)
            self._run_due()

    def _take_events(self, selector: selectors.BaseSelector) -> None:
        """Wait and act. Names of handlers end with the call: the next wait may be long, and handlers hold models."""
        for key, events in selector.select(self._wait_s()):
            # One of the handlers before may have taken it out.
            if key.fd in selector.get_map():
                self._guarded(key.data, events)

    def _is_done(self) -> bool:
        with self._lock:
            if self._watched:
                self._idle_since = None
            if self._jobs or self._watched or self._lingers():
                return False
            # Whoever posts from now on starts another thread; what follows is done before it begins.
            if self.resident is not None:
                self._guarded(self.resident.close)
            self._hurried = False
            self._idle_since = None
            if self._selector is not None:
                self._selector.close()
                self._selector = None
            os.close(self._wake_fd)
            self._wake_fd = -1
            self._thread = None
            self._timers.clear()
            return True

    def _lingers(self) -> bool:
        if self.resident is None or self._hurried:
            return False
        if self._idle_since is None:
            self._idle_since = self.clock()
            self._timers.clear()  # of workers that have ended
        return self.clock() - self._idle_since < LINGER_S

    def _hurry(self) -> None:
        self._hurried = True

    def _wait_s(self) -> float | None:
        if self._jobs:
            return 0.0
        due = self._look_at if self._watched else None
        if self._idle_since is not None:
            due = self._idle_since + LINGER_S
        if self._timers:
            due = self._timers[0][0] if due is None else min(due, self._timers[0][0])
        return None if due is None else max(0.0, due - self.clock())

    def _run_due(self) -> None:
        for _ in range(len(self._jobs)):
            self._guarded(self._jobs.popleft())
        now = self.clock()
        while self._timers and self._timers[0][0] <= now:
            function = heapq.heappop(self._timers)[2].function
            if function is not None:
                self._guarded(function)
        if now >= self._look_at:
            self._look_at = now + LOOK_S
            for process in tuple(self._watched):
                self._guarded(process.look)

    def _woken(self, events: int) -> None:
        os.eventfd_read(self._wake_fd)

    @staticmethod
    def _guarded(function: Callable[..., None], *arguments: Any) -> None:
        """A fault in what belongs to one worker must not end the thread: all workers would die with it."""
        try:
            function(*arguments)
        except Exception as error:
            log.error(f"supervision of Python models: {type(error).__name__}: {error}")


_shared = Supervisor()


def shared() -> Supervisor:
    """Return the supervisor of this process."""
    return _shared
