"""Finds a model's file and reads it, with errors that say the cause and show no absolute path."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from triton_fast._native.openvino import capi
from triton_fast._native.openvino.model import Model
from triton_fast.backends.base import LoadContext
from triton_fast.backends.model_file import check_file, shown, without_paths
from triton_fast.backends.openvino import library
from triton_fast.backends.openvino.plan import ModelPlan
from triton_fast.errors import InvalidArg, ServerError, make

DEFAULT = "model.xml"
# Files in directories that stand for a model, by OpenVINO's front ends.
_LIBRARIES = re.compile(r"""["'(]?(/[^\s"'()]*/)([^\s/"'()]+\.so[.0-9]*)""")


def model_path(context: LoadContext) -> Path:
    return context.version_dir / (context.config.default_model_filename or DEFAULT)


def read(context: LoadContext, plan: ModelPlan) -> Model:
    """Return the model of the version. Raises a ``ServerError`` with the cause."""
    path = model_path(context)
    label = shown(context, path)
    prefix = f"unable to load model '{context.name}', '{label}'"
    # A directory stands for a model of some front ends.
    if not path.is_dir():
        # Else OpenVINO would ask every front end in turn, and each has a say on stderr.
        head = check_file(context, path)
        if path.suffix == ".xml" and b"<net" not in head:
            raise InvalidArg(f"{prefix} is not an OpenVINO IR: it has no element <net>")
    elif not any(path.iterdir()):
        raise InvalidArg(f"{prefix} is empty")
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
            raise make(error.code, f"{prefix}: {error.message}{hint}") from None


@contextmanager
def clean(context: LoadContext) -> Iterator[None]:
    """Keep absolute paths out of OpenVINO's errors, those of its own libraries too."""
    try:
        with without_paths(context):
            yield
    except ServerError as error:
        raise make(error.code, _LIBRARIES.sub(r"\2", error.message)) from None
