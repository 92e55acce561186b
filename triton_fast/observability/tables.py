"""Triton's tables in plain text. A cell never breaks a line or reaches the terminal as a control sequence.

Knows the columns of the start-up tables; nothing of where they are printed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from triton_fast.observability.escape import visible

MODEL_COLUMNS = ("Model", "Version", "Status")
BACKEND_COLUMNS = ("Backend", "Path", "Config", "Version")
AGENT_COLUMNS = ("Repository Agent", "Path")
OPTION_COLUMNS = ("Option", "Value")


@dataclass(frozen=True)
class ModelRow:
    """``status`` is READY, or ``UNAVAILABLE: <reason>``; ``version`` is '-' when none could be chosen."""

    model: str
    version: str
    status: str


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a bordered table, one line a row, each line ended by a newline; a row may not be longer than columns."""
    cells = [[visible(str(cell)) for cell in row] for row in rows]
    for row in cells:
        if len(row) > len(columns):
            raise ValueError(f"a row of {len(row)} cells in a table of {len(columns)} columns")
        row.extend([""] * (len(columns) - len(row)))
    head = [visible(column) for column in columns]
    widths = [max(len(row[index]) for row in [head, *cells]) for index in range(len(head))]
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"

    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(row[index].ljust(width) for index, width in enumerate(widths)) + " |"

    lines = [line(row) for row in [head, *cells]]
    return "\n".join([rule, lines[0], rule, *lines[1:], rule, ""])


def models(rows: Iterable[ModelRow]) -> str:
    return table(MODEL_COLUMNS, [(row.model, row.version, row.status) for row in rows])


def backends(rows: Iterable[tuple[str, str, str, str]]) -> str:
    """``rows`` are name, path, configuration as JSON text, and the framework's version."""
    return table(BACKEND_COLUMNS, rows)


def agents(rows: Iterable[tuple[str, str]]) -> str:
    return table(AGENT_COLUMNS, rows)


def options(rows: Iterable[tuple[str, str]]) -> str:
    return table(OPTION_COLUMNS, rows)
