"""Ensembles in the repository: order, reasons, members that come, go and change, and operations at the same time."""

from __future__ import annotations

import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.models import in_threads
from tests.unit.test_repository_support import (
    CONFIG,
    WAIT_S,
    Background,
    FakeBackend,
    FakeEngine,
    FakeRuntime,
    error_of,
    rows,
    settle,
    write_model,
)
from triton_fast.backends.base import LoadContext
from triton_fast.backends.host import Caller
from triton_fast.config import EnsemblePlan
from triton_fast.errors import Internal, InvalidArg, NotFound, Unavailable
from triton_fast.repository import (
    ControlMode,
    LocalSource,
    ModelRepositoryManager,
    NestedControl,
    Poller,
    Preparer,
    endings,
)
from triton_fast.repository.dependencies import MAX_DEPTH

OTHER = CONFIG.replace("dims: [1]", "dims: [9]")
DECOUPLED = CONFIG + "model_transaction_policy { decoupled: true }\n"


class EnsembleEngine(FakeEngine):
    """Also starts ensembles. ``plans``: those started, by name, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.plans: dict[str, list[EnsemblePlan]] = {}
        self.refuse: dict[str, str] = {}

    def start_ensemble(self, context: LoadContext, plan: EnsemblePlan) -> FakeRuntime:
        with self.lock:
            self.started.append((context.name, context.version))
            if context.name in self.refuse:
                raise Internal(self.refuse[context.name])
            self.plans.setdefault(context.name, []).append(plan)
            runtime = FakeRuntime(context, "ok", self)
            self.alive.add(runtime)
        return runtime


def chain(*members: str, version: int = -1, batch: int = 4) -> str:
    """The config of an ensemble that passes I through the members to O."""
    names = ["I", *(f"t{k}" for k in range(1, len(members))), "O"]
    steps = "".join(
        f'step {{ model_name: "{member}" model_version: {version} input_map {{ key: "I" value: "{names[k]}" }} '
        f'output_map {{ key: "O" value: "{names[k + 1]}" }} }}\n'
        for k, member in enumerate(members)
    )
    io = CONFIG.split("max_batch_size: 4")[1]
    return f'platform: "ensemble"\nmax_batch_size: {batch}\n{io}ensemble_scheduling {{ {steps} }}\n'


@dataclass
class World:
    repo: Path
    engine: EnsembleEngine
    manager: ModelRepositoryManager[FakeRuntime]

    def write(self, name: str, *members: str, text: str = "ok", config: str = CONFIG, **options: Any) -> None:
        write_model(self.repo, name, {"1": text}, chain(*members, **options) if members else config)

    def state(self, name: str) -> tuple[str, str]:
        """The only version's state and reason, after everything has settled."""
        settle(self.manager)
        found = [(state, reason) for row, _, state, reason in rows(self.manager) if row == name]
        assert len(found) == 1
        return found[0]

    def ready(self) -> list[str]:
        return [runtime.name for runtime in self.manager.all_ready()]


def make(repo: Path, mode: ControlMode = ControlMode.EXPLICIT, **options: Any) -> World:
    engine = EnsembleEngine()
    manager = ModelRepositoryManager(
        [LocalSource(repo)], Preparer({"fake": FakeBackend()}.get, cpu_count=2), engine.start, engine.start_ensemble,
        mode=mode, **options,
    )  # fmt: skip
    return World(repo, engine, manager)


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "repo").mkdir()
    return make(tmp_path / "repo")


READY = ("READY", "")
NOT_THERE = "ensemble e contains models that are not available or ambiguous: "


# ---- order


def test_a_server_starts_ensembles_after_their_members(tmp_path: Path) -> None:
    world = make(tmp_path, ControlMode.NONE, load_threads=4)
    world.write("a_outer", "b_inner", "z")
    world.write("b_inner", "y", "z", "y")
    world.write("y")
    world.write("z")
    assert world.manager.start() == []
    order = [name for name, _ in world.engine.started]
    assert sorted(order[:2]) == ["y", "z"]
    assert order[2:] == ["b_inner", "a_outer"]
    assert world.manager.ready_state()
    assert world.manager.summary() == [(name, "1", "READY") for name in ("a_outer", "b_inner", "y", "z")]
    config = world.manager.resolve("b_inner").config
    assert (config.platform, list(config.instance_group)) == ("ensemble", [])


def test_start_with_a_named_ensemble_loads_what_it_needs(world: World) -> None:
    world.write("e", "inner", "b")
    world.write("inner", "a")
    for name in ("a", "b", "unrelated"):
        world.write(name)
    assert world.manager.start(["e"]) == []
    assert world.ready() == ["a", "b", "e", "inner"]


def test_load_loads_members_all_the_way_down_and_each_once(world: World) -> None:
    world.write("e", "inner", "a", "b")
    world.write("inner", "a")
    for name in ("a", "b"):
        world.write(name)
    world.manager.load("e")
    assert world.ready() == ["a", "b", "e", "inner"]
    assert sorted(world.engine.started) == [("a", 1), ("b", 1), ("e", 1), ("inner", 1)]
    world.manager.load("e")
    assert len(world.engine.started) == 4


def test_members_load_in_parallel(world: World) -> None:
    world.write("e", "a", "b")
    world.write("a")
    world.write("b")
    gate = threading.Event()
    world.engine.gates = {("a", 1): gate, ("b", 1): gate}
    load = Background(world.manager.load, "e")
    assert world.engine.entered["a", 1].wait(WAIT_S)
    assert world.engine.entered["b", 1].wait(WAIT_S)
    gate.set()
    load.join()
    assert world.ready() == ["a", "b", "e"]


# ---- what is wrong with members


def failing(world: World) -> str:
    text = error_of(InvalidArg, world.manager.load, "e")
    assert text.startswith("load failed for model 'e': ")
    assert text.endswith("\n")
    text = text.removeprefix("load failed for model 'e': ").rstrip("\n")
    # The index has the same reason.
    assert ("e", -1, "UNAVAILABLE", text) in rows(world.manager)
    assert "e" not in world.ready()
    return text


def test_members_that_are_nowhere(world: World) -> None:
    world.write("e", "a", "nobody", "noone")
    world.write("a")
    assert failing(world) == NOT_THERE + "nobody, noone"
    assert {name for name, *_ in rows(world.manager)} == {"a", "e"}


def test_names_of_members_are_no_paths(world: World) -> None:
    world.write("e", "../repo/a", "..")
    world.write("a")
    assert failing(world) == NOT_THERE + ".., ../repo/a"


def test_a_member_whose_config_can_not_be_read(world: World) -> None:
    world.write("e", "a")
    world.write("a", config=CONFIG + "max_batchsize: 1\n")
    text = failing(world)
    assert text.startswith(f"{NOT_THERE}a (a: ")
    assert "did you mean 'max_batch_size'?" in text


def test_a_member_in_two_repositories(tmp_path: Path) -> None:
    for side in ("one", "two"):
        write_model(tmp_path / side, "a")
    write_model(tmp_path / "one", "e", config=chain("a"))
    engine = EnsembleEngine()
    sources = [LocalSource(tmp_path / side) for side in ("one", "two")]
    preparer = Preparer({"fake": FakeBackend()}.get)
    manager = ModelRepositoryManager(sources, preparer, engine.start, engine.start_ensemble, mode=ControlMode.EXPLICIT)
    assert failing(World(tmp_path, engine, manager)) == (f"{NOT_THERE}a (a: model appears in two or more repositories)")


def test_a_member_that_fails(world: World) -> None:
    world.write("e", "a")
    world.write("a", text="broken weights")
    cause = "version 1 is at UNAVAILABLE state: Internal: broken weights;"
    text = f"ensemble 'e' depends on 'a' which has no loaded version. Model 'a' loading failed with error: {cause}"
    assert failing(world) == text
    # An ensemble of that ensemble says how it came.
    world.write("outer", "e")
    assert error_of(InvalidArg, world.manager.load, "outer") == (
        f"load failed for model 'outer': ensemble 'outer' depends on 'e' which is not valid. Model 'e' failed with "
        f"error: {text}\n"
    )


def test_a_member_without_versions(world: World) -> None:
    world.write("e", "a")
    world.write("a")
    shutil.rmtree(world.repo / "a" / "1")
    assert failing(world) == (
        "ensemble 'e' depends on 'a' which has no loaded version. Model 'a' loading failed with error: "
        "at least one version must be available under the version policy of model 'a'"
    )


@pytest.mark.parametrize(
    ("version", "hint"), [(3, ""), (0, " (write model_version: -1 for the latest)")]
)  # fmt: skip
def test_a_version_that_is_not_loaded(world: World, version: int, hint: str) -> None:
    world.write("e", "a", version=version)
    world.write("a")
    assert failing(world) == f"ensemble 'e' depends on 'a' whose required version {version} is not loaded.{hint}"


def test_a_given_version_is_what_the_ensemble_is_checked_against(world: World) -> None:
    write_model(world.repo, "a", {"2": "ok", "5": "ok"}, CONFIG + "version_policy { all {} }\n")
    world.write("e", "a", version=2)
    world.manager.load("e")
    assert world.engine.plans["e"][0].members == {("a", 2)}


def test_a_member_that_does_not_fit(world: World) -> None:
    world.write("e", "a")
    world.write("a", config=OTHER)
    assert failing(world) == (
        "in ensemble e, ensemble tensor I: inconsistent shape: [-1,1] is inferred from model e while [-1,9] is "
        "inferred from model a"
    )


def test_an_ensemble_needs_a_version_directory(world: World) -> None:
    world.write("e", "a")
    world.write("a")
    shutil.rmtree(world.repo / "e" / "1")
    assert error_of(InvalidArg, world.manager.load, "e") == (
        "load failed for model 'e': at least one version must be available under the version policy of model 'e'\n"
    )


def test_a_start_that_fails(world: World) -> None:
    world.write("e", "a")
    world.write("a")
    world.engine.refuse["e"] = "no room"
    assert error_of(InvalidArg, world.manager.load, "e") == (
        "load failed for model 'e': version 1 is at UNAVAILABLE state: Internal: no room;\n"
    )
    assert world.ready() == ["a"]


def test_a_manager_that_starts_no_ensembles_says_so(tmp_path: Path) -> None:
    write_model(tmp_path, "e", config=chain("a"))
    write_model(tmp_path, "a")
    preparer = Preparer({"fake": FakeBackend()}.get)
    manager = ModelRepositoryManager([LocalSource(tmp_path)], preparer, FakeEngine().start, mode=ControlMode.EXPLICIT)
    assert "Unsupported: model 'e' uses ensembles ('ensemble_scheduling'), which" in error_of(
        InvalidArg, manager.load, "e"
    )


# ---- cycles


def test_cycles_end_with_an_error(tmp_path: Path) -> None:
    world = make(tmp_path, ControlMode.NONE)
    world.write("x", "y", "a")
    world.write("y", "z")
    world.write("z", "x")
    world.write("self", "self")
    world.write("behind", "x")
    world.write("a")
    failures = {name: reason for name, reason in world.manager.start()}
    circular = "circular dependency between ensembles: "
    assert failures.pop("behind").startswith(
        f"load failed for model 'behind': ensemble 'behind' depends on 'x' which is not valid. Model 'x' failed with "
        f"error: {circular}x -> ... "
    )
    assert failures == {
        "x": f"load failed for model 'x': {circular}x -> ... -> z -> x (x -> y -> z -> x)",
        "y": f"load failed for model 'y': {circular}y -> ... -> x -> y (y -> z -> x -> y)",
        "z": f"load failed for model 'z': {circular}z -> ... -> y -> z (z -> x -> y -> z)",
        "self": f"load failed for model 'self': {circular}self -> ... -> self -> self",
    }
    assert world.ready() == ["a"]


def test_loading_one_of_a_cycle(world: World) -> None:
    world.write("e", "f")
    world.write("f", "e")
    assert failing(world) == "circular dependency between ensembles: e -> ... -> f -> e"
    # One of them mended, both can be loaded.
    world.write("a")
    world.write("f", "a")
    world.manager.load("e")
    assert world.ready() == ["a", "e", "f"]


def test_ensembles_are_not_nested_without_end(world: World) -> None:
    names = [f"e{k}" for k in range(MAX_DEPTH + 1)]
    for name, member in zip(names, [*names[1:], "a"], strict=True):
        world.write(name, member)
    world.write("a")
    assert error_of(InvalidArg, world.manager.load, "e0") == (
        f"load failed for model 'e0': ensemble 'e0' is nested more than {MAX_DEPTH} deep\n"
    )
    assert sorted(world.ready()) == sorted([*names[1:], "a"])


def test_a_reload_that_would_close_a_cycle_keeps_what_is_served(world: World) -> None:
    world.write("outer", "e")
    world.write("e", "a")
    world.write("a")
    world.manager.load("outer")
    world.write("e", "outer")
    assert "circular dependency between ensembles: e -> ... -> outer -> e" in error_of(
        InvalidArg, world.manager.load, "e"
    )
    assert world.ready() == ["a", "e", "outer"]
    # What was refused leaves no trace, and it still follows the member it is served with.
    world.write("a", text="ok, better")
    world.manager.load("a")
    assert world.ready() == ["a", "e", "outer"]
    assert world.manager._ensembles.graph.edges() == {"e": {"a"}, "outer": {"e"}}
    world.manager.unload("a")
    assert world.ready() == []


# ---- unload


def test_unload_leaves_the_members(world: World) -> None:
    world.write("e", "a")
    world.write("a")
    world.manager.load("e")
    world.manager.unload("e")
    assert world.state("e") == ("UNAVAILABLE", "unloaded")
    assert world.ready() == ["a"]


def test_unload_with_dependents(world: World) -> None:
    world.write("e", "inner", "shared", "named")
    world.write("inner", "deep")
    world.write("f", "shared")
    for name in ("deep", "shared", "named"):
        world.write(name)
    world.manager.load("named")
    world.manager.load("e")
    world.manager.load("f")
    world.manager.unload("e", unload_dependents=True)
    # 'named' was loaded by name, 'shared' is another ensemble's too.
    assert world.ready() == ["f", "named", "shared"]
    assert world.state("deep") == world.state("inner") == ("UNAVAILABLE", "unloaded")
    world.manager.unload("f", unload_dependents=True)
    assert world.ready() == ["named"]
    # Unloaded by name, it is nobody's any more.
    world.manager.unload("named")
    world.manager.load("e")
    world.manager.unload("e", unload_dependents=True)
    assert world.ready() == []
    assert world.manager._operations.waiting == []


def test_members_end_after_the_requests_of_the_ensemble(world: World) -> None:
    world.write("e", "a")
    world.write("a")
    world.manager.load("e")
    ensemble, member = world.manager.resolve("e"), world.manager.resolve("a")
    ensemble.drained.clear()
    unload = Background(world.manager.unload, "e", unload_dependents=True)
    assert ensemble.stopping.wait(WAIT_S)
    assert world.manager.resolve("a") is member
    ensemble.drained.set()
    unload.join()
    assert member.stopping.wait(WAIT_S)
    error_of(NotFound, world.manager.resolve, "a")


def test_shutdown_ends_ensembles_first(world: World) -> None:
    world.write("outer", "e")
    world.write("e", "a")
    world.write("a")
    world.manager.load("outer")
    runtimes = [world.manager.resolve(name) for name in ("outer", "e", "a")]
    for runtime in runtimes:
        runtime.drained.clear()
    end = Background(world.manager.shutdown, WAIT_S)
    for runtime, later in zip(runtimes, [*runtimes[1:], None], strict=True):
        assert runtime.stopping.wait(WAIT_S)
        assert later is None or not later.stopping.is_set()
        runtime.drained.set()
    end.join()


# ---- members that change


def test_an_unloaded_member_takes_its_ensembles_along_and_brings_them_back(world: World) -> None:
    world.write("outer", "e")
    world.write("e", "a", "b")
    world.write("a")
    world.write("b")
    world.manager.start(["outer"])
    world.manager.unload("a")
    assert world.state("e") == ("UNAVAILABLE", f"{NOT_THERE}a")
    assert world.state("outer") == (
        "UNAVAILABLE",
        f"ensemble 'outer' depends on 'e' which is not valid. Model 'e' failed with error: {NOT_THERE}a",
    )
    assert error_of(NotFound, world.manager.resolve, "e") == "Request for unknown model: 'e' has no available versions"
    # It was asked for; the server is as ready as before.
    assert world.manager.ready_state()
    world.manager.unload("b")
    assert world.state("e") == ("UNAVAILABLE", f"{NOT_THERE}a, b")
    world.manager.load("a")
    assert world.state("e") == ("UNAVAILABLE", f"{NOT_THERE}b")
    assert world.manager.ready_state()
    world.manager.load("b")
    assert world.state("e") == world.state("outer") == READY
    assert world.ready() == ["a", "b", "e", "outer"]


def test_an_ensemble_that_was_unloaded_meanwhile_stays_so(world: World) -> None:
    world.write("e", "a")
    world.write("a")
    world.manager.load("e")
    world.manager.unload("a")
    world.manager.unload("e")
    assert world.state("e") == ("UNAVAILABLE", "unloaded")
    world.manager.load("a")
    assert world.ready() == ["a"]


def test_an_ensemble_comes_when_its_member_is_mended(world: World) -> None:
    world.write("e", "a")
    world.write("a", text="broken")
    assert [name for name, _ in world.manager.start(["e"])] == ["e", "a"]
    assert not world.manager.ready_state()
    world.write("a")
    world.manager.load("a")
    assert world.ready() == ["a", "e"]
    assert world.manager.ready_state()


def test_a_reloaded_member_that_fits_leaves_the_ensemble_alone(world: World) -> None:
    world.write("e", "a")
    world.write("a")
    world.manager.load("e")
    before = world.manager.resolve("e")
    world.write("a", text="ok, better")
    world.manager.load("a")
    assert world.manager.resolve("a").text == "ok, better"
    assert world.manager.resolve("e") is before
    assert world.state("e") == READY


def test_a_member_changed_on_disk_is_reloaded_with_its_ensemble(world: World) -> None:
    world.write("e", "a")
    world.write("a")
    world.manager.load("e")
    world.write("a", text="ok, better")
    world.manager.load("e")
    assert world.manager.resolve("a").text == "ok, better"


def test_a_member_with_a_config_of_its_own_keeps_it(world: World) -> None:
    world.write("e", "a", batch=2)
    world.write("a")
    override = (
        '{"backend": "fake", "max_batch_size": 2, "input": [{"name": "I", "data_type": "TYPE_FP32", "dims": [1]}], '
        '"output": [{"name": "O", "data_type": "TYPE_FP32", "dims": [1]}]}'
    )
    world.manager.load("a", config_json=override)
    world.manager.load("e")
    assert world.manager.resolve("a").config.max_batch_size == 2


def test_a_reloaded_member_that_changes_the_plan_starts_the_ensemble_again(world: World) -> None:
    world.write("outer", "e")
    world.write("e", "a")
    world.write("a")
    world.manager.load("outer")
    before = world.manager.resolve("e")
    world.write("a", config=DECOUPLED)
    world.manager.load("a")
    assert [plan.decoupled for plan in world.engine.plans["e"]] == [False, True]
    assert [plan.decoupled for plan in world.engine.plans["outer"]] == [False, True]
    assert world.manager.resolve("outer").config.model_transaction_policy.decoupled
    assert not before.config.model_transaction_policy.decoupled
    assert before.stopping.wait(WAIT_S)
    settle(world.manager)
    assert world.ready() == ["a", "e", "outer"]


def test_a_reloaded_member_that_does_not_fit_any_more(world: World) -> None:
    world.write("e", "a")
    world.write("a")
    world.manager.load("e")
    world.write("a", config=OTHER)
    world.manager.load("a")
    state, reason = world.state("e")
    assert state == "UNAVAILABLE"
    assert reason.startswith("in ensemble e, ensemble tensor I: inconsistent shape: ")
    world.write("a")
    world.manager.load("a")
    assert world.state("e") == READY


def test_a_member_whose_reload_fails_is_still_there(world: World) -> None:
    world.write("e", "a")
    world.write("a")
    world.manager.load("e")
    world.write("a", text="broken")
    error_of(InvalidArg, world.manager.load, "a")
    assert world.ready() == ["a", "e"]


def test_an_ensemble_with_a_given_config_comes_back_with_it(world: World) -> None:
    world.write("e", "a", "b")
    world.write("a")
    world.write("b")
    override = (
        '{"platform": "ensemble", "max_batch_size": 3, '
        '"input": [{"name": "I", "data_type": "TYPE_FP32", "dims": [1]}], '
        '"output": [{"name": "O", "data_type": "TYPE_FP32", "dims": [1]}], "ensemble_scheduling": {"step": '
        '[{"model_name": "b", "model_version": -1, "input_map": {"I": "I"}, "output_map": {"O": "O"}}]}}'
    )
    world.manager.load("e", config_json=override)
    assert world.ready() == ["b", "e"]
    world.manager.unload("b")
    world.manager.load("b")
    assert world.manager.resolve("e").config.max_batch_size == 3
    world.manager.load("e")
    assert world.manager.resolve("e").config.max_batch_size == 4
    assert world.ready() == ["a", "b", "e"]


def test_a_name_that_no_repository_has_leaves_nothing(world: World) -> None:
    world.write("a")
    override = '{"ensemble_scheduling": {"step": [{"model_name": "a"}]}}'
    error_of(Internal, world.manager.load, "ghost", config_json=override)
    assert [name for name, *_ in rows(world.manager)] == ["a"]
    assert world.manager._ensembles.graph.edges() == {}


def test_an_ensemble_that_becomes_a_plain_model(world: World) -> None:
    world.write("e", "a")
    world.write("a")
    world.manager.load("e")
    world.write("e")
    world.manager.load("e")
    world.manager.unload("a")
    assert world.ready() == ["e"]


# ---- at the same time


def test_two_ensembles_that_share_a_member_load_at_the_same_time(world: World) -> None:
    world.write("e", "shared", "a")
    world.write("f", "a", "shared")
    for name in ("shared", "a"):
        world.write(name)
    gate = world.engine.gates["shared", 1] = threading.Event()
    loads = [Background(world.manager.load, name) for name in ("e", "f")]
    assert world.engine.entered["shared", 1].wait(WAIT_S)
    gate.set()
    for load in loads:
        load.join()
    assert world.ready() == ["a", "e", "f", "shared"]
    assert sorted(world.engine.started) == [("a", 1), ("e", 1), ("f", 1), ("shared", 1)]


def test_many_operations_at_once_end_in_a_state_that_holds(world: World) -> None:
    world.write("outer", "e", "f")
    world.write("e", "a", "b")
    world.write("f", "b", "c")
    for name in ("a", "b", "c"):
        world.write(name)

    def work(k: int) -> None:
        for n in range(25):
            name = ("outer", "e", "f", "a", "b", "c")[(k * 5 + n * 7) % 6]
            try:
                if (k + n) % 3:
                    world.manager.load(name)
                else:
                    world.manager.unload(name, unload_dependents=bool(n % 2))
            except InvalidArg as error:
                assert "depends on" in str(error) or "not available" in str(error)

    in_threads(6, work)
    settle(world.manager)
    ready = set(world.ready())
    for name, members in (("outer", {"e", "f"}), ("e", {"a", "b"}), ("f", {"b", "c"})):
        assert name not in ready or members <= ready
    assert world.manager._operations.waiting == []
    world.manager.load("outer")
    assert set(world.ready()) == {"outer", "e", "f", "a", "b", "c"}
    settle(world.manager)
    assert len(world.engine.alive) == 6


def test_a_model_may_load_an_ensemble_but_not_the_one_it_belongs_to(world: World) -> None:
    world.write("other", "b")
    world.write("e", "a")
    world.write("a")
    world.write("b")
    control = NestedControl(lambda: world.manager)
    start = world.engine.start
    errors = []

    def asking(context: LoadContext, backend: Any) -> FakeRuntime:
        if context.name == "a":
            caller = Caller("a", loading=True)
            control.load_model(caller, "other", "", {})
            errors.append(error_of(Unavailable, control.load_model, caller, "e", "", {}))
        return start(context, backend)

    world.manager._starts._start_runtime = asking
    world.manager.load("e")
    assert errors == ["model 'a' is being loaded and would wait for itself: a -> a"]
    assert world.ready() == ["a", "b", "e", "other"]


# ---- the end of all at once


def test_members_that_end_before_their_ensemble_do_not_take_the_threads_that_its_end_needs(tmp_path: Path) -> None:
    """More than there are threads, each of which waits until nothing can come to it from the ensemble any more."""
    world = make(tmp_path, ControlMode.POLL)
    names = [f"a{k:02}" for k in range(2 * endings._THREADS)]
    world.write("e", *names)
    for name in names:
        world.write(name)
    assert world.manager.start() == []
    ensemble, *members = (world.manager.resolve(name) for name in ("e", *names))
    for member in members:
        member.drained.clear()

    def stop(timeout_s: float | None = None) -> bool:
        for member in members:
            member.drained.set()
        return FakeRuntime.stop(ensemble, timeout_s)

    ensemble.stop = stop  # type: ignore[method-assign]
    for name in ("e", *names):
        shutil.rmtree(tmp_path / name)
    poller = Poller(world.manager, 15)
    poller.poll_once()
    poller.poll_once()
    settle(world.manager)
    assert world.engine.alive == set()
