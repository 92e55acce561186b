"""The backend's three duties for Python models: complete a config, open a model, hand out instances.

Knows workers through instance.py and environments through plan.py; nothing of repositories or front ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triton_fast.backends.base import Backend, BackendModel, InstanceSpec, LoadContext
from triton_fast.backends.python import deadlock, in_process, native, settings
from triton_fast.backends.python.cache import EnvironmentCache
from triton_fast.backends.python.frames import MAX_TAKEN_CONFIG, BadFrame, Message
from triton_fast.backends.python.instance import READY_LIMIT_S, Plan, WorkerInstance
from triton_fast.backends.python.messages import WorkerMessages
from triton_fast.backends.python.native import Engine
from triton_fast.backends.python.plan import ModelPlan, make_plan, merged
from triton_fast.backends.python.supervisor import Supervisor, shared
from triton_fast.backends.python.worker_process import WorkerProcess
from triton_fast.observability import log

RESTARTS = "triton_fast_worker_restarts_total"


class PythonBackend(Backend):
    """``directory``: the backend directory's folder of a Python-based backend, whose model.py serves its models."""

    name = "python"
    default_filename = "model.py"
    decoupled = True
    path_parameters = settings.PATHS

    def __init__(self, name: str = "python", directory: Path | None = None) -> None:
        self.name = name
        self._directory = directory
        self._cache = EnvironmentCache()

    @property
    def gpu(self) -> bool:
        return True  # a model is told its device; whether it uses it is its own affair

    def complete_config(self, context: LoadContext) -> Any:
        plan = self._plan(context)
        value = in_process.auto_complete(plan) if plan.parameters.in_process else AutoComplete(plan, shared()).run()
        return merged(context.config, value)

    def load(self, context: LoadContext) -> BackendModel:
        plan = self._plan(context)
        if plan.parameters.in_process:
            return in_process.load(plan)
        return PythonModel(plan, native.engine(plan.settings.shm_wait_s), shared())

    def _plan(self, context: LoadContext) -> ModelPlan:
        read, given = settings.read(context.settings), settings.parameters(context.config)
        if given.in_process:
            in_process.check(context.name, given.env_path)
        return make_plan(context, read, given, self._cache, self._directory)


class AutoComplete:
    """A worker that lives for one question; no limit but its life."""

    def __init__(self, plan: ModelPlan, supervisor: Supervisor) -> None:
        self._plan = plan
        self._supervisor = supervisor
        context = plan.context
        fields: dict[str, Any] = {"model": context.name, "version": context.version, "instance": context.name}
        self._messages = WorkerMessages(context.host, fields, lambda: True)

    def run(self) -> object:
        """Return the config as JSON. Raises ServerError with the worker's text."""
        launch = self._plan.launch(self._plan.context.name)
        process = WorkerProcess.start(launch, self, self._supervisor, max_json=MAX_TAKEN_CONFIG)
        try:
            return process.request(self._plan.auto_complete()).result()
        finally:
            process.kill()
            process.ended.wait()

    def on_message(self, process: WorkerProcess, message: Message, blob: bytes) -> None:
        if message["type"] != "log":
            raise BadFrame("a message that is not allowed in auto-complete")
        self._messages.take(process, message, blob)

    def on_death(self, process: WorkerProcess, reason: str) -> None:
        self._messages.close()

    def hung(self) -> str:
        return ""


class PythonModel(BackendModel):
    """One opened version; its workers start together."""

    def __init__(self, plan: ModelPlan, engine: Engine, supervisor: Supervisor) -> None:
        self._plan = plan
        self._engine = engine
        self._supervisor = supervisor
        self._lock = threading.Lock()
        self._instances: dict[str, WorkerInstance] = {}
        self._is_closed = False
        context = plan.context
        self._scope = context.host.metrics.scope()
        family = self._scope.family(RESTARTS, "Number of times a worker was restarted", "counter", own=True)
        self._restarts = self._scope.metric(family, {"model": context.name, "version": str(context.version)})

    def prepare(self, specs: Sequence[InstanceSpec]) -> None:
        """Start all workers; ``create_instance`` waits for each."""
        for spec in specs:
            self._start(spec)

    def create_instance(self, spec: InstanceSpec) -> Any:
        started = self._instances.get(spec.name) or self._start(spec)
        started.started.result()
        return self._engine.as_native(started.native)

    def _start(self, spec: InstanceSpec) -> WorkerInstance:
        context = self._plan.context
        plan = Plan(
            self._plan.launch(spec.name, spec.host_policy), self._plan.init(spec), self._plan.settings, context.host,
            self._engine, self._supervisor,
        )  # fmt: skip
        made = self._engine.instance(spec.name, context.host.resolve, context.host.epoch)
        instance = WorkerInstance(plan, made, self)
        self._instances[spec.name] = instance
        deadlock.shared().add(made, context.name)
        instance.start()
        return instance

    # ---- readiness

    @property
    def ready_may_block(self) -> bool:
        return any(instance.defines_is_ready for instance in self._instances.values())

    def is_ready(self) -> bool:
        instances = list(self._instances.values())
        if not all(instance.is_up for instance in instances):
            return False
        # Asked all at once, and waited for together.
        until = time.monotonic() + READY_LIMIT_S
        asked = [(one, one.ask_ready()) for one in instances if one.defines_is_ready]
        return all(call is not None and one.told_ready(call, max(0.0, until - time.monotonic())) for one, call in asked)

    # ---- what the instances tell

    def on_change(self) -> None:
        """Decide who waits for a worker: while any is up, requests go there, else they fail instead of waiting."""
        with self._lock:
            lost = [one for one in self._instances.values() if one.gave_up]
            any_up = any(one.is_up for one in self._instances.values())
            for one in lost:
                # An instance that failed what it pulls would take work from those that could do it.
                if any_up:
                    one.native.fail(one.gave_up)
                else:
                    one.native.give_up(one.gave_up)
        self._plan.context.host.changed()

    def on_restart(self) -> None:
        self._scope.update(self._restarts, "increment", 1.0)

    # ---- end

    def trim(self, keep: int) -> None:
        for one in list(self._instances.values()):
            if one.is_up:
                one.native.trim(keep)

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        grace_s = float(self._plan.settings.stub_timeout_s)
        instances = list(self._instances.values())
        until = time.monotonic() + grace_s
        for one in instances:
            if one.is_up and not one.native.drain(max(0.0, until - time.monotonic())):
                log.error("requests are still in flight at the model's end", model=self._plan.context.name,
                          instance=one.name)  # fmt: skip
            one.begin_close()
        until = time.monotonic() + grace_s
        for one in instances:
            one.finish_close(max(0.0, until - time.monotonic()))
            deadlock.shared().remove(one.native)
        self._scope.close()
