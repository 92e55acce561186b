"""The table of datatypes in docs/frameworks.md says what each backend says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from triton_fast import backends
from triton_fast.errors import Unavailable
from triton_fast.types import TYPES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "frameworks.md"


def table() -> dict[str, set[str]]:
    """Backend -> names of the datatypes marked "yes"."""
    lines = PAGE.read_text().split("## Datatypes")[1].split("\n## ")[0].splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|"))
    found: dict[str, set[str]] = {re.sub("`", "", name): set() for name in head[1:]}
    for kind, *cells in rows:
        for name, cell in zip(found, cells, strict=True):
            assert cell in ("yes", "")
            if cell:
                found[name].add(kind)
    return found


def test_the_table_has_every_backend_that_reads_models() -> None:
    # The tensors of repeat are always the same; what TensorRT takes depends on its release and the GPU.
    assert set(table()) == set(backends.NAMES) - {"repeat", "tensorrt"}


@pytest.mark.parametrize("name", sorted(table()))
def test_its_datatypes(name: str) -> None:
    try:
        backend = backends.get(name)
        assert backend is not None
        found = backend.datatypes()
    except Unavailable as error:
        pytest.skip(str(error))
    assert {kind.name for kind in found} == table()[name]
    assert found <= set(TYPES)
