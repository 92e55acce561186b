"""What models' response caches share."""

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

    def stats(self) -> dict[str, int]:
        """Return the counters: budget, used, entries, hits, misses, evictions, lookup_ns, insert_ns.

        Those that waited for an equal request are misses here, and hits of their model.
        """
