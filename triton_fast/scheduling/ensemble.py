"""One served version of an ensemble: a queue without instances, and the scheduler that passes requests on to members.

Knows the plan of its steps and how members are found; nothing of repositories or front ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Protocol

from triton_fast._native.sched.model import NativeModel
from triton_fast.backends.base import LoadContext
from triton_fast.backends.host import Caller
from triton_fast.config import EnsemblePlan
from triton_fast.errors import ServerError, Unsupported
from triton_fast.observability import log
from triton_fast.scheduling.runtime import ServedVersion, ignored_fields, native_model

Resolve = Callable[[str, int], NativeModel]


class EnsembleScheduler(Protocol):
    """What advances an ensemble's requests."""

    def close(self) -> None:
        """Return when the last request has been answered. The queue takes no new ones by then."""


def attach_ensemble(native: NativeModel, plan: EnsemblePlan, resolve: Resolve) -> EnsembleScheduler:
    """Have the steps of ``plan`` executed for what is submitted to ``native``.

    Parameters
    ----------
    resolve
        (member, version or -1) -> where its requests go now; raises ServerError. The answer holds until the epoch
        (``Host.epoch``) changes.
    """
    raise Unsupported(f"model '{plan.name}' is an ensemble, which this version does not serve yet")


class EnsembleRuntime(ServedVersion):
    """A version of an ensemble. ``plan``: its steps."""

    def __init__(self, context: LoadContext, native: NativeModel, plan: EnsemblePlan, steps: EnsembleScheduler) -> None:
        super().__init__(context, native)
        self.plan = plan
        self._steps = steps
        self._control = context.host.control

    @classmethod
    def start(cls, context: LoadContext, plan: EnsemblePlan) -> EnsembleRuntime:
        """Start over the members as they are served. Raises ServerError."""
        for name in ignored_fields(context.config):
            log.warning(f"{name} is accepted but has no effect in this version", model=context.name)
        native = native_model(context)
        try:
            return cls(context, native, plan, attach_ensemble(native, plan, context.host.resolve))
        except BaseException:
            native.stop(abort=True)
            raise

    @property
    def ready_may_block(self) -> bool:
        # Where a member's check may wait, the member says so itself.
        return False

    def is_ready(self) -> bool:
        """Tell whether all members are ready."""
        caller = Caller(self.name, loading=False)
        with contextlib.suppress(ServerError):
            return all(
                self._control.is_model_ready(caller, name, str(version) if version >= 0 else "")
                for name, version in sorted(self.plan.members)
            )
        return False

    def _close(self) -> None:
        self._steps.close()
