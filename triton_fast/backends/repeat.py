"""The repeat backend: one response for each element of IN. For tests of streams, and to show a decoupled model.

Tensors as in Triton's repeat backend. There the instance takes its next request after WAIT ms although responses are
still to come; here it does so after the last of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from triton_fast._native.backends.repeat import RepeatInstance
from triton_fast._version import __version__
from triton_fast.backends.base import Backend, BackendModel, InstanceSpec, LoadContext
from triton_fast.config import ModelTensor, complete_from_model
from triton_fast.errors import InvalidArg
from triton_fast.types import TYPES, DataType

INPUTS = (
    ModelTensor("IN", DataType.INT32, (-1,)),
    ModelTensor("DELAY", DataType.UINT32, (-1,)),
    ModelTensor("WAIT", DataType.UINT32, (1,)),
)
OUTPUTS = (ModelTensor("OUT", DataType.INT32, (1,)), ModelTensor("IDX", DataType.UINT32, (1,)))


class RepeatBackend(Backend):
    name = "repeat"
    default_filename = ""
    version = __version__
    decoupled = True

    def complete_config(self, context: LoadContext) -> Any:
        config = context.config
        complete_from_model(config, INPUTS, OUTPUTS, default_max_batch_size=0, given=context.given)
        if "model_transaction_policy" not in context.given:
            config.model_transaction_policy.decoupled = True
        return config

    def load(self, context: LoadContext) -> BackendModel:
        config = context.config
        if config.max_batch_size != 0:
            raise InvalidArg(
                f"repeat backend only supports models with max_batch_size == 0, got {config.max_batch_size} for "
                f"model '{context.name}'"
            )
        if not config.model_transaction_policy.decoupled:
            raise InvalidArg(
                f"repeat backend requires model_transaction_policy {{ decoupled: true }} for model '{context.name}'"
            )
        return RepeatModel(
            _positions(context, config.input, INPUTS, "input"), _positions(context, config.output, OUTPUTS, "output")
        )


class RepeatModel(BackendModel):
    def __init__(self, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
        self._inputs, self._outputs = inputs, outputs

    def create_instance(self, spec: InstanceSpec) -> RepeatInstance:
        (values, delays, wait), (out, idx) = self._inputs, self._outputs
        return RepeatInstance(spec.name, (values, delays, wait), (out, idx))

    def close(self) -> None:
        """Nothing is held."""


def _positions(
    context: LoadContext, given: Sequence[Any], expected: Sequence[ModelTensor], kind: str
) -> tuple[int, ...]:
    """Check the config's tensors against those of the backend; return where each of the latter stands."""
    where = f"for model '{context.name}'"
    names = [tensor.name for tensor in given]
    if sorted(names) != sorted(tensor.name for tensor in expected):
        wanted = ", ".join(tensor.name for tensor in expected)
        raise InvalidArg(f"repeat backend expects {kind}s {wanted} {where}, got {', '.join(names) or 'none'}")
    found = tuple(names.index(tensor.name) for tensor in expected)
    for position, tensor in zip(found, expected, strict=True):
        entry = given[position]
        dims = list(entry.dims)
        if entry.data_type != tensor.dtype:
            raise InvalidArg(
                f"repeat backend expects {kind} {tensor.name} to have data type {TYPES[tensor.dtype].config} {where}"
            )
        # One dimension is all that a variable one asks for: dims: 4 only makes requests of other sizes invalid.
        if len(dims) != 1 or (tensor.dims != (-1,) and dims != list(tensor.dims)) or entry.HasField("reshape"):
            raise InvalidArg(
                f"repeat backend expects {kind} {tensor.name} to have dims {list(tensor.dims)} {where}, got {dims}"
            )
    if kind == "input" and list(given[found[0]].dims) != list(given[found[1]].dims):
        raise InvalidArg(f"repeat backend expects inputs IN and DELAY to have the same dims {where}")
    return found
