"""The server's response cache, from ``--cache-config``: in this process (local) or in Redis.

Knows the caches there are and how Triton words what is wrong with their settings; nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from triton_fast._native.sched.store import NativeCache
from triton_fast.backends.base import LoadContext
from triton_fast.errors import Internal, InvalidArg
from triton_fast.scheduling import redis_cache


class ResponseCache(Protocol):
    """What models' layers are made from.

    Attributes
    ----------
    name
        As ``--cache-config`` names it.
    native
        The engine's part.
    """

    name: str

    @property
    def native(self) -> NativeCache: ...

    def identity(self, context: LoadContext) -> bytes:
        """Return what tells this model version apart from all others that use the same cache."""

    def close(self) -> None: ...


class LocalCache:
    """Responses in this process's memory. Its layers tell versions and loads apart by themselves."""

    name = "local"

    def __init__(self, settings: Mapping[str, str]) -> None:
        if "size" not in settings:
            raise InvalidArg("Failed to initialize LocalCache: config didn't contain a valid 'size' field.")
        size = settings["size"]
        if not (size.isascii() and size.isdecimal()) or len(size) > 15:
            raise InvalidArg(f"Failed to initialize LocalCache: 'size' must be a number of bytes, got '{size[:64]}'")
        if int(size) == 0:
            raise Internal("Failed to initialize LocalCache: 'size' must be over 0; leave the cache out to have none")
        try:
            self.native = NativeCache(int(size))
        except ValueError as error:
            raise Internal(f"Failed to initialize LocalCache: {error}") from None

    def identity(self, context: LoadContext) -> bytes:
        return b""

    def close(self) -> None:
        self.native.clear()


def make_cache(config: Mapping[str, Mapping[str, str]], directory: str) -> ResponseCache | None:
    """Return the cache that ``--cache-config`` asks for, if any. ``directory``: named in the error of unknown ones.

    Raises
    ------
    ServerError
        There is no such cache, or its settings are wrong; with Triton's words where it has some.
    """
    for name, settings in config.items():
        if name == "local":
            return LocalCache(settings)
        if name == "redis":
            return redis_cache.RedisCache(redis_cache.parse(settings))
        raise InvalidArg(f"unable to find 'libtritoncache_{name}.so' for cache. Searched: {directory}")
    return None
