"""One served model version: wires its config to the native queue and starts its instances.

Knows configs, backends and the engine; nothing of repositories or front ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from abc import ABC, abstractmethod
from typing import Any

from triton_fast import protos
from triton_fast._native.sched.ensemble_plan import wait_unheld
from triton_fast._native.sched.model import NativeModel
from triton_fast.backends.base import Backend, BackendModel, InstanceSpec, LoadContext
from triton_fast.backends.values import kind_name
from triton_fast.config import added_specs, io_specs
from triton_fast.errors import Internal, ServerError, Unsupported
from triton_fast.observability import log
from triton_fast.observability.metrics_config import MetricsConfig
from triton_fast.scheduling import warmup
from triton_fast.scheduling.caches import ResponseCache
from triton_fast.scheduling.instances import NO_LIMITS, Limits, Starter, threads_of
from triton_fast.scheduling.layers import add_layers
from triton_fast.scheduling.measures import measure
from triton_fast.scheduling.queues import queue_options, refuse_strategy
from triton_fast.scheduling.sequence import use_sequences

NO_METRICS = MetricsConfig()


def instance_specs(config: Any, limits: Limits = NO_LIMITS) -> list[InstanceSpec]:
    """Return the instances that the normalised config asks for: ``<group>_<n>``, per GPU for GPU groups."""
    seconds = protos.ModelInstanceGroup.SecondaryDevice.SecondaryDeviceKind
    specs = []
    for group in config.instance_group:
        kind = kind_name(group)
        devices = list(group.gpus) if kind == "KIND_GPU" else [0]
        resources = tuple((one.name, getattr(one, "global"), one.count) for one in group.rate_limiter.resources)
        secondary = tuple((seconds.Name(one.kind), one.device_id) for one in group.secondary_devices)
        number = 0
        for device in devices:
            policy = limits.policy(group.host_policy, kind, device)
            for _ in range(max(1, group.count)):
                specs.append(
                    InstanceSpec(
                        f"{group.name}_{number}", kind, device, group.passive, policy, resources,
                        group.rate_limiter.priority, secondary, tuple(group.profile),
                    )
                )  # fmt: skip
                number += 1
    return specs


def refuse_unsupported(config: Any, backend: Backend) -> None:
    """Fail a load, with the reason, where the config asks for what this build or the backend does not have."""
    if config.model_transaction_policy.decoupled and not backend.decoupled:
        raise Unsupported(
            f"model '{config.name}' is decoupled, which this version does not serve with backend '{backend.name}'"
        )
    if config.batch_output and not backend.makes_batch_tensors:
        raise Unsupported(f"model '{config.name}' has batch_output, which backend '{backend.name}' does not cut")


class ServedVersion(ABC):
    """A model version that takes requests: what the repository and the verbs need of it.

    Attributes
    ----------
    native
        The engine's handle; requests are submitted to it.
    namespace
        The repository that tells it from others of its name, where those are allowed.
    config
        The completed, normalised ``ModelConfig``.
    cached
        Whether the response cache answers for it.
    """

    def __init__(self, context: LoadContext, native: NativeModel, cached: bool = False) -> None:
        self.cached = cached
        self.name = context.name
        self.namespace = context.namespace
        self.version = context.version
        self.config = context.config
        self.native = native
        self._stopping = threading.Lock()
        self._stopped = threading.Event()
        self._stopper: threading.Thread | None = None

    @property
    def batches(self) -> bool:
        """Whether requests may share an execution."""
        return bool(self.config.HasField("dynamic_batching") and self.config.max_batch_size > 0)

    @property
    @abstractmethod
    def ready_may_block(self) -> bool:
        """Whether ``is_ready`` may wait, so that it must not be called on the loop's thread."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Tell whether the model can answer now, as far as it knows."""

    def renew(self) -> None:  # noqa: B027
        """Let go of versions of other models that have been replaced."""

    def trim(self, keep: int) -> None:  # noqa: B027
        """Give back idle memory of the backend but for ``keep`` bytes an instance."""

    def stop(self, timeout_s: float | None = None) -> bool:
        """Take no new requests, finish those in hand, close the model. Idempotent and blocking.

        Returns
        -------
        bool
            False when requests were still running after ``timeout_s``; stopping goes on in the background.
        """
        with self._stopping:
            if self._stopper is None:
                self._stopper = threading.Thread(target=self._stop, name=f"stop-{self.name}", daemon=True)
                self._stopper.start()
        return self._stopped.wait(timeout_s)

    def abort(self) -> None:
        """Answer what is queued with an error; what runs goes on."""
        self.native.abort()

    @abstractmethod
    def _close(self) -> None:
        """Give back what the version holds. Called once, when nothing can be submitted any more."""

    def _stop(self) -> None:
        try:
            # Requests to ensembles end where they began, and may not have come here yet.
            wait_unheld(self.native)
            self.native.stop()
            self._close()
        except Exception as error:
            log.error(f"closing the model failed: {error}", model=self.name, version=self.version)
        finally:
            self._stopped.set()


def native_model(context: LoadContext, limits: Limits = NO_LIMITS, metrics: MetricsConfig = NO_METRICS) -> NativeModel:
    """Return the engine's handle of a version, without instances."""
    config = context.config
    inputs, outputs = io_specs(config, context.model_dir)
    added = added_specs(config)
    native = NativeModel(
        context.name, context.version, config.max_batch_size, inputs, outputs,
        config.model_transaction_policy.decoupled,
        **queue_options(config), full_code=int(limits.full_code),
        added_inputs=added.inputs, added_outputs=added.outputs,
    )  # fmt: skip
    measure(native, config, metrics)
    return native


class ModelRuntime(ServedVersion):
    """A version that a backend executes."""

    def __init__(self, context: LoadContext, native: NativeModel, model: BackendModel, cached: bool = False) -> None:
        super().__init__(context, native, cached)
        self._model = model

    @classmethod
    def start(
        cls, context: LoadContext, backend: Backend, limits: Limits = NO_LIMITS, cache: ResponseCache | None = None,
        metrics: MetricsConfig = NO_METRICS,
    ) -> ModelRuntime:  # fmt: skip
        """Open the model, warm up its instances and start their threads.

        Parameters
        ----------
        cache
            The server's, if it has one.
        metrics
            What the version counts.

        Raises
        ------
        ServerError
            The model can not be opened, fails its warm-up, needs more of a resource than there is, or asks for what
            this build does not have.
        """
        config = context.config
        refuse_unsupported(config, backend)
        refuse_strategy(context)
        specs = instance_specs(config, limits)
        if not specs:
            raise Internal(f"model '{context.name}' has no instances")
        for device in sorted({spec.device for spec in specs if spec.kind == "KIND_GPU"}):
            limits.admit(context.name, device)
        context = dataclasses.replace(context, threads_per_instance=threads_of(specs))
        native = native_model(context, limits, metrics)
        if config.HasField("sequence_batching"):
            started = sum(not spec.passive for spec in specs)
            use_sequences(native, config, started, context.model_dir, limits.full_code)
        cached = add_layers(native, context, cache)
        # What a backend makes once for all instances goes by the first's policy.
        with specs[0].host_policy.bound():
            model = backend.load(dataclasses.replace(context, native=native))
        try:
            samples = warmup.read_samples(config, context.model_dir, native)
            Starter(config, native, limits).start(model, specs, samples, context.given_up)
            if samples:
                log.info(f"warmed up with {len(samples)} sample(s)", model=context.name, instances=native.n_instances)
            return cls(context, native, model, cached)
        except BaseException:
            native.stop(abort=True)
            with contextlib.suppress(ServerError):
                model.close()
            raise

    @property
    def ready_may_block(self) -> bool:
        return self._model.ready_may_block

    def is_ready(self) -> bool:
        """Tell whether the backend takes the model for ready."""
        return self._model.is_ready()

    def trim(self, keep: int) -> None:
        self._model.trim(keep)

    def _close(self) -> None:
        self._model.close()
