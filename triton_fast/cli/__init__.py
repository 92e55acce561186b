"""The command line: ``parse_or_exit(argv)`` gives an ``Options``; the table of flags is ``table.FLAGS``."""

from __future__ import annotations

from triton_fast.cli.hide import hide
from triton_fast.cli.options import Options, TraceOptions
from triton_fast.cli.parse import CliError, defaults, parse, parse_or_exit
from triton_fast.cli.usage import markdown, usage

__all__ = ["CliError", "Options", "TraceOptions", "defaults", "hide", "markdown", "parse", "parse_or_exit", "usage"]
