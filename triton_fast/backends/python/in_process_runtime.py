"""What pb_utils reaches outside of an in-process model: the engine and the server, without a way between them.

A ticket is the ``LocalRequest``. Control verbs go through messages.py as those of a worker do, but are done at once.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

from triton_fast_worker import tracing
from triton_fast_worker.errors import TritonModelException
from triton_fast_worker.response import InferenceResponse
from triton_fast_worker.runtime import Call, Runtime, set_finder

from triton_fast._native.pyworker.local import LocalRequest
from triton_fast.backends.base import LoadContext
from triton_fast.backends.python import frames
from triton_fast.backends.python.frames import BadFrame, Message
from triton_fast.backends.python.in_process_calls import Calls, data_of, parameters
from triton_fast.backends.python.messages import WorkerMessages
from triton_fast.errors import Code, ServerError
from triton_fast.observability import log

# In the globals of a model's modules: the runtimes of its instances.
RUNTIMES = "__triton_fast_runtimes__"
_live: list[LocalRuntime] = []


class LocalRuntime(Runtime):
    """Of one instance. ``model`` is its object; ``executing``: between initialize and finalize, when BLS is allowed."""

    __slots__ = ("_dropped", "_host", "_messages", "calls", "decoupled", "executing", "loading", "model", "name",
                 "version_dir")  # fmt: skip

    def __init__(self, context: LoadContext, instance: str, decoupled: bool) -> None:
        host = context.host
        self._host = host
        fields: dict[str, Any] = {"model": context.name, "version": context.version, "instance": instance}
        self._messages = WorkerMessages(host, fields, lambda: self.loading)
        self._dropped: deque[Message] = deque()
        self.calls = Calls(host, instance)
        self.name = instance
        self.version_dir = str(context.version_dir)
        self.decoupled = decoupled
        self.executing = False
        self.loading = True
        self.model: Any = None
        _live.append(self)

    def close(self) -> None:
        _live.remove(self)
        self.calls.close()
        self._messages.close()
        self.model = None

    # ---- requests

    def cancelled(self, ticket: LocalRequest) -> bool:
        return ticket.cancelled

    def send(self, ticket: LocalRequest, response: Any, wanted: frozenset[str], flags: int) -> None:
        if ticket.over:
            # Of a model that is not decoupled the first response was the last; or the client has its error already.
            return
        try:
            answer(ticket, response, wanted, final=bool(flags))
        except TritonModelException as error:
            # The sender counts it as sent: the client gets the reason instead.
            self._end(ticket, (int(Code.INTERNAL), str(error)))
            raise
        except ServerError as error:
            if not ticket.over:
                self._end(ticket, (int(error.code), str(error)))
                raise TritonModelException(str(error)) from None

    def abandoned(self, ticket: LocalRequest, sent: bool) -> None:
        error = None
        if not self.decoupled and not sent:
            error = int(Code.INTERNAL), (
                f"Failed to process the request(s) for model '{self.name}', message: The request was neither answered "
                "in the execute return nor by its response sender."
            )
        self._end(ticket, error)

    @staticmethod
    def _end(ticket: LocalRequest, error: tuple[int, str] | None) -> None:
        if not ticket.over:
            # Another thread may have ended it a moment before.
            with contextlib.suppress(ServerError):
                ticket.send(error=error, final=True)

    def submit(
        self, request: Any, decoupled: bool, callback: Callable[[InferenceResponse], None] | None = None
    ) -> Call:
        if not self.executing:
            raise TritonModelException("BLS is only supported during the 'execute' function.")
        # A coroutine of a model that is not decoupled keeps its instance busy as well as a waiting thread does.
        return self.calls.submit(request, decoupled, callback is None or not self.decoupled, callback)

    # ---- the server

    def log(self, level: int, file: str, line: int, message: str) -> None:
        fields = {"type": "log", "level": level, "file": file, "line": line, "message": message, **tracing.about()}
        with contextlib.suppress(BadFrame):
            self._messages.take(_Exchange(), fields, b"")

    def ask(self, verb: str, fields: dict[str, Any], blob: bytes = b"") -> Any:
        self._drop()
        exchange = _Exchange()
        # As it would arrive from a worker: keys are strings then.
        arrived = json.loads(json.dumps(fields))
        try:
            self._messages.take(exchange, {"type": verb, **arrived, "call": 0}, blob)
            return frames.outcome(exchange.told)
        except (ServerError, BadFrame) as error:
            raise TritonModelException(str(error)) from None

    def tell(self, verb: str, fields: dict[str, Any]) -> None:
        message = {"type": verb, **fields}
        if verb.endswith("drop"):
            self._dropped.append(message)
        self._drop()
        if not verb.endswith("drop"):
            with contextlib.suppress(BadFrame):
                self._messages.take(_Exchange(), message, b"")

    def _drop(self) -> None:
        """Let go of metrics. A finalizer may have come while its own thread has the lock; then it is done next time."""
        lock = self._host.metrics.lock
        while self._dropped and lock.acquire(False):
            lock.release()
            with contextlib.suppress(BadFrame, IndexError):
                self._messages.take(_Exchange(), self._dropped.popleft(), b"")

    def model_dir(self) -> str:
        return self.version_dir


class _Exchange:
    """A call that is answered before it returns."""

    def __init__(self) -> None:
        self.told: Message = {}

    def send(self, message: Message, blob: bytes = b"") -> None:
        self.told = message

    def serve(self, call: int, outcome: Callable[[], object]) -> None:
        try:
            self.told = frames.answer(call, outcome())
        except ServerError as error:
            self.told = frames.failure(call, error)
        except Exception as error:
            log.error(f"a call of a Python model failed: {type(error).__name__}: {error}")
            self.told = frames.failure(call, error)


def prepared(response: Any, wanted: frozenset[str]) -> dict[str, Any]:
    """Return the arguments that make ``LocalRequest.send`` send it. Raises TritonModelException."""
    if response is None:
        return {}
    if response._error is not None:
        return {"error": (int(response._error.code()), response._error.message())}
    outputs = [
        (tensor._name, tensor._dtype, tensor._dims, data_of(tensor))
        for tensor in response._outputs
        if tensor._name in wanted
    ]
    given = response._parameters
    return {"outputs": outputs, "params": parameters(given) if given and not isinstance(given, str) else ()}


def answer(ticket: LocalRequest, response: Any, wanted: frozenset[str], *, final: bool) -> None:
    ticket.send(**prepared(response, wanted), final=final)


def _find() -> Runtime | None:
    """Return the runtime of the model whose code is running: threads of its own have none bound."""
    frame = sys._getframe(1)
    while frame is not None:
        runtimes: list[LocalRuntime] = frame.f_globals.get(RUNTIMES, [])
        if runtimes:
            if len(runtimes) > 1:
                this = frame.f_locals.get("self")
                return next((one for one in runtimes if one.model is this and this is not None), runtimes[0])
            return runtimes[0]
        frame = frame.f_back  # type: ignore[assignment]
    return _live[0] if len(_live) == 1 else None


set_finder(_find)
