"""The Python models of tests/models/python as a repository, with their variants; models written from a piece of code.

Knows config.pbtxt and directory layout; knows nothing of servers or clients.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "models" / "python"
ADD_TYPES = ("FP32", "FP64", "FP16", "INT8", "INT32", "INT64", "UINT8", "UINT64")
ALL_TYPES = (
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BF16",
    "STRING",
)  # fmt: skip
IMPORTS = "import numpy as np\nimport triton_python_backend_utils as pb_utils\n\n\n"
# Loaded by a request of their own, if at all.
ON_DEMAND = ("controlled", "lifecycle", "crash")


def names() -> list[str]:
    return sorted(path.name for path in SOURCE.iterdir() if (path / "config.pbtxt").is_file())


def add(
    root: Path, name: str, *, as_name: str = "", replace: Mapping[str, str] | None = None,
    parameters: Mapping[str, str] | None = None, more: str = "",
) -> Path:  # fmt: skip
    """Copy a model under ``root``, its configuration changed; return its directory.

    ``replace``: text to text; ``parameters``: string parameters that the configuration has already; ``more``: text to
    append.
    """
    target = root / (as_name or name)
    shutil.copytree(SOURCE / name, target, ignore=shutil.ignore_patterns("__pycache__"))
    config = target / "config.pbtxt"
    text = config.read_text()
    for old, new in (replace or {}).items():
        assert old in text, f"{name}: no {old!r} in its configuration"
        text = text.replace(old, new)
    for key, value in (parameters or {}).items():
        text, n = re.subn(f'(key: "{key}" value {{ string_value: )"[^"]*"', lambda found: f'{found[1]}"{value}"', text)  # noqa: B023
        assert n == 1, f"{name}: no parameter {key}"
    config.write_text(text + more)
    return target


def write(root: Path, *, marker: Path | None = None, only: Sequence[str] = ()) -> Path:
    """Write every model and variant, or those named ``only``, and return ``root``."""
    root.mkdir(parents=True, exist_ok=True)
    for name in names():
        if name in ("add_sub", "identity") or (only and name not in only):
            continue
        given = {"marker": str(marker / name) if marker else ""} if name in ("wait", "crash", "lifecycle") else None
        add(root, name, parameters=given)
    for kind in ADD_TYPES:
        name = f"add_sub_{kind.lower()}"
        if not only or name in only:
            add(root, "add_sub", as_name=name, replace={"TYPE_FP32": f"TYPE_{kind}"})
    for kind in ALL_TYPES:
        name = "identity" if kind == "FP32" else f"identity_{kind.lower()}"
        if not only or name in only:
            add(root, "identity", as_name=name, replace={"TYPE_FP32": f"TYPE_{kind}"})
    if not only or "identity_flat" in only:
        add(root, "identity", as_name="identity_flat", replace={"max_batch_size: 8": "max_batch_size: 0"})
    return root


def model_of(root: Path, name: str, code: str, config: str, *, imports: bool = True) -> Path:
    """Write a model from its code; the code begins with its imports unless they are not wanted."""
    (root / name / "1").mkdir(parents=True)
    (root / name / "config.pbtxt").write_text(config)
    (root / name / "1" / "model.py").write_text((IMPORTS if imports else "") + code)
    return root / name
