"""Model files that arrive with a load request (``file:<path>`` parameters), written to a private directory.

Off unless the server was started with code upload allowed. Source: spec/http.md section 7, spec/security.md SEC-01.
Knows nothing of the repository: such a directory replaces the model's own completely.
"""

from __future__ import annotations

import os
import posixpath
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from triton_fast.errors import Internal, InvalidArg
from triton_fast.repository import sweeper
from triton_fast.repository.sources import MaterializedDir, shown

PREFIX = "file:"
MAX_FILES = 4096
_MAX_PATH = 1024
_MAX_PART_BYTES = 255


def write_override(model: str, files: Mapping[str, bytes], work_dir: Path | None = None) -> MaterializedDir:
    """Write the files below a new directory that only this user can read; it goes when its last holder releases it.

    Parameters
    ----------
    files
        Parameter name (``file:1/model.onnx``) -> content.
    work_dir
        Where to make the directory; by default where nothing is left when this process is killed.

    Raises
    ------
    Internal
        The files can not be written.
    InvalidArg
        A name leads out of the model directory, or one is both a file and a directory. Nothing is written then.
    """
    if len(files) > MAX_FILES:
        raise InvalidArg(f"model '{model}' is loaded with {len(files)} files, the limit is {MAX_FILES}")
    targets = {name: target_of(name) for name in files}
    _check_tree(targets)
    try:
        root = Path(tempfile.mkdtemp(prefix="triton_fast_", dir=work_dir or sweeper.shared.folder()))
    except OSError as error:
        raise Internal(f"failed to write the files given for model '{model}': {error.strerror}") from None
    try:
        for name, content in files.items():
            path = root / targets[name]
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
    except OSError as error:
        shutil.rmtree(root, ignore_errors=True)
        raise Internal(f"failed to write the files given for model '{model}': {error.strerror}") from None
    return MaterializedDir(root, lambda: shutil.rmtree(root, ignore_errors=True))


def target_of(name: str) -> str:
    """Return the path inside the model directory that a ``file:`` parameter means. Raises InvalidArg."""
    given = name.removeprefix(PREFIX)
    path = posixpath.normpath(given) if given else ""
    parts = path.split("/")
    is_bad = (
        not given
        or given.endswith("/")
        or len(given) > _MAX_PATH
        or any(char in given for char in "\\\0")
        # '1/../2/x' ends inside, but nobody needs it.
        or ".." in given.split("/")
        or path in (".", "..")
        or path.startswith("/")
        or any(_is_bad_part(part) for part in parts)
    )
    if is_bad:
        raise InvalidArg(
            f"Invalid file parameter '{shown(name)}' with normalized path '{shown(path)}' must stay within model "
            "directory."
        )
    return path


def _is_bad_part(part: str) -> bool:
    try:
        return len(part.encode()) > _MAX_PART_BYTES or not part.isprintable()
    except UnicodeEncodeError:
        return True


def _check_tree(targets: Mapping[str, str]) -> None:
    taken: set[str] = set()
    parents: set[str] = set()
    for path in targets.values():
        parts = path.split("/")
        parents.update("/".join(parts[:end]) for end in range(1, len(parts)))
    for name, path in targets.items():
        if path in parents:
            raise InvalidArg(f"Invalid file parameter '{shown(name)}', directory has been created as a file")
        if path in taken:
            raise InvalidArg(f"Invalid file parameter '{shown(name)}', the same file is given twice")
        taken.add(path)
