"""The gRPC message framing: five bytes of prefix, then the message; and the grammar of two field values.

Source: the gRPC over HTTP/2 protocol description.
"""

from collections.abc import Iterable

def split(pieces: Iterable[bytes], limit: int = 2147483647) -> tuple[list[tuple[bool, bytes]], int, int]:
    """Feed pieces of one stream of messages; return ([(compressed, message)], bytes of the message begun, status).

    The status is 1 when the last message is whole, 0 when more must come, -1 for a message over ``limit`` bytes, -2
    when memory ran out, -3 for a flag other than 0 and 1. Stops at the first refusal. Tests only.
    """

def parse_timeout(value: bytes) -> int:
    """Return a ``grpc-timeout`` in ns, at most 100 years; -1 when it is not one to eight digits and a unit."""

def percent_encode(text: bytes) -> bytes:
    """Return text as ``grpc-message`` carries it: all but printable ASCII without % becomes %XX."""
