"""How a bad configuration is reported: Triton's text first, then where it is and what to do.

One line each, so that a reason fits the index, the log and the start-up table. Knows no configuration field.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from triton_fast.errors import InvalidArg

_LINE_LIMIT = 120
_TEXT_LIMIT = 2000


class ConfigError(InvalidArg):
    """A configuration that cannot be used.

    ``text`` is Triton's text alone; ``hint`` says what to change; ``file``, ``line`` and ``column`` (from 1)
    are set when the place in the file is known.
    """

    def __init__(self, text: str, *, hint: str = "", file: str = "", line: int = 0, column: int = 0) -> None:
        self.text = one_line(text)
        self.hint = one_line(hint)
        super().__init__(f"{self.text} ({self.hint})" if hint else self.text)
        self.file = file
        self.line = line
        self.column = column


def one_line(text: str) -> str:
    """Return ``text`` with control characters escaped, and cut: names in it come from the config."""
    if len(text) > _TEXT_LIMIT:
        text = text[:_TEXT_LIMIT] + "..."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return ``did you mean 'x'?`` for the known name nearest to ``name``, or an empty string."""
    names = list(known)
    folded = {candidate.lower(): candidate for candidate in names}
    near = difflib.get_close_matches(name[:100].lower(), folded, n=1, cutoff=cutoff)
    return f"did you mean '{folded[near[0]]}'?" if near else ""


def quote_line(line: str, column: int) -> str:
    """Return at most 120 characters of ``line`` around ``column`` (from 1), with unprintable ones escaped."""
    start = 0
    if len(line) > _LINE_LIMIT:
        start = max(0, min(column - 1 - _LINE_LIMIT // 2, len(line) - _LINE_LIMIT))
    part = line[start : start + _LINE_LIMIT]
    shown = one_line(part).strip()
    return f"{'...' if start else ''}{shown}{'...' if start + _LINE_LIMIT < len(line) else ''}"


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as Triton prints it: ``[-1,224,224]``."""
    return "[" + ",".join(str(dim) for dim in shape) + "]"
