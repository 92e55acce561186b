"""API keys of a running server: which requests they admit, and the file that they come from, watched.

The file is looked at once a second, never by a request. A broken one changes nothing. Knows no protocol: front ends
turn a ``Refusal`` into an answer (authorizer.py).
"""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from pathlib import Path

from triton_fast._native.net.gate import KeyGate
from triton_fast.errors import InvalidArg, ServerError
from triton_fast.frontends import keyfile
from triton_fast.frontends.keyfile import SCOPES, Key
from triton_fast.observability import log

LOOK_S = 1.0
_COMMON = ("health", "metadata", "model-config", "statistics", "shared-memory")
# What a scope reaches: categories of --http-restricted-api, and the metrics port.
REACH: dict[str, tuple[str, ...]] = {
    "infer": ("inference", *_COMMON),
    "admin": ("model-repository", "trace", "logging", *_COMMON),
    "metrics": ("metrics", "statistics", "health"),
}
_BIT = {scope: 1 << n for n, scope in enumerate(SCOPES)}
CATEGORIES = frozenset(category for reached in REACH.values() for category in reached)
_NEEDS = {category: sum(_BIT[s] for s in SCOPES if category in REACH[s]) for category in CATEGORIES}

_REALM = 'Bearer realm="triton_fast"'
_Stamp = tuple[int, int, int, int]


class Refusal(str):
    """Why a request may not pass, as its answer's text, with the status of each protocol and what HTTP says besides."""

    http: int
    grpc: int
    headers: tuple[tuple[str, str], ...]

    def __new__(cls, text: str, http: int, grpc: int, *headers: tuple[str, str]) -> Refusal:
        self = super().__new__(cls, text)
        self.http, self.grpc, self.headers = http, grpc, headers
        return self


NO_KEY = Refusal(
    "this server needs an API key: send it as 'Authorization: Bearer <key>' or 'X-Api-Key: <key>'", 401, 16,
    ("WWW-Authenticate", _REALM),
)  # fmt: skip
BAD_KEY = Refusal(
    "the API key is unknown or has expired", 401, 16, ("WWW-Authenticate", f'{_REALM}, error="invalid_token"')
)
TOO_FAST = Refusal("the API key has used up its rate of requests; try again later", 429, 8, ("Retry-After", "1"))


def _scope_refusal(category: str) -> Refusal:
    names = [scope for scope in SCOPES if category in REACH[scope]]
    text = f"the API key may not use this API ({category}); scopes that may: {', '.join(names) or 'none'}"
    return Refusal(text, 403, 7, ("WWW-Authenticate", f'{_REALM}, error="insufficient_scope"'))


class KeyRing:
    """The keys of one file, and the native table of those that were seen. Used on the loop's thread, but for ``read``.

    ``exempt``: categories that need no key. Raises ServerError when the file can not be used at start.
    """

    def __init__(self, path: Path, exempt: Iterable[str] = (), clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._stamp: _Stamp | None = None
        self._trouble = ""
        self._warned = False
        self._keys: dict[str, Key] = {}
        self._looked = clock()
        self.exempt = frozenset(exempt)
        self.gate = KeyGate()
        self.gate.infer = _NEEDS["inference"]
        self.gate.judge = lambda text, counts: self.refusal(text, "inference", counts)
        try:
            self._stamp = self._look()
            self.adopt(keyfile.load(path))
        except (OSError, ServerError) as error:
            raise _unusable(path, error) from None
        if not self._keys:
            log.warning("the file of API keys has none: every request that needs one is refused")

    # ---- requests

    def refusal(self, text: bytes, category: str, counts: bool = True) -> Refusal | None:
        """Return why a request with this key may not use a category; None when it may."""
        if not text:
            return NO_KEY
        scopes = self.gate.scopes(text)
        if scopes is None:
            key = self._find(text)
            if key is None:
                return BAD_KEY
            scopes = sum(_BIT[scope] for scope in key.scopes)
            self.gate.remember(text, scopes, key.rate)
        if not scopes & _NEEDS.get(category, 0):
            return _scope_refusal(category)
        if counts and not self.gate.take(text):
            return TOO_FAST
        return None

    def _find(self, text: bytes) -> Key | None:
        key = self._keys.get(keyfile.id_of(text))
        if key is None or not key.matches(text):
            return None
        return None if key.expires is not None and key.expires <= self._clock() else key

    # ---- the file

    def read(self) -> dict[str, Key] | None:
        """Return the keys of a file that has changed since the last look; from any thread. Never raises."""
        try:
            stamp = self._look()
            if stamp == self._stamp and not self._trouble:
                return None
            keys = keyfile.load(self._path)
        except (OSError, ServerError) as error:
            trouble = str(_unusable(self._path, error))
            if trouble != self._trouble:
                log.error(f"{trouble}; the keys before it stay")
            self._trouble = trouble
            return None
        self._stamp, self._trouble = stamp, ""
        return keys

    def adopt(self, keys: dict[str, Key]) -> None:
        """Take these keys from the next request on."""
        self._keys = keys
        self.gate.reset(len(keys))

    def expire(self) -> None:
        """Forget what was found good if the time of a key has come since the last call."""
        now, before = self._clock(), self._looked
        self._looked = now
        if any(key.expires is not None and min(now, before) < key.expires <= max(now, before)
               for key in self._keys.values()):  # fmt: skip
            self.gate.reset(len(self._keys))

    async def watch(self, work: Executor, period_s: float = LOOK_S) -> None:
        """Follow the file until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(period_s)
            try:
                keys = await loop.run_in_executor(work, self.read)
            except RuntimeError:
                return  # the server ends
            if keys is not None:
                self.adopt(keys)
                log.info(f"{len(keys)} API keys read anew")
            self.expire()

    def _look(self) -> _Stamp:
        found = os.stat(self._path)
        if found.st_mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP) and not self._warned:
            self._warned = True
            log.warning("others than its owner may read or write the file of API keys: chmod 600 it")
        return found.st_mtime_ns, found.st_ino, found.st_size, found.st_dev


def _unusable(path: Path, error: Exception) -> ServerError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return InvalidArg(f"the file of API keys '{path}' cannot be used: {reason}")
