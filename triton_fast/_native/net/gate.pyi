"""API keys that were found good, for native connections to look up; what a key may do is decided in Python."""

from collections.abc import Callable

class KeyGate:
    """A table of keys under a keyed hash; bytes are compared in constant time. Used under the GIL.

    Attributes
    ----------
    generation
        Changes with every ``reset``: what connections remember of a key holds for one generation.
    infer
        Scope bits of which a key needs one to infer.
    judge
        ``(key, counts)`` -> what to refuse with, or None; asked by native code about a key that is not in the table,
        lacks the scope or has used up its rate. ``counts``: the request is one of the key's rate.
    now
        ns, instead of the clock's; 0 = the clock's. For tests.
    """

    generation: int
    infer: int
    judge: Callable[[bytes, bool], object] | None
    now: int

    def __init__(self) -> None: ...
    def reset(self, keys: int) -> None:
        """Forget every key, and make room for this many. Raises ValueError above 65536."""

    def remember(self, key: bytes, scopes: int, rate: float = 0) -> None:
        """Take a key that was found good, of at most 96 bytes. ``rate``: requests a second, 0 for any number.

        Raises ValueError when there is no room, or this is no key.
        """

    def scopes(self, key: bytes) -> int | None:
        """Return the scopes of a key that was found good, None of any other."""

    def take(self, key: bytes) -> bool:
        """Count one request of a key that was found good; False when it has used up its rate."""
