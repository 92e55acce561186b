"""Requests to other models: exec, async_exec and the iterator over the responses of a decoupled one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from .errors import BINDING, TritonModelException
from .response import InferenceResponse
from .runtime import Call, Runtime

if TYPE_CHECKING:
    from .request import InferenceRequest


class ResponseIterator:
    """Yields responses as they come; when they are through, iterating again yields the same ones again."""

    __module__ = BINDING
    __slots__ = ("_call", "_finished", "_index", "_responses")

    def __init__(self, call: Call) -> None:
        self._call = call
        self._responses: list[InferenceResponse] = []
        self._finished = False
        self._index = 0

    def __iter__(self) -> ResponseIterator:
        if self._finished and self._index >= len(self._responses):
            self._index = 0
        return self

    def __next__(self) -> InferenceResponse:
        if self._index < len(self._responses):
            response = self._responses[self._index]
        elif self._finished:
            raise StopIteration("Iteration is done for the responses.")
        else:
            response = self._call.next()
            self._keep(response)
        self._index += 1
        return response

    def _keep(self, response: InferenceResponse) -> None:
        self._responses.append(response)
        self._finished = response._last

    def cancel(self) -> None:
        if not self._finished:
            self._call.cancel()

    def __del__(self) -> None:
        if not getattr(self, "_finished", True):
            self._call.close()


def execute(runtime: Runtime, request: InferenceRequest, decoupled: bool) -> Any:
    call = runtime.submit(request, decoupled)
    return ResponseIterator(call) if decoupled else call.next()


def execute_async(runtime: Runtime, request: InferenceRequest, decoupled: bool) -> Any:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    started: list[Call] = []

    def finish(response: InferenceResponse) -> None:
        value: Any = response
        if decoupled:
            value = ResponseIterator(started.pop())
            value._keep(response)
        if not future.done():
            future.set_result(value)

    def arrived(response: InferenceResponse) -> None:
        try:
            loop.call_soon_threadsafe(finish, response)
        except RuntimeError:  # the loop was closed meanwhile: nobody waits
            if decoupled:
                started.pop().close()

    try:
        started.append(runtime.submit(request, decoupled, arrived))
    except TritonModelException as error:
        # As from a thread of an executor: raised where it is awaited.
        future.set_exception(error)
    return future
