"""Fakes for the repository tests: a runtime whose start and stop wait for events, and a model writer.

A model version holds one file, model.fake; its text says what the start does: "ok", or a message to fail with.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from pathlib import Path
from typing import Any, NoReturn

import pytest

from triton_fast.backends.base import Backend, BackendModel, LoadContext
from triton_fast.errors import Internal, ServerError
from triton_fast.repository import ControlMode, LocalSource, ModelRepositoryManager, Preparer, Runtime

WAIT_S = 30
CONFIG = """
backend: "fake"
max_batch_size: 4
input { name: "I" data_type: TYPE_FP32 dims: [1] }
output { name: "O" data_type: TYPE_FP32 dims: [1] }
"""


class FakeBackend(Backend):
    name = "fake"
    default_filename = "model.fake"

    def load(self, context: LoadContext) -> BackendModel:
        raise AssertionError("the fake engine starts without the backend")


class FakeRuntime:
    def __init__(self, context: LoadContext, text: str, engine: FakeEngine) -> None:
        self.name = context.name
        self.version = context.version
        self.config = context.config
        self.context = context
        self.text = text
        self.stops: list[float | None] = []
        # Set: no request in flight.
        self.drained = threading.Event()
        self.drained.set()
        self.stopping = threading.Event()
        self._engine = engine

        self.ready = True
        self.ready_may_block = False

    def is_ready(self) -> bool:
        return self.ready

    def renew(self) -> None:
        pass

    def stop(self, timeout_s: float | None = None) -> bool:
        self.stops.append(timeout_s)
        self.stopping.set()
        is_gone = self.drained.wait(WAIT_S if timeout_s is None else timeout_s)
        if is_gone:
            with self._engine.lock:
                self._engine.alive.discard(self)
        return is_gone


class FakeEngine:
    """Starts runtimes. ``gates[(name, version)]``: a start waits for that event. ``fail_times``: then it works."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.alive: set[FakeRuntime] = set()
        self.started: list[tuple[str, int]] = []
        self.gates: dict[tuple[str, int], threading.Event] = {}
        self.entered: dict[tuple[str, int], threading.Event] = defaultdict(threading.Event)
        self.fail_times: dict[str, int] = {}
        self.running = 0
        self.most_running = 0
        # Released once for each start that has begun.
        self.arrivals = threading.Semaphore(0)

    def start(self, context: LoadContext, backend: Backend) -> FakeRuntime:
        assert backend.name == "fake"
        key = (context.name, context.version)
        with self.lock:
            self.started.append(key)
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            entered = self.entered[key]
        try:
            entered.set()
            self.arrivals.release()
            if key in self.gates:
                assert self.gates[key].wait(WAIT_S)
            text = (context.version_dir / "model.fake").read_text()
            if self.fail_times.get(context.name, 0) > 0:
                self.fail_times[context.name] -= 1
                raise Internal("not yet")
            if text == "exit":
                raise SystemExit(1)
            if text == "foreign":
                raise RuntimeError(f"boom in {context.model_dir}/x")
            if not text.startswith("ok"):
                raise Internal(text)
            runtime = FakeRuntime(context, text, self)
            with self.lock:
                self.alive.add(runtime)
            return runtime
        finally:
            with self.lock:
                self.running -= 1


def manager_for(
    *repositories: Path, engine: FakeEngine, mode: ControlMode = ControlMode.EXPLICIT, **options: Any
) -> ModelRepositoryManager[FakeRuntime]:
    backends = {"fake": FakeBackend()}
    preparer = Preparer(backends.get, cpu_count=2)
    sources = [LocalSource(repository) for repository in repositories]
    return ModelRepositoryManager(sources, preparer, engine.start, mode=mode, **options)


def write_model(repository: Path, name: str, versions: dict[str, str] | None = None, config: str = CONFIG) -> Path:
    for version, text in (versions or {"1": "ok"}).items():
        directory = repository / name / version
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "model.fake").write_text(text)
    (repository / name / "config.pbtxt").write_text(config)
    return repository / name


def rewrite(path: Path, text: str) -> None:
    """Replace a file in one step, so that a load on another thread reads the old text or the new one."""
    made = path.parents[3] / f"{threading.get_ident()}.tmp"
    made.write_text(text)
    made.replace(path)


def fail(error: BaseException) -> NoReturn:
    """Raise, where an expression is needed."""
    raise error


def error_of(kind: type[ServerError], call: object, *args: object, **named: object) -> str:
    with pytest.raises(kind) as caught:
        call(*args, **named)  # type: ignore[operator]
    assert type(caught.value) is kind
    return str(caught.value)


class Background:
    """A call on its own thread; ``join`` returns its result or raises its error."""

    def __init__(self, call: object, *args: object, **named: object) -> None:
        self._error: BaseException | None = None

        def run() -> None:
            try:
                call(*args, **named)  # type: ignore[operator]
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error


def settle(manager: ModelRepositoryManager[Any]) -> None:
    """Wait until no load and no unload is under way."""
    assert manager._operations.wait_idle(WAIT_S)


def rows(manager: ModelRepositoryManager[Any]) -> list[tuple[str, int, str, str]]:
    return [(name, version, state.value, reason) for name, version, state, reason in manager.index()]


def test_the_fake_is_a_runtime(tmp_path: Path) -> None:
    context = LoadContext("m", 1, tmp_path, tmp_path / "1", None)
    runtime: Runtime = FakeRuntime(context, "ok", FakeEngine())
    assert runtime.stop() is True
