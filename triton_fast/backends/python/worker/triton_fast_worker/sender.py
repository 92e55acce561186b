"""InferenceResponseSender: when a response may be sent, by decoupled models and others."""

from __future__ import annotations

import threading
from typing import Any

from .errors import BINDING, TritonModelException, incompatible
from .response import InferenceResponse
from .runtime import Runtime, Ticket

FINAL = 1


class InferenceResponseSender:
    """Of one received request. Usable from any thread, also after execute returned."""

    __module__ = BINDING
    __slots__ = ("_closed", "_decoupled", "_lock", "_runtime", "_sent", "_ticket", "_wanted")

    def __init__(self, runtime: Runtime | None, ticket: Ticket, wanted: frozenset[str], closed: bool) -> None:
        self._runtime = runtime
        self._ticket = ticket
        self._wanted = wanted
        self._decoupled = runtime is not None and runtime.decoupled
        self._lock = threading.Lock()
        self._closed = closed
        self._sent = 1 if closed else 0

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        if not (response is None or isinstance(response, InferenceResponse)) or not isinstance(flags, int):
            raise incompatible(
                "send",
                f"(self: {BINDING}.InferenceResponseSender, response: {BINDING}.InferenceResponse = None, "
                "flags: int = 0) -> None",
                self, response,
            )  # fmt: skip
        if flags not in (0, FINAL):
            raise TritonModelException("Unable to send response. Unsupported flag provided.")
        if flags == 0 and response is None:
            raise TritonModelException(
                "Inference Response object must be provided when the response flags is set to zero."
            )
        self.account(response, flags)
        if self._runtime is not None:
            try:
                self._runtime.send(self._ticket, response, self._wanted, flags)
            except TritonModelException:
                # The runtime has ended the request with the reason.
                self._closed = True
                raise

    def is_cancelled(self) -> bool:
        return self._runtime is not None and self._runtime.cancelled(self._ticket)

    def account(self, response: InferenceResponse | None, flags: int) -> None:
        """Check that it may be sent now, and count it as sent."""
        if self._runtime is None:
            raise TritonModelException(
                "Unable to send response. Response sender has no reference to the decoupled state of the model."
            )
        with self._lock:
            if not self._decoupled:
                if response is not None and self._sent > 0:
                    raise TritonModelException(
                        "Unable to send response. Non-decoupled model cannot send more than one response."
                    )
                if response is None and flags == FINAL and self._sent == 0:
                    raise TritonModelException(
                        "Unable to send response. Non-decoupled model cannot send complete final before sending a "
                        "response."
                    )
            if self._closed:
                raise TritonModelException("Unable to send response. Response sender has been closed.")
            if flags == FINAL:
                self._closed = True
            self._sent += 1

    def close(self) -> None:
        """The request is answered by other means."""
        # No lock: a flag that only ever goes to True.
        self._closed = True

    def closed(self) -> bool:
        return self._closed

    def sent(self) -> int:
        return self._sent

    def __del__(self) -> None:
        # Nobody can end the request any more; its client must not wait for ever.
        runtime: Any = getattr(self, "_runtime", None)
        if runtime is not None and not self._closed:
            runtime.abandoned(self._ticket, self._sent > 0)
