"""The instances of a model version: what limits them, and their start. Knows backends' contract and the engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from triton_fast._native.sched.limiter import Limiter, LimiterPlace
from triton_fast._native.sched.model import NativeModel
from triton_fast.backends import host_policy
from triton_fast.backends.base import BackendModel, InstanceSpec
from triton_fast.backends.host_policy import HostPolicy
from triton_fast.errors import Code
from triton_fast.scheduling import warmup
from triton_fast.scheduling.threads import threads_per_instance, usable_cores

# How long an instance looks for work before it sleeps, while that has been paying (see sched/queue.pyx).
SPIN_NS = 50_000
# Kind -> the policy of a group that names none.
_DEFAULT_POLICY = {"KIND_CPU": "cpu", "KIND_MODEL": "model"}


def _admitted(model: str, device: int) -> None:
    """No GPU has a limit."""


@dataclass(frozen=True)
class Limits:
    """What holds for all models: ``--rate-limit`` (None: off) and ``--host-policy``, by name.

    ``full_code`` is the code of the error that a request gets when a queue has no place for it. ``admit`` is asked
    before a model is loaded on a GPU, and raises a ServerError where that is full.
    """

    limiter: Limiter | None = None
    policies: Mapping[str, HostPolicy] = field(default_factory=dict)
    full_code: Code = Code.UNAVAILABLE
    admit: Callable[[str, int], None] = _admitted

    def policy(self, named: str, kind: str, device: int) -> HostPolicy:
        """Return the policy of an instance: that which its group names, else that of its kind or GPU."""
        return self.policies.get(named or _DEFAULT_POLICY.get(kind, f"gpu_{device}"), host_policy.NONE)


NO_LIMITS = Limits()


def threads_of(specs: Sequence[InstanceSpec]) -> int:
    """Return the threads each instance may use: together they stay within the cores that policies leave to them."""
    cores = [len(spec.host_policy.cores) for spec in specs]
    return threads_per_instance(len(specs), min(usable_cores(), max(cores)) if min(cores) else None)


class Starter:
    """Makes, warms up and starts the instances of one version, all but the first only those that take requests."""

    def __init__(self, config: Any, native: NativeModel, limits: Limits) -> None:
        self._config = config
        self._native = native
        self._limits = limits

    def start(
        self, model: BackendModel, specs: Sequence[InstanceSpec], samples: Sequence[warmup.Sample],
        given_up: Callable[[], bool],
    ) -> None:  # fmt: skip
        """Start all. Raises a ServerError at the first that can not be, or when the load is given up in a warm-up."""
        model.prepare(specs)
        all_limited = all(spec.resources for spec in specs if not spec.passive)
        for spec in specs:
            with spec.host_policy.bound():
                instance = model.create_instance(spec)
                if spec.passive:
                    continue
                place = self._place(spec)
                try:
                    with _held(place):
                        warmup.run(self._config, self._native, instance, samples, given_up)
                    self._native.start_instance(instance, SPIN_NS if usable_cores() > 1 else 0, place, all_limited)
                except BaseException:
                    if place is not None:
                        place.leave()
                    raise

    def _place(self, spec: InstanceSpec) -> LimiterPlace | None:
        # Who needs nothing never waits.
        if self._limits.limiter is None or not spec.resources:
            return None
        return self._limits.limiter.join(spec.resources, device=spec.device, priority=spec.priority)


@contextlib.contextmanager
def _held(place: LimiterPlace | None) -> Iterator[None]:
    """Hold what an instance must hold to execute."""
    if place is None:
        yield
        return
    place.acquire()
    try:
        yield
    finally:
        place.release(executed=False)
