"""Log lines in Triton's forms, or JSON: one record is one line whatever a request put into it.

``configure`` once at start, then ``info``/``warning``/``error``/``verbose`` from any thread. With
TRITON_SERVER_ESCAPE_LOG_MESSAGES=0 a message is not quoted and its newlines stay, each further line indented so that
none can pass for a record. Knows nothing of flags, models or requests; a sink that fails never raises.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import FrameType

from triton_fast.errors import Internal, InvalidArg
from triton_fast.observability.escape import quoted, visible

FORMATS = ("default", "ISO8601", "json")
# A client must not be able to write megabytes into the log with one error text.
MAX_MESSAGE = 16384
MAX_FIELD = 1024
_WORDS = {"I": "INFO", "W": "WARNING", "E": "ERROR"}
_RESERVED = ("time", "level", "verbose", "pid", "source", "message")
Source = tuple[str, int]


@dataclass(frozen=True)
class LogSettings:
    """``verbose`` is a level, 0 is off; ``file`` '' is the console; ``escape`` false stops quoting of messages."""

    info: bool = True
    warning: bool = True
    error: bool = True
    verbose: int = 0
    format: str = "default"
    file: str = ""
    escape: bool = True


class Logger:
    """Where lines go and which are wanted. The module's functions use one; tests make their own.

    ``clock`` returns ns since the epoch; ``out`` and ``err`` take the bytes of whole lines.
    """

    def __init__(
        self,
        clock: Callable[[], int] = time.time_ns,
        out: Callable[[bytes], None] | None = None,
        err: Callable[[bytes], None] | None = None,
    ) -> None:
        self._clock = clock
        self._out = out if out is not None else lambda line: _to_stream("stdout", line)
        self._err = err if err is not None else lambda line: _to_stream("stderr", line)
        # Re-entrant: a signal handler may log while this thread is inside write().
        self._lock = threading.RLock()
        self._settings = LogSettings()
        self._fd: int | None = None
        self._watchers: tuple[Callable[[], None], ...] = ()
        self._torn: set[str] = set()  # sinks whose last line lacks its end
        self.lost = 0  # lines that no sink took

    @property
    def settings(self) -> LogSettings:
        return self._settings

    def configure(self, settings: LogSettings) -> None:
        """Take ``settings`` as a whole. Raises InvalidArg or Internal, and keeps the old ones, when they cannot be."""
        if settings.format not in FORMATS:
            raise InvalidArg(f"invalid argument for --log_format, got: {settings.format}")
        with self._lock:
            if settings.file != self._settings.file:
                fd = _open(settings.file) if settings.file else None
                if self._fd is not None:
                    os.close(self._fd)
                self._fd = fd
                self._torn.discard("file")
            self._settings = settings
        for changed in self._watchers:
            changed()

    def watch(self, changed: Callable[[], None]) -> None:
        """Have ``changed`` called after each change of the settings, on the thread that changes them."""
        self._watchers = (*self._watchers, changed)

    def unwatch(self, changed: Callable[[], None]) -> None:
        self._watchers = tuple(one for one in self._watchers if one != changed)

    def reopen(self) -> None:
        """Open the log file anew, for one that was moved away. Raises Internal, and goes on with the old one, when
        that cannot be.
        """
        with self._lock:
            if self._fd is None:
                return
            fd = _open(self._settings.file)
            os.close(self._fd)
            self._fd = fd
            self._torn.discard("file")

    def update(self, **changes: object) -> LogSettings:
        """Change some settings while running and return all of them."""
        with self._lock:
            self.configure(replace(self._settings, **changes))  # type: ignore[arg-type]
            return self._settings

    def is_on(self, letter: str, verbose: int = 0) -> bool:
        now = self._settings
        if verbose:
            return now.verbose >= verbose
        return {"I": now.info, "W": now.warning, "E": now.error}[letter]

    def record(
        self,
        letter: str,
        message: str,
        fields: Mapping[str, object],
        source: Source,
        *,
        verbose: int = 0,
        table: str = "",
    ) -> None:
        """Write one record if its level is on; ``table``, ready to print, stands in for the message."""
        if not self.is_on(letter, verbose):
            return
        now = self._settings
        text = _cut(_text(message), MAX_MESSAGE)
        if now.format == "json":
            line = self._json(letter, table or text, fields, source, verbose)
        elif table:
            line = f"{self._preamble(letter, source)}\n{table}"
        else:
            body = quoted(text) if now.escape else "\n    ".join(visible(part) for part in text.split("\n"))
            line = self._preamble(letter, source) + body + _tail(fields)
        self._write(letter, (line + "\n").encode("utf-8", "backslashreplace"))

    def write_lines(self, lines: bytes) -> None:
        """Write whole lines that are ready, as information, whatever the level."""
        self._write("I", lines, several=True)

    def close(self) -> None:
        """Close the log file; later lines go to the console."""
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None
            self._settings = replace(self._settings, file="")

    def _write(self, letter: str, line: bytes, *, several: bool = False) -> None:
        with self._lock:
            sink = "file" if self._fd is not None else "out" if letter == "I" else "err"
            # What is left of a line that a full disk broke off must not run into this one.
            torn = sink in self._torn
            line = b"\n" + line if torn else line
            try:
                if self._fd is not None:
                    _write_all(self._fd, line)
                else:
                    (self._out if letter == "I" else self._err)(line)
                self._torn.discard(sink)
            except (OSError, ValueError, RuntimeError, AttributeError) as error:
                # Closed, full, or re-entered by a signal handler: serving goes on without the line.
                written = line[: getattr(error, "written", 0)]
                # Counted only here: a line that is written is not searched for its ends.
                count = line.count(b"\n") - torn if several else 1
                self.lost += count - max(0, written.count(b"\n") - torn)
                if written:
                    (self._torn.discard if written.endswith(b"\n") else self._torn.add)(sink)

    def _preamble(self, letter: str, source: Source) -> str:
        seconds, nanos = divmod(self._clock(), 10**9)
        at = time.gmtime(seconds)
        where = f"{os.getpid()} {visible(source[0])}:{source[1]}] "
        if self._settings.format == "ISO8601":
            return f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', at)} {letter} {where}"
        return f"{letter}{time.strftime('%m%d %H:%M:%S', at)}.{nanos // 1000:06d} {where}"

    def _json(self, letter: str, message: str, fields: Mapping[str, object], source: Source, verbose: int) -> str:
        seconds, nanos = divmod(self._clock(), 10**9)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        parts = [
            f'"time":"{stamp}.{nanos // 1000:06d}Z"',
            f'"level":"{"VERBOSE" if verbose else _WORDS[letter]}"',
            f'"pid":{os.getpid()}',
            f'"source":{quoted(f"{source[0]}:{source[1]}")}',
            f'"message":{quoted(message)}',
        ]
        if verbose:
            parts.insert(2, f'"verbose":{verbose}')
        for name, value in fields.items():
            parts.append(f"{quoted(name + '_' if name in _RESERVED else name)}:{_value(value)}")
        return "{" + ",".join(parts) + "}"


def _text(value: object) -> str:
    """Return ``str(value)``, or what failed: a log call must not raise for an object with a broken ``__str__``."""
    try:
        return str(value)
    except Exception as error:
        return f"<{type(value).__name__} that cannot be printed: {type(error).__name__}>"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text) - limit} characters more)"


def _value(value: object) -> str:
    """Return a field as JSON: numbers bare, the rest quoted."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if type(value) is int and value.bit_length() < 64:
        return str(value)
    if type(value) is float and value - value == 0:
        return repr(value)
    return quoted(_cut(_text(value), MAX_FIELD))


def _tail(fields: Mapping[str, object]) -> str:
    return "".join(f" {visible(name)}={_value(value)}" for name, value in fields.items())


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise Internal(f"Failed to open log file '{visible(path)}': {reason}") from None


def _write_all(fd: int, line: bytes) -> None:
    """Raises OSError, with ``written`` of the line's bytes where it was broken off."""
    rest = memoryview(line)
    try:
        while rest:
            rest = rest[os.write(fd, rest) :]
    except OSError as error:
        error.written = len(line) - len(rest)  # type: ignore[attr-defined]
        raise


def _to_stream(name: str, line: bytes) -> None:
    # Looked up at each call: tests and embedders replace sys.stdout. None where the process has no console.
    stream = getattr(sys, name)
    stream.flush()  # keeps the order with what was printed as text
    try:
        fd = stream.fileno()
    except OSError:  # not a file, e.g. captured
        stream.write(line.decode())
        stream.flush()
    else:
        # Past Python's buffer: after a failed write nothing stays there to be tried again at exit.
        _write_all(fd, line)


def _caller() -> Source:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    if frame is None:
        return ("", 0)
    return os.path.basename(frame.f_code.co_filename), frame.f_lineno


_logger = Logger()


def configure(settings: LogSettings) -> None:
    """Set the process's log up; see ``Logger.configure``."""
    _logger.configure(settings)


def settings() -> LogSettings:
    return _logger.settings


def update(**changes: object) -> LogSettings:
    """Change settings while running; see ``Logger.update``."""
    return _logger.update(**changes)


def watch(changed: Callable[[], None]) -> None:
    """Have ``changed`` called after each change of the settings; see ``Logger.watch``."""
    _logger.watch(changed)


def unwatch(changed: Callable[[], None]) -> None:
    _logger.unwatch(changed)


def reopen() -> None:
    """Open the log file anew; see ``Logger.reopen``."""
    _logger.reopen()


def write_lines(lines: bytes) -> None:
    """Write whole lines that are ready; see ``Logger.write_lines``."""
    _logger.write_lines(lines)


def close() -> None:
    _logger.close()


def lost() -> int:
    """Return how many lines could not be written."""
    return _logger.lost


def info(message: str, /, *, source: Source | None = None, **fields: object) -> None:
    """Log to stdout. ``source`` (file, line) is the caller's unless given, as for a model's own log calls."""
    if _logger.is_on("I"):
        _logger.record("I", message, fields, source or _caller())


def warning(message: str, /, *, source: Source | None = None, **fields: object) -> None:
    if _logger.is_on("W"):
        _logger.record("W", message, fields, source or _caller())


def error(message: str, /, *, source: Source | None = None, **fields: object) -> None:
    if _logger.is_on("E"):
        _logger.record("E", message, fields, source or _caller())


def verbose(level: int, message: str, /, *, source: Source | None = None, **fields: object) -> None:
    """Log where the verbose level is at least ``level`` (1 or more); Triton prints these as information."""
    if is_verbose(level):
        _logger.record("I", message, fields, source or _caller(), verbose=max(1, level))


def is_verbose(level: int) -> bool:
    """Return whether ``verbose(level, ...)`` would print: ask before building a costly message."""
    return _logger.is_on("I", max(1, level))


def table(text: str, /) -> None:
    """Log a table of ``observability.tables`` at information level; as JSON it is one record."""
    if _logger.is_on("I"):
        _logger.record("I", "", {}, _caller(), table=text)
