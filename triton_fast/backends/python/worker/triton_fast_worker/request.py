"""``InferenceRequest``: one that the model was given, or one that it makes of another model."""

from __future__ import annotations

import asyncio
from typing import Any, Optional, Union

from triton_fast_worker import params, runtime
from triton_fast_worker.errors import TritonModelException
from triton_fast_worker.response import InferenceResponse, InferenceResponseSender
from triton_fast_worker.runtime import Origin
from triton_fast_worker.tensor import Tensor

RELEASE_ALL = 1
RELEASE_RESCHEDULE = 2


class MemoryType:
    """Kinds of memory."""

    TRITONSERVER_MEMORY_CPU = 0
    TRITONSERVER_MEMORY_CPU_PINNED = 1
    TRITONSERVER_MEMORY_GPU = 2


class PreferredMemory:
    """Where a model would like the outputs of another model."""

    __slots__ = ("_device", "_kind")

    def __init__(self, preferred_memory_type: int, preferred_device_id: int = 0) -> None:
        self._kind = preferred_memory_type
        self._device = preferred_device_id


class InferenceTrace:
    """The trace that a request belongs to."""

    __slots__ = ("_context",)

    def __init__(self, context: str = "") -> None:
        self._context = context

    def get_context(self) -> Optional[str]:
        """Return the OpenTelemetry context as JSON text; None when there is none."""
        return self._context or None


class InferenceRequest:
    """A request.

    Parameters
    ----------
    request_id : str
    correlation_id : int or str
    inputs : list of Tensor
    requested_output_names : list of str
    model_name : str
    model_version : int
        -1: what the model's version policy says.
    flags : int
    timeout : int
        Microseconds that it may wait for its turn.
    preferred_memory : PreferredMemory, optional
    trace : InferenceTrace, optional
    parameters : dict of str to bool, int or str, optional
    """

    __slots__ = (
        "_correlation", "_flags", "_id", "_inputs", "_model_name", "_model_version", "_origin", "_parameters",
        "_preferred", "_timeout", "_trace", "_wanted",
    )  # fmt: skip

    def __init__(
        self,
        request_id: str = "",
        correlation_id: Union[int, str] = 0,
        inputs: Any = (),
        requested_output_names: Any = (),
        model_name: str = "",
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        preferred_memory: Optional[PreferredMemory] = None,
        trace: Optional[InferenceTrace] = None,
        parameters: Optional[dict[str, Any]] = None,
    ) -> None:
        if isinstance(correlation_id, bool) or not isinstance(correlation_id, (int, str)):
            raise TritonModelException("Correlation ID must be integer or string")
        self._inputs = list(inputs)
        for tensor in self._inputs:
            if tensor is None:
                raise TritonModelException(
                    f"Input tensor for request with id '{request_id}' and model name '{model_name}' should not be empty."
                )
        self._wanted = list(requested_output_names)
        for name in self._wanted:
            if not name:
                raise TritonModelException(
                    f"Requested output name for request with id '{request_id}' and model name '{model_name}' should "
                    "not be empty."
                )
        self._id = request_id
        self._correlation = correlation_id
        self._model_name = model_name
        self._model_version = int(model_version)
        self._flags = int(flags)
        self._timeout = int(timeout)
        self._preferred = preferred_memory
        self._trace = trace
        self._parameters: Any = parameters if parameters is None else params.check(parameters)
        self._origin: Optional[Origin] = None

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def request_id(self) -> str:
        return self._id

    def correlation_id(self) -> Union[int, str]:
        return self._correlation

    def flags(self) -> int:
        return self._flags

    def set_flags(self, flags: int) -> None:
        self._flags = int(flags)

    def timeout(self) -> int:
        """Return the microseconds that it may wait for its turn; 0: no limit."""
        return self._timeout

    def parameters(self) -> str:
        """Return the parameters as JSON text."""
        return params.as_text(self._parameters)

    def trace(self) -> InferenceTrace:
        if self._trace is None:
            self._trace = InferenceTrace()
        return self._trace

    def model_name(self) -> str:
        return self._model_name

    def model_version(self) -> int:
        return self._model_version

    def preferred_memory(self) -> Optional[PreferredMemory]:
        return self._preferred

    def requested_output_names(self) -> list[str]:
        """Return the outputs that the client wants; all of the model's when it named none."""
        return self._wanted

    def get_response_sender(self) -> InferenceResponseSender:
        if self._origin is None:
            raise TritonModelException("Only a request that the model was given has a response sender.")
        return InferenceResponseSender(self._origin)

    def is_cancelled(self) -> bool:
        """Whether nobody wants the response any more."""
        return self._origin is not None and self._origin.cancelled()

    def set_release_flags(self, flags: int) -> None:
        """With RESCHEDULE (2) the request comes again with the next execution; for iterative sequences."""
        if flags not in (RELEASE_ALL, RELEASE_RESCHEDULE):
            raise TritonModelException(f"Unsupported release flag provided: {flags}")
        if self._origin is not None:
            self._origin.release = flags

    def exec(self, decoupled: bool = False) -> Any:
        """Send it to its model and wait: an InferenceResponse, or an iterator of them if ``decoupled``."""
        outside = runtime.current()
        return outside.stream(self) if decoupled else outside.execute(self)

    async def async_exec(self, decoupled: bool = False) -> Any:
        """As ``exec``, without keeping the event loop waiting."""
        outside = runtime.current()
        work = outside.stream if decoupled else outside.execute
        return await asyncio.get_running_loop().run_in_executor(None, work, self)
