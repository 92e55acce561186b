"""What an sdist and a wheel hold and which commands they install, as setup.py says it without building them."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit import test_tree as tree
from triton_fast.__main__ import main


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("egg")
    command = [sys.executable, "-W", "ignore", "setup.py", "-q", "egg_info", "--egg-base", str(base)]
    subprocess.run(command, check=True, cwd=tree.ROOT)
    return base / "triton_fast.egg-info"


def test_an_sdist_can_be_built_from(metadata: Path) -> None:
    packed = set((metadata / "SOURCES.txt").read_text().splitlines())
    names = {tree.name(path) for path in tree.tree()}
    needed = {name for name in names if name.startswith(("ext/", "protos/", "triton_fast/")) and "ruff" not in name}
    assert len(needed) > 500
    assert needed - packed == set()
    assert {name for name in packed if name.startswith(("tests/", "bench/", "build/"))} == set()
    assert [name for name in packed if name.endswith(".so")] == []


def test_commands(metadata: Path) -> None:
    commands = configparser.ConfigParser()
    commands.read(metadata / "entry_points.txt")
    assert set(commands["console_scripts"]) == {"triton_fast", "tritonserver"}
    assert set(commands["console_scripts"].values()) == {f"{main.__module__}:{main.__name__}"}
