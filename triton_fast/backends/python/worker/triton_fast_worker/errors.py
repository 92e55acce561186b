"""Errors as models see them, and Python exceptions as clients do."""

from __future__ import annotations

import os
import types
from typing import Any

_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class TritonError:
    """An error of a response: a message and one of Triton's codes. Not an exception."""

    UNKNOWN = 0
    INTERNAL = 1
    NOT_FOUND = 2
    INVALID_ARG = 3
    UNAVAILABLE = 4
    UNSUPPORTED = 5
    ALREADY_EXISTS = 6
    CANCELLED = 7

    __slots__ = ("_code", "_message")

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message = message
        self._code = int(code)

    def code(self) -> int:
        return self._code

    def message(self) -> str:
        return self._message

    def __str__(self) -> str:
        return self._message


class TritonModelException(Exception):  # noqa: N818 - Triton's name
    """What the functions of this module raise; models may raise it too."""


# As the class of Triton's binding module is named in error texts.
TritonModelException.__module__ = "c_python_backend_utils"


def describe(error: BaseException) -> str:
    """Return ``<Type>: <text>`` and the model's frames, innermost first, as Triton prints exceptions of models."""
    kind = type(error)
    name = kind.__name__
    if kind.__module__ == "c_python_backend_utils":
        name = f"{kind.__module__}.{name}"
    text = f"{name}: {error}"
    frames = _frames(error.__traceback__)
    return text + "\n\nAt:\n" + frames if frames else text


def _frames(trace: Any) -> str:
    if trace is None:
        return ""
    lines: dict[types.FrameType, int] = {}
    while True:
        lines[trace.tb_frame] = trace.tb_lineno
        if trace.tb_next is None:
            break
        trace = trace.tb_next
    frame: Any = trace.tb_frame
    found = []
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_OWN):
            found.append(f"  {file}({lines.get(frame, frame.f_lineno)}): {frame.f_code.co_name}\n")
        frame = frame.f_back
    return "".join(found)
