"""One instance over all its workers: started, watched, restarted with back-off, ended.

The native instance stays; its workers come and go. Whatever waits runs on a thread of the instance (its keeper), never
on the supervisor's. Knows nothing of the other instances but through ``Peers``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from triton_fast.backends.host import Host
from triton_fast.backends.python import health, readiness
from triton_fast.backends.python.frames import Message
from triton_fast.backends.python.messages import WorkerMessages
from triton_fast.backends.python.native import Engine, Instance, open_channel
from triton_fast.backends.python.pacing import Backoff
from triton_fast.backends.python.settings import Settings
from triton_fast.backends.python.supervisor import Supervisor
from triton_fast.backends.python.worker_process import Launch, WorkerProcess
from triton_fast.errors import Internal, ServerError, Unavailable
from triton_fast.observability import log

READY_LIMIT_S = 5.0


class State(Enum):
    STARTING = "starting"
    UP = "up"
    DOWN = "down"
    CLOSING = "closing"


class Peers(Protocol):
    """The other instances of the model, and what is told of this one. Called on any thread."""

    def on_change(self) -> None:
        """The instance went up or down."""

    def on_restart(self) -> None:
        """Its worker was started again."""


@dataclass(frozen=True)
class Plan:
    """What a worker of the instance is started and initialised with."""

    launch: Launch
    init: Message
    settings: Settings
    host: Host
    engine: Engine
    supervisor: Supervisor
    clock: Callable[[], float] = time.monotonic
    clock_ns: Callable[[], int] = time.monotonic_ns
    # Waits for an event or for so long; a test has its own.
    wait: Callable[[threading.Event, float], bool] = field(default=lambda event, delay_s: event.wait(delay_s))


class WorkerInstance:
    """``native`` is what the engine runs; ``defines_is_ready`` whether the model has an ``is_ready`` of its own."""

    def __init__(self, plan: Plan, native: Instance, peers: Peers) -> None:
        self.plan = plan
        self.name = plan.launch.name
        self.native = native
        self.defines_is_ready = False
        self.started: Future[None] = Future()
        # Why nothing is to be waited for, once a restart has failed.
        self.gave_up = ""
        self._peers = peers
        self._lock = threading.Lock()
        self._state = State.STARTING
        self._process: WorkerProcess | None = None
        self._messages: WorkerMessages | None = None
        self._keeper: threading.Thread | None = None
        self._closing = threading.Event()
        self._up_since = 0.0
        self._backoff = Backoff()
        self._ready_call: Future[Any] | None = None

    @property
    def is_up(self) -> bool:
        return self._state is State.UP

    # ---- start

    def start(self) -> None:
        """Begin: ``started`` gets the outcome."""
        self._keep(self._first_start)

    def _keep(self, target: Callable[[], None]) -> None:
        self._keeper = threading.Thread(target=target, name=f"py-keeper-{self.name}"[:64], daemon=True)
        self._keeper.start()

    def _first_start(self) -> None:
        try:
            self._bring_up()
        except BaseException as error:
            self._end_process()
            self.started.set_exception(error)
        else:
            self.started.set_result(None)

    def _bring_up(self) -> None:
        """Start a worker and wait until it is initialised: no limit but its life. Raises ServerError."""
        plan = self.plan
        channel = open_channel(plan.engine, plan.settings.region_bytes)
        messages = WorkerMessages(plan.host, plan.launch.fields, lambda: not self.started.done())
        with self._lock:
            if self._closing.is_set():
                raise Unavailable("Server not ready")
            self._messages = messages
        fds = channel.fds()
        process = WorkerProcess.start(plan.launch, self, plan.supervisor, fds)
        with self._lock:
            self._process = process
        if self._closing.is_set():
            process.kill()
        value = process.request(plan.init).result()
        # null: not said; then it is asked, and a model without one says true.
        self.defines_is_ready = not isinstance(value, dict) or bool(value.get("is_ready", True))
        with plan.launch.host_policy.bound():
            self.native.attach(channel)
        with self._lock:
            if not process.reason and not self._closing.is_set():
                self._state = State.UP
                self.gave_up = ""
                self._up_since = plan.clock()
                reason = ""
            else:
                reason = process.reason or "Server not ready"
        if reason:
            self.native.fail(reason)
            raise Internal(reason)
        self._peers.on_change()

    # ---- the worker's messages and end, on the supervisor's thread

    def on_message(self, process: WorkerProcess, message: Message, blob: bytes) -> None:
        if self._messages is not None:
            self._messages.take(process, message, blob)

    def hung(self) -> str:
        if self._state is not State.UP:
            return ""
        if self.native.broken:
            return health.broke_protocol("a message that no worker sends")
        limit_s = self.plan.settings.execution_timeout_s
        if limit_s <= 0:
            return ""
        began = self.native.execution_started_ns
        is_over = began > 0 and self.plan.clock_ns() - began > limit_s * 1e9
        return health.too_long(limit_s) if is_over else ""

    def on_death(self, process: WorkerProcess, reason: str) -> None:
        if self._messages is not None:
            self._messages.close()
        with self._lock:
            if self._state is not State.UP or process is not self._process:
                return
            self._state = State.DOWN
            lived_s = self.plan.clock() - self._up_since
        log.error(reason, **self.plan.launch.fields)
        self._keep(lambda: self._recover(reason, lived_s))

    # ---- recovery, on the keeper's thread

    def _recover(self, reason: str, lived_s: float) -> None:
        # First what clients wait for.
        self.native.fail(reason)
        self._peers.on_change()
        delay_s = self._backoff.delay(lived_s)
        while not self.plan.wait(self._closing, delay_s):
            try:
                self._bring_up()
            except BaseException as error:
                self._end_process()
                if self._closing.is_set():
                    break
                cause = str(error) if isinstance(error, ServerError) else f"{type(error).__name__}: {error}"
                log.error(f"restarting the worker failed: {cause}", **self.plan.launch.fields)
                self.gave_up = f"{reason}, and its restart failed"
                self._peers.on_change()
                delay_s = self._backoff.delay()
            else:
                log.info("the worker was restarted", **self.plan.launch.fields)
                self._peers.on_restart()
                return
        # Whoever is pulled from now on must not wait for a worker that does not come.
        self.native.give_up(reason)

    def _end_process(self) -> None:
        process = self._process
        if process is not None:
            process.kill()
            process.ended.wait()

    # ---- readiness

    def ask_ready(self) -> Future[Any] | None:
        """Return the call of the model's ``is_ready`` that is under way, or a new one; None when no worker is up."""
        with self._lock:
            process = self._process
            if self._state is not State.UP or process is None:
                return None
            if self._ready_call is None or self._ready_call.done():
                self._ready_call = process.request({"type": "is_ready"})
            return self._ready_call

    def told_ready(self, call: Future[Any], timeout_s: float) -> bool:
        """Wait for what ``ask_ready`` returned."""
        return readiness.told_ready(call, timeout_s, model=self.plan.launch.model, instance=self.name)

    # ---- end

    def begin_close(self) -> None:
        """Have the worker finalise and end; no new one comes. Idempotent, does not wait."""
        with self._lock:
            was = self._state
            self._state = State.CLOSING
            self._closing.set()
            process = self._process
        if process is None or was is State.CLOSING:
            return
        if was is State.UP:
            self.native.finalize()
        else:
            process.kill()

    def finish_close(self, timeout_s: float) -> None:
        """Wait for the end; kill what has not ended in time."""
        if self._keeper is not None:
            self._keeper.join()
        process = self._process
        if process is None:
            return
        if not process.ended.wait(timeout_s):
            text = f"the worker did not finalize within {timeout_s:.0f} s and is killed"
            log.error(text, **self.plan.launch.fields)
            process.kill()
            process.ended.wait()
        elif process.returncode != 0:
            log.warning(process.reason, **self.plan.launch.fields)
        self.native.fail(health.unhealthy(self.name))
