"""The end of versions that are served no more: their requests in flight finish in the background, then they close.

Knows the table and what the server's end waits for; not why a version ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from typing import Generic

from triton_fast.errors import describe
from triton_fast.observability import log
from triton_fast.repository.operations import Operations
from triton_fast.repository.table import Entry, ModelTable, R
from triton_fast.repository.workers import Workers

# Each may wait for the requests in flight of one version; a load never waits for them.
_THREADS = 64


class Endings(Generic[R]):
    """``stop_by``: when the server's own end waits no longer; None while it does not end."""

    def __init__(self, table: ModelTable[R], operations: Operations, clock: Callable[[], float]) -> None:
        self.stop_by: float | None = None
        self._table = table
        self._operations = operations
        self._clock = clock
        self._workers = Workers(_THREADS, "model-unload")

    def end(self, name: str, entries: Iterable[Entry[R]]) -> list[Future[None]]:
        """Begin the end of versions that nothing resolves to any more; return what waits for it."""
        ended = []
        for entry in entries:
            if entry.ensemble is not None and entry.runtime is not None:
                # At once: the ends of its members wait for it, and may have all the threads.
                with contextlib.suppress(RuntimeError):
                    entry.runtime.stop(0.0)
            self._operations.begin()
            ended.append(self._workers.submit(partial(self._end, name, entry)))
        return ended

    def close(self) -> None:
        self._workers.close()

    def _end(self, name: str, entry: Entry[R]) -> None:
        """Wait for the requests in flight and close the version. Runs on an unload thread."""
        is_gone = True
        try:
            if entry.runtime is not None:
                # No limit but the server's own end.
                left = None if self.stop_by is None else max(0.0, self.stop_by - self._clock())
                is_gone = entry.runtime.stop(left)
        except BaseException as error:
            text = f"failed to unload '{name}' version {entry.version} cleanly: {describe(error)}"
            log.error(text, model=name, version=entry.version)
        finally:
            if is_gone:
                self._table.gone(entry)
                log.info(f"successfully unloaded '{name}' version {entry.version}", model=name, version=entry.version)
            else:
                log.error(
                    f"'{name}' version {entry.version} still has requests in flight", model=name, version=entry.version
                )
            if entry.directory is not None:
                entry.directory.release()
            self._operations.done()
