"""Repositories that come and go at run time, and directories that are served under another name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.test_repository_support import (
    CONFIG,
    FakeEngine,
    FakeRuntime,
    error_of,
    manager_for,
    rows,
    settle,
    write_model,
)
from triton_fast.errors import AlreadyExists, Internal, InvalidArg, Unsupported
from triton_fast.repository import ControlMode, LocalSource, ModelRepositoryManager
from triton_fast.repository import sources as sources_module


@pytest.fixture
def more(tmp_path: Path) -> Path:
    return tmp_path / "more"


@pytest.fixture
def manager(tmp_path: Path, more: Path) -> ModelRepositoryManager[FakeRuntime]:
    write_model(tmp_path / "repo", "a")
    write_model(more, "b", {"1": "ok b"})
    write_model(more, "c", {"1": "ok c"}, 'name: "c"\n' + CONFIG)
    manager = manager_for(tmp_path / "repo", engine=FakeEngine())
    manager.start()
    return manager


def test_only_mode_explicit_takes_repositories(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    for mode in (ControlMode.NONE, ControlMode.POLL):
        manager = manager_for(tmp_path / "repo", engine=FakeEngine(), mode=mode)
        assert error_of(Unsupported, manager.register_repository, str(tmp_path)) == (
            "repository registration is not allowed if model control mode is not EXPLICIT"
        )
        assert error_of(Unsupported, manager.unregister_repository, str(tmp_path)) == (
            "repository unregistration is not allowed if model control mode is not EXPLICIT"
        )


def test_a_repository_comes_and_goes(manager: ModelRepositoryManager[FakeRuntime], tmp_path: Path, more: Path) -> None:
    assert "b" not in {row[0] for row in rows(manager)}
    manager.register_repository(str(more))
    assert manager.registered_repositories() == {str(tmp_path / "repo"): {}, str(more): {}}
    assert rows(manager) == [(name, -1, "UNKNOWN", "") for name in ("a", "b", "c")]
    manager.load("b")
    manager.unregister_repository(str(more))
    # What was loaded from it is served still, and can be loaded no more.
    assert manager.resolve("b").text == "ok b"
    assert [row[0] for row in rows(manager)] == ["a", "b"]
    assert error_of(Internal, manager.load, "b").startswith("failed to load 'b', failed to poll from model repository")
    manager.unload("b")
    settle(manager)
    manager.register_repository(str(more))
    manager.load("b")


def test_a_repository_given_at_start_can_be_forgotten(
    manager: ModelRepositoryManager[FakeRuntime], tmp_path: Path
) -> None:
    manager.unregister_repository(os.path.join(tmp_path, "repo", "."))
    assert manager.registered_repositories() == {}


def test_repositories_that_are_refused(
    manager: ModelRepositoryManager[FakeRuntime], tmp_path: Path, more: Path
) -> None:
    path = str(tmp_path / "none")
    assert error_of(InvalidArg, manager.register_repository, path) == (
        f"failed to register '{path}', repository not found"
    )
    assert error_of(InvalidArg, manager.unregister_repository, path) == (
        f"failed to unregister '{path}', repository not found"
    )
    manager.register_repository(str(more))
    for again in (str(more), f"{more}/"):
        assert error_of(AlreadyExists, manager.register_repository, again) == (
            f"model repository '{again}' has already been registered"
        )


def test_a_directory_is_served_under_another_name(
    manager: ModelRepositoryManager[FakeRuntime], tmp_path: Path, more: Path
) -> None:
    manager.register_repository(str(more), {"c": "sea", "b": "bee"})
    assert [row[0] for row in rows(manager)] == ["a", "bee", "sea"]
    manager.load("sea")
    runtime = manager.resolve("sea")
    # Whatever name the config gives itself.
    assert (runtime.name, runtime.config.name, runtime.text) == ("sea", "sea", "ok c")
    error_of(Internal, manager.load, "c")
    (more / "c" / "1" / "model.fake").write_text("ok changed")
    manager.load("sea")
    assert manager.resolve("sea").text == "ok changed"
    assert manager.registered_repositories()[str(more)] == {"c": "sea", "b": "bee"}
    # A name that is taken by a mapping is not taken by another.
    write_model(tmp_path / "third", "x")
    assert error_of(AlreadyExists, manager.register_repository, str(tmp_path / "third"), {"x": "sea"}) == (
        "failed to register 'sea', there is a conflicting mapping for 'sea'"
    )
    manager.unregister_repository(str(more))
    manager.register_repository(str(tmp_path / "third"), {"x": "sea"})


def test_a_mapped_name_goes_before_a_directory_of_that_name(
    manager: ModelRepositoryManager[FakeRuntime], more: Path
) -> None:
    manager.register_repository(str(more), {"b": "a"})
    assert [row for row in rows(manager) if row[0] == "a"] == [("a", -1, "UNKNOWN", "")]
    manager.load("a")
    assert manager.resolve("a").text == "ok b"


@pytest.mark.parametrize("mapping", [{"../repo": "x"}, {"b": "../x"}, {"": "x"}, {"b": ""}, {"b": "x", "c": "x"}])
def test_mappings_are_names(manager: ModelRepositoryManager[FakeRuntime], more: Path, mapping: dict[str, str]) -> None:
    error_of(InvalidArg, manager.register_repository, str(more), mapping)
    assert str(more) not in manager.registered_repositories()


# ---- the index is served from memory


def test_the_index_scans_no_directory_that_has_not_changed(
    manager: ModelRepositoryManager[FakeRuntime], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = tmp_path / "repo"
    long_ago = 1_600_000_000
    os.utime(repo, (long_ago, long_ago))
    scanned: list[object] = []
    real = os.scandir

    def scandir(path: object) -> object:
        scanned.append(path)
        return real(path)  # type: ignore[call-overload]

    monkeypatch.setattr(sources_module.os, "scandir", scandir)  # type: ignore[attr-defined]
    first = rows(manager)
    assert scanned == [repo]
    assert [rows(manager) for _ in range(5)] == [first] * 5
    assert scanned == [repo]
    # What changed is seen at once, also where the clock of the file system does not tell.
    write_model(repo, "new")
    assert [row[0] for row in rows(manager)] == ["a", "new"]
    (repo / "new").rename(repo / "newer")
    assert [row[0] for row in rows(manager)] == ["a", "newer"]


def test_a_repository_with_links_is_always_looked_at(tmp_path: Path) -> None:
    repo, elsewhere = tmp_path / "repo", tmp_path / "elsewhere"
    repo.mkdir()
    (repo / "linked").symlink_to(elsewhere)
    os.utime(repo, (1_600_000_000, 1_600_000_000))
    source = LocalSource(repo)
    assert source.list_models() == []
    assert source.list_others() == ["linked"]
    elsewhere.mkdir()
    assert source.list_models() == ["linked"]
