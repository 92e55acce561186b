"""File names that a config may carry: they stay inside the model directory, whatever they spell.

Source: spec/security.md SEC-01, spec/model_config.md section 4. Knows directories, not what the files hold.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from triton_fast.config.errors import ConfigError, one_line
from triton_fast.config.files import is_dir, read_regular
from triton_fast.errors import Internal, Unsupported

MAX_LABEL_BYTES = 16 << 20
MAX_LABELS = 1_000_000
NOT_VERSIONS = frozenset({"warmup", "initial_state", "configs"})
# As stoll reads it: leading digits are enough, so '1_x' is version 1. Two and more characters never start with 0.
_VERSION = re.compile(r"(?!0.)\d+")


def version_dirs(model_dir: Path) -> list[str]:
    """Return the names of the version directories, sorted as text; empty when the directory does not exist."""
    try:
        with os.scandir(model_dir) as entries:
            return sorted(
                entry.name
                for entry in entries
                if entry.name not in NOT_VERSIONS and _VERSION.match(entry.name) and is_dir(entry)
            )
    except (FileNotFoundError, NotADirectoryError):
        return []


def check_name(name: str, field: str, model: str, base: str = "") -> None:
    """Refuse a name that is absolute, holds a NUL or climbs out of the model directory from ``base`` in it."""
    shown = name if len(name) <= 200 else name[:200] + "..."
    fix = "name a file inside the model directory, relative to it"
    if "\0" in name:
        raise ConfigError(f"{field} {shown!r} of model '{model}' contains a NUL character")
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[\\/]", name):
        raise ConfigError(f"{field} '{shown}' of model '{model}' is an absolute path", hint=fix)
    if len(name) > 1024:
        raise ConfigError(f"{field} '{shown}' of model '{model}' is longer than 1024 characters")
    landing = os.path.normpath(os.path.join(base, name.replace("\\", "/")))
    if landing in (".", "..") or landing.startswith("../"):
        raise ConfigError(f"{field} '{shown}' of model '{model}' is outside model directory", hint=fix)


def is_inside(path: Path, model_dir: Path) -> bool:
    """Tell whether ``path``, with every symlink followed, lies in ``model_dir``."""
    real, root = os.path.realpath(path), os.path.realpath(model_dir)
    return real == root or real.startswith(root.rstrip("/") + "/")


def check_files(config: Any, model_dir: Path) -> None:
    """Check every file name of a config against its model directory.

    A model file itself may be a symlink to a store elsewhere (its author made it); the name in the config may not
    lead out, nor may a directory on the way.

    Raises
    ------
    ConfigError, Unsupported
    """
    model = config.name
    versions = version_dirs(model_dir)
    names = [("default_model_filename", config.default_model_filename)]
    names += [(f"cc_model_filenames['{key}']", name) for key, name in sorted(config.cc_model_filenames.items())]
    for field, name in names:
        if not name:
            continue
        check_name(name, field, model, base="1")
        for version in versions:
            if not is_inside((model_dir / version / name).parent, model_dir):
                raise ConfigError(f"{field} '{name}' of model '{model}' is outside model directory")
    for output in config.output:
        if output.label_filename:
            label_path(output, config, model_dir)
    for field, folder, name in _data_files(config):
        check_name(name, field, model)
        if not is_inside(model_dir / folder / name, model_dir):
            raise ConfigError(f"{field} '{name}' of model '{model}' is outside model directory")


def label_path(output: Any, config: Any, model_dir: Path) -> Path:
    """Return the label file of an output. Raises Unsupported, with Triton's text, when it is outside."""
    name = output.label_filename
    path = model_dir / name if "\0" not in name else model_dir
    # By its spelling first: following links would look at what is outside.
    climbs = os.path.normpath(name).split("/")[0] == ".."
    if "\0" in name or name.startswith("/") or climbs or not is_inside(path, model_dir):
        shown = one_line(name[:200])
        raise Unsupported(
            one_line(
                f"label file path '{config.name}/{shown}' for output '{output.name}' in model '{config.name}' "
                "is outside model directory"
            )
        )
    return path


def read_labels(output: Any, config: Any, model_dir: Path) -> tuple[bytes, ...]:
    """Return the labels of an output: line n of its label file names class n. Bytes, as the wire carries them."""
    path = label_path(output, config, model_dir)
    shown = one_line(f"{config.name}/{output.label_filename}")
    data = _read(path, shown, MAX_LABEL_BYTES + 1)
    if len(data) > MAX_LABEL_BYTES:
        raise ConfigError(f"label file {shown} is larger than {MAX_LABEL_BYTES} bytes")
    lines = data.replace(b"\r\n", b"\n").split(b"\n")
    if not lines[-1]:
        lines.pop()
    if len(lines) > MAX_LABELS:
        raise ConfigError(f"label file {shown} has {len(lines)} lines, the limit is {MAX_LABELS}")
    return tuple(lines)


def read_warmup_file(name: str, config: Any, model_dir: Path, most: int, needed: int | None) -> bytes:
    """Return the first ``needed`` bytes of a file in warmup/, or all of it, up to ``most``.

    Raises
    ------
    ServerError
        It can not be read, lies elsewhere, or is too short or too large.
    """
    path = model_dir / "warmup" / name
    shown = one_line(f"{config.name}/warmup/{name}")
    # Again, although the config was checked: a link may have changed since.
    if not is_inside(path, model_dir):
        raise ConfigError(f"warmup file '{shown}' is outside model directory")
    data = _read(path, shown, most + 1 if needed is None else needed)
    if needed is not None and len(data) < needed:
        raise ConfigError(
            f"warmup setting expects {needed} bytes, but the data provided from {name} only has {len(data)} bytes"
        )
    if needed is None and len(data) > most:
        raise ConfigError(f"warmup file {shown} is larger than {most} bytes")
    return data


def _read(path: Path, shown: str, limit: int) -> bytes:
    """Return up to ``limit`` bytes of a regular file. Raises Internal with Triton's text."""
    try:
        return read_regular(path, limit)
    except OSError as error:
        raise Internal(f"failed to open text file for read {shown}: {error.strerror}") from None


def _data_files(config: Any) -> list[tuple[str, str, str]]:
    found = []
    for sample in config.model_warmup:
        for key, source in sorted(sample.inputs.items()):
            if source.input_data_file:
                found.append((f"input_data_file of warmup input '{key}'", "warmup", source.input_data_file))
    for state in config.sequence_batching.state:
        for initial in state.initial_state:
            if initial.data_file:
                field = f"data_file of initial_state '{initial.name}'"
                found.append((field, "initial_state", initial.data_file))
    return found
