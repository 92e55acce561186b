"""Which file of a version is the model, and of which form; what is wrong with it is told before torch reads it."""

from __future__ import annotations

import zipfile
from enum import Enum
from pathlib import Path

from triton_fast.backends.base import LoadContext
from triton_fast.backends.model_file import check_file, shown
from triton_fast.errors import InvalidArg

DEFAULT = "model.pt"
PACKAGE = "model.pt2"
CLASS = "model.py"
_ZIP = b"PK\x03\x04"
_AOTI = "/data/aotinductor/"


class Form(Enum):
    SCRIPT = "TorchScript"
    EXPORTED = "exported program"
    COMPILED = "AOTInductor package"
    CLASS = "model.py"


def is_class(context: LoadContext) -> bool:
    """Whether the model is a class in model.py: it says so, or model.py is there and model.pt is no TorchScript."""
    config, folder = context.config, context.version_dir
    name = config.default_model_filename
    if config.runtime == CLASS or name.endswith(".py"):
        return True
    if name not in ("", DEFAULT) or not (folder / CLASS).is_file():
        return False
    path = folder / DEFAULT
    return not path.is_file() or not _has(path, "/constants.pkl")


def model_path(context: LoadContext) -> Path:
    """Return the configured file, else model.pt or model.pt2, whichever is there."""
    name = str(context.config.default_model_filename)
    if name:
        return context.version_dir / name
    path = context.version_dir / PACKAGE
    return path if path.is_file() else context.version_dir / DEFAULT


def form(context: LoadContext, path: Path) -> Form:
    """Return what the file is.

    Raises
    ------
    Unavailable
        There is none, or it can not be read.
    InvalidArg
        It is no model of PyTorch, or not a whole one.
    """
    prefix = f"unable to load model '{context.name}', '{shown(context, path)}'"
    head = check_file(context, path)
    if not head.startswith(_ZIP):
        raise InvalidArg(f"{prefix} is {_foreign(head)}")
    return _of_archive(path, prefix)


def _of_archive(path: Path, prefix: str) -> Form:
    names = _names(path)
    if names is None:
        raise InvalidArg(f"{prefix} is truncated or corrupt: the archive has no directory")
    if any(name.endswith("/constants.pkl") for name in names):
        return Form.SCRIPT
    if any(name.endswith("/archive_format") for name in names):
        exported = any("/models/" in name and name.endswith(".json") for name in names)
        if exported:
            return Form.EXPORTED
        if any(_AOTI in name for name in names):
            return Form.COMPILED
        raise InvalidArg(f"{prefix} is a package of PyTorch without a model")
    if any(name.endswith("/data.pkl") for name in names):
        raise InvalidArg(
            f"{prefix} has weights or a pickled module (torch.save), not a model: save it with torch.jit.save or "
            "torch.export.save, or put its class into model.py"
        )
    if any(name.rsplit("/", 1)[-1] == "serialized_exported_program.json" for name in names):
        return Form.EXPORTED
    raise InvalidArg(f"{prefix} is an archive, but none of PyTorch")


def _names(path: Path) -> list[str] | None:
    try:
        with zipfile.ZipFile(path) as archive:
            return ["/" + name for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError):
        return None


def _has(path: Path, end: str) -> bool:
    return any(name.endswith(end) for name in _names(path) or ())


def _foreign(head: bytes) -> str:
    if head[:1] == b"\x08" and (b"pytorch" in head or b"onnx" in head or b"\x12" in head[2:4] or b":" in head[:16]):
        return "not a model of PyTorch: it looks like an ONNX file, which is backend 'onnxruntime' and model.onnx"
    if head.startswith((b"\x80\x02", b"\x80\x04")):
        return "a pickle (an old torch.save), not a model: save it with torch.jit.save or torch.export.save"
    if head.startswith(b"\x89HDF"):
        return "not a model of PyTorch: it is an HDF5 file"
    return "not a model of PyTorch: it is no archive of torch.jit.save or torch.export.save"
