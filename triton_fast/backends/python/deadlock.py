"""Calls between models that wait for each other: found by looking at who waits for whom, and broken.

``stuck`` is a pure function of a snapshot. The detector's thread runs while calls are outstanding. Knows nothing of
workers, only of native instances and of what these need of a rate limiter. Source: docs/python_worker.md, BLS.
"""

from __future__ import annotations

import threading
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from triton_fast._native.sched.limiter import Limiter
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


class Wait(NamedTuple):
    """One request that is waited for: of which model, and the key of the instance that runs it, 0 if nobody knows."""

    target: int
    state: str
    runner: int = 0


class BlsCall(NamedTuple):
    """``id`` is unique with its caller. ``runner``: key of the instance that runs it, 0 when nobody knows.

    ``below``: of a call to an ensemble, what that waits for, if anybody knows.
    """

    id: int
    target: int
    is_waited_for: bool
    state: str
    runner: int = 0
    age_ns: int = 0
    below: tuple[Wait, ...] = ()

    @property
    def waits(self) -> tuple[Wait, ...]:
        """What it waits for: one of them that can progress is enough, for the others are looked at when it has."""
        return self.below or (Wait(self.target, self.state, self.runner),)

    @property
    def queued(self) -> Wait | None:
        """The first of them that no instance has."""
        return next((wait for wait in self.waits if wait.state == QUEUED), None)


class Snapshot(NamedTuple):
    """One Python instance at one moment; ``model`` is the key of the model that it serves."""

    key: int
    model: int
    executing: bool
    calls: tuple[BlsCall, ...] = ()


class Place(NamedTuple):
    """An instance, of Python or not, in the rate limiter. ``model`` is 0 where others, without one, serve that too.

    ``needs``: (resource, amount, amount that there is).
    """

    key: int
    model: int
    waits: bool
    holds: bool
    needs: Sequence[tuple[int, int, int]]


class Stuck(NamedTuple):
    """A call that can not progress: ``caller`` is the instance that made it."""

    caller: int
    call: BlsCall


def stuck(snapshots: Sequence[Snapshot], places: Sequence[Place] = ()) -> set[Stuck]:
    """Return the calls that nothing can ever answer, as far as the snapshot tells.

    A queued call can progress when some instance of its target is idle or can progress, or when the target is none of
    Python and not limited; a running one when its runner is not known or can progress; an instance when it executes
    nothing, waits for nothing, or none of the calls that it waits for is stuck. One that waits for resources, when they
    suffice beside what those hold that can not progress, and what those want that wait before it and can not. A call to
    an ensemble can progress when one of the requests of its steps can.

    Parameters
    ----------
    places
        Those that wait first, in the order in which they are served.
    """
    instances = {one.key: one for one in snapshots}
    serving: dict[int, set[int]] = defaultdict(set)
    for one in snapshots:
        serving[one.model].add(one.key)
    for place in places:
        if place.model:
            serving[place.model].add(place.key)
    waits = {key: [call for call in one.calls if call.is_waited_for] for key, one in instances.items()}
    waiting = {place.key for place in places if place.waits}
    known = instances.keys() | {place.key for place in places}
    progress = {
        key for key in known
        if key not in waiting and (key not in instances or not instances[key].executing or not waits[key])
    }  # fmt: skip

    def goes_on(wait: Wait) -> bool:
        if wait.state == RUNNING:
            return wait.runner not in known or wait.runner in progress
        return wait.target not in serving or not progress.isdisjoint(serving[wait.target])

    def can_progress(call: BlsCall) -> bool:
        return any(map(goes_on, call.waits))

    def served() -> set[int]:
        """Those in the line that get what they need: who waits behind one takes nothing from it."""
        found = set()
        taken: dict[int, int] = defaultdict(int)
        for place in places:
            if place.holds and place.key not in progress:
                _add(taken, place)
        for place in places:
            if not place.waits or place.key in progress:
                continue
            if all(amount <= there - taken[resource] for resource, amount, there in place.needs):
                found.add(place.key)
            else:
                _add(taken, place)
        return found

    # What can progress frees others: until nothing is added.
    is_growing = True
    while is_growing:
        free = {key for key in known - progress - waiting if all(map(can_progress, waits[key]))}
        free |= served()
        progress |= free
        is_growing = bool(free)
    return {
        Stuck(one.key, call) for one in snapshots if one.key not in progress for call in waits[one.key]
        if not can_progress(call)
    }  # fmt: skip


def _add(taken: dict[int, int], place: Place) -> None:
    for resource, amount, _ in place.needs:
        taken[resource] += amount


def victim(found: Iterable[Stuck]) -> Stuck | None:
    """Return the newest queued call: the one whose failure undoes the least; None when none is queued."""
    queued = [one for one in found if one.call.queued is not None]
    return min(queued, key=lambda one: (one.call.age_ns, one.caller, one.call.id), default=None)


def chain(found: Iterable[Stuck], broken: Stuck, snapshots: Sequence[Snapshot]) -> list[int]:
    """Return the keys of the models from what the broken call waits for by way of its caller to that again.

    Ensembles are left out. Only caller and target where there is no such way: then others wait behind a deadlock that
    is none of theirs.
    """
    models = {one.key: one.model for one in snapshots}
    targets: dict[int, list[int]] = defaultdict(list)
    for caller, call in sorted(found):
        targets[models[caller]] += [wait.target for wait in call.waits]
    start, end = _wanted(broken), models[broken.caller]
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


def _wanted(broken: Stuck) -> int:
    queued = broken.call.queued
    return broken.call.target if queued is None else queued.target


def text(names: Sequence[str]) -> str:
    """Return what the caller is told: the names of a chain."""
    shown = list(names) if len(names) <= MAX_SHOWN else [*names[: MAX_SHOWN - 1], "...", names[-1]]
    whom = "itself" if names[0] == names[-1] else f"'{names[-1]}'"
    return (
        f"Deadlock: model '{names[0]}' waits for {whom}: {' -> '.join(shown)}, and no instance of '{names[-1]}' is "
        "free. Raise the instance count or avoid the cycle."
    )


def text_limited(caller: str, target: str, resources: Iterable[str]) -> str:
    """Return what the caller is told whose target waits for resources of the rate limiter."""
    names = ", ".join(f"'{name}'" for name in sorted(set(resources)))
    return (
        f"Deadlock: model '{caller}' waits for '{target}', which waits for the rate limiter's resource {names} that "
        f"can not become free before. Give it to '{target}' alone, or raise its amount."
    )


class Detector:
    """Looks at all live instances; ``wait(event, seconds)`` is what passes the time between looks."""

    def __init__(self, wait: Callable[[threading.Event, float], bool] = threading.Event.wait) -> None:
        self._wait = wait
        self._lock = threading.Lock()
        self._instances: dict[int, tuple[Instance, str]] = {}
        self._limiters: weakref.WeakSet[Limiter] = weakref.WeakSet()
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

    def limited_by(self, limiter: Limiter) -> None:
        """Look at what this rate limiter has instances wait for too."""
        with self._lock:
            self._limiters.add(limiter)

    def look(self) -> bool:
        """Look once; break what was stuck at the last look too. Returns whether there is any call."""
        with self._lock:
            live = list(self._instances.values())
            limiters = list(self._limiters)
        by_key: dict[int, Instance] = {}
        names: dict[int, str] = {}
        snapshots = []
        for instance, model in live:
            # Calls first: an instance that stops executing meanwhile is then taken for one that can progress.
            calls = tuple(
                BlsCall(number, target, bool(waits), state, runner, age_ns, tuple(Wait(*wait) for wait in below))
                for number, target, waits, state, runner, age_ns, below in instance.calls()
            )
            snapshots.append(Snapshot(instance.key, instance.model_key, instance.executing, calls))
            by_key[instance.key] = instance
            names[instance.model_key] = model
        if not any(one.calls for one in snapshots):
            self._suspects = set()
            return False
        places = []
        resources: dict[int, str] = {}
        for limiter in limiters:
            rows, named, models = limiter.places()
            places += [Place(*row) for row in rows]
            resources |= named
            names |= models
        found = stuck(snapshots, places)
        ids = {(one.caller, one.call.id) for one in found}
        # In both looks: a snapshot is not of one moment, and what only passed by is gone by the second.
        lasting = {one for one in found if (one.caller, one.call.id) in self._suspects}
        self._suspects = ids
        broken = victim(lasting)
        if broken is not None:
            target = _wanted(broken)
            wanted = [need[0] for place in places if place.waits and place.model == target for need in place.needs]
            if wanted:
                caller = next(one.model for one in snapshots if one.key == broken.caller)
                message = text_limited(
                    names.get(caller, "?"), names.get(target, "?"), [resources.get(key, "?") for key in wanted]
                )
            else:
                message = text([names.get(key, "?") for key in chain(found, broken, snapshots)])
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
