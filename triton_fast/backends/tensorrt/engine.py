"""An opened plan, described in plain values: its tensors, and the ranges of its optimization profiles.

Knows TensorRT's Python API (10 and later, where tensors have names); no config but the name of the model.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from triton_fast._native.cuda import driver
from triton_fast.backends.tensorrt import library
from triton_fast.backends.tensorrt.files import other_format
from triton_fast.backends.tensorrt.plan import RunPlan
from triton_fast.errors import Internal, InvalidArg, ServerError
from triton_fast.types import DataType

# TensorRT's name of a datatype -> ours. Others (FP8, INT4, ...) have no counterpart in the v2 protocol.
DATATYPES = {
    "FLOAT": DataType.FP32, "HALF": DataType.FP16, "BF16": DataType.BF16, "INT8": DataType.INT8,
    "UINT8": DataType.UINT8, "INT32": DataType.INT32, "INT64": DataType.INT64, "BOOL": DataType.BOOL,
}  # fmt: skip
LINEAR = "LINEAR"
# TensorRT asks that engines are made one at a time.
_making = threading.Lock()


@dataclass(frozen=True)
class Range:
    """What a profile takes: numbers of equal count, each dimension (or value) of its own."""

    low: tuple[int, ...]
    best: tuple[int, ...]
    high: tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """An input or output of the engine.

    Attributes
    ----------
    dims
        With the batch dimension; -1 where variable.
    is_shape
        Its values decide about shapes.
    on_host
        It lies in the CPU's memory.
    format
        ``LINEAR``, or the name of another layout.
    vector
        Of another layout: the dimension that is cut into vectors, and their length.
    """

    name: str
    dtype: DataType
    dims: tuple[int, ...]
    is_input: bool
    is_shape: bool = False
    on_host: bool = False
    format: str = LINEAR
    vector: tuple[int, int] = (-1, 1)


@dataclass(frozen=True)
class Profile:
    """An optimization profile: ``shapes`` of all inputs, ``values`` of those that are shape tensors."""

    index: int
    shapes: Mapping[str, Range]
    values: Mapping[str, Range]


class Engine:
    """An engine on one device. Its contexts keep TensorRT's own object alive; ``logger`` collects its complaints."""

    def __init__(self, trt_engine: Any, logger: Any) -> None:
        self.trt = trt_engine
        self.logger = logger
        self.tensors = tuple(_describe(trt_engine, trt_engine.get_tensor_name(i)) for i in range(_count(trt_engine)))
        self.profiles = int(trt_engine.num_optimization_profiles)

    def profile(self, index: int) -> Profile:
        shapes, values = {}, {}
        for tensor in self.tensors:
            if not tensor.is_input:
                continue
            shapes[tensor.name] = _range(self.trt.get_tensor_profile_shape(tensor.name, index), tensor.dims)
            if tensor.is_shape:
                # The binding takes the profile first, whatever it calls its arguments.
                found = self.trt.get_tensor_profile_values(index, tensor.name)
                values[tensor.name] = _range(found, ())
        return Profile(index, shapes, values)

    def new_context(self, strategy: str) -> Any:
        """Return an execution context. Raises Internal with TensorRT's words."""
        kinds = library.module().ExecutionContextAllocationStrategy
        try:
            made = self.trt.create_execution_context(getattr(kinds, strategy))
        except Exception as error:  # TensorRT's bindings raise what they like
            raise Internal(f"unable to create TensorRT context: {error}") from None
        if made is None:
            raise Internal(f"unable to create TensorRT context: {self.logger.complaints()}")
        return made


def open_engine(model: str, data: bytes, device: int, dla_core: int, plan: RunPlan) -> Engine:
    """Return the engine of a plan on a device. Raises a ServerError with TensorRT's words."""
    trt = library.module()
    faults = library.load_plugins(plan.plugins)
    logger = library.make_logger(model)
    driver.enter(device)
    with _making:
        try:
            runtime = trt.Runtime(logger)
            said = logger.complaints()
            if said:
                # It gives out an object all the same, whose every call would end the process.
                raise Internal(f"unable to create TensorRT runtime: {said}")
            if plan.version_compatible:
                runtime.engine_host_code_allowed = True
            if dla_core >= 0:
                _use_dla(runtime, dla_core)
            made = runtime.deserialize_cuda_engine(data)
            if made is None:
                cause = "; ".join(filter(None, (logger.complaints(), *faults)))
                raise Internal(f"unable to create TensorRT engine: {cause}{other_format(data)}")
            return Engine(made, logger)
        except ServerError:
            raise
        except Exception as error:  # TensorRT's bindings raise what they like
            raise Internal(f"unable to create TensorRT engine: {type(error).__name__}: {error}") from None


def _use_dla(runtime: Any, core: int) -> None:
    count = int(runtime.num_DLA_cores)
    if core >= count:
        raise InvalidArg(
            f"unable to create TensorRT runtime with DLA Core ID: {core}, available number of DLA cores: {count}"
        )
    runtime.DLA_core = core


def _count(engine: Any) -> int:
    return int(engine.num_io_tensors)


def _describe(engine: Any, name: str) -> Tensor:
    trt = library.module()
    layout = _layout(engine, name)
    vector = (-1, 1)
    if layout != LINEAR:
        vector = (int(engine.get_tensor_vectorized_dim(name)), int(engine.get_tensor_components_per_element(name)))
    return Tensor(
        name,
        DATATYPES.get(engine.get_tensor_dtype(name).name, DataType.INVALID),
        tuple(engine.get_tensor_shape(name)),
        engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
        bool(engine.is_shape_inference_io(name)),
        engine.get_tensor_location(name) == trt.TensorLocation.HOST,
        layout,
        vector,
    )


def _layout(engine: Any, name: str) -> str:
    try:
        return str(engine.get_tensor_format(name).name)
    except TypeError:
        return LINEAR  # the lean runtime's module does not have the type of the answer


def _range(three: Any, otherwise: tuple[int, ...]) -> Range:
    found = [tuple(int(number) for number in numbers) for numbers in three]
    # No range is set for what can not vary.
    low, best, high = found if len(found) == 3 else (otherwise,) * 3
    return Range(low, best, high)
