"""PyTorch's messages as clients may see them: the line that says what happened, without paths and stack traces."""

from __future__ import annotations

import re
from typing import Any

_LIMIT = 1000
# An absolute path of at least two parts, in quotes or not; its last part stays.
_PATH = re.compile(r"(?<![\w.:/])/(?:[^/\s'\"(),:;]+/)+([^/\s'\"(),:;]*)")
# What C++ puts in front of a message: the place of the check.
_PLACE = re.compile(r"^\[enforce fail at [^\]]*\]\s*(?:\.\s*)?")
# The interpreter repeats the exception's type behind its traceback.
_KIND = re.compile(r"^(?:[\w.]+\.)?[A-Z]\w*(?:Error|Exception|Warning): ?")
# Advice about how files may have become corrupt, which is the same for every archive.
_TAIL = re.compile(r"\.? This is an internal miniz error\..*$", re.DOTALL)
# Behind it: how much memory whose processes have, and how to tune torch.
_MEMORY = re.compile(r"^(.*?out of memory\. Tried to allocate [0-9.]+ \w+)\b.*$")
_CUDA = re.compile(r"\bcu(da|dnn|blas|solver|fft|sparse|rand)", re.IGNORECASE)
_SCRIPT = "The following operation failed in the TorchScript interpreter."


def short(error: BaseException) -> str:
    """Return one line of an exception's message; the name of its type where it has none."""
    try:
        text = str(error)
    except Exception:
        text = ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    line = lines[0]
    if line.startswith(_SCRIPT):
        kinds = [other for other in lines if _KIND.match(other)]
        line = _KIND.sub("", kinds[-1] if kinds else lines[-1]) or lines[-1]
    line = _MEMORY.sub(r"\1", line)
    line = _TAIL.sub("", _PLACE.sub("", line))
    return _PATH.sub(r"\1", line)[:_LIMIT] or type(error).__name__


def is_out_of_memory(torch: Any, error: BaseException) -> bool:
    """Whether a GPU had too little memory; the interpreter of TorchScript makes another type of the exception."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "CUDA out of memory" in str(error)


def is_of_device(text: str) -> bool:
    """Whether a message may be of CUDA or one of its libraries."""
    return _CUDA.search(text) is not None
