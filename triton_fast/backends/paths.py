"""The places of a config by which a backend is led to a file: load requests name none outside the model's directory.

Each backend's class has its own places as ``path_parameters``. Source: spec/security.md SEC-01, SEC-02. Knows configs;
opens no file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from triton_fast.config.errors import one_line
from triton_fast.config.paths import is_inside
from triton_fast.errors import InvalidArg

DIRECTORY_VARIABLE = "$$TRITON_MODEL_DIRECTORY"
_SHOWN = 200


class Place(str, Enum):
    """Where in a config: the model's parameters, those of an execution accelerator, or the list of op libraries."""

    PARAMETER = "parameters"
    ACCELERATOR = "optimization.execution_accelerators"
    OPERATIONS = "model_operations"


class Takes(str, Enum):
    """What a load request may put there."""

    MODEL = "a file of the model's directory, relative to it"
    VARIABLE = f"a directory or archive below {DIRECTORY_VARIABLE}"
    WORDS = "what has no slash"
    KEYS = "a JSON object of harmless keys"
    NOTHING = "nothing"


@dataclass(frozen=True)
class PathParameter:
    """``names``: patterns, ``*`` standing for anything. ``what``: what the backend does with it.

    ``keys``: of ``Takes.KEYS``, those that lead to no file.
    """

    place: Place
    names: tuple[str, ...]
    takes: Takes
    what: str
    keys: tuple[str, ...] = ()

    def is_harmless(self, value: str, model_dir: Path) -> bool:
        """Tell whether a value keeps to the model's directory, links followed. Looks at nothing outside."""
        if not value:
            return True
        if self.takes is Takes.WORDS:
            return not re.search(r"[/\\\0]", value)
        if self.takes is Takes.KEYS:
            return _has_only(value, self.keys)
        # What a backend strips away would not be what was looked at.
        if self.takes is Takes.NOTHING or value != value.strip() or not value.isprintable():
            return False
        if self.takes is Takes.VARIABLE:
            start, separator, rest = value.partition(DIRECTORY_VARIABLE)
            if start or not separator or (rest and not rest.startswith("/")) or DIRECTORY_VARIABLE in rest:
                return False
            value = rest.lstrip("/") or "."
        if value.startswith("/") or ".." in value.split("/"):
            return False
        path = model_dir / value
        # A name that is not there would be looked for elsewhere.
        if not is_inside(path, model_dir):
            return False
        if self.takes is Takes.MODEL:
            return os.path.isfile(path)
        # A list of packages is code from elsewhere, and any file of labels reads as one.
        return not os.path.realpath(path).endswith(".txt")


class Given(NamedTuple):
    """A value that a config has at one of these places; ``where`` is for people, without the value."""

    where: str
    value: str
    by: PathParameter


def _has_only(text: str, keys: Sequence[str]) -> bool:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return True  # refused where it is read
    return not isinstance(values, dict) or set(values) <= set(keys)


def given(config: Any, parameters: Sequence[PathParameter]) -> Iterator[Given]:
    """Yield each value that stands at one of the places, once for every row that it falls under."""
    for where, place, name, value in _values(config):
        for one in parameters:
            if one.place is place and any(fnmatchcase(name, pattern) for pattern in one.names):
                yield Given(where, value, one)


def _values(config: Any) -> Iterator[tuple[str, Place, str, str]]:
    for key, parameter in sorted(config.parameters.items()):
        yield f"parameter '{key}'", Place.PARAMETER, key, parameter.string_value
    for name in config.model_operations.op_library_filename:
        yield "op_library_filename", Place.OPERATIONS, "op_library_filename", name
    accelerators = config.optimization.execution_accelerators
    for accelerator in (*accelerators.gpu_execution_accelerator, *accelerators.cpu_execution_accelerator):
        for key, value in sorted(accelerator.parameters.items()):
            yield f"parameter '{key}' of accelerator '{accelerator.name}'", Place.ACCELERATOR, key, value


def check(config: Any, parameters: Sequence[PathParameter], model_dir: Path, own: Any = None) -> None:
    """Refuse a load request's config that names something outside the model's directory.

    Parameters
    ----------
    own
        The config on disk: what stands there may be sent as well.

    Raises
    ------
    InvalidArg
    """
    allowed = {(one.where, one.value) for one in given(own, parameters)} if own is not None else set()
    for one in given(config, parameters):
        if (one.where, one.value) in allowed or one.by.is_harmless(one.value, model_dir):
            continue
        takes = one.by.takes.value if not one.by.keys else f"a JSON object of {', '.join(one.by.keys)}"
        raise InvalidArg(
            one_line(
                f"Invalid config override: {one.where} of model '{config.name}' may not be '{one.value[:_SHOWN]}': "
                f"{one.by.what}, and a load request may give {takes}. Write it into the model's own config.pbtxt, or "
                "start the server with '--allow-code-upload=true'."
            )
        )


def faults(config: Any, parameters: Sequence[PathParameter], model_dir: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (text, hint, value) of what a config on disk names and is not there, as far as names can tell."""
    for where, value, by in given(config, parameters):
        if by.takes is Takes.VARIABLE and value:
            path = value.replace(DIRECTORY_VARIABLE, str(model_dir))
            if not os.path.exists(path):
                hint = f"a path inside the model's directory begins with {DIRECTORY_VARIABLE}/"
                yield f"{where}: '{value}' does not exist", hint if DIRECTORY_VARIABLE not in value else "", value
        elif by.takes is Takes.MODEL and "/" in value and not os.path.isfile(model_dir / value):
            yield (
                f"{where}: there is no file '{value}'",
                "a relative path is looked for in the model's directory",
                value,
            )


def markdown(table: Mapping[str, Sequence[PathParameter]]) -> str:
    """Return the table of all backends as docs/security.md has it."""
    lines = ["| Backend | Where | What | A load request may give | Because |", "| --- | --- | --- | --- | --- |"]
    for backend, rows in table.items():
        for row in rows:
            names = ", ".join(f"`{name}`" for name in row.names)
            takes = f"{row.takes.value}: {', '.join(row.keys)}" if row.keys else row.takes.value
            lines.append(f"| {backend} | `{row.place.value}` | {names} | {takes} | {row.what} |")
    return "\n".join(lines) + "\n"
