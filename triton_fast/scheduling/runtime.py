"""One served model version: wires its config to the native queue and starts its instances.

Knows configs, backends and the engine; nothing of repositories or front ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from typing import Any

from triton_fast._native.sched.model import NativeModel
from triton_fast.backends.base import Backend, BackendModel, InstanceSpec, LoadContext
from triton_fast.config import added_specs, io_specs
from triton_fast.errors import Internal, ServerError, Unsupported
from triton_fast.observability import log
from triton_fast.scheduling.sequence import use_sequences
from triton_fast.scheduling.threads import threads_per_instance, usable_cores

# How long an instance looks for work before it sleeps, while that has been paying (see sched/queue.pyx).
SPIN_NS = 50_000


def instance_specs(config: Any) -> list[InstanceSpec]:
    """Return the instances that the normalised config asks for: ``<group>_<n>``, per GPU for GPU groups."""
    kinds = config.DESCRIPTOR.fields_by_name["instance_group"].message_type.enum_types_by_name["Kind"]
    specs = []
    for group in config.instance_group:
        kind = kinds.values_by_number[group.kind].name
        devices = list(group.gpus) if kind == "KIND_GPU" else [0]
        number = 0
        for device in devices:
            for _ in range(max(1, group.count)):
                specs.append(InstanceSpec(f"{group.name}_{number}", kind, device, group.passive))
                number += 1
    return specs


def refuse_unsupported(config: Any, backend: Backend) -> None:
    """Fail a load, with the reason, where the config asks for what this build or the backend does not have."""
    scheduler = config.WhichOneof("scheduling_choice")
    if scheduler == "ensemble_scheduling":
        raise Unsupported(f"model '{config.name}' asks for {scheduler}, which this version does not serve")
    if config.model_transaction_policy.decoupled and not backend.decoupled:
        raise Unsupported(
            f"model '{config.name}' is decoupled, which this version does not serve with backend '{backend.name}'"
        )
    if config.batch_input or config.batch_output or any(tensor.allow_ragged_batch for tensor in config.input):
        raise Unsupported(f"model '{config.name}' asks for ragged batching, which this version does not serve")


def ignored_fields(config: Any) -> list[str]:
    """Return the fields given in the config that have no effect in this build; the loader logs them."""
    batching = config.dynamic_batching
    found = []
    if batching.priority_levels:
        found.append("dynamic_batching.priority_levels")
    if batching.preserve_ordering and sum(1 for _ in instance_specs(config)) > 1:
        found.append("dynamic_batching.preserve_ordering")
    if batching.default_queue_policy.timeout_action:
        found.append("dynamic_batching.default_queue_policy.timeout_action: DELAY")
    found += [name for name in ("model_warmup", "response_cache") if _given(config, name)]
    return found


def _given(config: Any, name: str) -> bool:
    value = getattr(config, name)
    return value.enable if name == "response_cache" else bool(value)


class ModelRuntime:
    """A model version that takes requests.

    Attributes
    ----------
    native
        The engine's handle; requests are submitted to it.
    config
        The completed, normalised ``ModelConfig``.
    """

    def __init__(self, context: LoadContext, native: NativeModel, model: BackendModel) -> None:
        self.name = context.name
        self.version = context.version
        self.config = context.config
        self.native = native
        self._model = model
        self._stopping = threading.Lock()
        self._stopped = threading.Event()
        self._stopper: threading.Thread | None = None

    @classmethod
    def start(cls, context: LoadContext, backend: Backend) -> ModelRuntime:
        """Open the model and start its instance threads.

        Raises
        ------
        ServerError
            The model can not be opened, or asks for what this build does not have.
        """
        config = context.config
        refuse_unsupported(config, backend)
        for name in ignored_fields(config):
            log.warning(f"{name} is accepted but has no effect in this version", model=context.name)
        specs = instance_specs(config)
        if not specs:
            raise Internal(f"model '{context.name}' has no instances")
        context = dataclasses.replace(context, threads_per_instance=threads_per_instance(len(specs)))
        inputs, outputs = io_specs(config, context.model_dir)
        added = added_specs(config)
        batching, policy = config.dynamic_batching, config.dynamic_batching.default_queue_policy
        native = NativeModel(
            context.name, context.version, config.max_batch_size, inputs, outputs,
            config.model_transaction_policy.decoupled,
            dynamic=config.HasField("dynamic_batching"),
            preferred=tuple(batching.preferred_batch_size),
            delay_us=batching.max_queue_delay_microseconds,
            max_queue_size=policy.max_queue_size,
            timeout_us=policy.default_timeout_microseconds,
            timeout_override=policy.allow_timeout_override,
            added_inputs=added.inputs, added_outputs=added.outputs,
        )  # fmt: skip
        if config.HasField("sequence_batching"):
            use_sequences(native, config, sum(not spec.passive for spec in specs), context.model_dir)
        model = backend.load(dataclasses.replace(context, native=native))
        try:
            model.prepare(specs)
            for spec in specs:
                instance = model.create_instance(spec)
                if not spec.passive:
                    native.start_instance(instance, SPIN_NS if usable_cores() > 1 else 0)
            return cls(context, native, model)
        except BaseException:
            native.stop(abort=True)
            with contextlib.suppress(ServerError):
                model.close()
            raise

    @property
    def ready_may_block(self) -> bool:
        """Whether ``is_ready`` may wait, so that it must not be called on the loop's thread."""
        return self._model.ready_may_block

    def is_ready(self) -> bool:
        """Tell whether the backend takes the model for ready."""
        return self._model.is_ready()

    def trim(self, keep: int) -> None:
        """Give back idle memory of the backend but for ``keep`` bytes an instance."""
        self._model.trim(keep)

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

    def _stop(self) -> None:
        try:
            self.native.stop()
            self._model.close()
        except Exception as error:
            log.error(f"closing the model failed: {error}", model=self.name, version=self.version)
        finally:
            self._stopped.set()
