"""Trace settings as values: what a change may say, in Triton's words, and what holds where nothing is said.

Source: spec/http.md section 8, spec/grpc.md section 7. Knows no protocol, no model and no request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from triton_fast.errors import InvalidArg, Unsupported

TIMESTAMPS = 1
TENSORS = 2
LEVELS = {"TIMESTAMPS": TIMESTAMPS, "TENSORS": TENSORS}
SCALARS = ("trace_rate", "trace_count", "log_frequency")
FIXED_FILE = "trace file location can not be updated through network protocol"
UINT32 = 4294967295
INT32 = 2147483647
# As std::stoi reads a number: what follows its digits does not matter.
_NUMBER = re.compile(r"[ \t\n\v\f\r]*([+-]?[0-9]+)", re.ASCII)

# What a request asks for: a setting's new value, or None to let it fall back.
Changes = Mapping[str, "int | None"]


@dataclass(frozen=True)
class Values:
    """What holds for some requests. ``level``: TIMESTAMPS | TENSORS, 0 is OFF; ``count`` -1: no limit."""

    trace_level: int = 0
    trace_rate: int = 1000
    trace_count: int = -1
    log_frequency: int = 0


@dataclass
class Overrides:
    """What was said for one model, or for all; what was not is another's to say."""

    said: dict[str, int] = field(default_factory=dict)

    def over(self, below: Values) -> Values:
        return Values(**{**below.__dict__, **self.said})

    def with_changes(self, changes: Changes) -> Overrides:
        said = {**self.said, **{name: value for name, value in changes.items() if value is not None}}
        return Overrides({name: value for name, value in said.items() if changes.get(name, value) is not None})


def refuse_file() -> None:
    """Nobody on the network says where the server writes."""
    raise Unsupported(FIXED_FILE)


def parse_level(names: Sequence[str]) -> int | None:
    """Return the level that the names make; None when none of them means anything. Raises InvalidArg."""
    if "OFF" in names:
        if len(names) != 1:
            raise InvalidArg("Expect only one trace level 'OFF' is specified")
        return 0
    level = 0
    for name in names:
        level |= LEVELS.get(name, 0)
    return level or None


def parse_scalar(name: str, text: str, *, gap: str = " ") -> int:
    """Return the number. ``gap`` stands before what is quoted of a count below -1. Raises InvalidArg."""
    found = _NUMBER.match(text)
    if found is None:
        raise InvalidArg(f"Unable to parse '{name}', got: {text}")
    # More digits than any number in range has: no need to make it.
    value = int(found[1]) if len(found[1]) < 20 else -(1 << 64) if found[1][0] == "-" else 1 << 64
    least, most = (-1 - INT32, INT32) if name == "trace_count" else (0, UINT32)
    if not least <= value <= most:
        shown = -1 if name == "trace_count" else 0
        raise InvalidArg(f"Unable to parse '{name}', value is out of range [ {shown}, {most} ], got: {text}")
    if value < -1:
        raise InvalidArg(f"Unable to parse 'trace_count'. Expecting value >= -1, got:{gap}{text}")
    return value


def level_names(level: int) -> list[str]:
    return [name for name, bit in LEVELS.items() if level & bit] or ["OFF"]


def fault_of(values: Values, *, has_file: bool, spans: bool) -> str | None:
    """Say why nothing can be traced with these values, None if something can. A count that is used up has no words."""
    if values.trace_level == 0:
        return "tracing is disabled"
    if values.trace_rate == 0 and not spans:
        return "sample rate must be non-zero"
    if not spans and not has_file:
        return "trace file name is not given"
    return "" if values.trace_count == 0 else None
