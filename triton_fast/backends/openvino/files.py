"""Finds a model's file and reads it, with errors that say the cause and show no absolute path."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from triton_fast._native.openvino import capi
from triton_fast._native.openvino.model import Model
from triton_fast.backends.base import LoadContext
from triton_fast.backends.openvino import library
from triton_fast.backends.openvino.plan import ModelPlan
from triton_fast.errors import Internal, InvalidArg, ServerError, Unavailable, make

DEFAULT = "model.xml"
_LFS = b"version https://git-lfs"
_HEAD = 4096
# Files in directories that stand for a model, by OpenVINO's front ends.
_LIBRARIES = re.compile(r"""["'(]?(/[^\s"'()]*/)([^\s/"'()]+\.so[.0-9]*)""")


def model_path(context: LoadContext) -> Path:
    return context.version_dir / (context.config.default_model_filename or DEFAULT)


def shown(context: LoadContext, path: Path) -> str:
    """Return a path as clients may see it: relative to the repository."""
    try:
        return str(path.relative_to(context.model_dir.parent))
    except ValueError:
        return path.name


def read(context: LoadContext, plan: ModelPlan) -> Model:
    """Return the model of the version. Raises a ``ServerError`` with the cause."""
    path = model_path(context)
    label = shown(context, path)
    prefix = f"unable to load model '{context.name}'"
    try:
        if path.is_dir():
            if not any(path.iterdir()):
                raise InvalidArg(f"{prefix}, '{label}' is empty")
        elif not path.exists():
            raise Unavailable(f"unable to find '{label}' for model '{context.name}'")
        elif not path.is_file():
            raise InvalidArg(f"{prefix}, '{label}' is not a regular file")
        else:
            with path.open("rb") as file:
                _check_head(prefix, label, path, file.read(_HEAD))
    except OSError as error:
        raise Unavailable(f"unable to read '{label}' of model '{context.name}': {error.strerror}") from None
    with clean(context):
        core = library.core()
        if plan.extension:
            core = capi.Core()
            core.extend(plan.extension)
        try:
            return Model(core, str(path))
        except ServerError as error:
            hint = ""
            weights = path.with_suffix(".bin")
            if path.suffix == ".xml" and not weights.is_file():
                hint = f"; there is no '{shown(context, weights)}'"
            raise make(error.code, f"{prefix}, '{label}': {error.message}{hint}") from None


def _check_head(prefix: str, label: str, path: Path, head: bytes) -> None:
    """Refuse what is plainly no model: OpenVINO would ask every front end in turn, and each has a say on stderr."""
    if not head:
        raise InvalidArg(f"{prefix}, '{label}' is empty")
    if head.startswith(_LFS):
        raise InvalidArg(f"{prefix}, '{label}' is a Git LFS pointer, not a model: run git lfs pull")
    if path.suffix == ".xml" and b"<net" not in head:
        raise InvalidArg(f"{prefix}, '{label}' is not an OpenVINO IR: it has no element <net>")


@contextmanager
def clean(context: LoadContext) -> Iterator[None]:
    """Keep absolute paths out of OpenVINO's errors."""
    try:
        yield
    except ServerError as error:
        text = error.message
        for folder in {str(context.model_dir.parent), str(context.model_dir.parent.resolve())}:
            if folder not in ("", "/", "."):
                text = text.replace(folder + "/", "")
        raise make(error.code, _LIBRARIES.sub(r"\2", text)) from None
    except (MemoryError, OverflowError, UnicodeError) as error:
        raise Internal(f"unable to load model '{context.name}': {type(error).__name__}") from None
