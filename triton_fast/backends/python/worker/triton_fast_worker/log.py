"""``Logger``: lines in the server's log, with the place in the model that wrote them."""

from __future__ import annotations

import enum
import sys
from typing import Any

from triton_fast_worker import runtime


class LogLevel(enum.IntEnum):
    INFO = 0
    WARNING = 1
    ERROR = 2
    VERBOSE = 3


def _write(level: int, message: Any) -> None:
    frame = sys._getframe(2)
    runtime.current().log(int(level), frame.f_code.co_filename, frame.f_lineno, str(message))


class Logger:
    """Writes to the server's log, as its settings say."""

    INFO, WARNING, ERROR, VERBOSE = LogLevel.INFO, LogLevel.WARNING, LogLevel.ERROR, LogLevel.VERBOSE

    @staticmethod
    def log(message: Any, level: int = LogLevel.INFO) -> None:
        _write(level, message)

    @staticmethod
    def log_info(message: Any) -> None:
        _write(LogLevel.INFO, message)

    @staticmethod
    def log_warn(message: Any) -> None:
        _write(LogLevel.WARNING, message)

    @staticmethod
    def log_error(message: Any) -> None:
        _write(LogLevel.ERROR, message)

    @staticmethod
    def log_verbose(message: Any) -> None:
        _write(LogLevel.VERBOSE, message)
