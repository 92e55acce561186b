"""The access log: a thread that writes what requests leave in a native ring, and who is told of.

One for each server. The share of requests is the flag's, or all of them at verbose level 1 and above; level 2 adds the
inputs. Knows the log, and nothing of protocols; what a line says is ``_native/net/access``'s business.
"""

from __future__ import annotations

import os
import threading

from triton_fast._native.net.access import AccessLog
from triton_fast.observability import log

# Records that wait take so much memory, touched only while there are many.
RING_BYTES = 1 << 22
# Lines are written together; one is no later than this.
GATHER_NS = 50_000_000
# A console that nobody reads must not hold up the server's end.
END_S = 1.0


class AccessWriter:
    """``share``: of requests, 0 to 1, that get a line."""

    def __init__(self, share: float = 0.0, *, ring_bytes: int = RING_BYTES) -> None:
        self.native = AccessLog(ring_bytes)
        self._share = share
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = False

    @property
    def lost(self) -> int:
        """Lines for which there was no room."""
        return self.native.lost

    def all_lost(self) -> int:
        """Lines of any kind that could not be written, those of the log that no sink took among them."""
        return self.lost + log.lost()

    def start(self) -> None:
        """Begin, and follow the log's verbose level from now on."""
        log.watch(self._changed)
        self._changed()

    def close(self) -> None:
        """Write what is left, and end."""
        log.unwatch(self._changed)
        with self._lock:
            self._closed = True
            self.native.set_share(0.0)
            thread, self._thread = self._thread, None
        self.native.close()
        if thread is not None:
            thread.join(END_S)

    def _changed(self) -> None:
        verbose = log.settings().verbose
        share = 1.0 if verbose >= 1 else self._share
        with self._lock:
            if self._closed:
                return
            if share and self._thread is None:
                self._thread = threading.Thread(target=self._run, name="access log", daemon=True)
                self._thread.start()
            self.native.tensors = verbose >= 2
            self.native.set_share(share)

    def _run(self) -> None:
        while self.native.wait(GATHER_NS):
            self._write()

    def _write(self) -> None:
        while True:
            now = log.settings()
            lines = self.native.take(now.format, os.getpid(), now.escape)
            if not lines:
                return
            log.write_lines(lines)
