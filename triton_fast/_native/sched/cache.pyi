"""The response cache before one model version."""

from triton_fast._native.sched.scheduler import NativeScheduler
from triton_fast._native.sched.store import NativeCache

class CacheLayer(NativeScheduler):
    """The response cache before one model version, for ``NativeModel.add_layer``. Its entries end with it.

    identity: what names this model version, and what it computes, to other servers that use the same cache.
    """

    def __init__(self, cache: NativeCache, identity: bytes = b"") -> None: ...
    @property
    def cache(self) -> NativeCache: ...
    @property
    def identity(self) -> bytes: ...
