"""Backends that others wrote, on disk: packages with entry points, files in a backend directory. Imports none."""

from __future__ import annotations

from pathlib import Path

# Adds what the config's parameter says; complete enough to be served.
ADDER = """
from triton_fast.backends.arrays import ArrayBackend, Signature, Tensor


class Adder(ArrayBackend):
    name = "anything"
    default_filename = "model.add"
    version = "3.1"

    def describe(self, model):
        return Signature([Tensor("IN", "FP32", (-1, 2))], [Tensor("OUT", "FP32", (-1, 2))])

    def open(self, model):
        amount = float(model.path.read_text())
        return lambda batch: {"OUT": batch.inputs["IN"] + batch.inputs["IN"].dtype.type(amount)}
"""
TRITON_MODEL = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return []
"""


def package(
    site: Path, distribution: str, entries: dict[str, str], modules: dict[str, str] | None = None, version: str = "1.0"
) -> Path:
    """Lay a package out as pip installs it; ``entries``: backend -> module:Class. Return ``site``."""
    folder = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (folder / "entry_points.txt").write_text("\n".join(["[triton_fast.backends]", *lines, ""]))
    for name, source in (modules or {}).items():
        (site / f"{name}.py").write_text(source)
    return site


def directory(root: Path, **backends: str) -> Path:
    """Write ``root/<name>/backend.py`` for each; return ``root``."""
    for name, source in backends.items():
        (root / name).mkdir(parents=True)
        (root / name / "backend.py").write_text(source)
    return root
