"""Where in a config.pbtxt the thing is that an error is about: by the names that its text quotes. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from triton_fast import protos

_QUOTED = re.compile(r"'([^']+)'")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Fields that a text means without naming them as they are written.
_MEANT = {
    "preferred size": "preferred_batch_size", "max batch size": "max_batch_size", "instance group": "instance_group",
    "datatype": "data_type", "data-type": "data_type", "dimension": "dims", "version policy": "version_policy",
    "priority level": "priority_levels", "optimization": "optimization", "warmup": "model_warmup",
    "platform": "platform", "ensemble": "ensemble_scheduling", "batch input": "batch_input", "control": "control_input",
    "cache": "response_cache", "slot utilization": "minimum_slot_utilization", "kind": "kind",
}  # fmt: skip


def locate(text: str, message: str, words: Iterable[str] = ()) -> tuple[int, int]:
    """Return line and column (from 1) of what ``message`` is about; (1, 1) where nothing tells.

    Names that are quoted in the message (of files, also without the model's directory) and stand in quotes in the file
    come first, then values of enums, then the fields that the message names, then those that it means.
    """
    quoted = [part for name in _QUOTED.findall(message) for part in (name, name.partition("/")[2]) if part]
    fields = {field for path in _fields() for field in path}
    patterns = [re.escape(f'"{name}"') for name in [*words, *quoted]]
    named = _WORD.findall(message)
    # Values of enums before the fields: where there are several of a kind, they tell which.
    patterns += [rf"\b{name}\b" for name in named if "_" in name and name.isupper()]
    patterns += [rf"\b{name}\b" for name in named if "_" in name and name in fields]
    patterns += [rf"\b{field}\b" for phrase, field in _MEANT.items() if phrase in message]
    code = _without_comments(text)
    for pattern in patterns:
        found = re.search(pattern, code)
        if found:
            before = code[: found.start()]
            return before.count("\n") + 1, found.start() - before.rfind("\n")
    return 1, 1


def _without_comments(text: str) -> str:
    """Blank out comments, so that columns stay."""
    return re.sub(
        r"""("(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?)|#[^\n]*""",
        lambda match: match[1] if match[1] is not None else " " * len(match[0]), text,
    )  # fmt: skip


def _fields() -> list[tuple[str, ...]]:
    level, found = [protos.ModelConfig.DESCRIPTOR], []
    seen = set()
    while level:
        descriptor = level.pop()
        if descriptor.full_name in seen:
            continue
        seen.add(descriptor.full_name)
        found.append(tuple(field.name for field in descriptor.fields))
        level += [field.message_type for field in descriptor.fields if field.message_type is not None]
    return found
