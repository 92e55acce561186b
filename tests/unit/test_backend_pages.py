"""docs/backends.md and docs/writing_a_backend.md against the code's tables: rows, files, attributes."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path
from typing import Any

from triton_fast import backends
from triton_fast.backends.arrays import ArrayBackend, Batch, Model
from triton_fast.backends.base import Backend
from triton_fast.backends.registry import BUILT_IN, CLASS_FILE, GROUP, INSTEAD, TRITON_FILE
from triton_fast.config.defaults import KINDS

DOCS = Path(__file__).resolve().parents[2] / "docs"


def table() -> list[list[str]]:
    lines = [line for line in (DOCS / "backends.md").read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_rows_are_the_code_s_in_its_order() -> None:
    shown = [tuple(cell.strip("`") for cell in row[:3]) for row in table()]
    assert [(name, file, platform) for name, platform, file in shown if (file.startswith("model."))] == [
        (row.backend, row.filename, row.platform) for row in KINDS
    ]


def test_what_is_built_in_is_said_to_be() -> None:
    said = {row[0].strip("`") for row in table() if row[3] == "built in"}
    assert said == {*backends.NAMES, "(ensemble)"}
    assert {row[0].strip("`") for row in table() if row[3].startswith("not served")} & set(backends.NAMES) == set()
    others = " ".join(row[0].lower() for row in table() if row[3] != "built in")
    assert [name for name in INSTEAD if name not in others] == []


def test_who_can_use_gpus() -> None:
    for row in table():
        if row[3] == "built in" and row[0] != "(ensemble)":
            module, attribute, _ = BUILT_IN[row[0].strip("`")]
            says = getattr(importlib.import_module(module), attribute).gpu is not Backend.gpu
            assert row[5].startswith("yes" if says else "no"), row[0]


def test_needs_are_the_extras_with_the_frameworks() -> None:
    text = (DOCS.parent / "pyproject.toml").read_text()
    for row in table():
        packages = BUILT_IN[row[0].strip("`")].packages if row[0].strip("`") in BUILT_IN else ()
        extra = re.search(r"triton_fast\[(\w+)\]", row[6])
        assert (extra is not None) is bool(packages), row[0]
        if extra is not None:
            (line,) = re.findall(rf"^{extra[1]} = \[(.*)\]$", text, re.MULTILINE)
            assert any(f'"{package}>=' in line for package in packages)


def test_the_page_names_what_there_is() -> None:
    text = (DOCS / "writing_a_backend.md").read_text()
    assert f'entry-points."{GROUP}"' in text
    assert f"<name>/{TRITON_FILE}`" in text
    assert f"<name>/{CLASS_FILE}`" in text
    own: dict[str, Any] = {**vars(ArrayBackend)}
    for name in ("shared", "uses_gpu", "lends_outputs"):
        assert f"| `{name}` | `{own[name]}` |" in text
    fields = {field.name for field in dataclasses.fields(Model)} | {"number"}
    fields |= {field.name for field in dataclasses.fields(Batch)} - {"failed"} | {"slices", "fail"}
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    shown = {name for cell in rows for name in re.findall(r"`(\w+)", cell)}
    assert fields <= shown


def test_the_class_on_the_page_serves(tmp_path: Path) -> None:
    text = (DOCS / "writing_a_backend.md").read_text()
    (source,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "scale").mkdir()
    (tmp_path / "scale" / "backend.py").write_text(source)
    found = backends.find("scale", tmp_path)
    assert found is not None
    assert (found.name, found.default_filename, found.version) == ("scale", "factor.txt", "1.0")
