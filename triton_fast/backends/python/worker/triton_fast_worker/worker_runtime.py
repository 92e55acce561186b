"""The runtime of a worker process: region and rings for data, the control socket for the rest."""

from __future__ import annotations

import contextvars
import time
from typing import Any, Callable

from . import tracing
from .answers import Answers, WorkerCall
from .control import Control, cut
from .errors import TritonError, TritonModelException
from .layout import BLS_STREAM, BLS_WAITS, EVENT_RESPONSE
from .runtime import Runtime

_HOLD_LOOK_S = 0.0002
_HOLD_LOOK_MOST_S = 0.002
NO_PARENT = (0, 0)
# The first request of the batch on whose behalf the calling context works.
parent: contextvars.ContextVar[tuple[int, int]] = contextvars.ContextVar("triton_fast_parent", default=NO_PARENT)


class WorkerRuntime(Runtime):
    __slots__ = ("_answers", "_client", "_control", "_transport", "decoupled", "executing", "name", "version_dir")

    def __init__(self, control: Control, context: dict[str, Any]) -> None:
        self._control = control
        self._client: Any = None
        self._transport: Any = None
        self._answers: Answers | None = None
        self.name: str = context["instance_name"]
        self.version_dir: str = context["version_dir"]
        self.decoupled = False
        # Between initialize and finalize: when BLS is allowed.
        self.executing = False

    def attach(self, client: Any, transport: Any, decoupled: bool) -> None:
        self._client = client
        self._transport = transport
        self._answers = Answers(client, transport)
        self.decoupled = decoupled

    def cancelled(self, ticket: Any) -> bool:
        return bool(self._transport.cancelled(ticket))

    def send(self, ticket: Any, response: Any, wanted: frozenset[str], flags: int) -> None:
        transport, pause = self._transport, _HOLD_LOOK_S
        while transport.held_back(ticket) and not transport.cancelled(ticket):
            time.sleep(pause)
            pause = min(pause * 2, _HOLD_LOOK_MOST_S)
        try:
            encoded = self._client.encode_response(transport, ticket, response, wanted, flags)
        except TritonModelException as error:
            # The client gets the reason instead.
            transport.end_later(ticket, TritonError(str(error)))
            raise
        transport.publish_event(EVENT_RESPONSE, 0, *encoded)

    def abandoned(self, ticket: Any, sent: bool) -> None:
        error = None
        if not self.decoupled and not sent:
            error = TritonError(
                f"Failed to process the request(s) for model '{self.name}', message: The request was neither answered "
                "in the execute return nor by its response sender."
            )
        self._transport.end_later(ticket, error)

    def submit(self, request: Any, decoupled: bool, callback: Callable[[Any], None] | None = None) -> WorkerCall:
        if self._answers is None or not self.executing:
            raise TritonModelException("BLS is only supported during the 'execute' function.")
        options = BLS_STREAM if decoupled else 0
        # A coroutine of a model that is not decoupled keeps its instance busy as well as a waiting thread does.
        if callback is None or not self.decoupled:
            options |= BLS_WAITS
        return self._answers.submit(request, options, parent.get(), callback)

    def log(self, level: int, file: str, line: int, message: str) -> None:
        told = {"type": "log", "level": level, "file": file, "line": line, "message": cut(message)}
        self._control.tell({**told, **tracing.about()})

    def ask(self, verb: str, fields: dict[str, Any], blob: bytes = b"") -> Any:
        return self._control.ask({"type": verb, **fields}, blob)

    def tell(self, verb: str, fields: dict[str, Any]) -> None:
        self._control.tell({"type": verb, **fields})

    def model_dir(self) -> str:
        return self.version_dir
