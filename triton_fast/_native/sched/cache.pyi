"""The response cache: a store of answers that models share, and the layer of one model version over it."""

from triton_fast._native.sched.scheduler import NativeScheduler

class NativeCache:
    """Responses of all models that a layer was made for, the least recently used evicted first.

    Parameters
    ----------
    size : int
        Bytes for entries and table together. 0 keeps nothing: equal requests under way still share one execution.
    """

    def __init__(self, size: int = 0) -> None: ...
    def clear(self) -> None:
        """Drop every entry; responses on their way keep what they were given."""

    def layer(self, identity: bytes = b"") -> CacheLayer:
        """Return a layer for one model version, to be given to ``NativeModel.add_layer``.

        identity: what names this model version, and what it computes, to other servers that use the same cache.
        """

    def stats(self) -> dict[str, int]:
        """Return the counters: budget, used, entries, hits, misses, evictions, lookup_ns, insert_ns.

        Those that waited for an equal request are misses here, and hits of their model.
        """

class CacheLayer(NativeScheduler):
    """The response cache before one model version. Made by ``NativeCache.layer``; its entries end with it."""

    @property
    def cache(self) -> NativeCache: ...
    @property
    def identity(self) -> bytes: ...
