"""Whether the scheduler block of a config can work: dynamic, sequence (with state) and ensemble wiring.

An ensemble is checked by itself here; against its members when they are loaded, elsewhere.
Source: spec/model_config.md sections 5-7.
"""

from __future__ import annotations

from typing import Any

from triton_fast import protos
from triton_fast.config.defaults import ENSEMBLE
from triton_fast.config.errors import ConfigError
from triton_fast.config.sequence import CONTROL_VALUES
from triton_fast.config.validate_ensemble import check_ensemble
from triton_fast.types import DataType

_CORRID_TYPES = frozenset({DataType.UINT64, DataType.INT64, DataType.UINT32, DataType.INT32, DataType.STRING})
_BOOLEAN_KINDS = ("CONTROL_SEQUENCE_START", "CONTROL_SEQUENCE_END", "CONTROL_SEQUENCE_READY")
_CORRID = "CONTROL_SEQUENCE_CORRID"


def check_scheduling(config: Any) -> None:
    """Check the scheduler block of a normalized config. Raises ConfigError with Triton's text."""
    if config.HasField("dynamic_batching"):
        _check_dynamic(config)
    if config.HasField("sequence_batching"):
        _check_sequence(config)
    if config.HasField("ensemble_scheduling"):
        check_ensemble(config)
    elif config.platform == ENSEMBLE:
        raise ConfigError(f"ensemble scheduling must be set for ensemble {config.name} whose platform is {ENSEMBLE}")


def _check_dynamic(config: Any) -> None:
    batching, name = config.dynamic_batching, config.name
    _check_preferred(batching.preferred_batch_size, config, "dynamic batching preferred size")
    levels = batching.priority_levels
    policies = [batching.priority_queue_policy[level] for level in sorted(batching.priority_queue_policy)]
    if levels:
        if not 1 <= batching.default_priority_level <= levels:
            raise ConfigError(
                f"default priority level must be in range [1, {levels}] for {name}",
                hint=f"got {batching.default_priority_level}; set default_priority_level",
            )
        for level in sorted(batching.priority_queue_policy):
            if not 1 <= level <= levels:
                raise ConfigError(
                    f"priority queue policy must have priority level in range [1, {levels}] for {name}",
                    hint=f"got {level}",
                )
    if batching.preserve_ordering:
        if levels > 1:
            raise ConfigError(f"Only one priority level is allowed when 'preserve_ordering' is true for {name}")
        for policy in (batching.default_queue_policy, *policies):
            if policy.default_timeout_microseconds and policy.timeout_action == protos.ModelQueuePolicy.DELAY:
                raise ConfigError(
                    f"Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true for {name}"
                )


def _check_preferred(sizes: Any, config: Any, what: str) -> None:
    for size in sizes:
        if size <= 0:
            raise ConfigError(f"{what} must be positive for {config.name}", hint=f"got {size}")
        if size > config.max_batch_size:
            raise ConfigError(
                f"{what} must be <= max batch size for {config.name}",
                hint=f"got {size}, max_batch_size is {config.max_batch_size}",
            )


def _check_sequence(config: Any) -> None:
    batching, name = config.sequence_batching, config.name
    if config.response_cache.enable:
        raise ConfigError(
            f"Response Cache does not currently support model {name} with sequence batching scheduler. "
            "Please disable the response cache."
        )
    if "TRITON_BATCH_STRATEGY_PATH" in config.parameters:
        raise ConfigError(
            "TRITON_BATCH_STRATEGY_PATH cannot be specified with sequence batcher, using default batching strategy"
        )
    for kind in _BOOLEAN_KINDS:
        _check_control(batching, kind, name)
    _check_control(batching, _CORRID, name)
    if batching.HasField("oldest"):
        _check_preferred(batching.oldest.preferred_batch_size, config, "sequence batching preferred batch size")
    if batching.HasField("direct") and not 0.0 <= batching.direct.minimum_slot_utilization <= 1.0:
        raise ConfigError(
            f"sequence batching minimum slot utilization must be in range (0.0, 1.0] for {name}",
            hint=f"got {batching.direct.minimum_slot_utilization:g}",
        )
    _check_states(batching)


def _check_control(batching: Any, kind: str, model: str) -> None:
    number = protos.ModelSequenceBatching.Control.Kind.Value(kind)
    seen: set[str] = set()
    found = None
    for tensor in batching.control_input:
        if not tensor.name:
            raise ConfigError(f"sequence batching control tensor must have a name for {model}")
        if tensor.name in seen:
            raise ConfigError(
                f"sequence batching control tensor '{tensor.name}' is specified for multiple control kinds for {model}"
            )
        seen.add(tensor.name)
        for control in tensor.control:
            if control.kind != number:
                continue
            if found is not None:
                raise ConfigError(f"sequence batching specifies multiple {kind} tensors for {model}")
            found = control
            _check_control_values(control, kind, model)
    if found is not None and kind == _CORRID and found.data_type not in _CORRID_TYPES:
        raise ConfigError(
            f"unexpected data type for control {_CORRID} for {model}. Allowed data types are TYPE_UINT64, "
            "TYPE_INT64, TYPE_UINT32, TYPE_INT32 and TYPE_STRING",
            hint="" if found.data_type else "data_type is not set",
        )


def _check_control_values(control: Any, kind: str, model: str) -> None:
    given = [field for field in CONTROL_VALUES if len(getattr(control, field))]
    end = f"for {kind} for {model}"
    if kind == _CORRID:
        if given:
            raise ConfigError(
                "sequence batching must not specify either 'int32_false_true', 'fp32_false_true' or "
                f"'bool_false_true' {end}"
            )
        return
    if not given:
        raise ConfigError(
            f"sequence batching must specify either 'int32_false_true', 'fp32_false_true' or 'bool_false_true' {end}",
            hint="for example int32_false_true: [ 0, 1 ]",
        )
    if len(given) > 1:
        raise ConfigError(
            "sequence batching specifies more than one from 'int32_false_true', 'fp32_false_true' and "
            f"'bool_false_true' {end}"
        )
    count = len(getattr(control, given[0]))
    if count != 2:
        raise ConfigError(
            f"sequence batching control '{given[0]}' must have exactly 2 entries {end}", hint=f"got {count}"
        )


def _check_states(batching: Any) -> None:
    inputs: set[str] = set()
    for state in batching.state:
        name = state.input_name
        if len(state.initial_state) > 1:
            raise ConfigError(
                f"initial_state field for state input '{name}' must contain exactly one or zero element. "
                f"Found '{len(state.initial_state)}' elements."
            )
        if state.initial_state:
            _check_initial_state(state, state.initial_state[0], repeated=name in inputs)
            inputs.add(name)


def _check_initial_state(state: Any, initial: Any, *, repeated: bool) -> None:
    name = state.input_name
    if initial.data_type != state.data_type:
        raise ConfigError(
            f"The data type used for 'initial_state' field of state '{name}' does not match the state data type."
        )
    if not initial.name:
        raise ConfigError(f"Field 'name' must be set when using initial_state for state input '{name}'.")
    if repeated:
        raise ConfigError(f"State input name '{name}' specified more than once.")
    if len(initial.dims) != len(state.dims):
        raise ConfigError(
            "Number of dimensions in 'initial_state' doesn't match the size of 'state' dimensions for state input "
            f"'{name}'. {len(initial.dims)} != {len(state.dims)}"
        )
    for given, expected in zip(initial.dims, state.dims, strict=True):
        if given == -1:
            raise ConfigError(f"'initial_state' field for state input name '{name}' contains variable dimensions.")
        if given < -1 or (expected not in (-1, given)):
            raise ConfigError(
                f"'initial_state' dim for input name '{name}' doesn't match 'state' dim description. "
                f"{given} != {expected}"
            )
    if initial.WhichOneof("state_data") is None:
        raise ConfigError(
            f"initial_state setting expects state'{name}' to have state_data set",
            hint="zero_data: true or data_file",
        )
