"""The eight Triton error codes and one of ours, an exception for each, and the one table to HTTP and gRPC status.

Everything below this module reports failure by raising one of these; only front ends turn a code into a
protocol's number, and only through ``STATUS``.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar, NamedTuple


class Code(IntEnum):
    """Triton's error codes; the numbers are those of ``TRITONSERVER_Error_Code`` and of the native engine.

    RESOURCE_EXHAUSTED is ours: UNAVAILABLE for want of a place in a queue, told apart by --overload-status=429.
    """

    UNKNOWN = 0
    INTERNAL = 1
    NOT_FOUND = 2
    INVALID_ARG = 3
    UNAVAILABLE = 4
    UNSUPPORTED = 5
    ALREADY_EXISTS = 6
    CANCELLED = 7
    RESOURCE_EXHAUSTED = 8


class Status(NamedTuple):
    """What one code becomes on each wire, and how logs and load reasons spell it."""

    label: str
    http: int
    grpc: int


STATUS: dict[Code, Status] = {
    Code.UNKNOWN: Status("Unknown", 400, 2),
    Code.INTERNAL: Status("Internal", 500, 13),
    Code.NOT_FOUND: Status("Not found", 404, 5),
    Code.INVALID_ARG: Status("Invalid argument", 400, 3),
    Code.UNAVAILABLE: Status("Unavailable", 503, 14),
    Code.UNSUPPORTED: Status("Unsupported", 501, 12),
    Code.ALREADY_EXISTS: Status("Already exists", 400, 6),
    Code.CANCELLED: Status("Cancelled", 400, 1),
    Code.RESOURCE_EXHAUSTED: Status("Resource exhausted", 429, 8),
}

# Seconds after which a client may ask again, by the code that it was refused with.
RETRY_AFTER = {Code.RESOURCE_EXHAUSTED: 1}

# What a client is told of a failure that is none of its business; the log has the rest.
# Of a request whose bytes the server will not hold right now.
NO_ROOM = "the request needs more memory than is left (--request-memory-limit); try again later"
INTERNAL_ERROR = "internal error, see the server log"


class ServerError(Exception):
    """Base of every error the server answers with. ``code`` picks the row of ``STATUS``."""

    code: ClassVar[Code] = Code.UNKNOWN

    @property
    def message(self) -> str:
        return str(self.args[0]) if self.args else ""


class Unknown(ServerError):
    code = Code.UNKNOWN


class Internal(ServerError):
    code = Code.INTERNAL


class NotFound(ServerError):
    code = Code.NOT_FOUND


class InvalidArg(ServerError, ValueError):
    code = Code.INVALID_ARG


class Unavailable(ServerError):
    code = Code.UNAVAILABLE


class ResourceExhausted(Unavailable):
    code = Code.RESOURCE_EXHAUSTED


class Unsupported(ServerError):
    code = Code.UNSUPPORTED


class AlreadyExists(ServerError):
    code = Code.ALREADY_EXISTS


class Cancelled(ServerError):
    code = Code.CANCELLED


BY_CODE: dict[Code, type[ServerError]] = {
    cls.code: cls
    for cls in (
        Unknown, Internal, NotFound, InvalidArg, Unavailable, Unsupported, AlreadyExists, Cancelled, ResourceExhausted,
    )
}  # fmt: skip


def make(code: int, message: str) -> ServerError:
    """Return the exception for a native status; an unknown number becomes ``Unknown``."""
    return BY_CODE.get(Code(code) if code in Code._value2member_map_ else Code.UNKNOWN, Unknown)(message)


def describe(error: BaseException) -> str:
    """Return ``<Code>: <message>`` as Triton writes a load failure; foreign exceptions count as Internal."""
    code = error.code if isinstance(error, ServerError) else Code.INTERNAL
    text = str(error) if isinstance(error, ServerError) else f"{type(error).__name__}: {error}"
    return f"{STATUS[code].label}: {text}"
