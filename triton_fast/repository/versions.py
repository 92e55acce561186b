"""Version directories and the version policy. Source: spec/model_config.md sections 1 and 3. Knows no loading."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from triton_fast.config.files import is_dir
from triton_fast.config.paths import NOT_VERSIONS
from triton_fast.errors import InvalidArg

MAX_VERSION = 2**63 - 1
_NUMBER = re.compile(r"[0-9]+")

Warn = Callable[[str], None]


def discover(model_dir: Path, model: str, warn: Warn = lambda _: None) -> dict[int, str]:
    """Return version number -> directory name of a model.

    Leading digits are enough, as in Triton: ``1_x`` is version 1. A number that is written plainly wins over
    such a name. A negative number is no version here: -1 asks for the latest.
    """
    try:
        with os.scandir(model_dir) as entries:
            names = sorted(entry.name for entry in entries if is_dir(entry))
    except OSError:
        return {}
    found: dict[int, str] = {}
    for name in names:
        if name in NOT_VERSIONS or name.startswith(".") or name == "__pycache__":
            continue
        number = parse_version(name)
        if number is None:
            why = "it starts with 0" if re.match(r"0.", name) else "it is not a version number"
            warn(f"ignoring version directory '{name}' of model '{model}': {why}")
        elif number not in found:
            found[number] = name
        else:
            winner = name if name == str(number) else found[number]
            loser = found[number] if winner == name else name
            warn(f"ignoring version directory '{loser}' of model '{model}': '{winner}' is version {number} too")
            found[number] = winner
    return dict(sorted(found.items()))


def parse_version(name: str) -> int | None:
    """Return the version number of a directory name, or None when it is none."""
    if len(name) > 1 and name.startswith("0"):
        return None
    digits = _NUMBER.match(name)
    # 19 digits hold every 64-bit number; int() is not asked to read more.
    if digits is None or len(digits[0]) > 19:
        return None
    number = int(digits[0])
    return number if number <= MAX_VERSION else None


def select(config: Any, available: Collection[int], model: str, warn: Warn = lambda _: None) -> list[int]:
    """Return the versions that the config's version_policy wants, ascending.

    Raises
    ------
    InvalidArg
        None of them exists.
    """
    policy = config.version_policy
    kind = policy.WhichOneof("policy_choice")
    if kind == "all":
        chosen = sorted(available)
    elif kind == "specific":
        wanted = set(policy.specific.versions)
        for missing in sorted(wanted.difference(available)):
            warn(f"version {missing} is specified for model '{model}', but the version directory is not present")
        chosen = sorted(wanted.intersection(available))
    else:
        count = policy.latest.num_versions if kind == "latest" else 1
        chosen = sorted(available)[-count:] if count else []
    if not chosen:
        raise InvalidArg(f"at least one version must be available under the version policy of model '{model}'")
    return chosen
