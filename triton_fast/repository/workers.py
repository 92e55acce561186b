"""A few daemon threads for work that may take long or never end (a model that hangs must not hold up the exit).

concurrent.futures joins its threads at exit; these are not joined. Knows nothing of models.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Workers:
    """At most ``limit`` threads, started when there is work for them; they end when ``close`` was called."""

    def __init__(self, limit: int, name: str) -> None:
        self._limit = max(1, limit)
        self._name = name
        self._jobs: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._wake = threading.Condition()
        self._threads = 0
        self._idle = 0
        self._closed = False

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Queue ``job``; its result or exception goes to the future. Raises RuntimeError after ``close``."""
        future: Future[T] = Future()
        with self._wake:
            if self._closed:
                raise RuntimeError(f"{self._name}: closed")
            self._jobs.append((future, job))
            if self._idle >= len(self._jobs):
                self._wake.notify()
            elif self._threads < self._limit:
                self._threads += 1
                threading.Thread(target=self._run, name=f"{self._name}-{self._threads}", daemon=True).start()
        return future

    def close(self) -> None:
        """Let the threads end once the queue is empty. Does not wait."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._idle += 1
                while not self._jobs and not self._closed:
                    self._wake.wait()
                self._idle -= 1
                if not self._jobs:
                    self._threads -= 1
                    return
                future, job = self._jobs.popleft()
            try:
                result = job()
            except BaseException as error:  # a model's own SystemExit is this job's failure, not the thread's end
                future.set_exception(error)
            else:
                future.set_result(result)
            del future, job
