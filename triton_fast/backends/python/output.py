"""What a model prints: bytes of its stdout and stderr into lines of the server's log.

One line is one record, with the model's name; the log escapes it. Knows nothing of pipes.
"""

from __future__ import annotations

from collections.abc import Callable

MAX_LINE = 64 << 10
_CUT = " ... (line cut)"


class Lines:
    """Cuts a stream into lines of at most 64 KiB and hands each to ``write``; the rest of a longer one is dropped."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._part = bytearray()
        self._is_cut = False

    def feed(self, data: bytes) -> None:
        *whole, rest = data.split(b"\n")
        for line in whole:
            self._add(line)
            self._end()
        self._add(rest)

    def close(self) -> None:
        """Write what has no newline at its end."""
        if self._part or self._is_cut:
            self._end()

    def _add(self, data: bytes) -> None:
        room = MAX_LINE - len(self._part)
        if len(data) > room:
            self._is_cut = True
        self._part += data[:room]

    def _end(self) -> None:
        text = bytes(self._part).decode("utf-8", "replace").removesuffix("\r")
        self._write(text + _CUT if self._is_cut else text)
        self._part.clear()
        self._is_cut = False
