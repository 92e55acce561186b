"""A config against the engine: what the user left out is filled in, what does not fit is refused.

Knows configs and described engines. Rules and texts are those of Triton's TensorRT backend.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from triton_fast.backends.tensorrt.engine import DATATYPES, LINEAR, Engine, Profile, Range, Tensor
from triton_fast.config import ConfigError, added_specs, controls
from triton_fast.config.errors import did_you_mean, shape_text
from triton_fast.errors import Internal, Unsupported
from triton_fast.observability import log
from triton_fast.types import TYPES, DataType

MAX_BYTES = 1 << 46


class _Wanted(NamedTuple):
    """A tensor as the config or its scheduler has it. ``kind``: input or output."""

    kind: str
    name: str
    dtype: int
    dims: tuple[int, ...]
    is_control: bool = False


def profile_numbers(group: Any) -> list[int]:
    """Return the profiles of an instance group, each once, smallest first; the first one where it names none."""
    return sorted({int(name) for name in group.profile}) or [0]


# --- what the user left out ------------------------------------------------------------------------------------------


def complete(config: Any, engine: Engine, given: Collection[str]) -> None:
    """Fill max_batch_size, dynamic_batching, input and output in place. Raises ConfigError, or Internal as Triton."""
    prefix = f"autofill failed for model '{config.name}': "
    hint = _batch_hint(config, engine)
    largest = _largest_batch(config, engine)
    if hint and largest == 0:
        raise Internal(
            f"{prefix}model tensor shape configuration hints for dynamic batching but the underlying engine doesn't "
            "support batching."
        )
    if hint is False and largest:
        log.warning(f"The specified dimensions in model config for {config.name} hints that batching is unavailable")
        largest = 0
    if config.max_batch_size > largest:
        raise Internal(
            f"{prefix}configuration specified max-batch {config.max_batch_size} but TensorRT engine only supports "
            f"max-batch {largest}"
        )
    if config.max_batch_size == 0 and "max_batch_size" not in given:
        config.max_batch_size = largest
    if config.max_batch_size > 1 and config.WhichOneof("scheduling_choice") is None:
        config.dynamic_batching.SetInParent()
    added = added_specs(config)
    names = {spec.name for spec in (*added.inputs, *added.outputs)}
    tensors = [tensor for tensor in engine.tensors if tensor.name not in names]
    _complete_tensors(config, config.input, [tensor for tensor in tensors if tensor.is_input])
    _complete_tensors(config, config.output, [tensor for tensor in tensors if not tensor.is_input])


def _batch_hint(config: Any, engine: Engine) -> bool | None:
    """Tell from the dims that the user wrote whether batches are meant; None when there are none."""
    known = {tensor.name: tensor for tensor in engine.tensors}
    _check_names(config, engine)
    hint: bool | None = None
    for given in (*config.input, *config.output):
        dims = _wanted(given)
        if getattr(given, "allow_ragged_batch", False):
            return True
        if not given.dims:
            continue
        tensor = known[given.name]
        if tensor.is_shape:
            batched = bool(tensor.dims) and tensor.dims[0] == (dims[0] if dims else 0) + 1
        else:
            batched = len(tensor.dims) == len(dims) + 1
        if hint and not batched:
            raise Internal(
                f"unable to autofill for '{config.name}', model tensor configurations are contradicting each other in "
                "terms of whether batching is supported"
            )
        hint = batched or bool(hint)
    return hint


def _largest_batch(config: Any, engine: Engine) -> int:
    """Return the largest batch that a profile in use takes; 0 where the first dimensions are no batch's."""
    plain = [tensor for tensor in engine.tensors if not tensor.is_shape]
    firsts = {tensor.dims[0] if tensor.dims else 0 for tensor in plain}
    if 0 in firsts or len(firsts - {-1}) > (0 if -1 in firsts else 1):
        return 0
    largest = 0
    for index in _used(config, engine):
        profile = engine.profile(index)
        sizes = [
            profile.values[tensor.name].high[0] if tensor.is_shape else profile.shapes[tensor.name].high[0]
            for tensor in engine.tensors
            if tensor.is_input and (profile.values[tensor.name].high if tensor.is_shape else tensor.dims)
        ]
        largest = max(largest, min(sizes, default=0))
    return largest


def _used(config: Any, engine: Engine) -> list[int]:
    found: set[int] = set()
    for group in config.instance_group:
        for index in profile_numbers(group) if group.profile else ():
            if index >= engine.profiles:
                raise Internal(
                    f"unable to autofill for '{config.name}', configuration specified invalid profile {index} . "
                    f"Number of profiles supported by TensorRT engine: {engine.profiles}"
                )
            found.add(index)
    return sorted(found) or [0]


def _complete_tensors(config: Any, target: Any, tensors: Sequence[Tensor]) -> None:
    if not target:
        for tensor in tensors:
            target.add(name=tensor.name)
    known = {tensor.name: tensor for tensor in tensors}
    for entry in target:
        if entry.name not in known:
            continue
        tensor = known[entry.name]
        if entry.data_type == DataType.INVALID:
            if tensor.dtype == DataType.INVALID:
                raise _no_datatype(config, tensor)
            entry.data_type = int(tensor.dtype)
        if not entry.dims:
            _fill_dims(entry, tensor, batched=config.max_batch_size > 0)
        if entry.is_shape_tensor and not tensor.is_shape:
            raise ConfigError(f"'{entry.name}' is incorrectly specified as a shape tensor.")
        entry.is_shape_tensor = tensor.is_shape
        if entry.is_non_linear_format_io and tensor.format == LINEAR:
            raise ConfigError(
                f"'{entry.name}' uses a linear IO format, but 'is_non_linear_format_io' is incorrectly set to true in "
                "the model configuration."
            )
        entry.is_non_linear_format_io = tensor.format != LINEAR


def _fill_dims(entry: Any, tensor: Tensor, *, batched: bool) -> None:
    dims: tuple[int, ...]
    if tensor.is_shape:
        # A batch's size is the first of the values, and not the client's business.
        dims = (tensor.dims[0] - batched,) if tensor.dims else (1,)
    else:
        dims = tensor.dims[1:] if batched else tensor.dims
        if batched and not dims:
            entry.reshape.SetInParent()
    entry.dims.extend(dims or (1,))


# --- what does not fit -----------------------------------------------------------------------------------------------


def check(config: Any, engine: Engine, profiles: Iterable[Profile]) -> None:
    """Refuse a complete config that the engine can not serve. Raises ConfigError, Internal or Unsupported."""
    prefix = f"unable to load model '{config.name}'"
    inputs = [tensor for tensor in engine.tensors if tensor.is_input]
    if len(inputs) < len(config.input):
        raise ConfigError(
            f"{prefix}, configuration expects {len(config.input)} inputs, model provides at most {len(inputs)}"
        )
    if config.batch_input or any(entry.allow_ragged_batch for entry in config.input):
        raise Unsupported(f"{prefix}, ragged and batch inputs are not served for TensorRT by this version")
    _check_names(config, engine)
    known = {tensor.name: tensor for tensor in engine.tensors}
    for kind, given in (("input", config.input), ("output", config.output)):
        for entry in given:
            _check_marks(config, kind, entry, known[entry.name])
    profiles = list(profiles)
    added = added_specs(config)
    control_names = {control.name for control in controls(config)} if added.inputs else set()
    for wanted in (
        *(_Wanted("input", one.name, one.data_type, _wanted(one)) for one in config.input),
        *(_Wanted("output", one.name, one.data_type, _wanted(one)) for one in config.output),
        *(_Wanted("input", one.name, one.dtype, one.dims, one.name in control_names) for one in added.inputs),
        *(_Wanted("output", one.name, one.dtype, one.dims) for one in added.outputs),
    ):
        _check_tensor(config, wanted, known, profiles)
    named = {entry.name for entry in (*config.input, *config.output, *added.inputs, *added.outputs)}
    for tensor in engine.tensors:
        if tensor.name not in named:
            kind = "input" if tensor.is_input else "output"
            raise ConfigError(f"expected configuration for {kind} '{tensor.name}' for {config.name}")
        _check_layout(config, tensor)


def _check_names(config: Any, engine: Engine) -> None:
    for kind, given in (("input", config.input), ("output", config.output)):
        allowed = sorted(tensor.name for tensor in engine.tensors if tensor.is_input == (kind == "input"))
        for entry in given:
            if entry.name not in allowed:
                raise ConfigError(
                    f"unexpected inference {kind} '{entry.name}', allowed {kind}s are: {', '.join(allowed)}",
                    hint=did_you_mean(entry.name, allowed),
                )


def _check_marks(config: Any, kind: str, entry: Any, tensor: Tensor) -> None:
    where = f"{kind} '{entry.name}' for model '{config.name}'"
    if entry.data_type not in set(DATATYPES.values()):
        raise Internal(f"unsupported datatype {_config_name(entry.data_type)} for {where}")
    if tensor.is_shape and not entry.is_shape_tensor:
        raise Internal(f"{where} is a shape tensor but the model configuration doesn't mark it as a shape tensor.")
    if entry.is_shape_tensor and not tensor.is_shape:
        raise Internal(f"{where} is incorrectly marked as a shape tensor in the model configuration.")
    is_linear = tensor.format == LINEAR
    if entry.is_non_linear_format_io == is_linear:
        raise Internal(
            f"{where} uses a {'' if is_linear else 'non-'}linear IO format, but 'is_non_linear_format_io' is "
            f"incorrectly set to {'true' if is_linear else 'false'} in the model configuration."
        )


def _check_tensor(config: Any, wanted: _Wanted, known: dict[str, Tensor], profiles: Sequence[Profile]) -> None:
    kind, name, dtype, dims, is_control = wanted
    tensor = known.get(name)
    if tensor is None:
        raise ConfigError(f"{kind} '{name}' not found for {config.name}", hint=did_you_mean(name, known))
    if tensor.is_input != (kind == "input"):
        other = "an output" if kind == "output" else "an input"
        raise ConfigError(f"{kind} '{name}' is expected to be {other} in model for {config.name}")
    if tensor.dtype != dtype or tensor.dtype == DataType.INVALID:
        raise ConfigError(
            f"unexpected datatype {_config_name(tensor.dtype)} for inference {kind} '{name}', expecting "
            f"{_config_name(dtype)} for {config.name}"
        )
    batched = config.max_batch_size > 0
    if tensor.is_shape:
        _check_shape_tensor(config, kind, tensor, dims)
    elif is_control and -1 in tensor.dims:
        _check_control(config, tensor)
    else:
        _check_dims(config, tensor, dims)
    if kind == "input" and not tensor.is_shape:
        for profile in profiles:
            fault = outside((-1, *dims) if batched else dims, profile.shapes[name]) if tensor.dims else ""
            if fault:
                raise ConfigError(
                    f"model configuration specified invalid shape for input '{name}' for model {config.name}. Error "
                    f"details: {fault}"
                )


def _check_dims(config: Any, tensor: Tensor, dims: Sequence[int]) -> None:
    where = f"model '{config.name}', tensor '{tensor.name}': "
    shape = shape_text(tensor.dims)
    batched = config.max_batch_size > 0
    if not tensor.dims:
        if batched:
            raise ConfigError(
                f"{where}for the model to support batching the shape should have at least 1 dimension; but shape "
                f"expected by the model is {shape}"
            )
        if all(dim == 1 for dim in dims):
            return  # a config has no word for a scalar
    full = (-1, *dims) if batched else tuple(dims)
    if len(full) == len(tensor.dims) and all(
        -1 in (ours, theirs) or ours == theirs for ours, theirs in zip(full, tensor.dims, strict=True)
    ):
        return
    told = f"{len(full)} dimensions (shape {shape_text(full)})"
    if batched:
        told = (
            f"{len(full)} dimensions (an initial batch dimension because max_batch_size > 0 followed by the explicit "
            f"tensor shape, making complete shape {shape_text(full)})"
        )
    raise ConfigError(
        f"{where}the model expects {len(tensor.dims)} dimensions (shape {shape}) but the model configuration "
        f"specifies {told}"
    )


def _check_control(config: Any, tensor: Tensor) -> None:
    first = -1 if config.max_batch_size > 0 else 1
    fault = ""
    if tensor.dims[0] != first:
        fault = f"expects the first dimension to be {first} but the model specified {tensor.dims[0]}"
    elif any(dim != 1 for dim in tensor.dims[1:]):
        fault = (
            "expects all dimensions (conditionally first) to be 1 but the model specified shape "
            f"{shape_text(tensor.dims)}"
        )
    if fault:
        raise ConfigError(
            f"unexpected shape {shape_text(tensor.dims)} for control input '{tensor.name}' for model {config.name}: "
            f"{fault}"
        )


def _check_shape_tensor(config: Any, kind: str, tensor: Tensor, dims: Sequence[int]) -> None:
    prefix = f"unable to load model '{config.name}'"
    allowed = (DataType.INT32, DataType.INT64) if kind == "input" else (DataType.INT64,)
    if tensor.dtype not in allowed:
        raise ConfigError(
            f"unexpected datatype {_config_name(tensor.dtype)} in model configuration for shape {kind} "
            f"'{tensor.name}', expecting {' or '.join(map(_config_name, allowed))} for {config.name}"
        )
    if len(tensor.dims) > 1:
        raise Internal(
            f"{prefix}, shape binding '{tensor.name}' can only be 0-d or 1-D tensor, got {shape_text(tensor.dims)}"
        )
    batched = config.max_batch_size > 0
    if batched and not tensor.dims:
        raise Internal(
            f"{prefix}, shape binding '{tensor.name}' is a scalar: it can not have the batch size as first value"
        )
    fits = list(dims) == [1] if not tensor.dims else len(dims) == 1 and dims[0] + batched == tensor.dims[0] >= 0
    if not fits:
        raise Internal(
            f"{prefix}, binding '{tensor.name}' shape expected by framework {shape_text(tensor.dims)} doesn't match "
            f"model configuration shape {shape_text(dims)}"
        )


def _check_layout(config: Any, tensor: Tensor) -> None:
    if tensor.format == LINEAR:
        return
    dim, length = tensor.vector
    if dim == -1:
        raise ConfigError(f"unexpected vectorized dim is -1 for non-linear tensor '{tensor.name}' for {config.name}")
    # Clients send and get tensors as long as their shape says.
    if not (0 <= dim < len(tensor.dims)) or tensor.dims[dim] < 0 or length < 1 or tensor.dims[dim] % length:
        raise Unsupported(
            f"unable to load model '{config.name}', tensor '{tensor.name}' has layout {tensor.format} with dimension "
            f"{dim} filled up to a multiple of {length}, which this version does not serve"
        )


# --- sizes -----------------------------------------------------------------------------------------------------------


def outside(dims: Sequence[int], allowed: Range) -> str:
    """Return why a shape (-1: any) is none of a profile's, "" when it is one."""
    if len(dims) != len(allowed.high):
        return f"model expected {len(allowed.high)} dimensions but received {len(dims)} dimensions"
    for i, (dim, low, high) in enumerate(zip(dims, allowed.low, allowed.high, strict=True)):
        if dim != -1 and not low <= dim <= high:
            return f"model expected the shape of dimension {i} to be between {low} and {high} but received {dim}"
    return ""


def largest_dims(config: Any, dims: Sequence[int], allowed: Range) -> tuple[int, ...]:
    """Return the largest shape of an input that both the profile and the config take."""
    batched = config.max_batch_size > 0
    wanted = (config.max_batch_size, *dims) if batched else tuple(dims)
    if len(wanted) != len(allowed.high):
        return allowed.high  # a scalar
    return tuple(high if want == -1 else min(want, high) for want, high in zip(wanted, allowed.high, strict=True))


def size_of(config: Any, name: str, dtype: int, dims: Sequence[int]) -> int:
    """Return the bytes of a tensor. Raises ConfigError when they are no sensible number."""
    total = TYPES[DataType(dtype)].size
    for dim in dims:
        total *= dim
        if dim < 0 or total > MAX_BYTES:
            raise ConfigError(
                f"unable to calculate size for '{name}' for {config.name}: its largest shape is {shape_text(dims)}"
            )
    return total


def _wanted(entry: Any) -> tuple[int, ...]:
    return tuple(entry.reshape.shape) if entry.HasField("reshape") else tuple(entry.dims)


def _config_name(dtype: int) -> str:
    return TYPES[DataType(dtype)].config if DataType(dtype) in TYPES else "TYPE_INVALID"


def _no_datatype(config: Any, tensor: Tensor) -> ConfigError:
    kind = "input" if tensor.is_input else "output"
    return ConfigError(
        f"unable to load model '{config.name}', {kind} '{tensor.name}' has a datatype without counterpart in the v2 "
        "protocol"
    )
