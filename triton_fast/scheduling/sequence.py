"""From ``sequence_batching`` of a config to the native sequence batcher.

Source: spec/model_config.md section 6. Knows the config and the engine; starts no instances.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

from triton_fast._native.sched.model import NativeModel
from triton_fast._native.sched.sequence import NativeSequences
from triton_fast.backends.values import LIMIT, plain
from triton_fast.config import ConfigError, Control, controls
from triton_fast.config.files import read_regular
from triton_fast.errors import Code, InvalidArg
from triton_fast.scheduling.queues import max_queue_bytes
from triton_fast.types import TYPES, DataType

# A larger initial state is a mistake in the config.
MAX_STATE_BYTES = 1 << 32
# One batch holds no more (MAX_TAKE of sched/policy.pxd).
MAX_DIRECT_SLOTS = 4096
# Parameters of ours: Triton's sequence batcher has no queue policy, and no end. More than an honest client ever has.
WAITING = ("max_waiting_sequences", "max_waiting_requests")
MAX_WAITING = 65536
_FORMATS = {DataType.INT32: "<i", DataType.FP32: "<f", DataType.BOOL: "<?"}


def use_sequences(
    native: NativeModel, config: Any, instances: int, model_dir: Path, full_code: Code = Code.UNAVAILABLE
) -> NativeSequences:
    """Have the sequence batcher of ``config`` take the requests of ``native``.

    ``full_code``: what a request gets for which there is no place (parameters ``WAITING`` and ``max_queue_bytes``).

    Raises
    ------
    ConfigError
        An initial state can not be read, or is not what its config says.
    InvalidArg
        One of these is no number from 1.
    """
    batching, batch = config.sequence_batching, config.max_batch_size
    oldest = batching.HasField("oldest")
    candidates = batching.oldest.max_candidate_sequences
    slots = candidates if oldest and candidates > 0 else min(max(1, batch), MAX_DIRECT_SLOTS)
    strategy = batching.oldest if oldest else batching.direct
    sequences, requests = max_waiting(config)
    made = NativeSequences(
        native,
        instances=instances,
        slots=slots,
        direct=not oldest,
        idle_us=batching.max_sequence_idle_microseconds,
        delay_us=strategy.max_queue_delay_microseconds,
        utilization=0.0 if oldest else strategy.minimum_slot_utilization,
        preferred=tuple(strategy.preferred_batch_size) if oldest else (),
        controls=[_control(control) for control in controls(config)],
        states=read_states(config, model_dir),
        iterative=batching.iterative_sequence,
        max_waiting=sequences,
        max_requests=requests,
        max_bytes=max_queue_bytes(config),
        full_code=int(full_code),
    )
    native.use(made)
    return made


def max_waiting(config: Any) -> tuple[int, ...]:
    """Return how many sequences may wait for a slot, and how many requests of one sequence. Raises InvalidArg."""
    return tuple(_most(config, name) for name in WAITING)


def _most(config: Any, name: str) -> int:
    if name not in config.parameters:
        return MAX_WAITING
    text = config.parameters[name].string_value
    value = plain(text.strip(), LIMIT)
    if value < 1:
        raise InvalidArg(f"parameter '{name}' of model '{config.name}' must be a number from 1, got '{text}'")
    return value


def read_states(config: Any, model_dir: Path) -> list[tuple[str, str, int, tuple[int, ...], tuple[int, ...], bytes]]:
    """Return (input, output, datatype, dims, first shape, first data) of each state. Raises ConfigError."""
    return [_state(config, state, model_dir) for state in config.sequence_batching.state]


def _control(control: Control) -> tuple[str, int, int, bytes, bytes]:
    # CORRID has none.
    values = [struct.pack(_FORMATS[control.dtype], value) for value in control.values] or [b"", b""]
    return control.name, control.kind, int(control.dtype), values[0], values[1]


def _state(config: Any, state: Any, model_dir: Path) -> tuple[str, str, int, tuple[int, ...], tuple[int, ...], bytes]:
    # Triton begins with whatever memory there is; here it is zeros.
    first = tuple(state.initial_state[0].dims) if state.initial_state else tuple(max(dim, 1) for dim in state.dims)
    first = tuple(1 if dim < 0 else dim for dim in first)
    size = math.prod(first) * (TYPES[DataType(state.data_type)].size or 4)
    if size > MAX_STATE_BYTES:
        raise ConfigError(
            f"the initial state of '{state.input_name}' of model '{config.name}' would have {size} bytes, the limit is "
            f"{MAX_STATE_BYTES}"
        )
    data = bytes(size)
    if state.initial_state and state.initial_state[0].WhichOneof("state_data") == "data_file":
        data = _file(config, state, size, math.prod(first), model_dir)
    return state.input_name, state.output_name, int(state.data_type), tuple(state.dims), first, data


def _file(config: Any, state: Any, size: int, count: int, model_dir: Path) -> bytes:
    name = state.initial_state[0].data_file
    what = f"initial_state '{state.initial_state[0].name}' of model '{config.name}'"
    is_text = state.data_type == DataType.STRING
    try:
        data = read_regular(model_dir / "initial_state" / name, (MAX_STATE_BYTES if is_text else size) + 1)
    except OSError as error:
        raise ConfigError(f"{what}: 'initial_state/{name}' can not be read: {error.strerror}") from None
    if len(data) != size and not is_text:
        given = f"{len(data)} bytes" if len(data) < size else "more"
        raise ConfigError(f"{what}: 'initial_state/{name}' must have {size} bytes, it has {given}")
    if is_text and (len(data) > MAX_STATE_BYTES or _strings(data) != count):
        raise ConfigError(
            f"{what}: 'initial_state/{name}' must hold {count} strings, each behind its length as 4 bytes"
        )
    return data


def _strings(data: bytes) -> int:
    """Return how many strings in wire form these are; -1 when they are none."""
    at = count = 0
    while at < len(data):
        if len(data) - at < 4:
            return -1
        at += 4 + int.from_bytes(data[at : at + 4], "little")
        count += 1
    return count if at == len(data) else -1
