"""Mode poll: what changed in the repositories is followed, once it stays as it is; what can not be listed stays."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.unit.test_repository_ensembles import World, chain, make
from tests.unit.test_repository_support import (
    CONFIG,
    WAIT_S,
    FakeEngine,
    FakeRuntime,
    manager_for,
    rows,
    settle,
    write_model,
)
from triton_fast.errors import Internal
from triton_fast.repository import ControlMode, LocalSource, ModelRepositoryManager, Poller, sources
from triton_fast.repository.sources import DUPLICATE

NOTHING = ([], [], [], [])


class Polled:
    """A server in mode poll over a repository, looked at by hand."""

    def __init__(self, *repos: Path) -> None:
        self.repo = repos[0]
        self.engine = FakeEngine()
        self.manager: ModelRepositoryManager[FakeRuntime] = manager_for(
            *repos, engine=self.engine, mode=ControlMode.POLL
        )
        self.failed = self.manager.start()
        self.poller = Poller(self.manager, 15)

    def follow(self) -> tuple[list[str], ...]:
        """Look twice: the first look only sees, the second follows."""
        assert self.poller.poll_once() == NOTHING
        return self.poller.poll_once()

    def set(self, name: str, text: str, version: str = "1") -> None:
        write_model(self.repo, name, {version: text})

    def text(self, name: str) -> str:
        return self.manager.resolve(name).text


@pytest.fixture
def polled(tmp_path: Path) -> Polled:
    repo = tmp_path / "repo"
    for name in ("a", "b"):
        write_model(repo, name)
    return Polled(repo)


def test_what_is_added_changed_and_removed_is_followed(polled: Polled) -> None:
    assert polled.follow() == NOTHING
    polled.set("new", "ok new")
    polled.set("a", "ok changed")
    shutil.rmtree(polled.repo / "b")
    assert polled.follow() == (["new"], ["b"], ["a"], [])
    assert (polled.text("new"), polled.text("a")) == ("ok new", "ok changed")
    settle(polled.manager)
    # What no repository has any more is not listed once it has ended.
    assert "b" not in [row[0] for row in rows(polled.manager)]
    assert polled.follow() == NOTHING
    polled.set("b", "ok back")
    assert polled.follow() == (["b"], [], [], [])
    assert polled.text("b") == "ok back"


def test_a_model_that_is_being_copied_is_left_until_it_is_whole(polled: Polled) -> None:
    polled.set("slow", "bad")
    for text in ("bad file", "bad file that grows", "ok whole at last"):
        assert polled.poller.poll_once() == NOTHING
        assert polled.poller.pending == ["slow"]
        polled.set("slow", text)
    assert polled.follow() == (["slow"], [], [], [])
    assert polled.text("slow") == "ok whole at last"
    assert polled.engine.started.count(("slow", 1)) == 1


def test_a_model_that_is_replaced_between_two_looks_is_not_unloaded(polled: Polled) -> None:
    shutil.rmtree(polled.repo / "a")
    assert polled.poller.poll_once() == NOTHING
    polled.set("a", "ok other")
    assert polled.follow() == ([], [], ["a"], [])
    assert polled.text("a") == "ok other"


@pytest.mark.parametrize("mode", [ControlMode.POLL, ControlMode.EXPLICIT])
def test_another_directory_of_the_same_sizes_and_dates(tmp_path: Path, mode: ControlMode) -> None:
    repo = tmp_path / "repo"
    repo.mkdir()
    for name in ("old", "new"):
        write_model(tmp_path / "store", name, {"1": f"ok {name}"})
        for path in (tmp_path / "store" / name).rglob("*"):
            os.utime(path, (1, 1))
    (repo / "m").symlink_to(tmp_path / "store" / "old")
    manager = manager_for(repo, engine=FakeEngine(), mode=mode)
    manager.start([] if mode is ControlMode.POLL else ["m"])
    (tmp_path / "next").symlink_to(tmp_path / "store" / "new")
    (tmp_path / "next").replace(repo / "m")
    if mode is ControlMode.POLL:
        poller = Poller(manager, 15)
        poller.poll_once()
        assert poller.poll_once().modified == ["m"]
    else:
        manager.load("m")
    assert manager.resolve("m").text == "ok new"


def test_only_changed_versions_are_started_again(tmp_path: Path) -> None:
    write_model(tmp_path, "m", {"1": "ok", "2": "ok"}, CONFIG + "version_policy { all {} }")
    polled = Polled(tmp_path)
    first = polled.manager.resolve("m", 1)
    (tmp_path / "m" / "2" / "model.fake").write_text("ok changed")
    assert polled.follow() == ([], [], ["m"], [])
    assert polled.manager.resolve("m", 1) is first
    assert polled.manager.resolve("m", 2).text == "ok changed"


def test_another_choice_of_versions_starts_no_version_again(tmp_path: Path) -> None:
    write_model(
        tmp_path, "m", {"1": "ok", "2": "ok", "3": "ok"}, CONFIG + "version_policy { latest { num_versions: 2 } }"
    )
    polled = Polled(tmp_path)
    second = polled.manager.resolve("m", 2)
    (tmp_path / "m" / "config.pbtxt").write_text(CONFIG + "version_policy { specific { versions: [1, 2] } }")
    assert polled.follow() == ([], [], ["m"], [])
    assert polled.manager.versions("m") == [1, 2]
    assert polled.manager.resolve("m", 2) is second
    assert polled.engine.started.count(("m", 2)) == 1
    assert list(second.config.version_policy.specific.versions) == [1, 2]
    # Anything else in the config does.
    (tmp_path / "m" / "config.pbtxt").write_text(CONFIG.replace("max_batch_size: 4", "max_batch_size: 8"))
    assert polled.follow() == ([], [], ["m"], [])
    assert polled.manager.versions("m") == [3]
    assert polled.manager.resolve("m").config.max_batch_size == 8


def test_a_failed_load_keeps_the_old_and_is_tried_again_only_for_other_files(polled: Polled) -> None:
    polled.set("a", "broken")
    polled.set("new", "broken too")
    assert polled.follow() == (["new"], [], ["a"], [])
    assert polled.text("a") == "ok"
    begun = list(polled.engine.started)
    assert polled.follow() == NOTHING
    assert polled.engine.started == begun
    polled.set("a", "ok mended")
    polled.set("new", "ok mended")
    assert polled.follow() == ([], [], ["a", "new"], [])
    assert (polled.text("a"), polled.text("new")) == ("ok mended", "ok mended")


def test_a_config_that_can_not_be_read_keeps_the_old(polled: Polled) -> None:
    config = polled.repo / "a" / "config.pbtxt"
    config.write_text("backend: {")
    assert polled.follow() == ([], [], ["a"], [])
    assert polled.text("a") == "ok"
    assert polled.follow() == NOTHING
    config.write_text(CONFIG)
    assert polled.follow() == ([], [], ["a"], [])
    assert polled.follow() == NOTHING


def test_what_failed_at_the_start_is_not_tried_again_by_itself(tmp_path: Path) -> None:
    write_model(tmp_path, "bad", {"1": "broken"})
    polled = Polled(tmp_path)
    assert [name for name, _ in polled.failed] == ["bad"]
    assert polled.follow() == NOTHING
    polled.set("bad", "ok now")
    assert polled.follow() == ([], [], ["bad"], [])
    assert polled.text("bad") == "ok now"


def test_a_repository_that_can_not_be_listed_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_model(one, "a")
    write_model(two, "b")
    polled = Polled(one, two)
    listed = LocalSource.list_models
    refuse = {str(two)}

    def list_models(source: LocalSource) -> list[str]:
        if source.location in refuse:
            raise Internal("the network is down")
        return listed(source)

    monkeypatch.setattr(LocalSource, "list_models", list_models)
    write_model(one, "c")
    # A second model of that name can not be told from the first one having moved.
    write_model(one, "b", {"1": "ok other"})
    assert polled.follow() == (["c"], [], [], [])
    assert polled.text("b") == "ok"
    shutil.rmtree(one / "a")
    shutil.rmtree(one / "b")
    assert polled.follow() == ([], ["a"], [], [])
    refuse.add(str(one))
    shutil.rmtree(one / "c")
    assert polled.follow() == NOTHING
    assert {runtime.name for runtime in polled.manager.all_ready()} == {"b", "c"}
    refuse.clear()
    assert polled.follow() == ([], ["c"], [], [])


def test_a_model_that_can_not_be_looked_at_is_left_alone(polled: Polled, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = LocalSource.fingerprint

    def fingerprint(source: LocalSource, name: str) -> object:
        if name == "a":
            raise Internal("cut off in the middle")
        return looked(source, name)

    polled.set("a", "ok changed")
    polled.set("b", "ok changed")
    with monkeypatch.context() as patch:
        patch.setattr(LocalSource, "fingerprint", fingerprint)
        assert polled.follow() == ([], [], ["b"], [])
    assert polled.text("a") == "ok"
    assert polled.follow() == ([], [], ["a"], [])


def test_an_empty_mount_point_is_no_repository_without_models(polled: Polled, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.stat

    def stat(path: Path) -> os.stat_result:
        found = list(real(path))
        if path == polled.repo:
            found[2] += 1
        return os.stat_result(found)

    for name in ("a", "b"):
        (polled.repo / name).rename(polled.repo.parent / name)
    with monkeypatch.context() as patch:
        patch.setattr(sources, "os", SimpleNamespace(stat=stat, scandir=os.scandir))
        assert polled.follow() == NOTHING
    assert len(polled.manager.all_ready()) == 2
    # The same file system, and empty: they are gone.
    assert polled.follow() == ([], ["a", "b"], [], [])


def gone_dead(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Let the file system that a directory is on not answer any more."""
    scan = os.scandir

    def scandir(where: str | Path) -> object:
        if Path(where).is_relative_to(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(where))
        return scan(where)

    def is_dir(entry: os.DirEntry[str]) -> bool:
        if Path(entry.path) == path:
            raise OSError(errno.EIO, os.strerror(errno.EIO), entry.path)
        return entry.is_dir()

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(sources, "is_dir", is_dir)


def test_a_model_behind_a_dead_mount_stays_and_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = tmp_path / "repo"
    write_model(repo, "b")
    (repo / "a").symlink_to(write_model(tmp_path / "mount", "a"))
    polled = Polled(repo)
    gone_dead(monkeypatch, repo / "a")
    polled.set("b", "ok changed")
    assert polled.follow() == ([], [], ["b"], [])
    assert (polled.text("a"), polled.text("b")) == ("ok", "ok changed")


def test_a_dead_part_of_a_model_is_no_change(polled: Polled, monkeypatch: pytest.MonkeyPatch) -> None:
    gone_dead(monkeypatch, polled.repo / "a" / "1")
    assert polled.follow() == NOTHING


@pytest.mark.parametrize("mode", [ControlMode.NONE, ControlMode.POLL, ControlMode.EXPLICIT])
def test_what_can_not_be_listed_fails_the_start(
    tmp_path: Path, mode: ControlMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        write_model(tmp_path / name, name)
    manager = manager_for(tmp_path / "one", tmp_path / "two", engine=FakeEngine(), mode=mode)
    gone_dead(monkeypatch, tmp_path / "two")
    failed = manager.start(["*"] if mode is ControlMode.EXPLICIT else [])
    where = str(tmp_path / "two")
    assert failed == [(where, f"failed to open model repository {where}: Input/output error")]
    assert manager.is_ready("one")


def test_a_model_that_can_not_be_looked_at_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        write_model(tmp_path, name)
    manager = manager_for(tmp_path, engine=FakeEngine(), mode=ControlMode.NONE)
    gone_dead(monkeypatch, tmp_path / "a")
    assert [name for name, _ in manager.start()] == ["a"]
    assert not manager.ready_state()
    assert "failed to look at model directory 'a': Input/output error" in str(rows(manager))


def test_a_model_that_gets_a_double_is_served_no_more(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_model(one, "a")
    write_model(two, "b")
    polled = Polled(one, two)
    write_model(two, "a", {"1": "ok double"})
    assert polled.follow() == ([], [], [], ["a"])
    settle(polled.manager)
    assert ("a", -1, "UNAVAILABLE", DUPLICATE) in rows(polled.manager)
    assert not polled.manager.ready_state()
    assert polled.follow() == NOTHING
    shutil.rmtree(one / "a")
    assert polled.follow() == ([], [], ["a"], [])
    assert polled.text("a") == "ok double"


# ---- ensembles


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = make(tmp_path, ControlMode.POLL)
    world.write("e", "m", "n")
    world.write("m")
    world.write("n")
    assert world.manager.start() == []
    return world


def look(world: World) -> tuple[list[str], ...]:
    poller = Poller(world.manager, 15)
    assert poller.poll_once() == NOTHING
    return poller.poll_once()


def test_an_ensemble_is_suspended_with_its_member_and_comes_back_with_it(world: World) -> None:
    shutil.rmtree(world.repo / "n")
    assert look(world) == ([], ["n"], [], [])
    settle(world.manager)
    assert world.ready() == ["m"]
    # Neither is new, and neither has changed.
    assert look(world) == NOTHING
    world.write("n")
    assert look(world) == (["n"], [], [], [])
    assert world.ready() == ["e", "m", "n"]
    assert look(world) == NOTHING


def test_a_suspended_ensemble_that_is_edited_is_loaded_again(world: World) -> None:
    shutil.rmtree(world.repo / "n")
    look(world)
    (world.repo / "e" / "config.pbtxt").write_text(chain("m"))
    assert look(world) == ([], [], ["e"], [])
    assert world.ready() == ["e", "m"]
    shutil.rmtree(world.repo / "m")
    look(world)
    shutil.rmtree(world.repo / "e")
    assert look(world) == ([], ["e"], [], [])
    settle(world.manager)
    assert world.ready() == []


def test_a_member_that_changes_leaves_its_ensemble_served(world: World) -> None:
    world.write("m", text="ok changed")
    assert look(world) == ([], [], ["m"], [])
    assert world.manager.resolve("m").text == "ok changed"
    assert world.ready() == ["e", "m", "n"]
    # One that no longer fits does not.
    world.write("m", config=CONFIG.replace("dims: [1]", "dims: [9]"))
    assert look(world) == ([], [], ["m"], [])
    assert world.ready() == ["m", "n"]
    world.write("m")
    assert look(world) == ([], [], ["m"], [])
    assert world.ready() == ["e", "m", "n"]


def test_ensembles_and_members_that_come_together_are_loaded_in_order(world: World) -> None:
    world.write("a_first", "z_last")
    world.write("z_last")
    assert look(world) == (["a_first", "z_last"], [], [], [])
    assert [name for name, _ in world.engine.started[-2:]] == ["z_last", "a_first"]
    assert world.manager.ready_state()


# ---- the thread


def test_the_thread_follows_and_ends_when_told(polled: Polled) -> None:
    poller = Poller(polled.manager, 1e-3)
    poller.start()
    polled.set("new", "ok")
    assert polled.engine.entered["new", 1].wait(WAIT_S)
    poller.stop()
    assert poller._thread is not None
    poller._thread.join(WAIT_S)
    assert not poller._thread.is_alive()


def test_a_long_period_does_not_hold_up_the_end(polled: Polled) -> None:
    poller = Poller(polled.manager, 3600)
    poller.start()
    poller.stop()
    assert poller._thread is not None
    poller._thread.join(WAIT_S)
    assert not poller._thread.is_alive()
    never = Poller(polled.manager, 0)
    never.start()
    assert never._thread is None


def test_a_look_that_fails_is_not_the_last(polled: Polled, monkeypatch: pytest.MonkeyPatch) -> None:
    poller = Poller(polled.manager, 1e-3)
    look = polled.manager.look
    failures = [Internal("once"), RuntimeError("twice")]

    def failing() -> object:
        if failures:
            raise failures.pop()
        return look()

    monkeypatch.setattr(polled.manager, "look", failing)
    polled.set("new", "ok")
    poller.start()
    assert polled.engine.entered["new", 1].wait(WAIT_S)
    poller.stop()
    assert failures == []
