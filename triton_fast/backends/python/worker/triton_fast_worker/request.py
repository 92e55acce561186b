"""InferenceRequest, received by execute or made for BLS, with its trace and preferred memory."""

from __future__ import annotations

import enum
from typing import Any

from . import bls
from .cores import RequestCore
from .errors import BINDING, TritonModelException, incompatible
from .pure_cores import parameters_text
from .response import checked_parameters, tensor_list
from .runtime import current
from .sender import InferenceResponseSender

RELEASE_ALL, RELEASE_RESCHEDULE = 1, 2


class MemoryType(enum.IntEnum):
    TRITONSERVER_MEMORY_GPU = 0
    TRITONSERVER_MEMORY_CPU = 1

    def __str__(self) -> str:
        return f"MemoryType.{self.name}"


MemoryType.__module__ = BINDING


class PreferredMemory:
    """Where the outputs of a BLS request should lie."""

    __module__ = BINDING
    __slots__ = ("_device", "_kind")

    def __init__(self, preferred_memory_type: MemoryType, preferred_device_id: int = 0) -> None:
        if not isinstance(preferred_memory_type, MemoryType) or not isinstance(preferred_device_id, int):
            raise incompatible(
                "__init__",
                f"{BINDING}.PreferredMemory(preferred_memory_type: triton::backend::python::PreferredMemory::MemoryType"
                ", preferred_device_id: int = 0)",
                preferred_memory_type,
            )
        self._kind = preferred_memory_type
        self._device = preferred_device_id


class InferenceTrace:
    """The trace of a request, to be passed on with requests to other models."""

    __module__ = BINDING
    __slots__ = ("_context",)

    def __init__(self, context: str = "") -> None:
        self._context = context

    def get_context(self) -> str | None:
        """Return the OpenTelemetry carrier; None when there is no trace, or one that goes to a file: it has a key."""
        return self._context if self._context and self._context[0] != "#" else None


_NO_TRACE = InferenceTrace()
_REQUIRED: Any = object()
_SIGNATURE = (
    f"{BINDING}.InferenceRequest(request_id: str = '', correlation_id: object = 0, inputs: List[{BINDING}.Tensor], "
    "requested_output_names: List[str], model_name: str, model_version: int = -1, flags: int = 0, timeout: int = 0, "
    f"preferred_memory: {BINDING}.PreferredMemory, trace: {BINDING}.InferenceTrace, parameters: object = None)"
)


class InferenceRequest(RequestCore):
    """What is internal begins with an underscore. Of a received request no slot is set before it is needed."""

    __module__ = BINDING
    __slots__ = ("__weakref__", "_answered", "_model", "_preferred", "_sender", "_version")

    _answered: bool

    def __init__(
        self,
        request_id: str = "",
        correlation_id: Any = 0,
        inputs: Any = _REQUIRED,
        requested_output_names: Any = _REQUIRED,
        model_name: Any = _REQUIRED,
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        preferred_memory: PreferredMemory | None = None,
        trace: InferenceTrace = _NO_TRACE,
        parameters: Any = None,
    ) -> None:
        tensors: list[Any] | None = tensor_list(inputs)
        names = [requested_output_names] if isinstance(requested_output_names, str) else requested_output_names
        if (
            tensors is None
            or not isinstance(names, (list, tuple, set, frozenset))
            or isinstance(requested_output_names, str)
            or not all(isinstance(name, str) for name in names)
            or not isinstance(request_id, str)
            or not isinstance(model_name, str)
            or not all(isinstance(number, int) for number in (model_version, flags, timeout))
            or not (0 <= flags < 1 << 32 and 0 <= timeout < 1 << 64 and -(1 << 63) <= model_version < 1 << 63)
            or not (preferred_memory is None or isinstance(preferred_memory, PreferredMemory))
            or not isinstance(trace, InferenceTrace)
        ):
            given = {"inputs": inputs, "requested_output_names": requested_output_names, "model_name": model_name}
            raise incompatible(
                "__init__", _SIGNATURE, **{key: value for key, value in given.items() if value is not _REQUIRED}
            )
        params = checked_parameters(parameters)
        if isinstance(correlation_id, int):
            if not 0 <= correlation_id < 1 << 64:
                raise RuntimeError(
                    "Unable to cast Python instance to C++ type (#define PYBIND11_DETAILED_ERROR_MESSAGES or compile "
                    "in debug mode for details)"
                )
        elif not isinstance(correlation_id, str):
            raise TritonModelException("Correlation ID must be integer or string")
        where = f"for request with id '{request_id}' and model name '{model_name}' should not be empty."
        if None in tensors:
            raise TritonModelException(f"Input tensor {where}")
        if "" in names:
            raise TritonModelException(f"Requested output name {where}")
        self._set(
            request_id, correlation_id, tensors, frozenset(names), flags, timeout, params, parameters_text(params),
            trace._context,
        )  # fmt: skip
        self._model = model_name
        self._version = model_version
        self._preferred = preferred_memory
        self._release = RELEASE_ALL

    def set_flags(self, flags: int) -> None:
        if not isinstance(flags, int) or not 0 <= flags < 1 << 32:
            raise incompatible("set_flags", f"(self: {BINDING}.InferenceRequest, arg0: int) -> None", self, flags)
        self._flags = flags

    def trace(self) -> InferenceTrace:
        text = self._trace_text()
        return InferenceTrace(text) if text else _NO_TRACE

    def get_response_sender(self) -> InferenceResponseSender:
        sender: InferenceResponseSender | None = getattr(self, "_sender", None)
        if sender is None:
            answered = getattr(self, "_answered", False)
            sender = InferenceResponseSender(self._runtime, self._ticket, frozenset(self._wanted), answered)
            self._sender = sender
        return sender

    def set_release_flags(self, flags: int) -> None:
        if not isinstance(flags, int) or not 0 <= flags < 1 << 32:
            signature = f"(self: {BINDING}.InferenceRequest, arg0: int) -> None"
            raise incompatible("set_release_flags", signature, self, flags)
        self._release = flags

    def exec(self, decoupled: bool = False) -> Any:
        """The response, or a ResponseIterator of several."""
        return bls.execute(current(), self, bool(decoupled))

    def async_exec(self, decoupled: bool = False) -> Any:
        """An awaitable of what exec returns; only inside a running event loop."""
        return bls.execute_async(current(), self, bool(decoupled))
