"""Which file of a version is the model, and of which form; what is wrong with it is told before torch reads it."""

from __future__ import annotations

import stat
import zipfile
from enum import Enum
from pathlib import Path

from triton_fast.backends.base import LoadContext
from triton_fast.errors import InvalidArg, Unavailable

DEFAULT = "model.pt"
PACKAGE = "model.pt2"
CLASS = "model.py"
_LFS = b"version https://git-lfs"
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


def shown(context: LoadContext, path: Path) -> str:
    """Return a path as clients may see it: relative to the repository."""
    try:
        return str(path.relative_to(context.model_dir.parent))
    except ValueError:
        return path.name


def form(context: LoadContext, path: Path) -> Form:
    """Return what the file is.

    Raises
    ------
    Unavailable
        There is none, or it can not be read.
    InvalidArg
        It is no model of PyTorch, or not a whole one.
    """
    name = shown(context, path)
    prefix = f"unable to load model '{context.name}', '{name}'"
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InvalidArg(f"{prefix} is not a regular file")
        if status.st_size == 0:
            raise InvalidArg(f"{prefix} is empty")
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise Unavailable(f"unable to find '{name}' for model instance '{context.name}'") from None
    except OSError as error:
        raise Unavailable(f"unable to read '{name}' of model '{context.name}': {error.strerror}") from None
    if head.startswith(_LFS):
        raise InvalidArg(f"{prefix} is a Git LFS pointer, not a model: run git lfs pull")
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
