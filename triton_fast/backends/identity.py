"""The identity backend: outputs equal inputs, position by position, without a copy.

Parameters in config.pbtxt, as in Triton's identity backend: ``execute_delay_ms``.
"""

from __future__ import annotations

from triton_fast._native.backends.identity import IdentityInstance
from triton_fast._version import __version__
from triton_fast.backends.base import Backend, BackendModel, InstanceSpec, LoadContext
from triton_fast.errors import InvalidArg

NS_PER_MS = 1_000_000
MAX_DELAY_MS = 3_600_000


class IdentityBackend(Backend):
    name = "identity"
    default_filename = ""
    decoupled = True
    version = __version__

    def load(self, context: LoadContext) -> BackendModel:
        config = context.config
        inputs, outputs = list(config.input), list(config.output)
        if len(inputs) != len(outputs):
            raise InvalidArg(
                f"identity backend requires as many inputs as outputs for model '{context.name}', "
                f"got {len(inputs)} and {len(outputs)}"
            )
        for given, made in zip(inputs, outputs, strict=True):
            if given.data_type != made.data_type or list(given.dims) != list(made.dims):
                raise InvalidArg(
                    f"identity backend requires input '{given.name}' and output '{made.name}' of model "
                    f"'{context.name}' to have the same data type and dims"
                )
        return IdentityModel(_delay_ms(context))


class IdentityModel(BackendModel):
    def __init__(self, delay_ms: int) -> None:
        self._delay_ns = delay_ms * NS_PER_MS

    def create_instance(self, spec: InstanceSpec) -> IdentityInstance:
        return IdentityInstance(spec.name, self._delay_ns)

    def close(self) -> None:
        """Nothing is held."""


def _delay_ms(context: LoadContext) -> int:
    parameters = context.config.parameters
    if "execute_delay_ms" not in parameters:
        return 0
    text = parameters["execute_delay_ms"].string_value
    if not text.isdigit() or int(text) > MAX_DELAY_MS:
        raise InvalidArg(
            f"parameter 'execute_delay_ms' of model '{context.name}' must be a number from 0 to {MAX_DELAY_MS}, "
            f"got '{text}'"
        )
    return int(text)
