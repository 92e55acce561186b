"""Triton's trace files: a JSON array in one file, or one of every so many traces. Knows no settings but how many.

A file is a whole array whenever nothing is being written: its closing bracket is written each time, and over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from triton_fast.observability import log


class TraceFiles:
    """The files of one server.

    Parameters
    ----------
    path
        The file, which is begun anew; with a frequency ``<path>.0``, ``<path>.1`` and so on.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._end = 0
        self._next = 0
        self._frequency: dict[int, int] = {}
        self._waiting: dict[int, list[bytes]] = {}
        self._lost = 0

    def open_stream(self, stream: int, frequency: int) -> None:
        """Have the traces of ``stream`` written, every ``frequency`` of them to a file; 0: all to one."""
        self._frequency[stream] = frequency

    def retire(self, streams: Iterable[int]) -> None:
        """Write what waits for more traces of its stream: few of them will come, and they go at once."""
        for stream in streams:
            self._flush(stream)
            if self._frequency.get(stream):
                self._frequency[stream] = 1

    def write(self, traces: Iterable[tuple[int, bytes]]) -> None:
        whole = []
        for stream, objects in traces:
            frequency = self._frequency.get(stream, 0)
            if not frequency:
                whole.append(objects)
                continue
            waiting = self._waiting.setdefault(stream, [])
            waiting.append(objects)
            if len(waiting) >= frequency:
                self._flush(stream)
        if whole:
            self._append(b",".join(whole), len(whole))

    def close(self) -> None:
        for stream in list(self._waiting):
            self._flush(stream)
        if self._file is not None:
            self._file.close()
            self._file = None

    def _flush(self, stream: int) -> None:
        waiting = self._waiting.pop(stream, None)
        if not waiting:
            return
        path = Path(f"{self._path}.{self._next}")
        self._next += 1
        try:
            path.write_bytes(b"[" + b",".join(waiting) + b"]")
        except OSError as error:
            with contextlib.suppress(OSError):
                path.unlink()
            self._complain(path, error, len(waiting))
        else:
            self._succeeded()

    def _append(self, objects: bytes, count: int) -> None:
        try:
            if self._file is None:
                self._file = Path(self._path).open("wb", buffering=0)  # noqa: SIM115 - until close()
                self._end = 0
            self._file.seek(self._end)
            data = (b"," if self._end else b"[") + objects
            _write_all(self._file, data + b"]")
            self._end += len(data)
        except OSError as error:
            self._mend()
            self._complain(self._path, error, count)
        else:
            self._succeeded()

    def _mend(self) -> None:
        """Take back what a full disk let in of a trace: the file is a whole array again."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            if self._end:
                self._file.seek(self._end)
                _write_all(self._file, b"]")    # where one was: it needs no room
            self._file.truncate(self._end + 1 if self._end else 0)

    def _complain(self, path: Path | str, error: OSError, count: int) -> None:
        if not self._lost:      # once until it works again: a full disk would else fill the log
            log.error(f"failed to write to trace file '{path}': {error.strerror or error}")
        self._lost += count

    def _succeeded(self) -> None:
        if self._lost:
            log.warning(f"traces are written again; {self._lost} were lost")
            self._lost = 0


def _write_all(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
