"""Work for the threads that talk to a response cache elsewhere."""

from triton_fast._native.sched.store import NativeCache

class Lookup:
    """Requests that wait for what the cache elsewhere says. Call ``found`` or ``missed`` once."""

    @property
    def age_ns(self) -> int:
        """How long they have been waiting."""

    @property
    def identity(self) -> bytes:
        """What was given to the layer."""

    def fields(self) -> list[int | bytes | memoryview]:
        """Return what the key is made of: ints, bytes, and memoryviews that must not be used after the end."""

    def found(self, digest: bytes, value: bytes | None) -> bool:
        """The cache said ``value`` (bytes or None) for the key ``digest``, 32 bytes.

        Returns False when the value is no response of this model; the request is executed then, as without one.
        """

    def missed(self) -> None:
        """Nobody was asked: the requests are executed, and their answer is not stored elsewhere."""

class Insertion:
    """A response to be stored elsewhere."""

    @property
    def digest(self) -> bytes:
        """The 32 bytes of its key."""

    @property
    def value(self) -> memoryview:
        """The packed response: a memoryview that must not be used after this object has gone."""

class RemoteCache(NativeCache):
    """A response cache whose entries are elsewhere. Keeps nothing itself; equal requests under way are still one.

    Parameters
    ----------
    most_bytes : int
        Entries that may wait to be stored, in bytes; what comes on top is not stored.
    """

    open: bool
    """Whether requests are looked up at all. While not, all of them are executed and none is stored."""

    def __init__(self, *, most_bytes: int = 67108864) -> None: ...
    @property
    def dropped(self) -> int:
        """Responses that were not stored because too many waited."""

    def take(self) -> Lookup | Insertion | None:
        """Wait for the next ``Lookup`` or ``Insertion``, lookups first; None after ``close``."""

    def close(self) -> None:
        """Look nothing up any more: what waits is executed. ``take`` returns None once nothing is left."""
