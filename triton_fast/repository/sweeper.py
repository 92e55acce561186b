"""A temporary directory that goes with this process, however it ends.

Nothing can be done when a process is killed, so a small one waits for its end: both hold a pipe, and when the pipe
closes the directory is removed. It starts with the first directory that is asked for. Knows nothing of models.

Run as a program it is that process: ``sweeper.py DIRECTORY``, the pipe is its standard input.
"""

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

# How long an orderly end waits for the directory to be gone.
END_S = 5.0


class Sweeper:
    """Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def folder(self) -> Path:
        """Return the directory, which only this user can read. Raises OSError."""
        with self._lock:
            is_alive = self._process is not None and self._process.poll() is None and self._owner == os.getpid()
            if self._folder is None or not is_alive or not self._folder.is_dir():
                self._close()
                self._folder = Path(tempfile.mkdtemp(prefix="triton_fast_"))
                self._process = self._start(self._folder)
                self._owner = os.getpid()
            return self._folder

    def close(self) -> None:
        """Have the directory removed now, where there is one; the next that is asked for is another."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        process, self._process, self._folder = self._process, None, None
        # A forked child has the pipe too, but the directory is its parent's.
        if process is None or process.stdin is None or self._owner != os.getpid():
            return
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)

    @staticmethod
    def _start(folder: Path) -> "subprocess.Popen[bytes]":
        try:
            # A session of its own: what is sent to the server's group must not reach it.
            return subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, str(folder)], stdin=subprocess.PIPE, cwd="/",
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        except OSError:
            folder.rmdir()
            raise


shared = Sweeper()
# An orderly end leaves no process behind, for however short a time.
atexit.register(shared.close)

if __name__ == "__main__":
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    shutil.rmtree(sys.argv[1], ignore_errors=True)
