"""Calls between models that wait for each other: found by looking at who waits for whom, and broken.

``stuck`` is a pure function of a snapshot. The detector's thread runs while calls are outstanding. Knows nothing of
workers, only of native instances. Source: docs/python_worker.md, BLS.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from triton_fast.backends.python.native import Call
from triton_fast.observability import log

LOOK_S = 0.05
# Without a call there is nothing to look at but whether there is one.
IDLE_S = 0.5
QUEUED, RUNNING = "queued", "running"
MAX_SHOWN = 8


class Instance(Protocol):
    """What is asked of an instance here, with a worker or without."""

    @property
    def key(self) -> int: ...
    @property
    def model_key(self) -> int: ...
    @property
    def executing(self) -> bool: ...
    def calls(self) -> list[Call]: ...
    def fail_call(self, call_id: int, text: str) -> bool: ...


class BlsCall(NamedTuple):
    """``id`` is unique with its caller. ``runner``: key of the instance that runs it, 0 when nobody knows."""

    id: int
    target: int
    is_waited_for: bool
    state: str
    runner: int = 0
    age_ns: int = 0


class Snapshot(NamedTuple):
    """One Python instance at one moment; ``model`` is the key of the model that it serves."""

    key: int
    model: int
    executing: bool
    calls: tuple[BlsCall, ...] = ()


class Stuck(NamedTuple):
    """A call that can not progress: ``caller`` is the instance that made it."""

    caller: int
    call: BlsCall


def stuck(snapshots: Sequence[Snapshot]) -> set[Stuck]:
    """Return the calls that nothing can ever answer, as far as the snapshot tells.

    A queued call can progress when some instance of its target is idle or can progress, or when the target is none of
    Python; a running one when its runner is not known or can progress; an instance when it executes nothing, waits for
    nothing, or none of the calls that it waits for is stuck.
    """
    instances = {one.key: one for one in snapshots}
    serving: dict[int, list[int]] = defaultdict(list)
    for one in snapshots:
        serving[one.model].append(one.key)
    waits = {key: [call for call in one.calls if call.is_waited_for] for key, one in instances.items()}
    progress = {key for key, one in instances.items() if not one.executing or not waits[key]}

    def can_progress(call: BlsCall) -> bool:
        if call.state == RUNNING:
            return call.runner not in instances or call.runner in progress
        return call.target not in serving or any(key in progress for key in serving[call.target])

    # What can progress frees others: until nothing is added.
    is_growing = True
    while is_growing:
        free = {key for key in instances if key not in progress and all(map(can_progress, waits[key]))}
        progress |= free
        is_growing = bool(free)
    return {
        Stuck(one.key, call) for one in snapshots if one.key not in progress for call in waits[one.key]
        if not can_progress(call)
    }  # fmt: skip


def victim(found: Iterable[Stuck]) -> Stuck | None:
    """Return the newest queued call: the one whose failure undoes the least; None when none is queued."""
    queued = [one for one in found if one.call.state == QUEUED]
    return min(queued, key=lambda one: (one.call.age_ns, one.caller, one.call.id), default=None)


def chain(found: Iterable[Stuck], broken: Stuck, snapshots: Sequence[Snapshot]) -> list[int]:
    """Return the keys of the models from the broken call's target by way of its caller to the target again.

    Only caller and target where there is no such way: then others wait behind a deadlock that is none of theirs.
    """
    models = {one.key: one.model for one in snapshots}
    targets: dict[int, list[int]] = defaultdict(list)
    for caller, call in sorted(found):
        targets[models[caller]].append(call.target)
    start, end = broken.call.target, models[broken.caller]
    ways = deque([[start]])
    seen = {start}
    while ways:
        way = ways.popleft()
        if way[-1] == end:
            return [*way, start]
        for target in targets[way[-1]]:
            if target not in seen:
                seen.add(target)
                ways.append([*way, target])
    return [end, start]


def text(names: Sequence[str]) -> str:
    """Return what the caller is told: the names of a chain."""
    shown = list(names) if len(names) <= MAX_SHOWN else [*names[: MAX_SHOWN - 1], "...", names[-1]]
    whom = "itself" if names[0] == names[-1] else f"'{names[-1]}'"
    return (
        f"Deadlock: model '{names[0]}' waits for {whom}: {' -> '.join(shown)}, and no instance of '{names[-1]}' is "
        "free. Raise the instance count or avoid the cycle."
    )


class Detector:
    """Looks at all live instances; ``wait(event, seconds)`` is what passes the time between looks."""

    def __init__(self, wait: Callable[[threading.Event, float], bool] = threading.Event.wait) -> None:
        self._wait = wait
        self._lock = threading.Lock()
        self._instances: dict[int, tuple[Instance, str]] = {}
        self._suspects: set[tuple[int, int]] = set()
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, instance: Instance, model: str) -> None:
        with self._lock:
            self._instances[id(instance)] = instance, model
            self._changed.clear()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="py-deadlocks", daemon=True)
                self._thread.start()

    def remove(self, instance: Instance) -> None:
        with self._lock:
            self._instances.pop(id(instance), None)
            if not self._instances:
                self._changed.set()

    def look(self) -> bool:
        """Look once; break what was stuck at the last look too. Returns whether there is any call."""
        with self._lock:
            live = list(self._instances.values())
        by_key: dict[int, Instance] = {}
        names: dict[int, str] = {}
        snapshots = []
        for instance, model in live:
            # Calls first: an instance that stops executing meanwhile is then taken for one that can progress.
            calls = tuple(
                BlsCall(number, target, bool(waits), state, runner, age_ns)
                for number, target, waits, state, runner, age_ns in instance.calls()
            )
            snapshots.append(Snapshot(instance.key, instance.model_key, instance.executing, calls))
            by_key[instance.key] = instance
            names[instance.model_key] = model
        found = stuck(snapshots)
        ids = {(one.caller, one.call.id) for one in found}
        # In both looks: a snapshot is not of one moment, and what only passed by is gone by the second.
        lasting = {one for one in found if (one.caller, one.call.id) in self._suspects}
        self._suspects = ids
        broken = victim(lasting)
        if broken is not None:
            way = [names.get(key, "?") for key in chain(found, broken, snapshots)]
            message = text(way)
            if by_key[broken.caller].fail_call(broken.call.id, message):
                log.error(message)
            # The rest may be free now: looked at anew.
            self._suspects = set()
        return any(one.calls for one in snapshots)

    def _run(self) -> None:
        is_busy = False
        while True:
            self._wait(self._changed, LOOK_S if is_busy else IDLE_S)
            with self._lock:
                if not self._instances:
                    self._thread = None
                    self._changed.clear()
                    return
            try:
                is_busy = self.look()
            except Exception as error:
                log.error(f"looking for deadlocks failed: {type(error).__name__}: {error}")


_shared = Detector()


def shared() -> Detector:
    """Return the detector of this process."""
    return _shared
