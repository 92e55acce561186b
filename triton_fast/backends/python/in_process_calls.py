"""BLS of models in this process: requests that go to the engine directly, and the rules for them.

Texts are Triton's, as in ext/triton_fast/_native/pyworker/calls.pyx, which does the same for workers.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from triton_fast_worker.dtypes import BYTES
from triton_fast_worker.errors import ErrorCode, TritonError, TritonModelException
from triton_fast_worker.request import InferenceRequest
from triton_fast_worker.response import InferenceResponse
from triton_fast_worker.runtime import Call
from triton_fast_worker.tensor import Tensor

from triton_fast._native.pyworker.client import encode_bytes
from triton_fast._native.sched.inprocess import InferCall, StreamCall
from triton_fast.backends.host import Host
from triton_fast.backends.python.native import Call as CallView
from triton_fast.errors import Cancelled, ServerError, Unavailable, Unsupported

Callback = Callable[[InferenceResponse], None]
# As many responses may wait to be taken; the model that sends them waits with the next.
MAX_UNREAD = 1024
# Calls with a callback that are waited for at once. A thread each, kept for the next.
MAX_WAITERS = 1024
# The quote at the end is Triton's.
# A request that does not get as far as its model.
_UNSENT = "Model {} - Error when running inference: {}"
DECOUPLED = (
    "Model {} is using the decoupled. The current BLS request call doesn't support models using the decoupled "
    "transaction policy. Please use 'decoupled=True' argument to the 'exec' or 'async_exec' calls for decoupled "
    "models.'"
)
_LIMIT = 1 << 63


class Calls:
    """Those of one instance that are under way."""

    def __init__(self, host: Host, instance: str) -> None:
        self._host = host
        self._instance = instance
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._numbers = itertools.count(1)
        self._open: dict[int, _Call] = {}

    def submit(self, request: InferenceRequest, streams: bool, waits: bool, callback: Callback | None) -> Call:
        started = self._start(request, streams)
        if isinstance(started, InferenceResponse):
            call: Call = _Refused(started)
        else:
            number = next(self._numbers)
            call = self._open[number] = _Call(self, number, started, waits)
        if callback is not None:
            self._waiters().submit(_tell, call, callback)
        return call

    def _start(self, request: InferenceRequest, streams: bool) -> Any:
        """Return the engine's call, or the response that says why there is none."""
        inputs = [encoded(tensor) for tensor in request._inputs]
        options: dict[str, Any] = {
            "id": request._id, "timeout_us": min(request._timeout, _LIMIT - 1), "flags": request._flags,
            "correlation": request._correlation, "params": parameters(request._parameters),
            "trace": request._trace_text(),
        }  # fmt: skip
        name, before = request._model, None
        while True:
            try:
                model = self._host.resolve(name, request._version if request._version >= 0 else -1)
            except Exception:
                text = f"Failed for execute the inference request. Model '{name}' is not ready."
                return _failed(_UNSENT.format(name, text))
            try:
                if streams:
                    return StreamCall(model, inputs, list(request._wanted), max_responses=MAX_UNREAD, **options)
                return InferCall(model, inputs, list(request._wanted), **options)
            except Unsupported:
                return _failed(DECOUPLED.format(name))
            except Unavailable as error:
                # Another version may have taken its place since it was looked up.
                if before is model:
                    return _failed(_UNSENT.format(name, error), error)
                before = model
            except ServerError as error:
                return _failed(_UNSENT.format(name, error), error)

    def _waiters(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(MAX_WAITERS, f"py-bls-{self._instance}"[:48])
            return self._pool

    def ended(self, number: int) -> None:
        self._open.pop(number, None)

    def views(self) -> list[CallView]:
        """As of ``PythonInstance.calls``."""
        now = time.monotonic_ns()
        return [call.view(now) for call in list(self._open.values())]

    def fail(self, number: int, text: str) -> bool:
        """Answer a call with an error if no instance has it yet; return whether that was so."""
        call = self._open.get(number)
        return call is not None and call.refuse(text)

    def close(self) -> None:
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(wait=False)


class _Refused(Call):
    """One that never became a request."""

    __slots__ = ("_response",)

    def __init__(self, response: InferenceResponse) -> None:
        self._response = response

    def next(self) -> InferenceResponse:
        return self._response

    def cancel(self) -> None:
        """It has ended."""

    def close(self) -> None:
        """It has ended."""


class _Call(Call):
    __slots__ = ("_began", "_calls", "_native", "_number", "_refusal", "_waits")

    def __init__(self, calls: Calls, number: int, native: Any, waits: bool) -> None:
        self._calls = calls
        self._number = number
        self._native: Any = native
        self._waits = waits
        self._began = time.monotonic_ns()
        self._refusal = ""

    def next(self) -> InferenceResponse:
        native, is_last = self._native, True
        try:
            if isinstance(native, InferCall):
                outputs = native.wait()
            else:
                outputs, is_last = native.take() or ({}, True)
        except Cancelled as error:
            response = _failed(self._refusal, None) if self._refusal else _failed(str(error), error)
        except ServerError as error:
            is_last = isinstance(native, InferCall) or native.over
            response = _failed(str(error), error)
        else:
            tensors = [
                Tensor.over(name, dtype, shape, data, 0, len(data)) for name, (dtype, shape, data) in outputs.items()
            ]
            text = json.dumps(native.parameters) if native.parameters else ""
            response = InferenceResponse.received(tensors, None, text, is_last)
        response._last = is_last
        if is_last:
            self._calls.ended(self._number)
        return response

    def cancel(self) -> None:
        self._native.cancel()

    def close(self) -> None:
        # With the last reference the engine is told; whoever waits has one.
        self._calls.ended(self._number)

    def view(self, now: int) -> CallView:
        native = self._native
        state = "queued" if native.queued else "running"
        return self._number, native.model_key, int(self._waits), state, native.runner, now - self._began, native.waits

    def refuse(self, text: str) -> bool:
        # Before it is taken back, for whoever waits wakes at once. An instance that has it is not told to stop.
        self._refusal = text
        if self._native.cancel(tell=False):
            return True
        self._refusal = ""
        return bool(self._native.refuse(text))


def _tell(call: Call, callback: Callback) -> None:
    callback(call.next())


def _failed(text: str, error: ServerError | None = None) -> InferenceResponse:
    code = ErrorCode.INTERNAL if error is None else ErrorCode.of(int(error.code))
    return InferenceResponse([], TritonError(text, code))


def data_of(tensor: Tensor) -> Any:
    """The bytes of a tensor, in C order; BYTES serialized."""
    if tensor._dtype != BYTES:
        return tensor.bits()
    data = tensor.serialized()
    return encode_bytes(tensor.as_numpy()) if data is None else data


def encoded(tensor: Tensor) -> tuple[str, int, Any, Any]:
    data = data_of(tensor)
    flat = data if isinstance(data, bytes) else data.reshape(-1).view(np.uint8)
    return tensor._name, tensor._dtype, tensor._dims, flat


def parameters(given: Any) -> list[tuple[str, Any]]:
    """Parameters as the engine takes them; those of a received request are text."""
    found: dict[str, Any] = json.loads(given) if isinstance(given, str) and given else given or {}
    pairs = [(key, value) for key, value in found.items() if isinstance(value, (bool, int, str))]
    if not all(isinstance(value, str) or -_LIMIT <= value < _LIMIT for _, value in pairs):
        raise TritonModelException("Unsupported value type on parameters")
    return pairs
