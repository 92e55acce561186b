"""A stand-in for the package ``tensorrt``: plans are small JSON files, engines run on the stand-in for libcuda.

It has the names and argument names of the real one (tests compare them) and keeps to its rules: what is asked for out
of order is refused with a logged error and False or None. Plans: see helpers/trt_plans.py.
"""

from __future__ import annotations

import ctypes
import enum
import json
import os
from typing import Any

__version__ = "11.4.0.106"
MAGIC = b"FAKEPLAN"
ALIGNMENT = 256

# Where the libraries are; tests set them, other processes have them from the environment.
cuda_path = "libcuda.so.1"
kernels_path = os.environ.get("FAKE_TRT_KERNELS", "")
counts: dict[str, int] = {}  # calls of methods that runs make
crashes: list[str] = []
freed: list[tuple[str, int, int]] = []  # what, the device that it was made on, the one that was current


class DataType(enum.Enum):
    FLOAT, HALF, INT8, INT32, BOOL, UINT8, FP8, BF16, INT64, INT4 = range(10)

    @property
    def itemsize(self) -> int:
        return {"FLOAT": 4, "HALF": 2, "INT32": 4, "BF16": 2, "INT64": 8}.get(self.name, 1)


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class TensorLocation(enum.Enum):
    DEVICE, HOST = range(2)


class TensorFormat(enum.Enum):
    LINEAR, CHW2, HWC8, CHW4, CHW16, CHW32 = range(6)


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class Dims(tuple[int, ...]):
    MAX_DIMS = 8


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    INTERNAL_ERROR, ERROR, WARNING = Severity.INTERNAL_ERROR, Severity.ERROR, Severity.WARNING
    INFO, VERBOSE = Severity.INFO, Severity.VERBOSE

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class IOutputAllocator:
    """Subclasses answer ``reallocate_output``, ``reallocate_output_async`` and ``notify_shape``."""


def init_libnvinfer_plugins(logger: ILogger, namespace: str) -> bool:
    return True


# --- the device ------------------------------------------------------------------------------------------------------


class _Job(ctypes.Structure):
    _fields_ = (
        ("op", ctypes.c_int), ("dtype", ctypes.c_int), ("n", ctypes.c_size_t), ("item", ctypes.c_size_t),
        ("rows", ctypes.c_size_t), ("columns", ctypes.c_size_t), ("a", ctypes.c_void_p), ("b", ctypes.c_void_p),
        ("out", ctypes.c_void_p), ("values", ctypes.c_int64 * 16),
    )  # fmt: skip


COPY, SWAP, ADD, SUB, SPREAD, PUT = range(6)
_libraries: dict[str, ctypes.CDLL] = {}


def _library(path: str) -> ctypes.CDLL:
    if path not in _libraries:
        found = ctypes.CDLL(path)
        if path == cuda_path:
            found.fake_data.argtypes, found.fake_data.restype = [ctypes.c_uint64], ctypes.c_void_p
            found.cuLaunchHostFunc.argtypes = [ctypes.c_void_p] * 3
            found.cuStreamSynchronize.argtypes = [ctypes.c_void_p]
            found.cuMemFree_v2.argtypes = [ctypes.c_uint64]
            found.cuMemAlloc_v2.argtypes = [ctypes.POINTER(ctypes.c_uint64), ctypes.c_size_t]
            found.cuMemGetAddressRange_v2.argtypes = [
                ctypes.POINTER(ctypes.c_uint64), ctypes.POINTER(ctypes.c_size_t), ctypes.c_uint64,
            ]  # fmt: skip
        _libraries[path] = found
    return _libraries[path]


def _cuda() -> ctypes.CDLL:
    return _library(cuda_path)


def _device() -> int:
    """Return the current device; -1: none is."""
    context = ctypes.POINTER(ctypes.c_int)()  # the stand-in's contexts begin with it
    return int(context[0]) if _cuda().cuCtxGetCurrent(ctypes.byref(context)) == 0 and context else -1


def _device_is_current() -> bool:
    return _device() >= 0


def _data(address: int, n: int) -> int:
    """Return where the CPU finds n bytes of device memory; 0 where there are none."""
    base, size = ctypes.c_uint64(), ctypes.c_size_t()
    if _cuda().cuMemGetAddressRange_v2(ctypes.byref(base), ctypes.byref(size), address) != 0:
        return 0
    return int(_cuda().fake_data(address) or 0) if n <= base.value + size.value - address else 0


# --- engines ---------------------------------------------------------------------------------------------------------


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self.logger = logger
        self.engine_host_code_allowed = False
        self.DLA_core = -1
        self.num_DLA_cores = 0
        self._is_broken = not _device_is_current()
        self._made_on = _device()
        if self._is_broken:
            _say(
                logger, "createInferRuntime: Error Code 6: API Usage Error (CUDA initialization failure with error: 35)"
            )

    def __del__(self) -> None:
        if self._is_broken:
            crashes.append("the end of a runtime that was none")  # the real one ends the process
        freed.append(("runtime", self._made_on, _device()))

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        if self._is_broken:
            crashes.append("a call of a runtime that was none")
        data = bytes(serialized_engine)
        if not data.startswith(MAGIC):
            return _say(self.logger, "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization "
                        "assertion stdArchiveReader.readTag failed. Magic tag does not match)")  # fmt: skip
        try:
            plan = json.loads(data[len(MAGIC) :])
        except ValueError:
            return _say(self.logger, "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (plan is truncated)")
        if plan["version"] != __version__ and not (plan.get("compatible") and self.engine_host_code_allowed):
            return _say(
                self.logger, "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan file is "
                f"not compatible with this version of TensorRT, expecting library version {__version__} got "
                f"{plan['version']}, please rebuild.)",
            )  # fmt: skip
        if plan.get("plugin"):
            return _say(self.logger, f"Cannot find plugin: {plan['plugin']}, version: 1, namespace:.")
        return ICudaEngine(plan, self.logger, self) if _device_is_current() else None


def _say(logger: ILogger, text: str) -> None:
    logger.log(ILogger.ERROR, text)


class ICudaEngine:
    def __init__(self, plan: dict[str, Any], logger: ILogger, runtime: Runtime) -> None:
        self._plan, self._logger, self._runtime, self._made_on = plan, logger, runtime, _device()
        self._tensors = {tensor["name"]: tensor for tensor in plan["tensors"]}
        self._holders: dict[int, int] = {}

    def __del__(self) -> None:
        freed.append(("engine", self._made_on, _device()))

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._plan["profiles"])

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[self._tensors[name]["dtype"]]

    def get_tensor_shape(self, name: str) -> Dims:
        return Dims(self._tensors[name]["shape"])

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if self._tensors[name]["input"] else TensorIOMode.OUTPUT

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if self._tensors[name].get("shape_tensor") else TensorLocation.DEVICE

    def is_shape_inference_io(self, name: str) -> bool:
        return bool(self._tensors[name].get("shape_tensor"))

    def get_tensor_format(self, name: str, profile_index: int = 0) -> TensorFormat:
        return TensorFormat[self._tensors[name].get("format", "LINEAR")]

    def get_tensor_vectorized_dim(self, name: str, profile_index: int = 0) -> int:
        return int(self._tensors[name].get("vector", (-1, 1))[0])

    def get_tensor_components_per_element(self, name: str, profile_index: int = 0) -> int:
        return int(self._tensors[name].get("vector", (-1, 1))[1])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        return [Dims(dims) for dims in self._range(name, profile_index)]

    def _range(self, name: str, index: int) -> list[list[int]]:
        return self._plan["profiles"][index].get(name) or [self._tensors[name]["shape"]] * 3

    def get_tensor_profile_values(self, name: int, profile_index: str) -> list[list[int]]:
        # The real binding has the names the wrong way round, too.
        return self._plan["values"][name][profile_index]

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> IExecutionContext | None:
        if not isinstance(strategy, ExecutionContextAllocationStrategy) or not _device_is_current():
            raise TypeError("create_execution_context(): incompatible function arguments")
        memory = ctypes.c_uint64()
        size = int(self._plan.get("memory", 0))
        if size and _cuda().cuMemAlloc_v2(ctypes.byref(memory), size) != 0:
            return _say(self._logger, f"Requested amount of GPU memory ({size} bytes) could not be allocated.")
        return IExecutionContext(self, memory.value)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, memory: int) -> None:
        self.engine = engine
        self._made_on = _device()
        self._memory = memory
        self._jobs: list[Any] = []  # graphs run them again
        self._addresses: dict[str, int] = {}
        self._allocators: dict[str, IOutputAllocator] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._calls = 0
        self._profile = -1
        if not engine._plan.get("exclusive") or 0 not in engine._holders:
            self._take_profile(0)

    def __del__(self) -> None:
        self.engine._holders.pop(self._profile, None)
        freed.append(("context", self._made_on, _device()))
        if self._memory and _device_is_current():
            _cuda().cuMemFree_v2(self._memory)

    def _take_profile(self, index: int) -> None:
        self.engine._holders.pop(self._profile, None)
        self._profile = index
        self.engine._holders[index] = id(self)
        self._shapes.clear()

    @property
    def active_optimization_profile(self) -> int:
        return self._profile

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        engine = self.engine
        taken = engine._plan.get("exclusive") and profile_index in engine._holders
        if not 0 <= profile_index < engine.num_optimization_profiles or taken:
            _say(
                engine._logger,
                f"IExecutionContext::setOptimizationProfileAsync: profile {profile_index} can not be set",
            )
            return False
        self._take_profile(profile_index)
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...] | list[int] | Dims) -> bool:
        _count("set_input_shape")
        tensor = self.engine._tensors.get(name)
        dims = tuple(shape)
        if tensor is None or not tensor["input"] or self._profile < 0:
            return self._fault(f"IExecutionContext::setInputShape: '{name}' is no input")
        low, _, high = self.engine._range(name, self._profile)
        if len(dims) != len(low) or not all(a <= b <= c for a, b, c in zip(low, dims, high, strict=True)):
            return self._fault(
                f"IExecutionContext::setInputShape: Error Code 3: API Usage Error (Parameter check failed, condition: "
                f"engineDims.d[i] == dims.d[i]. Static dimension mismatch or out of profile {self._profile}: {dims})"
            )
        self._shapes[name] = dims
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        _count("set_tensor_address")
        tensor = self.engine._tensors.get(name)
        if tensor is None or not memory:
            return self._fault(f"IExecutionContext::setTensorAddress: '{name}' or {memory} is not valid")
        if not tensor.get("shape_tensor") and memory % ALIGNMENT:
            return self._fault(f"IExecutionContext::setTensorAddress: {memory:#x} is not aligned to {ALIGNMENT}")
        self._addresses[name] = memory
        return True

    def get_tensor_address(self, name: str) -> int:
        return self._addresses.get(name, 0)

    def set_output_allocator(self, name: str, output_allocator: IOutputAllocator) -> bool:
        if not isinstance(output_allocator, IOutputAllocator):
            raise TypeError("set_output_allocator(): incompatible function arguments")
        self._allocators[name] = output_allocator
        return True

    def get_tensor_shape(self, name: str) -> Dims:
        _count("get_tensor_shape")
        tensor = self.engine._tensors[name]
        if tensor["input"]:
            return Dims(self._shapes.get(name, tensor["shape"]))
        op = next(op for op in self.engine._plan["ops"] if op["out"] == name)
        return Dims(self._infer(op) or tensor["shape"])

    def get_max_output_size(self, name: str) -> int:
        shape = self.get_tensor_shape(name)
        return -1 if -1 in shape else _elements(shape) * self.engine.get_tensor_dtype(name).itemsize

    def infer_shapes(self) -> list[str]:
        return [
            name
            for name, tensor in self.engine._tensors.items()
            if tensor["input"]
            and (name not in self._addresses if tensor.get("shape_tensor") else -1 in self._dims(name))
        ]

    def _dims(self, name: str) -> tuple[int, ...]:
        return self._shapes.get(name, tuple(self.engine._tensors[name]["shape"]))

    def _values(self, name: str) -> list[int]:
        tensor = self.engine._tensors[name]
        count = _elements(tensor["shape"])
        kind = ctypes.c_int32 if tensor["dtype"] == "INT32" else ctypes.c_int64
        return list((kind * count).from_address(self._addresses[name]))

    def _infer(self, op: dict[str, Any]) -> tuple[int, ...] | None:
        """Return the shape of an op's output; None while it can not be told."""
        kind, first = op["op"], op["in"][0]
        if kind in ("spread", "values"):
            shape_input = op["in"][-1]
            if shape_input not in self._addresses:
                return None
            return tuple(self._values(shape_input)) if kind == "spread" else self._dims(shape_input)
        if kind == "nonzero":
            return None
        dims = self._dims(first)
        if kind == "address":
            return (1,)
        return (*dims[:-2], dims[-1], dims[-2]) if kind == "swap" else dims

    # --- a run

    def execute_async_v3(self, stream_handle: int) -> bool:
        _count("execute_async_v3")
        plan = self.engine._plan
        if self._profile < 0 or not _device_is_current():
            return self._fault("IExecutionContext::enqueueV3: no profile, or no device")
        if self.infer_shapes():
            return self._fault(
                "IExecutionContext::enqueueV3: Error Code 3: API Usage Error (Parameter check failed, condition: "
                f"allInputDimensionsSpecified. {self.infer_shapes()})"
            )
        for name in self.engine._tensors:
            if name not in self._addresses and name not in self._allocators:
                return self._fault(f"IExecutionContext::enqueueV3: Address is not set for tensor {name}.")
        if plan.get("fails"):
            return self._fault(plan["fails"])
        self._calls += 1
        if str(self._calls) in plan.get("fails_on", {}):
            return self._fault(plan["fails_on"][str(self._calls)])
        if plan.get("raises"):
            raise RuntimeError(plan["raises"])
        return all(self._queue(op, stream_handle) for op in plan["ops"])

    def _queue(self, op: dict[str, Any], stream: int) -> bool:
        name, sources = op["out"], op["in"]
        tensor = self.engine._tensors[name]
        item = self.engine.get_tensor_dtype(name).itemsize
        if op["op"] == "nonzero":
            return self._nonzero(op, stream)
        shape = self._infer(op)
        if shape is None:
            return self._fault(f"the shape of {name} can not be inferred")
        n = _elements(shape)
        job = _Job(item=item)
        if tensor.get("shape_tensor"):
            numbers = self._values(sources[0])
            job.op, job.n, job.out = PUT, 8 * len(numbers), self._addresses[name]
            job.values[: len(numbers)] = numbers
        elif op["op"] == "address":
            job.op, job.n, job.out, job.values[0] = PUT, 8, _data(self._addresses[name], 8), self._addresses[sources[0]]
        else:
            spread = op["op"] == "spread"
            job.a = _data(self._addresses[sources[0]], item if spread else n * item)
            job.out = _data(self._addresses[name], n * item)
            if op["op"] in ("add", "sub"):
                job.op, job.n = (ADD if op["op"] == "add" else SUB), n
                job.dtype = ("FLOAT", "INT32", "INT64").index(tensor["dtype"])
                job.b = _data(self._addresses[sources[1]], n * item)
            elif op["op"] == "swap":
                job.op, job.n, job.rows, job.columns = SWAP, _elements(shape[:-2]), shape[-1], shape[-2]
            else:
                job.op, job.n = (SPREAD, n) if spread else (COPY, n * item)
            if n and not (job.a and job.out and (job.b or job.op not in (ADD, SUB))):
                return self._fault("Error Code 1: Cuda Runtime (an illegal memory access was encountered)")
        self._jobs.append(job)
        run = ctypes.cast(_library(kernels_path).run_job, ctypes.c_void_p)
        return bool(_cuda().cuLaunchHostFunc(stream, run, ctypes.addressof(job)) == 0)

    def _nonzero(self, op: dict[str, Any], stream: int) -> bool:
        """The places of the elements of a vector that are not 0: only the data tells how many."""
        if _cuda().cuStreamSynchronize(stream) != 0:
            return self._fault("the stream can not be waited for")
        source, name = op["in"][0], op["out"]
        count = _elements(self._dims(source))
        data = _data(self._addresses[source], count * 4)
        found = [i for i, x in enumerate((ctypes.c_float * count).from_address(data)) if x] if data else []
        allocator = self._allocators[name]
        address = allocator.reallocate_output_async(  # type: ignore[attr-defined]
            tensor_name=name, memory=0, size=max(1, 8 * len(found)), alignment=ALIGNMENT, stream=stream
        )
        if not address:
            return self._fault(f"IExecutionContext::enqueueV3: allocation of output {name} failed")
        allocator.notify_shape(tensor_name=name, shape=Dims((len(found), 1)))  # type: ignore[attr-defined]
        target = _data(address, 8 * len(found))
        ctypes.memmove(target, (ctypes.c_int64 * len(found))(*found), 8 * len(found))
        return True

    def _fault(self, text: str) -> bool:
        _say(self.engine._logger, text)
        return False


def _elements(shape: Any) -> int:
    total = 1
    for dim in shape:
        total *= dim
    return total


def _count(method: str) -> None:
    counts[method] = counts.get(method, 0) + 1
