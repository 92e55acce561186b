"""Models that load models: more at once than there are load threads, and never in a circle. Readiness of models."""

from __future__ import annotations

import threading
from itertools import pairwise
from pathlib import Path

import pytest

from tests.unit.test_repository_support import CONFIG, WAIT_S
from triton_fast.backends.base import Backend, BackendModel
from triton_fast.backends.host import Caller
from triton_fast.errors import InvalidArg, ServerError, Unavailable, Unsupported
from triton_fast.repository import ControlMode, LocalSource, ModelRepositoryManager, NestedControl, Preparer


class Fake(Backend):
    name = "fake"
    default_filename = "model.fake"

    def load(self, context) -> BackendModel:
        raise AssertionError


class Runtime:
    def __init__(self, context):
        self.name, self.version, self.config = context.name, context.version, context.config
        self.ready, self.ready_may_block = True, False

    def is_ready(self):
        return self.ready

    def stop(self, timeout_s=None):
        return True


class World:
    """A repository whose models, when they are started, do what ``starts`` says."""

    def __init__(self, root: Path, *names: str, mode=ControlMode.EXPLICIT, threads=1):
        for name in names:
            (root / name / "1").mkdir(parents=True)
            (root / name / "1" / "model.fake").touch()
            (root / name / "config.pbtxt").write_text(CONFIG)
        self.starts = {}
        self.runtimes = {}
        self.repository = ModelRepositoryManager(
            [LocalSource(root)], Preparer(lambda name: Fake() if name == "fake" else None), self._start,
            mode=mode, load_threads=threads,
        )  # fmt: skip
        self.repository.start()
        self.control = NestedControl(lambda: self.repository)

    def _start(self, context, backend):
        self.starts.get(context.name, lambda: None)()
        runtime = self.runtimes[context.name] = Runtime(context)
        return runtime

    def nested(self, caller, name, loading=True):
        self.control.load_model(Caller(caller, loading), name, "", {})


def finished(function):
    """Run it on a thread with a limit; return what it raised."""
    errors = []

    def run():
        try:
            function()
        except ServerError as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(WAIT_S)
    assert not thread.is_alive(), "it hangs"
    return errors[0] if errors else None


def test_a_chain_of_loads_longer_than_there_are_threads(tmp_path):
    names = [f"m{i}" for i in range(8)]
    world = World(tmp_path, *names, threads=1)
    for one, other in pairwise(names):
        world.starts[one] = lambda one=one, other=other: world.nested(one, other)
    assert finished(lambda: world.repository.load("m0")) is None
    assert all(world.repository.is_ready(name) for name in names)


def test_circles_are_errors(tmp_path):
    world = World(tmp_path, "a", "b", "c", threads=4)
    world.starts["a"] = lambda: world.nested("a", "b")
    world.starts["b"] = lambda: world.nested("b", "c")
    world.starts["c"] = lambda: world.nested("c", "a")
    error = finished(lambda: world.repository.load("a"))
    assert "model 'c' is being loaded and would wait for itself: c -> a -> b -> c" in str(error)
    world.starts["a"] = lambda: world.nested("a", "a")
    assert "a -> a" in str(finished(lambda: world.repository.load("a")))
    world.starts["a"] = lambda: world.control.unload_model(Caller("a", True), "a", False)
    assert "would wait for itself" in str(finished(lambda: world.repository.load("a")))
    # Nothing is left of the attempts.
    world.starts.clear()
    world.starts["a"] = lambda: world.nested("a", "b")
    assert finished(lambda: world.repository.load("a")) is None


def test_circles_that_two_clients_close(tmp_path):
    world = World(tmp_path, "a", "b", threads=4)
    begun = {"a": threading.Event(), "b": threading.Event()}

    def start(one, other):
        begun[one].set()
        begun[other].wait(WAIT_S)
        world.nested(one, other)

    world.starts["a"] = lambda: start("a", "b")
    world.starts["b"] = lambda: start("b", "a")
    errors = []
    loads = [lambda name=name: errors.append(finished(lambda: world.repository.load(name))) for name in "ab"]
    threads = [threading.Thread(target=load) for load in loads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * WAIT_S)
    assert len(errors) == 2
    assert any("would wait for itself" in str(error) for error in errors)


def test_a_served_model_may_reload_itself(tmp_path):
    world = World(tmp_path, "a")
    world.repository.load("a")
    (tmp_path / "a" / "1" / "model.fake").write_text("other")
    assert finished(lambda: world.nested("a", "a", loading=False)) is None


def test_rules_of_the_repository_apply(tmp_path):
    world = World(tmp_path, "a")
    with pytest.raises(Unsupported, match="--allow-code-upload=true"):
        world.control.load_model(Caller("x", False), "a", "{}", {"file:1/model.py": b""})
    with pytest.raises(ServerError, match="failed to poll from model repository"):
        world.control.load_model(Caller("x", False), "none", "", {})
    assert not world.control.is_model_ready(Caller("x", False), "none", "")
    with pytest.raises(InvalidArg, match="specified version string 'abc'"):
        world.control.is_model_ready(Caller("x", False), "a", "abc")
    world.repository.load("a")
    assert world.control.is_model_ready(Caller("x", False), "a", "1")
    world.control.unload_model(Caller("x", False), "a", False)
    assert not world.control.is_model_ready(Caller("x", False), "a", "")


def test_only_explicit_control(tmp_path):
    world = World(tmp_path, "a", mode=ControlMode.NONE)
    unload = lambda: world.control.unload_model(Caller("x", False), "a", False)  # noqa: E731
    for call in (lambda: world.nested("x", "a", False), unload):
        with pytest.raises(Unavailable, match=r"^explicit model load / unload is not allowed if polling is enabled$"):
            call()


def test_readiness_is_that_of_the_running_models(tmp_path):
    world = World(tmp_path, "a", "b", mode=ControlMode.NONE)
    assert world.repository.is_ready("a")
    assert world.repository.ready_state()
    assert not world.repository.ready_may_block
    world.runtimes["a"].ready = False
    assert not world.repository.is_ready("a")
    assert not world.repository.is_ready("a", 1)
    assert world.repository.is_ready("b")
    assert not world.repository.ready_state()


def test_a_check_that_may_wait_is_known_beforehand(tmp_path):
    world = World(tmp_path, "a")
    original = world._start

    def start(context, backend):
        runtime = original(context, backend)
        runtime.ready_may_block = True
        return runtime

    world.repository._starts._start_runtime = start
    world.repository.load("a")
    assert world.repository.ready_may_block
    world.repository.unload("a")
    assert not world.repository.ready_may_block
