"""Auto-complete from the model's own tensors, and the checks of a config against them.

Fills only what the user left out. Knows tensors as (name, datatype, dims), never a model file or a runtime.
Rules and texts are those of Triton's ONNX Runtime backend. Source: spec/model_config.md sections 2 (3), 4, 9.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from triton_fast.config.defaults import normalize_blocks
from triton_fast.config.errors import ConfigError, did_you_mean, shape_text
from triton_fast.config.sequence import CONTROL_VALUES
from triton_fast.errors import Internal
from triton_fast.types import TYPES, DataType


class ModelTensor(NamedTuple):
    """A tensor as the model declares it: ``dims`` with the batch dimension, -1 where variable."""

    name: str
    dtype: DataType
    dims: tuple[int, ...]


def complete_from_model(
    config: Any,
    inputs: Sequence[ModelTensor],
    outputs: Sequence[ModelTensor],
    *,
    default_max_batch_size: int,
    given: Collection[str] = (),
) -> None:
    """Fill max_batch_size, input, output and dynamic_batching of ``config`` in place where the user gave none.

    Parameters
    ----------
    inputs, outputs
        What the model declares.
    default_max_batch_size
        The backend's ``default-max-batch-size`` (4).
    given
        Names of the fields the user wrote (`Parsed.given`): a written ``max_batch_size: 0`` stays 0.

    Raises
    ------
    ConfigError
        ``autofill failed for model ...`` when the user wants batches and the model has no batch dimension.
    """
    inputs, outputs = _tensors(inputs), _tensors(outputs)
    have_inputs = bool(config.input or config.batch_input)
    have_outputs = bool(config.output)
    if have_inputs and have_outputs:
        return
    _complete_batching(config, (*inputs, *outputs), default_max_batch_size, given)
    if not have_inputs:
        _add_tensors(config.name, config.input, inputs, batched=config.max_batch_size > 0)
    if not have_outputs:
        _add_tensors(config.name, config.output, outputs, batched=config.max_batch_size > 0)
    normalize_blocks(config)


def _complete_batching(config: Any, tensors: Sequence[ModelTensor], default: int, given: Collection[str]) -> None:
    fixed = next((tensor for tensor in tensors if not tensor.dims or tensor.dims[0] != -1), None)
    if fixed is not None:
        if config.max_batch_size != 0:
            raise ConfigError(
                f"autofill failed for model '{config.name}': model does not support batching while non-zero "
                "max_batch_size is specified",
                hint=f"'{fixed.name}' has shape {shape_text(fixed.dims)}, its first dimension is not -1; "
                "remove max_batch_size or export the model with a variable batch dimension",
            )
        return
    if config.max_batch_size == 0 and "max_batch_size" not in given and not _written_in_full(config, tensors):
        config.max_batch_size = max(default, 0)
    if config.max_batch_size > 1 and config.WhichOneof("scheduling_choice") is None:
        config.dynamic_batching.SetInParent()


def _written_in_full(config: Any, tensors: Sequence[ModelTensor]) -> bool:
    """Tell whether the user wrote shapes with their batch dimension: then the model is meant as not batching."""
    ranks = {tensor.name: len(tensor.dims) for tensor in tensors}
    return any(tensor.dims and len(tensor.dims) == ranks.get(tensor.name) for tensor in (*config.input, *config.output))


def _add_tensors(name: str, target: Any, tensors: Sequence[ModelTensor], *, batched: bool) -> None:
    for tensor in tensors:
        if tensor.dtype is DataType.INVALID:
            raise ConfigError(
                f"autofill failed for model '{name}': '{tensor.name}' has a datatype that is not supported",
                hint="list the inputs and outputs that are to be served in config.pbtxt, without it if the model can",
            )
        entry = target.add(name=tensor.name, data_type=int(tensor.dtype))
        dims = tensor.dims[1:] if batched else tensor.dims
        entry.dims.extend(dims or (1,))
        if batched and not dims:
            entry.reshape.SetInParent()


def check_against_model(
    config: Any,
    inputs: Sequence[ModelTensor],
    outputs: Sequence[ModelTensor],
    *,
    optional: Sequence[ModelTensor] = (),
) -> None:
    """Refuse a config that does not fit the model.

    ``optional`` are initializers that a request may override. Raises ConfigError, or Internal for a datatype or
    control tensor the model does not have.
    """
    inputs, outputs, optional = _tensors(inputs), _tensors(outputs), _tensors(optional)
    prefix = f"unable to load model '{config.name}'"
    known = {tensor.name: tensor for tensor in (*inputs, *optional)}
    for tensor in config.input:
        _check_optional(tensor, config, prefix)
    expected = _expected_inputs(config, {tensor.name: tensor for tensor in inputs}, prefix)
    if len(inputs) != expected:
        raise ConfigError(
            f"{prefix}, configuration expects {expected} inputs, model provides {len(inputs)}",
            hint=f"the model's inputs are {_names(inputs)}",
        )
    for tensor in config.input:
        model = _find(tensor, known, "input")
        _check_datatype(tensor, model, "input", config, prefix)
        if tensor.allow_ragged_batch:
            if model.dims != (-1,):
                raise ConfigError(
                    f"{prefix}, configuration expects model provides input with shape [-1]  for ragged input "
                    f"'{tensor.name}', model provides {shape_text(model.dims)}"
                )
        else:
            _check_dims(tensor, model, config, prefix, exact=False)
    results = {tensor.name: tensor for tensor in outputs}
    scattered = {name for item in config.batch_output for name in item.target_name}
    for tensor in config.output:
        model = _find(tensor, results, "output")
        _check_datatype(tensor, model, "output", config, prefix)
        if tensor.name not in scattered:
            _check_dims(tensor, model, config, prefix, exact=True)
    _check_states(config, results, prefix)


def _tensors(tensors: Iterable[tuple[str, int, Iterable[int]]]) -> list[ModelTensor]:
    return [ModelTensor(name, DataType(dtype), tuple(dims)) for name, dtype, dims in tensors]


def _names(tensors: Sequence[ModelTensor]) -> str:
    return ", ".join(f"'{tensor.name}'" for tensor in tensors) or "none"


def _expected_inputs(config: Any, known: dict[str, ModelTensor], prefix: str) -> int:
    """Return how many inputs the model must have; initializers that the config marks optional do not count."""
    expected = sum(not tensor.optional for tensor in config.input)
    for item in config.batch_input:
        for target in item.target_name:
            expected += 1
            _check_batch_input(target, item, known, config, prefix)
    if config.HasField("sequence_batching"):
        expected += len(config.sequence_batching.state)
        for control in config.sequence_batching.control_input:
            for item in control.control:
                expected += 1
                wanted = next((dtype for field, dtype in CONTROL_VALUES.items() if len(getattr(item, field))), None)
                _check_control(control.name, wanted or DataType(item.data_type), known, config, prefix)
    return expected


def _check_control(name: str, dtype: DataType, known: dict[str, ModelTensor], config: Any, prefix: str) -> None:
    model = known.get(name)
    if model is None:
        raise Internal(f"configuration specified sequence control '{name}', but model does not provide that input")
    dims = model.dims[1:] if config.max_batch_size > 0 else model.dims
    if dims != (1,):
        raise ConfigError(
            f"{prefix}, sequence control '{name}' in model has dims {shape_text(dims)} but dims [1] is expected"
        )
    if model.dtype != dtype:
        raise ConfigError(
            f"{prefix}, sequence control '{name}', the model expects data-type {_type_name(model.dtype)} but the "
            f"model configuration specifies data-type {_type_name(dtype)}"
        )


def _check_batch_input(name: str, item: Any, known: dict[str, ModelTensor], config: Any, prefix: str) -> None:
    model = known.get(name)
    if model is None:
        raise ConfigError(
            f"{prefix}, batch input '{name}' is not an input of the model", hint=did_you_mean(name, known)
        )
    if model.dtype != DataType(item.data_type):
        raise ConfigError(
            f"{prefix}, configuration expects datatype {_type_name(DataType(item.data_type))} for batch input "
            f"'{name}', model provides {_type_name(model.dtype)}"
        )
    rank = 2 if item.kind == item.BATCH_ITEM_SHAPE else 1
    if len(model.dims) != rank:
        raise ConfigError(
            f"{prefix}, batch input '{name}' has {rank} dimension{'s' * (rank - 1)}, model provides "
            f"{shape_text(model.dims)}"
        )


def _check_optional(tensor: Any, config: Any, prefix: str) -> None:
    if not tensor.optional:
        return
    if config.max_batch_size != 0:
        raise ConfigError(f"{prefix}, optional input '{tensor.name}' is not supported for models that support batching")
    if tensor.allow_ragged_batch:
        raise ConfigError(
            f"{prefix}, configuration expects model provides input with shape [-1] for ragged input "
            f"'{tensor.name}', which is not supported for optional input"
        )


def _find(tensor: Any, known: dict[str, ModelTensor], kind: str) -> ModelTensor:
    model = known.get(tensor.name)
    if model is None:
        raise ConfigError(
            f"unexpected inference {kind} '{tensor.name}', allowed {kind}s are: {', '.join(sorted(known))}",
            hint=did_you_mean(tensor.name, known),
        )
    return model


def _type_name(dtype: int) -> str:
    info = TYPES.get(DataType(dtype))
    return info.config if info is not None else "TYPE_INVALID"


def _check_datatype(tensor: Any, model: ModelTensor, kind: str, config: Any, prefix: str) -> None:
    if tensor.data_type == DataType.INVALID:
        raise Internal(f"unsupported datatype TYPE_INVALID for {kind} '{tensor.name}' for model '{config.name}'")
    if tensor.data_type != model.dtype:
        # Triton prints the wire name here: TYPE_BYTES for strings.
        provided = TYPES[model.dtype].wire if model.dtype in TYPES else "<invalid>"
        raise ConfigError(
            f"{prefix}, configuration expects datatype {_type_name(tensor.data_type)} for {kind} '{tensor.name}', "
            f"model provides TYPE_{provided}"
        )


def _check_dims(tensor: Any, model: ModelTensor, config: Any, prefix: str, *, exact: bool) -> None:
    """Compare shapes. A fixed dimension of the config may stand for a variable one of the model's inputs."""
    dims = tuple(tensor.reshape.shape) if tensor.HasField("reshape") else tuple(tensor.dims)
    if not model.dims:
        if any(dim != 1 for dim in dims):
            raise ConfigError(
                f"{prefix}, scalar tensor '{tensor.name}', should only provide 1 in the model configuration when "
                f"the model doesn't support batching. Model configuration provided: {shape_text(dims)}."
            )
        return
    batched = config.max_batch_size > 0
    where = f"model '{config.name}', tensor '{tensor.name}': "
    shape = shape_text(model.dims)
    if batched and model.dims[0] != -1:
        raise ConfigError(
            f"{where}for the model to support batching the shape should have at least 1 dimension and the first "
            f"dimension must be -1; but shape expected by the model is {shape}",
            hint="set max_batch_size: 0 and write the whole shape in dims",
        )
    full = (-1, *dims) if batched else dims
    if len(full) == len(model.dims) and all(
        ours == theirs or (theirs == -1 and not exact) for ours, theirs in zip(full, model.dims, strict=True)
    ):
        return
    given = f"{len(full)} dimensions (shape {shape_text(full)})"
    if batched:
        given = (
            f"{len(full)} dimensions (an initial batch dimension because max_batch_size > 0 followed by the "
            f"explicit tensor shape, making complete shape {shape_text(full)})"
        )
    fix = shape_text(model.dims[1:] if batched else model.dims)
    raise ConfigError(
        f"{where}the model expects {len(model.dims)} dimensions (shape {shape}) but the model configuration "
        f"specifies {given}",
        hint=f"write dims: {fix}" if fix != "[]" else "write dims: [ 1 ] reshape { shape: [ ] }",
    )


def _check_states(config: Any, results: dict[str, ModelTensor], prefix: str) -> None:
    for state in config.sequence_batching.state:
        model = results.get(state.output_name)
        if model is None:
            raise ConfigError(
                f"unexpected inference output '{state.output_name}', allowed outputs are: {', '.join(sorted(results))}",
                hint=did_you_mean(state.output_name, results),
            )
        if state.data_type != model.dtype:
            provided = TYPES[model.dtype].wire if model.dtype in TYPES else "<invalid>"
            raise ConfigError(
                f"{prefix}, configuration expects datatype {_type_name(state.data_type)} for output state "
                f"'{state.output_name}', model provides TYPE_{provided}"
            )
