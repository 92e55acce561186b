"""The usage text and docs/flags.md, both made from the table.

Knows nothing of parsing.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from triton_fast.cli.table import DEPRECATED, FLAGS, GROUPS, Flag

_WIDTH = 64


def _help(flag: Flag) -> str:
    text = flag.help
    if flag.group == DEPRECATED:
        text = f"DEPRECATED: {text} Use {flag.replaced_by} instead."
    default = default_text(flag)
    if default:
        text += f" Default: {default}."
    if flag.later:
        text += f" Accepted, but {flag.later}."
    return text


def default_text(flag: Flag) -> str:
    """Return the default as a user would type it; empty when there is none worth showing."""
    value = flag.default
    if value is None or isinstance(value, (tuple, Mapping)) or not flag.kind.word or value == "":
        return ""
    text = ("true" if value else "false") if isinstance(value, bool) else str(value)
    return f"{text} {flag.unit}" if flag.unit else text


def usage() -> str:
    """Return the text of ``--help``: flags under Triton's groups, in its order."""
    lines = ["Usage: tritonserver [options]"]
    for group in GROUPS:
        if group:
            lines += ["", f"{group}:"]
        for flag in FLAGS:
            if flag.group == group:
                lines.append(f"  --{flag.name} <{flag.kind.word}>" if flag.kind.word else f"  --{flag.name}")
                lines += ["\t" + line for line in textwrap.wrap(_help(flag), _WIDTH, break_on_hyphens=False)]
    return "\n".join([*lines, "", ""])


def markdown() -> str:
    """Return docs/flags.md."""
    lines = [
        "# Flags",
        "",
        "Made from the table in `triton_fast/cli/table.py` by `python -m triton_fast.cli > docs/flags.md`; a test",
        "holds the two equal. A flag with status *later* is accepted and checked, and the log says at start-up",
        "what it does not do yet. `--flag=value` and `--flag value` are the same; a unique beginning of a name is",
        "enough.",
    ]
    for group in GROUPS:
        lines += ["", f"## {group.capitalize() if group == DEPRECATED else group or 'General'}", ""]
        lines += ["| Flag | Type | Default | Status | Meaning |", "| --- | --- | --- | --- | --- |"]
        lines += [_row(flag) for flag in FLAGS if flag.group == group]
    return "\n".join(lines) + "\n"


def _row(flag: Flag) -> str:
    meaning = flag.help
    if flag.replaced_by:
        meaning += f" Use `{flag.replaced_by}` instead."
    if flag.later:
        meaning += f" ({flag.later})"
    word = f"`{flag.kind.word}`" if flag.kind.word else ""
    default = f"`{default_text(flag)}`" if default_text(flag) else ""
    repeat = ", repeatable" if flag.repeatable else ""
    cells = (f"`--{flag.name}`", word + repeat, default, flag.status, _escape(meaning))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _escape(text: str) -> str:
    return text.replace("*", "\\*").replace("<", "&lt;")
