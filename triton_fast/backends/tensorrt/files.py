"""Finds a model's plan and reads it, with errors that say the cause and show no absolute path."""

from __future__ import annotations

from pathlib import Path

from triton_fast.backends.base import LoadContext
from triton_fast.backends.model_file import check_file, shown
from triton_fast.errors import Unavailable

DEFAULT = "model.plan"
# How files of other frameworks begin.
_OTHERS = (
    (b"PK\x03\x04", "a zip archive, such as PyTorch writes"),
    (b"<?xml", "an XML file, such as OpenVINO's IR"),
    (b"\x89HDF", "an HDF5 file, such as Keras writes"),
    (b"\x7fELF", "a shared library or program"),
)


def plan_path(context: LoadContext, capability: tuple[int, int]) -> Path:
    """Return the file for a GPU of this compute capability."""
    config = context.config
    name = config.cc_model_filenames.get("{}.{}".format(*capability), "") or config.default_model_filename or DEFAULT
    return context.version_dir / name


def read(context: LoadContext, path: Path) -> bytes:
    """Return the file's bytes. They are read and not mapped: a file that is cut meanwhile must not end the server."""
    check_file(context, path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unavailable(
            f"unable to read '{shown(context, path)}' of model '{context.name}': {error.strerror}"
        ) from None


def other_format(data: bytes) -> str:
    """Return what the file seems to be where TensorRT does not take it; "" when nothing can be told."""
    for head, name in _OTHERS:
        if data.startswith(head):
            return f"; it is {name}"
    if data[:1] == b"\x08" and data[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x3a"):
        return "; it looks like an ONNX model: build a plan from it with trtexec --onnx=... --saveEngine=model.plan"
    return ""
