"""The response cache's key of a request: a keyed 128-bit digest (include/tf_digest.h)."""

from collections.abc import Iterable

def digest(secret: bytes, fields: Iterable[int | bytes]) -> bytes:
    """Return the 16 bytes that a key of 1056 bytes (two words, then 130) gives for fields: int is a word (tests)."""

def rate(n: int, repeat: int) -> int:
    """Digest n bytes ``repeat`` times (bench only); returns the last word."""
