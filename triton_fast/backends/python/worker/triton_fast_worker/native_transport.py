"""The transport over the compiled client: what transport.py has in pure Python. Imported only when there is one.

The client holds what messages refer to itself: nothing here has anything to hold for them.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from . import cores
from .errors import ErrorCode, TritonError, TritonModelException
from .heap import no_space
from .layout import EVENT_RESPONSE, FLAG_FINAL, FLAGS_ONLY, RESPONSE
from .request import InferenceRequest
from .response import InferenceResponse, NoResponse
from .runtime import Runtime
from .tensor import Tensor

client: Any = cores.client
_LOOK_S = 0.002
_RETRY_S = 0.01
Encoded = tuple[int, int]


class Transport(client.Transport):  # type: ignore[misc]
    """``runtime`` is set before the first batch is decoded."""

    __slots__ = ("runtime",)
    runtime: Runtime

    def names(self, inputs: list[str], outputs: list[str]) -> None:
        self.bind(Tensor, InferenceRequest, InferenceResponse, _error, inputs, outputs)

    def wait_for_memory(self, seconds: float) -> None:
        """How long a message waits for the server to read what it has."""
        self.region.wait_s = seconds

    def release(self, off: int, length: int) -> None:
        """Give back an answer that is not decoded."""
        self.region.lease(off, length)

    def end_later(self, ticket: tuple[int, int], error: TritonError | None) -> None:
        """For finalizers: the request's final event. The client's locks are never held while Python code runs."""
        response = None if error is None else InferenceResponse([], error)
        try:
            encoded = client.encode_response(self, *ticket, response, None, FLAG_FINAL, False)
        except MemoryError:
            # No memory now: what the server reads meanwhile comes back.
            again = threading.Timer(_RETRY_S, self.end_later, (ticket, error))
            again.daemon = True
            again.start()
            return
        self.publish_event(EVENT_RESPONSE, 0, *encoded)

    def event_later(self, kind: int, number: int) -> None:
        """For finalizers: an event without payload."""
        self.publish_event(kind, number)

    def trim(self, keep: int) -> None:
        self.region.trim(keep)

    def cancelled(self, ticket: tuple[int, int]) -> bool:
        return bool(self.is_cancelled(*ticket))

    def held_back(self, ticket: tuple[int, int]) -> bool:
        """Whether the server wants no further response of the request now."""
        return bool(self.is_held(*ticket))

    def settle(self, timeout: float) -> None:
        """Before the end: wait until the server has taken everything, as long as ``timeout`` seconds."""
        until = time.monotonic() + timeout
        while self.region.stats()["kept"] and time.monotonic() < until:
            time.sleep(_LOOK_S)
            self.region.trim(self.region.stats()["bump"])


def _error(message: str, code: int) -> TritonError:
    return TritonError(message, ErrorCode.of(code))


def _encoded(function: Any, *arguments: Any) -> Encoded:
    try:
        found: Encoded = function(*arguments)
    except MemoryError as error:
        raise no_space(getattr(error, "wanted", 0)) from None
    except OverflowError as error:
        raise TritonModelException(str(error)) from None
    return found


decode_batch = client.decode_batch


def decode_answer(transport: Transport, off: int, length: int) -> tuple[int, InferenceResponse]:
    """Kind of the record and the response of a BLS request."""
    response, is_last = client.decode_answer(transport, off, length)
    kind = RESPONSE
    if response is None:
        kind, response = FLAGS_ONLY, InferenceResponse([])
    response._last = is_last
    return kind, response


def encode_done(transport: Transport, requests: list[Any], results: list[Any]) -> Encoded:
    # The client sees from the request's release flags why there is no response.
    answers = [None if type(one) is NoResponse else one for one in results]
    return _encoded(client.encode_done, transport, requests, answers)


def encode_failure(transport: Transport, text: str) -> Encoded:
    """A done message that fails all of the batch that is unanswered."""
    return _encoded(client.encode_failure, transport, int(ErrorCode.INTERNAL), text)


def encode_response(
    transport: Transport, ticket: tuple[int, int], response: Any, wanted: frozenset[str], flags: int
) -> Encoded:
    return _encoded(client.encode_response, transport, *ticket, response, wanted, flags)


def encode_bls(transport: Transport, request: InferenceRequest, options: int, parent: tuple[int, int]) -> Encoded:
    model, version = getattr(request, "_model", ""), getattr(request, "_version", -1)
    return _encoded(client.encode_bls, transport, request, model, version, options, *parent)
