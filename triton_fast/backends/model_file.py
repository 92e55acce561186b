"""A model's file before a framework opens it: what is plainly no model is refused, and no error shows where it lies.

Knows no framework. Errors carry paths as clients may see them: relative to the repository.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from triton_fast.backends.base import LoadContext
from triton_fast.errors import Internal, InvalidArg, ServerError, Unavailable, make

_LFS = b"version https://git-lfs"
_HEAD = 4096


def shown(context: LoadContext, path: Path) -> str:
    """Return a path as clients may see it: relative to the repository."""
    try:
        return str(path.relative_to(context.model_dir.parent))
    except ValueError:
        return path.name


def check_file(context: LoadContext, path: Path) -> bytes:
    """Return the first 4096 bytes of a model's file.

    Raises
    ------
    Unavailable
        It is not there or can not be read.
    InvalidArg
        It is empty, no regular file, or stands in for one that Git LFS has.
    """
    label = shown(context, path)
    prefix = f"unable to load model '{context.name}', '{label}'"
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InvalidArg(f"{prefix} is not a regular file")
        if status.st_size == 0:
            raise InvalidArg(f"{prefix} is empty")
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except FileNotFoundError:
        raise Unavailable(f"unable to find '{label}' for model instance '{context.name}'") from None
    except OSError as error:
        raise Unavailable(f"unable to read '{label}' of model '{context.name}': {error.strerror}") from None
    if head.startswith(_LFS):
        raise InvalidArg(f"{prefix} is a Git LFS pointer, not a model: run git lfs pull")
    return head


@contextmanager
def without_paths(context: LoadContext) -> Iterator[None]:
    """Keep absolute paths out of a framework's errors; what has no code becomes Internal."""
    try:
        yield
    except ServerError as error:
        text = error.message
        for folder in {str(context.model_dir.parent), str(context.model_dir.parent.resolve())}:
            if folder not in ("", "/", "."):
                text = text.replace(folder + "/", "")
        raise make(error.code, text) from None
    except (MemoryError, OverflowError, UnicodeError) as error:
        raise Internal(f"unable to load model '{context.name}': {type(error).__name__}") from None
