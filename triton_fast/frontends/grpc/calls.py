"""One gRPC call as the native connection gives it to Python, and what every kind of call does alike.

Knows no verb. All of it runs on the loop's thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from triton_fast.errors import STATUS, Code, ServerError

OK = 0
UNKNOWN = 2
RESOURCE_EXHAUSTED = 8
UNIMPLEMENTED = 12
INTERNAL = 13

# Bytes of one request message of a verb; a load request carries files and may be as large as any message.
MAX_MESSAGE = 1 << 20
MAX_LOAD_MESSAGE = 1 << 31
# Bytes of answers that a client may leave unread.
MAX_BUFFERED = 4 << 20
# What gRPC's servers say to a missing message and to one that is no such message.
BROKEN = "Unable to parse request"
TOO_MANY = "the call takes one request message, more than one came"
SLOW = f"the client has left more than {MAX_BUFFERED} bytes of answers unread"


class Call(Protocol):
    """What the native connection knows of a call, and how it is answered."""

    @property
    def path(self) -> str: ...
    @property
    def metadata(self) -> Mapping[str, str]: ...
    @property
    def buffered(self) -> int: ...
    def send(self, data: bytes) -> None: ...
    def finish(self, status: int, text: str = "") -> None: ...


class Handler(Protocol):
    """What the native connection tells of a call: a message, the end of them, or that it has ended and not by the
    handler. ``limit``: bytes of a message; a longer one is refused before it is read.
    """

    limit: int

    def message(self, data: bytes) -> None: ...
    def end(self) -> None: ...
    def cancel(self) -> None: ...


class CallHandler:
    """A call that is open until ``finish`` or ``cancel``."""

    limit = MAX_MESSAGE

    def __init__(self, call: Call) -> None:
        self.call = call
        self.is_open = True

    def send(self, data: bytes) -> None:
        """Send one message, or end the call of a client that does not read."""
        if self.call.buffered > MAX_BUFFERED:
            self.finish(RESOURCE_EXHAUSTED, SLOW)
        else:
            self.call.send(data)

    def finish(self, status: int, text: str = "") -> None:
        if self.is_open:
            self.is_open = False
            self.closed()
            # Names of files may hold what UTF-8 cannot.
            self.call.finish(status, text.encode("utf-8", "replace").decode())

    def cancel(self) -> None:
        if self.is_open:
            self.is_open = False
            self.closed()

    def closed(self) -> None:
        """Let go of what the call held."""


class OneRequest(CallHandler):
    """A call with one request message: ``begin`` is called with it once the client has ended its side."""

    def __init__(self, call: Call, limit: int = MAX_MESSAGE) -> None:
        super().__init__(call)
        self.limit = limit
        self._data: bytes | None = None
        self._has_ended = False

    def message(self, data: bytes) -> None:
        if not self.is_open:
            return
        if self._data is not None or self._has_ended:
            self.finish(INTERNAL, TOO_MANY)
        elif len(data) > self.limit:
            self.finish(RESOURCE_EXHAUSTED, f"Received message larger than max ({len(data)} vs. {self.limit})")
        else:
            self._data = data

    def end(self) -> None:
        if not self.is_open or self._has_ended:
            return
        self._has_ended = True
        data, self._data = self._data, None
        if data is None:
            self.finish(INTERNAL, BROKEN)
        else:
            self.begin(data)

    def begin(self, data: bytes) -> None:
        raise NotImplementedError

    def closed(self) -> None:
        self._data = None


def failure(error: ServerError) -> tuple[int, str]:
    """Return (status, text) of a verb's error."""
    return STATUS[error.code].grpc, str(error)


def code_status(code: int) -> int:
    """Return the status of one of Triton's codes; an unknown number is UNKNOWN."""
    return STATUS[Code(code)].grpc if code in Code._value2member_map_ else UNKNOWN
