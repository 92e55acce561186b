"""What a config says about how its TensorRT model runs, as plain values, checked before anything is opened.

Names, meanings and texts are those of Triton's TensorRT backend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from triton_fast.backends.base import LoadContext
from triton_fast.errors import InvalidArg, Unsupported
from triton_fast.observability import log

STRATEGIES = ("STATIC", "ON_PROFILE_CHANGE")
POLICIES = ("DEVICE_BLOCKING", "BLOCKING")
# Batch sizes that are captured where neither graph_spec nor the batcher says which.
USUAL_SIZES = (1, 2, 3, 4, 6, 8, 12, 16)
PRIORITIES = {0: 0, 1: -1, 2: 1}  # PRIORITY_DEFAULT, _MAX, _MIN; CUDA counts the other way


@dataclass(frozen=True)
class GraphSpec:
    """Shapes to capture. ``rows``: the batch size, 0 without batching; ``shapes``: inputs without the batch's rows."""

    rows: int
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()


@dataclass(frozen=True)
class RunPlan:
    """How a model runs.

    Attributes
    ----------
    strategy
        Of the device memory of execution contexts.
    graphs
        The shapes to capture as CUDA graphs; empty: none.
    priority
        Of the streams: -1 before others, 1 after them.
    busy_wait
        Spin while waiting for the GPU.
    version_compatible
        Whether plans may bring a runtime of their own: code, so only where the operator says so.
    plugins
        Paths of libraries, as the operator gave them.
    """

    strategy: str = "STATIC"
    graphs: tuple[GraphSpec, ...] = ()
    priority: int = 0
    busy_wait: bool = False
    version_compatible: bool = False
    plugins: str = ""


def make_plan(context: LoadContext, *, complete: bool = True) -> RunPlan:
    """Return the plan of a model; not ``complete``: without graphs. Raises InvalidArg for what can not be used."""
    config, settings = context.config, context.settings
    given = {key: value.string_value.strip() for key, value in config.parameters.items()}
    strategy = given.get("execution_context_allocation_strategy", "STATIC")
    if strategy not in STRATEGIES:
        raise InvalidArg(
            f"Invalid value for 'execution_context_allocation_strategy': '{strategy}' for model instance "
            f"'{config.name}'. Supported values are 'STATIC' and 'ON_PROFILE_CHANGE'."
        )
    if given.get("enable_multi_device", "").lower() in ("true", "1"):
        raise Unsupported(f"unable to load model '{config.name}', TensorRT Multi-Device is not served by this version")
    policy = settings.get("execution-policy", POLICIES[0])
    if policy not in POLICIES:
        raise InvalidArg(f"backend setting 'execution-policy' must be one of {', '.join(POLICIES)}, got '{policy}'")
    _boolean(settings, "coalesce-request-input")
    if config.model_operations.op_library_filename:
        log.warning(
            "model_operations.op_library_filename is not used for TensorRT: plugins are named by "
            "--backend-config=tensorrt,plugins=",
            model=config.name,
        )
    cuda = config.optimization.cuda
    return RunPlan(
        strategy=strategy,
        graphs=_graphs(config) if cuda.graphs and complete else (),
        priority=PRIORITIES.get(config.optimization.priority, 0),
        busy_wait=cuda.busy_wait_events,
        version_compatible=_boolean(settings, "version-compatible"),
        plugins=settings.get("plugins", ""),
    )


def _boolean(settings: Mapping[str, str], key: str) -> bool:
    value = settings.get(key, "false").lower()
    if value not in ("true", "false", "1", "0"):
        raise InvalidArg(f"backend setting '{key}' must be true or false, got '{settings[key]}'")
    return value in ("true", "1")


def _graphs(config: Any) -> tuple[GraphSpec, ...]:
    specs = config.optimization.cuda.graph_spec
    if not specs:
        return tuple(GraphSpec(size) for size in _sizes(config))
    found = []
    for spec in specs:
        shapes = {name: tuple(shape.dim) for name, shape in spec.input.items()}
        if spec.HasField("graph_lower_bound"):
            lower = spec.graph_lower_bound
            least = {name: tuple(shape.dim) for name, shape in lower.input.items()}
            _check(config, spec.batch_size, lower.batch_size, shapes, least)
        else:
            _check(config, spec.batch_size, spec.batch_size, shapes, shapes)
        found.append(GraphSpec(spec.batch_size, tuple(sorted(shapes.items()))))
    return tuple(found)


def _sizes(config: Any) -> Sequence[int]:
    """Return the batch sizes to capture where the config has no graph_spec: few are worth it."""
    if config.max_batch_size == 0:
        return (0,)
    sizes = {1, config.max_batch_size}
    if config.HasField("dynamic_batching"):
        sizes |= set(config.dynamic_batching.preferred_batch_size)
    elif config.sequence_batching.HasField("oldest"):
        sizes |= set(config.sequence_batching.oldest.preferred_batch_size)
    else:
        sizes |= set(USUAL_SIZES)
    return sorted(size for size in sizes if size <= config.max_batch_size)


def _check(
    config: Any, rows: int, least_rows: int, shapes: Mapping[str, Sequence[int]], least: Mapping[str, Sequence[int]]
) -> None:
    most = config.max_batch_size
    if most == 0:
        if rows or least_rows:
            raise InvalidArg("graph spec expects 'batch_size' to be 0 if 'max_batch_size' is 0")
    elif not (1 <= rows <= most and 1 <= least_rows <= most):
        raise InvalidArg(f"graph spec expects 'batch_size' to be >= 1 and <= {most}")
    if least_rows > rows:
        raise InvalidArg("graph lower bound spec expects 'batch_size' to be <= graph spec 'batch_size'")
    for name, dims in shapes.items():
        if name not in least:
            raise InvalidArg(f"graph lower bound spec expects shape for input '{name}'")
        if len(least[name]) != len(dims):
            raise InvalidArg(f"graph lower bound spec expects to have '{len(dims)} dimensions, got {len(least[name])}")
        for low, high in zip(least[name], dims, strict=True):
            if low < 0 or high < 0:
                raise InvalidArg(f"graph spec expects input '{name}' to have dimension >= 0")
            if low > high:
                raise InvalidArg(f"graph lower bound spec expects input '{name}' to have dimension <= {high}")
