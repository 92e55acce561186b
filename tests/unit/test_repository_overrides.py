"""Loads with a config or files of the request's own, and what differs from the disk afterwards."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, os.path.dirname(__file__))
from test_repository_support import FakeEngine, error_of, manager_for, rows, settle, write_model

from triton_fast.errors import InvalidArg, Unsupported


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    (tmp_path / "repo").mkdir()
    return tmp_path / "repo"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


OVERRIDE = (
    '{"backend": "fake", "max_batch_size": 8, "input": [{"name": "I", "data_type": "TYPE_FP32", "dims": [1]}],'
    ' "output": [{"name": "O", "data_type": "TYPE_FP32", "dims": [1]}]}'
)


def test_config_override_always_reloads_and_the_next_load_reverts(repo: Path, engine: FakeEngine) -> None:
    write_model(repo, "m")
    manager = manager_for(repo, engine=engine)
    manager.load("m")
    assert manager.resolve("m").config.max_batch_size == 4
    for _ in range(2):
        before = manager.resolve("m")
        manager.load("m", config_json=OVERRIDE)
        assert manager.resolve("m") is not before
        assert manager.resolve("m").config.max_batch_size == 8
    manager.load("m")
    assert manager.resolve("m").config.max_batch_size == 4
    before = manager.resolve("m")
    assert error_of(InvalidArg, manager.load, "m", config_json="{ ba").startswith("Invalid config override: ")
    assert manager.resolve("m") is before
    settle(manager)


def test_file_overrides_are_off(repo: Path, engine: FakeEngine) -> None:
    write_model(repo, "m")
    manager = manager_for(repo, engine=engine)
    text = error_of(Unsupported, manager.load, "m", config_json=OVERRIDE, files={"file:1/model.fake": b"ok"})
    assert "--allow-code-upload=true" in text
    assert engine.started == []


def test_file_override_replaces_the_directory(repo: Path, engine: FakeEngine, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    write_model(repo, "m", {"1": "ok disk"})
    manager = manager_for(repo, engine=engine, allow_code_upload=True, work_dir=work)
    assert error_of(InvalidArg, manager.load, "m", files={"file:1/model.fake": b"ok"}) == (
        "Load parameter 'config' must be specified for model file override"
    )
    for name in ("m", "brand_new"):
        manager.load(name, config_json=OVERRIDE, files={"file:5/model.fake": b"ok sent"})
        assert manager.versions(name) == [5]
        assert manager.resolve(name).text == "ok sent"
    assert len(list(work.iterdir())) == 2
    # A version that is not served any more gives its directory back, a failed load too.
    manager.load("m")
    assert manager.resolve("m").text == "ok disk"
    assert ("brand_new", 5, "READY", "") in rows(manager)
    manager.unload("brand_new")
    text = error_of(InvalidArg, manager.load, "m", config_json=OVERRIDE, files={"file:5/model.fake": b"foreign"})
    assert text.endswith("boom in m/x;\n")
    settle(manager)
    assert list(work.iterdir()) == []
    assert manager.resolve("m").text == "ok disk"
    # No repository has it: with its end it is out of the index, as in Triton, and a failed load does not enter it.
    error_of(InvalidArg, manager.load, "broken", config_json=OVERRIDE, files={"file:5/model.fake": b"foreign"})
    assert {row[0] for row in rows(manager)} == {"m"}
    assert not manager.is_ready("brand_new")


def test_detect_changes(repo: Path, engine: FakeEngine) -> None:
    for name in ("same", "edited", "removed", "overridden"):
        write_model(repo, name)
    manager = manager_for(repo, engine=engine)
    manager.start(["*"])
    assert not manager.detect_changes()
    manager.load("overridden", config_json=OVERRIDE)
    (repo / "edited" / "1" / "model.fake").write_text("ok longer")
    shutil.rmtree(repo / "removed")
    write_model(repo, "added")
    changes = manager.detect_changes()
    assert changes.added == ["added"]
    assert changes.removed == ["removed"]
    assert changes.modified == ["edited", "overridden"]
    settle(manager)
