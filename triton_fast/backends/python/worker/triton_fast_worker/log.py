"""Logger: messages of the model, printed by the server under its own settings, with the caller's file and line."""

from __future__ import annotations

import enum
import sys

from .errors import BINDING, HERE, incompatible
from .runtime import current


class LogLevel(enum.IntEnum):
    INFO = 0
    WARNING = 1
    ERROR = 2
    VERBOSE = 3

    def __str__(self) -> str:
        return f"LogLevel.{self.name}"


LogLevel.__module__ = BINDING
LogLevel.__qualname__ = "Logger.LogLevel"
_LEVEL = f"{BINDING}.Logger.LogLevel"


def _write(function: str, signature: str, message: object, level: object) -> None:
    if not isinstance(message, str) or not isinstance(level, LogLevel):
        given = (message,) if level is LogLevel.INFO or function != "log" else (message, level)
        raise incompatible(function, signature, *given)
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(HERE):
        frame = frame.f_back
    current().log(int(level), frame.f_code.co_filename, frame.f_lineno, message)


class Logger:
    """Only static methods."""

    __module__ = BINDING
    INFO = LogLevel.INFO
    WARNING = LogLevel.WARNING
    ERROR = LogLevel.ERROR
    VERBOSE = LogLevel.VERBOSE

    def __init__(self) -> None:
        raise TypeError(f"{BINDING}.Logger: No constructor defined!")

    @staticmethod
    def log(message: str, level: LogLevel = LogLevel.INFO) -> None:
        _write("log", f"(message: str, level: {_LEVEL} = {LogLevel.INFO!r}) -> None", message, level)

    @staticmethod
    def log_info(message: str) -> None:
        _write("log_info", "(message: str) -> None", message, LogLevel.INFO)

    @staticmethod
    def log_warn(message: str) -> None:
        _write("log_warn", "(message: str) -> None", message, LogLevel.WARNING)

    @staticmethod
    def log_error(message: str) -> None:
        _write("log_error", "(message: str) -> None", message, LogLevel.ERROR)

    @staticmethod
    def log_verbose(message: str) -> None:
        _write("log_verbose", "(message: str) -> None", message, LogLevel.VERBOSE)


# Not in the class body, where it would hide the type.
setattr(Logger, "LogLevel", LogLevel)  # noqa: B010
