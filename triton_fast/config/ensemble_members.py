"""Whether an ensemble fits its members, and the plan that it is executed by.

Pure: sees configs only. The wiring of the ensemble by itself is checked before (validate_ensemble.py), and that the
members are served is the repository's business. Source: spec/model_config.md section 7.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from triton_fast.config.errors import ConfigError, did_you_mean, shape_text
from triton_fast.types import TYPES, DataType

REQUEST = -1


class Batch(Enum):
    """What happens to the batch dimension of a tensor where it is taken.

    ``ADD``: a tensor without one meets a taker with one. If its shape is ``Wire.dims`` as it is, a 1 goes in front.
    ``DROP``: the other way round. If its shape is not ``Wire.dims`` and its first dimension is 1, that one goes.
    Else it is passed as it is, in both cases.
    """

    KEEP = "keep"
    ADD = "add"
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class Wire:
    """A tensor of a model and the ensemble tensor that it is mapped to.

    Attributes
    ----------
    name
        The model's name of it; of ``EnsemblePlan.outputs``, the ensemble's.
    tensor, slot
        The ensemble tensor, and its place in ``EnsemblePlan.tensors``.
    dims
        Configured shape without the batch dimension; -1 is any.
    batch
        Of inputs of steps and outputs of the ensemble: how the tensor is fitted.
    optional
        The model does without.
    """

    name: str
    tensor: str
    slot: int
    dims: tuple[int, ...]
    batch: Batch = Batch.KEEP
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Tensor:
    """One ensemble tensor.

    Attributes
    ----------
    writer
        Index of the step that makes it; ``REQUEST``: it comes with the request.
    readers
        Indices of the steps that take it, each once.
    is_output
        It is answered.
    batched
        It has a batch dimension: its writer batches.
    flow
        0: there is one for each request. Else the number of the decoupled step whose responses it comes once for.
    """

    name: str
    writer: int
    readers: tuple[int, ...]
    is_output: bool
    batched: bool
    flow: int


@dataclass(frozen=True, slots=True)
class Step:
    """One step: a model, the version asked for (-1: the latest), what it takes and what is taken of it."""

    model: str
    version: int
    inputs: tuple[Wire, ...]
    outputs: tuple[Wire, ...]
    batching: bool
    decoupled: bool


@dataclass(frozen=True, slots=True)
class EnsemblePlan:
    """How an ensemble is executed. Steps are in the config's order; tensors say which waits for which.

    Attributes
    ----------
    inputs
        Slots of the tensors that a request brings, in the order of the config's inputs.
    optional
        Those of them that a request may leave out.
    outputs
        What is answered, in the order of the config's outputs.
    decoupled
        Some step is.
    max_inflight
        ``max_inflight_requests``; 0: no limit.
    """

    name: str
    steps: tuple[Step, ...]
    tensors: tuple[Tensor, ...]
    inputs: tuple[int, ...]
    optional: frozenset[int]
    outputs: tuple[Wire, ...]
    batching: bool
    decoupled: bool
    max_inflight: int

    @property
    def members(self) -> frozenset[tuple[str, int]]:
        return frozenset((step.model, step.version) for step in self.steps)


class _Known(NamedTuple):
    """What was first learned of an ensemble tensor, and from which model."""

    model: str
    dtype: int
    dims: tuple[int, ...]
    full: tuple[int, ...]


def member_names(config: Any) -> list[str]:
    """Return the models that an ensemble's steps name, each once, in order; none of another model."""
    return list(dict.fromkeys(step.model_name for step in config.ensemble_scheduling.step if step.model_name))


def check_members(config: Any, members: Mapping[tuple[str, int], Any]) -> EnsemblePlan:
    """Compare an ensemble with its members; return its plan.

    Parameters
    ----------
    config
        The ensemble's, validated by itself.
    members
        (model, version as the step asks for it) -> completed config, for every step.

    Raises
    ------
    ConfigError
        With Triton's text.
    """
    steps = config.ensemble_scheduling.step
    known: dict[str, _Known] = {}
    for tensor in (*config.input, *config.output):
        known.setdefault(tensor.name, _learned(config.name, config, tensor, _inner(tensor)))
    configs = [members[step.model_name, step.model_version] for step in steps]
    for step, member in zip(steps, configs, strict=True):
        if 0 < member.max_batch_size < config.max_batch_size:
            raise ConfigError(
                f"ensemble {config.name} allows maximum batch size {config.max_batch_size}, but it contains model "
                f"{step.model_name} which only allows maximum batch size to be {member.max_batch_size}",
                hint="also where the model has batch_splitting: the ensemble can have that itself",
            )
        _check_inputs(config.name, step, member, known)
        _check_outputs(config.name, step, member, known)
    return _plan(config, configs)


def _inner(tensor: Any) -> Sequence[int]:
    """Return an ensemble's own tensor's shape as its steps see it."""
    shape: Sequence[int] = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
    return shape


def _learned(model: str, config: Any, tensor: Any, dims: Sequence[int]) -> _Known:
    full = (-1, *dims) if config.max_batch_size > 0 else tuple(dims)
    return _Known(model, tensor.data_type, tuple(dims), full)


def _check_inputs(ensemble: str, step: Any, member: Any, known: dict[str, _Known]) -> None:
    names = [tensor.name for tensor in member.input]
    for name, tensor in sorted(step.input_map.items()):
        if name not in names:
            raise ConfigError(
                f"in ensemble {ensemble}, ensemble tensor {tensor} is mapping to non-existing input {name} in model "
                f"{step.model_name}",
                hint=did_you_mean(name, names),
            )
    for wanted in member.input:
        if wanted.name in step.input_map:
            found = _learned(step.model_name, member, wanted, wanted.dims)
            _check_same(ensemble, step.input_map[wanted.name], found, known)
        elif not wanted.optional:
            raise ConfigError(
                f"in ensemble {ensemble}, input {wanted.name} in model {step.model_name} is not mapped to any "
                "ensemble tensors"
            )


def _check_outputs(ensemble: str, step: Any, member: Any, known: dict[str, _Known]) -> None:
    made = {tensor.name: tensor for tensor in member.output}
    for name, tensor in sorted(step.output_map.items()):
        if name not in made:
            raise ConfigError(
                f"in ensemble {ensemble}, ensemble tensor {tensor} is mapped from non-existing output {name} in model "
                f"{step.model_name}",
                hint=did_you_mean(name, made),
            )
        found = _learned(step.model_name, member, made[name], made[name].dims)
        _check_same(ensemble, tensor, found, known)


def _check_same(ensemble: str, name: str, found: _Known, known: dict[str, _Known]) -> None:
    first = known.setdefault(name, found)
    what = ""
    if first.dtype != found.dtype:
        left, right = (TYPES[DataType(one.dtype)].config for one in (first, found))
        what = "data type"
    elif not (_fits(first.dims, found.dims) or _fits(first.full, found.full)):
        # A tensor may go from [-1, d..] without batching to [d..] with it, and back.
        left, right = shape_text(first.full), shape_text(found.full)
        what = "shape"
    if what:
        raise ConfigError(
            f"in ensemble {ensemble}, ensemble tensor {name}: inconsistent {what}: {left} is inferred from model "
            f"{first.model} while {right} is inferred from model {found.model}"
        )


def _fits(left: Sequence[int], right: Sequence[int]) -> bool:
    return len(left) == len(right) and all(a == b or -1 in (a, b) for a, b in zip(left, right, strict=True))


def _plan(config: Any, members: Sequence[Any]) -> EnsemblePlan:
    steps = config.ensemble_scheduling.step
    batching = config.max_batch_size > 0
    order = [tensor.name for tensor in config.input]
    writers = dict.fromkeys(order, REQUEST)
    readers: dict[str, list[int]] = {}
    for index, step in enumerate(steps):
        order += (name for _, name in sorted(step.output_map.items()))
        writers.update(dict.fromkeys(step.output_map.values(), index))
        for name in set(step.input_map.values()):
            readers.setdefault(name, []).append(index)
    slots = {name: slot for slot, name in enumerate(order)}
    batched = {name: members[at].max_batch_size > 0 if at >= 0 else batching for name, at in writers.items()}
    flows, n_flows = _flows(config, members)
    answered = {tensor.name for tensor in config.output}

    def wire(tensor: Any, name: str, takes: bool | None, optional: bool = False, dims: Sequence[int] = ()) -> Wire:
        batch = Batch.KEEP if takes in (None, batched[name]) else Batch.ADD if takes else Batch.DROP
        return Wire(tensor.name, name, slots[name], tuple(dims or tensor.dims), batch, optional)

    planned = []
    for step, member in zip(steps, members, strict=True):
        takes = member.max_batch_size > 0
        planned.append(
            Step(
                step.model_name,
                step.model_version,
                tuple(
                    wire(tensor, step.input_map[tensor.name], takes, tensor.optional)
                    for tensor in member.input
                    if tensor.name in step.input_map
                ),
                tuple(
                    wire(tensor, step.output_map[tensor.name], None)
                    for tensor in member.output
                    if tensor.name in step.output_map
                ),
                takes,
                member.model_transaction_policy.decoupled,
            )
        )
    return EnsemblePlan(
        config.name,
        tuple(planned),
        tuple(
            Tensor(name, writers[name], tuple(readers.get(name, ())), name in answered, batched[name], flows[name])
            for name in order
        ),
        tuple(slots[tensor.name] for tensor in config.input),
        frozenset(slots[tensor.name] for tensor in config.input if tensor.optional),
        tuple(wire(tensor, tensor.name, batching, dims=_inner(tensor)) for tensor in config.output),
        batching,
        n_flows > 0,
        config.ensemble_scheduling.max_inflight_requests,
    )


def _flows(config: Any, members: Sequence[Any]) -> tuple[dict[str, int], int]:
    """Return which decoupled step each tensor comes from, 0 for none, and how many of them there are."""
    steps = config.ensemble_scheduling.step
    flows = {tensor.name: 0 for tensor in config.input}
    count = 0
    waiting = list(range(len(steps)))
    while waiting:
        left = []
        for index in waiting:
            step = steps[index]
            if any(name not in flows for name in step.input_map.values()):
                left.append(index)
                continue
            flow = _one_flow(config.name, step.model_name, {flows[name] for name in step.input_map.values()})
            if members[index].model_transaction_policy.decoupled:
                count += 1
                flow = count
            flows.update(dict.fromkeys(step.output_map.values(), flow))
        if len(left) == len(waiting):
            raise ConfigError(f"a step of ensemble '{config.name}' is never reached")
        waiting = left
    _one_flow(config.name, config.name, {flows[tensor.name] for tensor in config.output})
    return flows, count


def _one_flow(ensemble: str, model: str, flows: Collection[int]) -> int:
    if len(flows) > 1:
        raise ConfigError(
            f"in ensemble {ensemble}, step of model '{model}' receives inputs originated from different decoupled "
            "models"
        )
    return next(iter(flows), 0)
