"""One served version of an ensemble: a queue without instances, and the scheduler that passes requests on to members.

Knows the plan of its steps and how members are found; nothing of repositories or front ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from triton_fast._native.sched.ensemble import NativeEnsemble, Step
from triton_fast._native.sched.model import Epoch, NativeModel
from triton_fast.backends.base import LoadContext
from triton_fast.backends.host import Caller
from triton_fast.config import EnsemblePlan
from triton_fast.errors import ServerError
from triton_fast.observability.metrics_config import MetricsConfig
from triton_fast.scheduling.caches import ResponseCache
from triton_fast.scheduling.layers import add_layers
from triton_fast.scheduling.runtime import NO_METRICS, ServedVersion, native_model

Resolve = Callable[[str, int], NativeModel]


def attach_ensemble(
    native: NativeModel, plan: EnsemblePlan, resolve: Resolve, epoch: Epoch | None = None
) -> NativeEnsemble:
    """Have the steps of ``plan`` executed for what is submitted to ``native``.

    Parameters
    ----------
    resolve
        (member, version or -1) -> where its requests go now; raises ServerError.
    epoch
        Changes whenever ``resolve`` may answer otherwise; None: ask for each request.
    """
    steps = [
        Step(
            step.model, step.version, tuple((wire.name, wire.tensor) for wire in step.inputs),
            tuple((wire.name, wire.tensor) for wire in step.outputs), step.decoupled,
        )
        for step in plan.steps
    ]  # fmt: skip
    made = NativeEnsemble(native, steps, resolve, epoch=epoch, max_inflight=plan.max_inflight)
    native.use(made)
    return made


class EnsembleRuntime(ServedVersion):
    """A version of an ensemble. ``plan``: its steps."""

    def __init__(
        self, context: LoadContext, native: NativeModel, plan: EnsemblePlan, ensemble: NativeEnsemble,
        cached: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(context, native, cached)
        self.plan = plan
        self._ensemble = ensemble
        self._control = context.host.control

    @classmethod
    def start(
        cls, context: LoadContext, plan: EnsemblePlan, cache: ResponseCache | None = None,
        metrics: MetricsConfig = NO_METRICS,
    ) -> EnsembleRuntime:  # fmt: skip
        """Start over the members as they are served. Raises ServerError."""
        native = native_model(context, metrics=metrics)
        try:
            made = attach_ensemble(native, plan, context.host.resolve, context.host.epoch)
            return cls(context, native, plan, made, add_layers(native, context, cache))
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

    def renew(self) -> None:
        self._ensemble.renew()

    def stop(self, timeout_s: float | None = None) -> bool:
        self._ensemble.freeze()
        return super().stop(timeout_s)

    def _close(self) -> None:
        """Nothing is left to close: the scheduler has ended with the last request."""
