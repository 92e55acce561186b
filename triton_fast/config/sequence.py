"""The tensors that the sequence batcher adds to a model: states and controls, as the config declares them.

Every instance sees them behind the tensors of ``input`` and ``output``, in this order. Source: spec/model_config.md
section 6. Knows no scheduler.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from triton_fast.config.errors import ConfigError
from triton_fast.config.io import IoSpec
from triton_fast.types import DataType

CORRID = 3
# Field of a control's values -> its datatype.
CONTROL_VALUES = {
    "int32_false_true": DataType.INT32, "fp32_false_true": DataType.FP32, "bool_false_true": DataType.BOOL
}  # fmt: skip


class Control(NamedTuple):
    """``kind``: number of ``ModelSequenceBatching.Control.Kind``; ``values``: false, true, none of CORRID."""

    name: str
    kind: int
    dtype: DataType
    values: tuple[float, ...]


class Added(NamedTuple):
    """What stands behind a model's inputs and outputs."""

    inputs: tuple[IoSpec, ...] = ()
    outputs: tuple[IoSpec, ...] = ()


def controls(config: Any) -> list[Control]:
    """Return the control tensors of a validated config, one for each kind."""
    found = []
    for tensor in config.sequence_batching.control_input:
        for control in tensor.control:
            dtype, values = DataType(control.data_type), ()
            for field, of_field in CONTROL_VALUES.items():
                if len(getattr(control, field)):
                    dtype, values = of_field, tuple(getattr(control, field))
            found.append(Control(tensor.name, control.kind, dtype, values))
    return found


def added_specs(config: Any) -> Added:
    """Return the tensors that the sequence batcher adds.

    Raises
    ------
    ConfigError
        A name is used twice among the model's inputs.
    """
    if not config.HasField("sequence_batching"):
        return Added()
    states = config.sequence_batching.state
    inputs = [IoSpec(state.input_name, DataType(state.data_type), tuple(state.dims)) for state in states]
    inputs += [IoSpec(control.name, control.dtype, (1,)) for control in controls(config)]
    names = [tensor.name for tensor in config.input] + [spec.name for spec in inputs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"sequence batching of model '{config.name}' adds the input '{twice}', which the model has already"
        )
    shown = {tensor.name for tensor in config.output}
    outputs = [
        IoSpec(state.output_name, DataType(state.data_type), tuple(state.dims), kept=True)
        for state in states
        if state.output_name not in shown
    ]
    return Added(tuple(inputs), tuple(outputs))


def kept_outputs(config: Any, outputs: Sequence[IoSpec]) -> list[IoSpec]:
    """Return the outputs, those marked that are states too: the scheduler needs them though no client may ask."""
    states = {state.output_name for state in config.sequence_batching.state}
    return [dataclasses.replace(spec, kept=True) if spec.name in states else spec for spec in outputs]
