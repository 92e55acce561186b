"""Namespaces: one model name in several repositories, and which of them is meant."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_repository_ensembles import EnsembleEngine, chain
from tests.unit.test_repository_support import FakeBackend, FakeRuntime, error_of, rows, settle, write_model
from triton_fast.backends.base import LoadContext
from triton_fast.backends.host import Caller
from triton_fast.errors import Internal, InvalidArg, NotFound, Unavailable
from triton_fast.repository import ControlMode, LocalSource, ModelRepositoryManager, NestedControl, Poller, Preparer

AMBIGUOUS = (
    "Request for unknown model: There are 2 identifiers of model 'm' in global map, model namespace must be provided "
    "to resolve ambiguity."
)


class Spaces:
    def __init__(self, root: Path, mode: ControlMode = ControlMode.NONE) -> None:
        self.one, self.two = root / "one", root / "two"
        self.one.mkdir()
        self.two.mkdir()
        self.engine = EnsembleEngine()
        self.mode = mode
        self.manager: ModelRepositoryManager[FakeRuntime]

    def up(self, **options: Any) -> list[Any]:
        self.manager = ModelRepositoryManager(
            [LocalSource(self.one), LocalSource(self.two)], Preparer({"fake": FakeBackend()}.get, cpu_count=2),
            self.engine.start, self.engine.start_ensemble, mode=self.mode, namespacing=True, **options,
        )  # fmt: skip
        return self.manager.start()

    def member(self, ensemble: str) -> FakeRuntime:
        """What the ensemble's only step goes to now."""
        step = self.engine.plans[ensemble][-1].steps[0]
        return self.manager.resolve(step.model, step.version)


@pytest.fixture
def spaces(tmp_path: Path) -> Spaces:
    return Spaces(tmp_path)


def both(spaces: Spaces) -> None:
    write_model(spaces.one, "m", {"1": "ok one"})
    write_model(spaces.two, "m", {"1": "ok two", "2": "ok two"})


def test_a_name_in_one_repository_means_that_model(spaces: Spaces) -> None:
    write_model(spaces.one, "a", {"1": "ok a"})
    write_model(spaces.two, "b", {"1": "ok b"})
    assert spaces.up() == []
    runtime = spaces.manager.resolve("b")
    assert (runtime.text, runtime.name, runtime.context.namespace) == ("ok b", "b", str(spaces.two))
    assert spaces.manager.versions("a") == [1]
    assert spaces.manager.is_ready("a")
    assert rows(spaces.manager) == [("a", 1, "READY", ""), ("b", 1, "READY", "")]
    assert error_of(NotFound, spaces.manager.resolve, "x") == "Request for unknown model: 'x' is not found"
    assert error_of(NotFound, spaces.manager.resolve, "a", 7) == (
        "Request for unknown model: 'a' version 7 is not found"
    )


def test_a_name_in_two_is_served_from_both_and_means_neither(spaces: Spaces) -> None:
    both(spaces)
    assert spaces.up() == []
    assert spaces.manager.ready_state()
    for question in (spaces.manager.resolve, spaces.manager.is_ready, spaces.manager.versions, spaces.manager.ready_of):
        assert error_of(InvalidArg, question, "m") == AMBIGUOUS
    assert rows(spaces.manager) == [("m", 1, "READY", ""), ("m", 2, "READY", "")]
    assert [(r.text, s >= 0) for r, s in spaces.manager.served()] == [("ok one", True), ("ok two", True)]
    # Who names the repository gets what is meant.
    assert spaces.manager.resolve(f"{spaces.one}::m").text == "ok one"
    assert spaces.manager.resolve(f"{spaces.two}::m").text == "ok two"
    assert spaces.manager.summary() == [(f"{spaces.one}::m", "1", "READY"), (f"{spaces.two}::m", "2", "READY")]


def test_ensembles_prefer_the_members_of_their_own_repository(spaces: Spaces) -> None:
    both(spaces)
    write_model(spaces.one, "e", config=chain("m"))
    write_model(spaces.two, "f", config=chain("m"))
    assert spaces.up() == []
    assert spaces.member("e").text == "ok one"
    assert spaces.member("f").text == "ok two"
    config = spaces.manager.resolve("f").config
    assert (config.ensemble_scheduling.step[0].model_name, config.ensemble_scheduling.step[0].model_namespace) == (
        "m", str(spaces.two),
    )  # fmt: skip


def test_ensembles_take_the_only_member_of_another_repository(spaces: Spaces) -> None:
    write_model(spaces.one, "e", config=chain("m"))
    write_model(spaces.two, "m", {"1": "ok two"})
    assert spaces.up() == []
    assert spaces.member("e").text == "ok two"


def test_ensembles_take_no_member_that_could_be_either(tmp_path: Path) -> None:
    spaces = Spaces(tmp_path)
    both(spaces)
    three = tmp_path / "three"
    write_model(three, "e", config=chain("m"))
    manager: ModelRepositoryManager[FakeRuntime] = ModelRepositoryManager(
        [LocalSource(path) for path in (spaces.one, spaces.two, three)],
        Preparer({"fake": FakeBackend()}.get, cpu_count=2), spaces.engine.start, spaces.engine.start_ensemble,
        namespacing=True,
    )  # fmt: skip
    reasons = dict(manager.start())
    assert reasons[f"{three}::e"].endswith(
        f"ensemble {three}::e contains models that are not available or ambiguous: m"
    )
    assert error_of(InvalidArg, manager.resolve, "m") == AMBIGUOUS


def test_explicit_loads_and_unloads_concern_all_of_a_name(tmp_path: Path) -> None:
    spaces = Spaces(tmp_path, ControlMode.EXPLICIT)
    both(spaces)
    write_model(spaces.two, "b")
    assert spaces.up() == []
    assert rows(spaces.manager) == [("b", -1, "UNKNOWN", ""), ("m", -1, "UNKNOWN", ""), ("m", -1, "UNKNOWN", "")]
    spaces.manager.load("m")
    assert error_of(InvalidArg, spaces.manager.resolve, "m") == AMBIGUOUS
    spaces.manager.load("b")
    assert spaces.manager.resolve("b").name == "b"
    shutil.rmtree(spaces.two / "m")
    spaces.manager.unload("m")
    settle(spaces.manager)
    assert [runtime.name for runtime in spaces.manager.all_ready()] == ["b"]
    error_of(NotFound, spaces.manager.resolve, "m")
    spaces.manager.load("m")
    assert spaces.manager.resolve("m").text == "ok one"
    error_of(Internal, spaces.manager.load, "nobody")


def test_named_at_start(tmp_path: Path) -> None:
    spaces = Spaces(tmp_path, ControlMode.EXPLICIT)
    both(spaces)
    spaces.up()
    other: ModelRepositoryManager[FakeRuntime] = ModelRepositoryManager(
        [LocalSource(spaces.one), LocalSource(spaces.two)], Preparer({"fake": FakeBackend()}.get, cpu_count=2),
        spaces.engine.start, mode=ControlMode.EXPLICIT, namespacing=True,
    )  # fmt: skip
    assert other.start(["m"]) == []
    assert len(other.all_ready()) == 2


def test_a_better_member_that_comes_later_is_taken(tmp_path: Path) -> None:
    spaces = Spaces(tmp_path, ControlMode.POLL)
    write_model(spaces.one, "e", config=chain("m"))
    write_model(spaces.two, "m", {"1": "ok two"})
    assert spaces.up() == []
    poller = Poller(spaces.manager, 15)
    write_model(spaces.one, "m", {"1": "ok one"})
    poller.poll_once()
    assert poller.poll_once().added == [f"{spaces.one}::m"]
    assert spaces.member("e").text == "ok one"
    shutil.rmtree(spaces.one / "m")
    poller.poll_once()
    assert poller.poll_once().removed == [f"{spaces.one}::m"]
    assert spaces.member("e").text == "ok two"
    assert spaces.manager.resolve("m").text == "ok two"


def test_a_model_that_loads_itself_by_another_namespace_is_told(tmp_path: Path) -> None:
    spaces = Spaces(tmp_path, ControlMode.EXPLICIT)
    write_model(spaces.one, "a")
    start, errors = spaces.engine.start, []
    control = NestedControl(lambda: spaces.manager)

    def asking(context: LoadContext, backend: Any) -> FakeRuntime:
        errors.append(error_of(Unavailable, control.load_model, Caller("a", loading=True), "a", "", {}))
        return start(context, backend)

    spaces.up()
    spaces.manager._starts._start_runtime = asking
    spaces.manager.load("a")
    assert errors == ["model 'a' is being loaded and would wait for itself: a -> a"]
