"""TritonError, TritonModelException, and the text of an exception as Triton's binding prints it."""

from __future__ import annotations

import enum
import os
import re
import sys
from types import FrameType
from typing import Any

BINDING = "c_python_backend_utils"
# Of objects: no client's business either.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+(?=>)")
HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
# Directories whose place on the machine is nobody's business.
_roots: list[str] = []
# Where files lie that do not show: Triton shows its own Python code too, but where a server is installed is not for
# its clients.
_hidden: tuple[str, ...] = (HERE,)
# What calls the model: below it nothing is the model's.
_CALLERS = (HERE + "execution.py", HERE + "loader.py")


def hide(folder: str) -> None:
    """Leave the files of a folder out of tracebacks, too."""
    global _hidden  # noqa: PLW0603
    _hidden = (*_hidden, folder)


class TritonModelException(Exception):
    """What the functions and classes of pb_utils raise; a model may raise it too."""

    __module__ = BINDING


def _as_code(value: int) -> ErrorCode:
    return ErrorCode(value)


_RESOURCE_EXHAUSTED = 8


class ErrorCode(enum.IntEnum):
    UNKNOWN = 0
    INTERNAL = 1
    NOT_FOUND = 2
    INVALID_ARG = 3
    UNAVAILABLE = 4
    UNSUPPORTED = 5
    ALREADY_EXISTS = 6
    CANCELLED = 7

    def __repr__(self) -> str:
        return f"<__ErrorCode.{self.name}: {self.value}>"

    def __str__(self) -> str:
        return f"__ErrorCode.{self.name}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _as_code, (int(self),)

    @classmethod
    def of(cls, number: int) -> ErrorCode:
        """The code that models know for one of the server, which has one more: no place, told from unavailable."""
        if number == _RESOURCE_EXHAUSTED:
            return cls.UNAVAILABLE
        return cls(number) if 0 <= number < len(cls) else cls.UNKNOWN


ErrorCode.__name__ = "__ErrorCode"
ErrorCode.__qualname__ = "TritonError.__ErrorCode"


def incompatible(name: str, signature: str, *args: object, **kwargs: object) -> TypeError:
    """The TypeError of a binding's function that was called with arguments of wrong types."""
    kind = "constructor" if name == "__init__" else "function"
    given = ", ".join(map(repr, args))
    if kwargs:
        given += ("; " if args else "") + "kwargs: " + ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
    return TypeError(
        f"{name}(): incompatible {kind} arguments. The following argument types are supported:\n"
        f"    1. {signature}\n\nInvoked with: {_ADDRESS.sub('', given)}"
    )


class TritonError:
    """An error that a response carries. Not an exception."""

    __module__ = BINDING
    __slots__ = ("_code", "_message")

    UNKNOWN = ErrorCode.UNKNOWN
    INTERNAL = ErrorCode.INTERNAL
    NOT_FOUND = ErrorCode.NOT_FOUND
    INVALID_ARG = ErrorCode.INVALID_ARG
    UNAVAILABLE = ErrorCode.UNAVAILABLE
    UNSUPPORTED = ErrorCode.UNSUPPORTED
    ALREADY_EXISTS = ErrorCode.ALREADY_EXISTS
    CANCELLED = ErrorCode.CANCELLED

    def __init__(self, message: str, code: ErrorCode = ErrorCode.INTERNAL) -> None:
        if not isinstance(message, str) or not isinstance(code, ErrorCode):
            given = (message,) if code is ErrorCode.INTERNAL else (message, code)
            raise incompatible(
                "__init__",
                f"{BINDING}.TritonError(message: str, "
                f"code: {BINDING}.TritonError.__ErrorCode = {ErrorCode.INTERNAL!r})",
                *given,
            )
        self._message = message
        self._code = code

    def code(self) -> ErrorCode:
        return self._code

    def message(self) -> str:
        return self._message


def show_relative_to(directory: str) -> None:
    """From now on files below it are shown without it; the more so the later it was said."""
    if directory not in _roots:
        _roots.insert(0, directory)


def shown(file: str) -> str:
    """Where a file is, as clients may see it: below the repository, or as an import would find it."""
    for root in (*_roots, *sorted(filter(None, sys.path), key=len, reverse=True)):
        if file.startswith(root.rstrip(os.sep) + os.sep):
            return file[len(root.rstrip(os.sep)) + 1 :]
    return os.path.basename(file) if os.path.isabs(file) else file


def describe(error: BaseException) -> str:
    """``<Type>: <text>`` and the frames, innermost first, below it; an exception of our own speaks for itself."""
    try:
        message = str(error)
    except Exception:
        message = "<MESSAGE UNAVAILABLE DUE TO ANOTHER EXCEPTION>"
    text = f"{type(error).__name__}: {_ADDRESS.sub('', message) or '<EMPTY MESSAGE>'}"
    trace = error.__traceback__
    if trace is None:
        return text
    while trace.tb_next is not None and not trace.tb_next.tb_frame.f_code.co_filename.endswith((".pyx", ".pxi")):
        trace = trace.tb_next
    lines = []
    # The callers of the frame that raised, as far as they are the model's: ours stand for Triton's native code.
    frame: FrameType | None = trace.tb_frame
    while frame is not None:
        code, file = frame.f_code, frame.f_code.co_filename
        if file in _CALLERS:
            break
        if not file.startswith(_hidden):
            lines.append(f"  {shown(file)}({frame.f_lineno}): {code.co_name}\n")
        frame = frame.f_back
    return text + "\n\nAt:\n" + "".join(lines) if lines else text
