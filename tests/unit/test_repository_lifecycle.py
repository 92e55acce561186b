"""Loading, unloading and reloading: states, texts, order, and what stays served when something fails."""

from __future__ import annotations

import os
import re
import shutil
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, os.path.dirname(__file__))
from test_repository_support import (
    CONFIG,
    WAIT_S,
    Background,
    FakeEngine,
    FakeRuntime,
    error_of,
    fail,
    manager_for,
    rewrite,
    rows,
    settle,
    write_model,
)

from tests.helpers.server import until
from triton_fast.backends.base import Backend, LoadContext
from triton_fast.errors import Internal, InvalidArg, NotFound, ServerError, Unavailable
from triton_fast.repository import ControlMode, LoadFailure, ModelRepositoryManager, State

ALL = CONFIG + "version_policy { all {} }\n"
DUPLICATE = "model appears in two or more repositories"


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    (tmp_path / "repo").mkdir()
    return tmp_path / "repo"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


# Start.


def test_mode_none_loads_all_and_refuses_the_api(repo: Path, engine: FakeEngine) -> None:
    write_model(repo, "b")
    write_model(repo, "a", {"1": "ok", "2": "ok"})
    manager = manager_for(repo, engine=engine, mode=ControlMode.NONE)
    assert not manager.ready_state()
    assert manager.start() == []
    assert manager.ready_state()
    assert manager.summary() == [("a", "2", "READY"), ("b", "1", "READY")]
    assert [(r.name, r.version) for r in manager.all_ready()] == [("a", 2), ("b", 1)]
    text = "explicit model load / unload is not allowed if polling is enabled"
    assert error_of(Unavailable, manager.load, "a") == text
    assert error_of(Unavailable, manager.unload, "a") == text
    assert error_of(InvalidArg, manager.start, ["a"]).startswith("Error: Use of '--load-model' requires")


def test_explicit_start(repo: Path, engine: FakeEngine) -> None:
    for name in ("a", "b", "c"):
        write_model(repo, name)
    manager = manager_for(repo, engine=engine)
    assert manager.start(["b", "b"]) == []
    assert rows(manager) == [("a", -1, "UNKNOWN", ""), ("b", 1, "READY", ""), ("c", -1, "UNKNOWN", "")]
    assert manager.index(ready_only=True) == [("b", 1, State.READY, "")]
    assert manager.summary() == [("b", "1", "READY")]
    assert engine.started == [("b", 1)]
    assert manager.ready_state()


def test_explicit_start_wildcard(repo: Path, engine: FakeEngine) -> None:
    for name in ("a", "b"):
        write_model(repo, name)
    manager = manager_for(repo, engine=engine)
    assert error_of(InvalidArg, manager.start, ["*", "a"]) == (
        "Wildcard model name '*' must be the ONLY startup model if specified at all."
    )
    assert manager.start(["*"]) == []
    assert [row[0] for row in manager.summary()] == ["a", "b"]


def test_explicit_start_with_nothing(repo: Path, engine: FakeEngine) -> None:
    write_model(repo, "a")
    manager = manager_for(repo, engine=engine)
    assert manager.start() == []
    assert manager.ready_state()
    assert manager.summary() == []


def test_start_failures_are_all_reported(repo: Path, engine: FakeEngine) -> None:
    write_model(repo, "good")
    write_model(repo, "bad", {"1": "broken weights"})
    write_model(repo, "empty")
    shutil.rmtree(repo / "empty" / "1")
    write_model(repo, "typo", config=CONFIG + "max_batchsize: 1\n")
    write_model(repo, "spaced ")
    manager = manager_for(repo, engine=engine)
    failures = manager.start(["good", "bad", "empty", "typo", "spaced", "../x"])
    reasons = {failure.name: failure.reason for failure in failures}
    assert list(reasons) == ["bad", "empty", "typo", "spaced", "../x"]
    assert reasons["bad"] == (
        "load failed for model 'bad': version 1 is at UNAVAILABLE state: Internal: broken weights;"
    )
    assert reasons["empty"] == (
        "load failed for model 'empty': "
        "at least one version must be available under the version policy of model 'empty'"
    )
    assert reasons["typo"].startswith("failed to load 'typo', failed to poll from model repository: ")
    assert "typo/config.pbtxt:6:1" in reasons["typo"]
    assert "did you mean 'max_batch_size'?" in reasons["typo"]
    assert "the directory is named 'spaced ', with a space at an end" in reasons["spaced"]
    assert "path traversal" in reasons["../x"]
    assert not manager.ready_state()
    summary = {(name, version): status for name, version, status in manager.summary()}
    assert summary[("good", "1")] == "READY"
    assert summary[("bad", "1")] == "UNAVAILABLE: Internal: broken weights"
    assert summary[("empty", "-")].startswith("UNAVAILABLE: at least one version")
    assert "config.pbtxt:6:1" in summary[("typo", "-")]
    assert ("spaced", "-") in summary
    assert str(repo) not in str(rows(manager))


def test_readiness_that_is_not_strict(repo: Path, engine: FakeEngine) -> None:
    write_model(repo, "bad", {"1": "broken"})
    manager = manager_for(repo, engine=engine, mode=ControlMode.NONE, strict_readiness=False)
    assert not manager.ready_state()
    assert [failure.name for failure in manager.start()] == ["bad"]
    assert manager.ready_state()


def test_loads_run_in_parallel_up_to_the_limit(repo: Path, engine: FakeEngine) -> None:
    for number in range(6):
        write_model(repo, f"m{number}", {"1": "ok", "2": "ok"}, ALL)
    gate = threading.Event()
    keys = [(f"m{number}", version) for number in range(6) for version in (1, 2)]
    engine.gates = dict.fromkeys(keys, gate)
    manager = manager_for(repo, engine=engine, mode=ControlMode.NONE, load_threads=3)
    starting = Background(manager.start)
    for _ in range(3):
        assert engine.arrivals.acquire(timeout=WAIT_S)
    assert engine.running == 3
    assert starting.is_running
    gate.set()
    starting.join()
    assert engine.most_running == 3
    assert len(manager.all_ready()) == 12


def test_retries(repo: Path, engine: FakeEngine) -> None:
    write_model(repo, "m")
    engine.fail_times["m"] = 2
    manager = manager_for(repo, engine=engine, load_retries=2)
    manager.load("m")
    assert engine.started == [("m", 1)] * 3
    write_model(repo, "n")
    engine.fail_times["n"] = 3
    assert "Internal: not yet" in error_of(InvalidArg, manager.load, "n")
    assert engine.started.count(("n", 1)) == 3


def test_load_durations(repo: Path, engine: FakeEngine) -> None:
    write_model(repo, "m", {"1": "ok", "2": "ok"}, ALL)
    clock = iter(range(0, 1000, 5))
    manager = manager_for(repo, engine=engine, clock=lambda: float(next(clock)), load_threads=1)
    manager.load("m")
    assert manager.load_seconds() == {("m", 1): 5.0, ("m", 2): 5.0}
    manager.unload("m")
    assert manager.load_seconds() == {}
    settle(manager)


# Lookup.


def test_lookup_texts(repo: Path, engine: FakeEngine) -> None:
    write_model(
        repo, "m", {"1": "ok", "3": "ok", "12": "ok"}, CONFIG + "version_policy { specific { versions: [1, 3] } }"
    )
    manager = manager_for(repo, engine=engine)
    manager.start()
    assert error_of(NotFound, manager.resolve, "m") == "Request for unknown model: 'm' is not found"
    assert error_of(NotFound, manager.resolve, "m", 1) == "Request for unknown model: 'm' is not found"
    assert error_of(NotFound, manager.is_ready, "m") == "Request for unknown model: 'm' is not found"
    manager.load("m")
    assert manager.resolve("m").version == 3
    assert manager.resolve("m", 1).version == 1
    assert manager.versions("m") == [1, 3]
    assert manager.is_ready("m")
    assert error_of(NotFound, manager.resolve, "m", 12) == "Request for unknown model: 'm' version 12 is not found"
    assert error_of(NotFound, manager.is_ready, "m", 0) == "Request for unknown model: 'm' version 0 is not found"
    manager.unload("m")
    assert error_of(NotFound, manager.resolve, "m") == "Request for unknown model: 'm' has no available versions"
    assert error_of(NotFound, manager.versions, "m") == "Request for unknown model: 'm' has no available versions"
    text = "Request for unknown model: 'm' version 3 is not at ready state"
    assert error_of(Unavailable, manager.resolve, "m", 3) == text
    assert not manager.is_ready("m")
    assert not manager.is_ready("m", 3)
    settle(manager)
    assert rows(manager) == [("m", 1, "UNAVAILABLE", "unloaded"), ("m", 3, "UNAVAILABLE", "unloaded")]


def test_version_directory_with_a_suffix_is_where_it_is_loaded_from(repo: Path, engine: FakeEngine) -> None:
    write_model(repo, "m", {"7_final": "ok"})
    manager = manager_for(repo, engine=engine)
    manager.load("m")
    assert manager.resolve("m", 7).context.version_dir == repo / "m" / "7_final"


def test_version_zero(repo: Path, engine: FakeEngine) -> None:
    write_model(repo, "m", {"0": "ok", "1": "ok"}, ALL)
    manager = manager_for(repo, engine=engine)
    manager.load("m")
    assert (manager.resolve("m", 0).version, manager.resolve("m").version) == (0, 1)


def test_states_while_loading(repo: Path, engine: FakeEngine) -> None:
    write_model(repo, "m")
    gate = engine.gates["m", 1] = threading.Event()
    manager = manager_for(repo, engine=engine)
    manager.start()
    assert manager.ready_state()
    loading = Background(manager.load, "m")
    assert engine.entered["m", 1].wait(WAIT_S)
    assert rows(manager) == [("m", 1, "LOADING", "")]
    assert not manager.ready_state()
    assert error_of(Unavailable, manager.resolve, "m", 1).endswith("version 1 is not at ready state")
    assert error_of(NotFound, manager.resolve, "m").endswith("has no available versions")
    gate.set()
    loading.join()
    assert rows(manager) == [("m", 1, "READY", "")]
    assert manager.ready_state()


def test_generation_changes_with_every_swap(repo: Path, engine: FakeEngine) -> None:
    write_model(repo, "m")
    manager = manager_for(repo, engine=engine)
    seen = [manager.generation]
    manager.load("m")
    seen.append(manager.generation)
    manager.load("m")
    assert manager.generation == seen[-1]
    (repo / "m" / "1" / "model.fake").write_text("ok again")
    manager.load("m")
    seen.append(manager.generation)
    manager.unload("m")
    seen.append(manager.generation)
    assert sorted(set(seen)) == seen
    settle(manager)


# Load texts.


def test_failed_load_texts(repo: Path, engine: FakeEngine) -> None:
    write_model(repo, "two", {"1": "no a", "2": "no b", "3": "ok"}, ALL)
    manager = manager_for(repo, engine=engine)
    assert error_of(InvalidArg, manager.load, "two") == (
        "load failed for model 'two': version 1 is at UNAVAILABLE state: Internal: no a;"
        "version 2 is at UNAVAILABLE state: Internal: no b;\n"
    )
    settle(manager)
    assert rows(manager) == [
        ("two", 1, "UNAVAILABLE", "Internal: no a"),
        ("two", 2, "UNAVAILABLE", "Internal: no b"),
        ("two", 3, "UNAVAILABLE", "unloaded"),
    ]
    assert engine.alive == set()
    assert error_of(Unavailable, manager.resolve, "two", 3).endswith("is not at ready state")
    write_model(repo, "none")
    shutil.rmtree(repo / "none" / "1")
    text = "at least one version must be available under the version policy of model 'none'"
    assert error_of(InvalidArg, manager.load, "none") == f"load failed for model 'none': {text}\n"
    assert rows(manager)[0] == ("none", -1, "UNAVAILABLE", text)


def test_unknown_model_texts(repo: Path, engine: FakeEngine) -> None:
    write_model(repo, "resnet50")
    (repo / "notes.txt").write_text("")
    manager = manager_for(repo, engine=engine)
    start = "failed to load '{}', failed to poll from model repository: model not found in any model repository"
    for name, hint in (
        ("Resnet50", "did you mean 'resnet50'?"),
        ("resnet50 ", "the name has a space at an end: did you mean 'resnet50'?"),
        ("notes.txt", "'notes.txt' is a file, a model is a directory"),
    ):
        assert error_of(Internal, manager.load, name) == f"{start.format(name)}; {hint}"
    assert error_of(Internal, manager.load, "zzz") == start.format("zzz")
    # Names from outside leave nothing behind.
    assert rows(manager) == [("resnet50", -1, "UNKNOWN", "")]
    assert manager.summary() == []
    assert manager._operations.waiting == []


def test_foreign_exceptions_become_reasons_without_server_paths(repo: Path, engine: FakeEngine) -> None:
    write_model(repo, "foreign", {"1": "foreign"})
    write_model(repo, "exit", {"1": "exit"})
    manager = manager_for(repo, engine=engine)
    assert error_of(InvalidArg, manager.load, "foreign") == (
        "load failed for model 'foreign': version 1 is at UNAVAILABLE state: "
        "Internal: RuntimeError: boom in foreign/x;\n"
    )
    assert "Internal: SystemExit: 1" in error_of(InvalidArg, manager.load, "exit")


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            CONFIG.replace('"fake"', '"mxnet"'),
            "Invalid argument: unable to find backend library for backend 'mxnet', try specifying runtime on the "
            "model configuration.",
        ),
    ],
)
def test_what_this_build_does_not_have(repo: Path, engine: FakeEngine, config: str, text: str) -> None:
    write_model(repo, "m", config=config)
    manager = manager_for(repo, engine=engine)
    assert error_of(InvalidArg, manager.load, "m") == (
        f"load failed for model 'm': version 1 is at UNAVAILABLE state: {text};\n"
    )
    assert engine.started == []


def test_duplicate_models_are_not_served(tmp_path: Path, engine: FakeEngine) -> None:
    for repository in ("r1", "r2"):
        write_model(tmp_path / repository, "dup")
        write_model(tmp_path / repository, f"only_{repository}")
    manager = manager_for(tmp_path / "r1", tmp_path / "r2", engine=engine, mode=ControlMode.NONE)
    failures = manager.start()
    assert failures == [LoadFailure("dup", f"failed to load 'dup', failed to poll from model repository: {DUPLICATE}")]
    assert rows(manager) == [
        ("dup", -1, "UNAVAILABLE", DUPLICATE),
        ("only_r1", 1, "READY", ""),
        ("only_r2", 1, "READY", ""),
    ]
    assert ("dup", "-", f"UNAVAILABLE: {DUPLICATE}") in manager.summary()
    assert not manager.ready_state()
    # A duplicate that nobody asked for is reported by the index all the same.
    other = manager_for(tmp_path / "r1", tmp_path / "r2", engine=engine)
    assert rows(other)[0] == ("dup", -1, "UNAVAILABLE", DUPLICATE)
    assert DUPLICATE in error_of(Internal, other.load, "dup")


# Reload.


def test_unchanged_files_are_a_no_op(repo: Path, engine: FakeEngine) -> None:
    write_model(repo, "m")
    manager = manager_for(repo, engine=engine)
    manager.load("m")
    runtime = manager.resolve("m")
    for _ in range(3):
        manager.load("m")
    assert manager.resolve("m") is runtime
    assert engine.started == [("m", 1)]


def test_reload_swaps_when_the_new_one_is_up_and_drains_the_old(repo: Path, engine: FakeEngine) -> None:
    write_model(repo, "m")
    manager = manager_for(repo, engine=engine)
    manager.load("m")
    old = manager.resolve("m")
    old.drained.clear()
    (repo / "m" / "1" / "model.fake").write_text("ok 2")
    gate = engine.gates["m", 1] = threading.Event()
    engine.entered["m", 1].clear()
    reload = Background(manager.load, "m")
    assert engine.entered["m", 1].wait(WAIT_S)
    assert manager.resolve("m") is old
    assert rows(manager) == [("m", 1, "READY", "")]
    assert manager.ready_state() is False or manager.is_ready("m")
    gate.set()
    reload.join()
    new = manager.resolve("m")
    assert new is not old
    assert new.text == "ok 2"
    # A request is still in the old one: it is told to stop, and lives until that is done.
    assert old.stopping.wait(WAIT_S)
    assert old.stops == [None]
    assert engine.alive == {old, new}
    old.drained.set()
    settle(manager)
    assert engine.alive == {new}
    assert rows(manager) == [("m", 1, "READY", "")]


def test_new_version_is_loaded_beside_and_the_unchanged_one_is_kept(repo: Path, engine: FakeEngine) -> None:
    write_model(repo, "m", {"1": "ok"}, ALL)
    manager = manager_for(repo, engine=engine)
    manager.load("m")
    first = manager.resolve("m", 1)
    write_model(repo, "m", {"2": "ok"}, ALL)
    os.utime(repo / "m" / "config.pbtxt", ns=(5, 5))
    manager.load("m")
    assert manager.resolve("m", 1) is first, "another time of the config is no other config"
    (repo / "m" / "config.pbtxt").write_text(ALL + 'metric_tags { key: "k" value: "v" }')
    manager.load("m")
    assert manager.resolve("m", 1) is not first, "the config changed: everything is loaded anew"
    first = manager.resolve("m", 1)
    (repo / "m" / "3").mkdir()
    (repo / "m" / "3" / "model.fake").write_text("ok")
    engine.started.clear()
    manager.load("m")
    assert engine.started == [("m", 3)]
    assert manager.resolve("m", 1) is first
    assert manager.versions("m") == [1, 2, 3]
    shutil.rmtree(repo / "m" / "1")
    manager.load("m")
    settle(manager)
    assert engine.started == [("m", 3)]
    assert manager.versions("m") == [2, 3]
    assert first not in engine.alive
    assert ("m", 1, "UNAVAILABLE", "unloaded") in rows(manager)


def test_latest_policy_moves_on(repo: Path, engine: FakeEngine) -> None:
    write_model(repo, "m", {"4": "ok"})
    manager = manager_for(repo, engine=engine)
    manager.load("m")
    (repo / "m" / "5").mkdir()
    (repo / "m" / "5" / "model.fake").write_text("ok")
    old = manager.resolve("m")
    old.drained.clear()
    manager.load("m")
    assert manager.resolve("m").version == 5
    assert rows(manager) == [("m", 4, "UNLOADING", ""), ("m", 5, "READY", "")]
    assert error_of(Unavailable, manager.resolve, "m", 4).endswith("is not at ready state")
    old.drained.set()
    settle(manager)
    assert rows(manager) == [("m", 4, "UNAVAILABLE", "unloaded"), ("m", 5, "READY", "")]


def test_failing_reload_keeps_the_old_one(repo: Path, engine: FakeEngine) -> None:
    write_model(repo, "m", {"1": "ok", "2": "ok"}, ALL)
    manager = manager_for(repo, engine=engine)
    manager.start(["m"])
    before = {version: manager.resolve("m", version) for version in (1, 2)}
    (repo / "m" / "1" / "model.fake").write_text("ok new")
    (repo / "m" / "2" / "model.fake").write_text("truncated")
    (repo / "m" / "3").mkdir()
    (repo / "m" / "3" / "model.fake").write_text("missing weights")
    assert error_of(InvalidArg, manager.load, "m") == (
        "load failed for model 'm': version 2 is at UNAVAILABLE state: Internal: truncated;"
        "version 3 is at UNAVAILABLE state: Internal: missing weights;\n"
    )
    settle(manager)
    assert {version: manager.resolve("m", version) for version in (1, 2)} == before
    assert engine.alive == set(before.values())
    assert rows(manager) == [
        ("m", 1, "READY", ""), ("m", 2, "READY", ""), ("m", 3, "UNAVAILABLE", "Internal: missing weights"),
    ]  # fmt: skip
    assert manager.ready_state()
    # A broken config does not take it down either, nor does one without versions, nor a vanished directory.
    good = (repo / "m" / "config.pbtxt").read_text()
    (repo / "m" / "config.pbtxt").write_text("{")
    error_of(Internal, manager.load, "m")
    (repo / "m" / "config.pbtxt").write_text(CONFIG + "version_policy { specific { versions: [9] } }")
    error_of(InvalidArg, manager.load, "m")
    (repo / "m").rename(repo / "away")
    error_of(Internal, manager.load, "m")
    assert manager.resolve("m", 1) is before[1]
    assert ("m", 1, "READY", "") in rows(manager)
    (repo / "away").rename(repo / "m")
    # And mending the files mends the model.
    (repo / "m" / "config.pbtxt").write_text(good)
    for version in ("2", "3"):
        (repo / "m" / version / "model.fake").write_text("ok mended")
    manager.load("m")
    assert {manager.resolve("m", version).text for version in (1, 2, 3)} == {"ok new", "ok mended"}
    settle(manager)


def test_readers_always_find_a_model_while_it_is_reloaded(repo: Path, engine: FakeEngine) -> None:
    write_model(repo, "m")
    manager = manager_for(repo, engine=engine)
    manager.load("m")
    stop = threading.Event()
    texts: set[str] = set()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def read() -> None:
        kept, kept_at = manager.resolve("m"), -1
        while not stop.is_set():
            # As a front end does: what was resolved stays while the number stays.
            generation = manager.generation
            assert generation >= kept_at
            if generation != kept_at:
                kept, kept_at = manager.resolve("m"), generation
            texts.add(kept.text)
        assert generation_is_settled.wait(WAIT_S)
        if manager.generation == kept_at:
            assert kept is manager.resolve("m")

    generation_is_settled = threading.Event()
    readers = [Background(read) for _ in range(2)]
    try:
        for number in range(20):
            (repo / "m" / "1" / "model.fake").write_text(f"ok {number:03}" + "x" * number)
            manager.load("m")
        stop.set()
    finally:
        sys.setswitchinterval(interval)
    settle(manager)
    generation_is_settled.set()
    for reader in readers:
        reader.join()
    settle(manager)
    assert engine.alive == {manager.resolve("m")}
    assert len(texts) > 1
    assert all(text.startswith("ok") for text in texts)


# Unload, and who comes second.


def test_unload_returns_at_once_and_requests_finish(repo: Path, engine: FakeEngine) -> None:
    write_model(repo, "m")
    manager = manager_for(repo, engine=engine)
    manager.load("m")
    runtime = manager.resolve("m")
    runtime.drained.clear()
    manager.unload("m")
    assert runtime.stopping.wait(WAIT_S)
    assert rows(manager) == [("m", 1, "UNLOADING", "")]
    assert manager.ready_state() is False  # start() was not called
    # Loading again does not wait for the old one.
    manager.load("m")
    assert rows(manager) == [("m", 1, "READY", "")]
    runtime.drained.set()
    settle(manager)
    assert rows(manager) == [("m", 1, "READY", "")]
    assert manager.resolve("m") is not runtime


def test_unload_of_unknown_and_failed_models(repo: Path, engine: FakeEngine) -> None:
    write_model(repo, "bad", {"1": "broken"})
    write_model(repo, "typo", config="{")
    manager = manager_for(repo, engine=engine)
    manager.start()
    manager.unload("never heard of")
    for name in ("bad", "typo"):
        with pytest.raises(ServerError):
            manager.load(name)
    assert not manager.ready_state()
    manager.unload("bad")
    manager.unload("typo", unload_dependents=True)
    assert manager.ready_state()
    assert rows(manager) == [("bad", 1, "UNAVAILABLE", "unloaded"), ("typo", -1, "UNKNOWN", "")]


def test_a_stop_that_raises_still_ends_the_version(
    repo: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(repo, "m")
    manager = manager_for(repo, engine=engine)
    manager.load("m")
    monkeypatch.setattr(FakeRuntime, "stop", lambda self, timeout_s=None: fail(RuntimeError("x")))
    manager.unload("m")
    settle(manager)
    assert rows(manager) == [("m", 1, "UNAVAILABLE", "unloaded")]


def test_operations_on_one_model_wait_for_each_other(repo: Path, engine: FakeEngine) -> None:
    write_model(repo, "m")
    write_model(repo, "n")
    gate = engine.gates["m", 1] = threading.Event()
    manager = manager_for(repo, engine=engine)
    first = Background(manager.load, "m")
    assert engine.entered["m", 1].wait(WAIT_S)
    second = Background(manager.load, "m")
    third = Background(manager.load, "m")
    # Another model is not held up.
    manager.load("n")
    assert first.is_running
    assert second.is_running
    gate.set()
    for operation in (first, second, third):
        operation.join()
    assert engine.started == [("m", 1), ("n", 1)]
    assert manager._operations.waiting == []


def test_unload_during_a_load_comes_after_it(repo: Path, engine: FakeEngine) -> None:
    write_model(repo, "m")
    gate = engine.gates["m", 1] = threading.Event()
    manager = manager_for(repo, engine=engine)
    load = Background(manager.load, "m")
    assert engine.entered["m", 1].wait(WAIT_S)
    unload = Background(manager.unload, "m")
    assert load.is_running
    gate.set()
    load.join()
    unload.join()
    settle(manager)
    assert rows(manager) == [("m", 1, "UNAVAILABLE", "unloaded")]
    assert engine.alive == set()


@pytest.mark.parametrize("end", ["unload", "shutdown"])
def test_a_load_is_told_that_nobody_wants_it(repo: Path, engine: FakeEngine, end: str) -> None:
    write_model(repo, "m")
    told = []

    def start(context: LoadContext, backend: Backend) -> FakeRuntime:
        told.append(context.given_up())
        runtime = engine.start(context, backend)
        told.append(context.given_up())
        return runtime

    gate = engine.gates["m", 1] = threading.Event()
    manager = manager_for(repo, engine=engine)
    manager._starts._start_runtime = start
    load = Background(manager.load, "m")
    assert engine.entered["m", 1].wait(WAIT_S)
    ending = Background(manager.unload, "m") if end == "unload" else Background(manager.shutdown, WAIT_S)
    assert until(lambda: manager._operations.is_given_up("m"))
    assert end == "shutdown" or not manager._operations.is_given_up("n")
    gate.set()
    ending.join()
    assert told == [False, True]
    if end == "unload":
        load.join()
        assert not manager._operations.is_given_up("m")
        manager.load("m")
        assert told == [False, True, False, False]
    else:
        assert error_of(Unavailable, load.join) == "Server not ready"
    settle(manager)


def test_many_operations_at_once_leave_one_runtime_a_model(repo: Path, engine: FakeEngine) -> None:
    for name in ("a", "b"):
        write_model(repo, name)
    manager = manager_for(repo, engine=engine)

    def work(name: str, seed: int) -> None:
        for step in range(15):
            if (seed + step) % 3:
                rewrite(repo / name / "1" / "model.fake", "ok" * (seed + step + 1))
                manager.load(name)
            else:
                manager.unload(name)

    workers = [Background(work, name, seed) for seed, name in enumerate(("a", "a", "b", "b"))]
    for worker in workers:
        worker.join()
    for name in ("a", "b"):
        manager.load(name)
    settle(manager)
    assert engine.alive == {manager.resolve("a"), manager.resolve("b")}
    assert manager._operations.waiting == []


# The end.


def test_shutdown_unloads_everything(repo: Path, engine: FakeEngine) -> None:
    for name in ("a", "b"):
        write_model(repo, name)
    manager = manager_for(repo, engine=engine)
    manager.start(["*"])
    assert manager.shutdown(WAIT_S) == []
    assert engine.alive == set()
    assert not manager.ready_state()
    assert error_of(Unavailable, manager.resolve, "a") == "Server not ready"
    assert error_of(Unavailable, manager.load, "a") == "Server not ready"
    assert error_of(Unavailable, manager.unload, "a") == "Server not ready"
    assert manager.shutdown(0) == []


def test_shutdown_reports_what_is_left(repo: Path, engine: FakeEngine) -> None:
    for name in ("done", "stuck", "draining", "loading"):
        write_model(repo, name)
    manager = manager_for(repo, engine=engine)
    manager.start(["done", "stuck", "draining"])
    held = [manager.resolve(name) for name in ("stuck", "draining")]
    for runtime in held:
        runtime.drained.clear()
    manager.unload("draining")
    gate = engine.gates["loading", 1] = threading.Event()
    loading = Background(manager.load, "loading")
    assert engine.entered["loading", 1].wait(WAIT_S)
    done = manager.resolve("done")
    left = manager.shutdown(0.2)
    assert done.stopping.wait(WAIT_S)
    assert [line for line in left if not line.startswith("done")] == [
        "draining:1 UNLOADING", "loading:1 LOADING", "stuck:1 UNLOADING",
    ]  # fmt: skip
    # The load that ends late is not served and does not stay.
    gate.set()
    assert error_of(Unavailable, loading.join) == "Server not ready"
    for runtime in held:
        runtime.drained.set()
    settle(manager)
    assert [runtime for runtime in engine.alive if runtime.name not in ("stuck", "draining")] == []


def test_log_lines(repo: Path, engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(repo, "m")
    write_model(repo, "bad", {"1": "line\nbreak"})
    manager: ModelRepositoryManager[FakeRuntime] = manager_for(repo, engine=engine)
    manager.start(["m", "bad", "nope"])
    manager.unload("m")
    settle(manager)
    shown = "".join(capsys.readouterr())
    for line in (
        "loading: m:1",
        "successfully loaded 'm'",
        "failed to load 'bad' version 1: Internal: line\\nbreak",
        "failed to load 'bad'",
        "failed to poll model 'nope': model not found in any model repository",
        "successfully unloaded 'm' version 1",
    ):
        assert re.search(rf'"{re.escape(line)}', shown), line
