"""The response cache in Redis: threads of its own look up and store, so that neither loops nor instances wait for it.

A Redis that is away or slow makes misses, never errors: after a failure nobody asks until a PING is answered. What
Redis holds is not trusted: the engine checks every value (ext/triton_fast/_native/sched/entry.pxd has the form).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from triton_fast._native.sched.remote import Insertion, Lookup, RemoteCache
from triton_fast.backends.base import LoadContext
from triton_fast.errors import InvalidArg, Unsupported
from triton_fast.observability import log

PREFIX = b"triton_fast:1:"
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
CHUNK = 1 << 20
_NO_ADDRESS = (
    "Failed to initialize RedisCache, didn't specify address. Must at a minimum specify 'host' and 'port' in the "
    "configuration - e.g. tritonserver --cache-config redis,host=redis --cache-config redis,port=6379 "
    "--model-repository=/models ..."
)
_TLS = {"cert": "ssl_certfile", "key": "ssl_keyfile", "cacert": "ssl_ca_certs", "cacert_dir": "ssl_ca_path"}


@dataclass(frozen=True)
class RedisSettings:
    """``--cache-config=redis,...``: Triton's names and units; times in ms, of which 0 waits for ever.

    ``response_ttl`` is ours: after so many seconds Redis forgets a response; 0 = never.
    """

    host: str
    port: int
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0
    connect_timeout: int = 1000
    socket_timeout: int = 1000
    pool_size: int = 4
    wait_timeout: int = 100
    response_ttl: int = 0
    cert: str | None = None
    key: str | None = None
    cacert: str | None = None
    cacert_dir: str | None = None


def parse(given: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> RedisSettings:
    """Check ``--cache-config``'s settings; raises InvalidArg. The environment may hold user and password."""
    if not given.get("host") or not given.get("port"):
        raise InvalidArg(_NO_ADDRESS)
    known = RedisSettings.__dataclass_fields__
    found: dict[str, Any] = {
        "user": environ.get("TRITONCACHE_REDIS_USERNAME"), "password": environ.get("TRITONCACHE_REDIS_PASSWORD"),
    }  # fmt: skip
    for name, value in given.items():
        if name not in known:
            raise InvalidArg(f"the redis cache has no setting '{name}'; there are {', '.join(sorted(known))}")
        if known[name].type != "int":
            found[name] = value
        elif value.isascii() and value.isdecimal() and len(value) < 10:
            found[name] = int(value)
        else:
            raise InvalidArg(f"the redis cache's '{name}' must be a whole number, got '{value[:64]}'")
    settings = RedisSettings(**found)
    if not 0 < settings.port < 65536 or not 0 < settings.pool_size <= 64:
        raise InvalidArg("the redis cache's 'port' must be 1 to 65535 and its 'pool_size' 1 to 64")
    return settings


def make_client(settings: RedisSettings) -> Any:
    """Return a client of redis-py; it connects when it is used."""
    try:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError:
        raise Unsupported(
            "the redis cache needs the Python package 'redis': pip install 'triton_fast[redis]'"
        ) from None
    tls = {option: value for name, option in _TLS.items() if (value := getattr(settings, name))}
    return redis.Redis(
        host=settings.host, port=settings.port, db=settings.db, username=settings.user, password=settings.password,
        socket_connect_timeout=settings.connect_timeout / 1000 or None,
        socket_timeout=settings.socket_timeout / 1000 or None,
        retry=Retry(NoBackoff(), 0), max_connections=settings.pool_size + 1, ssl=bool(tls), **tls,
    )  # fmt: skip


def key_of(identity: bytes, fields: Iterable[int | bytes | memoryview]) -> bytes:
    """Return the 32 bytes that name a request, the same in every process."""
    digest = blake2b(identity, digest_size=32)
    for value in fields:
        if isinstance(value, int):
            digest.update(b"i" + (value & (1 << 64) - 1).to_bytes(8, "little"))
        else:
            digest.update(b"b" + len(value).to_bytes(8, "little"))
            digest.update(value)
    return digest.digest()


def identity_of(context: LoadContext) -> bytes:
    """Return a digest of a model version: name, number, config and the bytes of its files.

    Where instances run makes no difference.
    """
    config = type(context.config)()
    config.CopyFrom(context.config)
    config.ClearField("instance_group")
    digest = blake2b(digest_size=32)
    for part in (context.name.encode(), str(context.version).encode(), config.SerializeToString(deterministic=True)):
        digest.update(len(part).to_bytes(8, "little") + part)
    for path in sorted(path for path in context.version_dir.rglob("*") if path.is_file()):
        name = path.relative_to(context.version_dir)
        if "__pycache__" not in name.parts:
            digest.update(name.as_posix().encode() + b"\0" + _file_digest(path))
    return digest.digest()


def _file_digest(path: Path) -> bytes:
    digest = blake2b(digest_size=32)
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
    return digest.digest()


class RedisCache:
    """See the module. ``client``: a redis-py client, for tests; ``pause``: waits so many seconds, True = to end."""

    name = "redis"

    def __init__(
        self, settings: RedisSettings, client: Any = None, pause: Callable[[float], bool] | None = None
    ) -> None:
        self.settings = settings
        self.native = RemoteCache()
        self._client = client if client is not None else make_client(settings)
        self._ending = threading.Event()
        self._pause = pause or self._ending.wait
        self._lock = threading.Lock()
        self._prober: threading.Thread | None = None
        self._complained: str = ""
        self._threads = [
            threading.Thread(target=self._work, name=f"redis-{k}", daemon=True) for k in range(settings.pool_size)
        ]
        for thread in self._threads:
            thread.start()

    def identity(self, context: LoadContext) -> bytes:
        return identity_of(context)

    def close(self) -> None:
        """Look nothing up any more, store what waits, end the threads. Idempotent."""
        self._ending.set()
        self.native.close()
        for thread in self._threads:
            thread.join()
        prober = self._prober
        if prober is not None:
            prober.join()
        self._client.close()

    def _work(self) -> None:
        while True:
            job = self.native.take()
            if job is None:
                return
            if isinstance(job, Lookup):
                self._look(job)
            else:
                self._store(job)
            del job  # the memory it lends

    def _look(self, job: Lookup) -> None:
        # Who waited so long in line is better off without: Redis does not keep up.
        if not self.native.open or job.age_ns > self.settings.wait_timeout * 1_000_000 > 0:
            job.missed()
            return
        digest = key_of(job.identity, job.fields())
        try:
            value = self._client.get(PREFIX + digest.hex().encode())
        except Exception as error:
            job.missed()
            self._failed(error)
            return
        if not job.found(digest, value if isinstance(value, bytes) else None):
            self._complain("a value in Redis is no response of the model; it is replaced")

    def _store(self, job: Insertion) -> None:
        if not self.native.open and not self._ending.is_set():
            return
        ttl = self.settings.response_ttl or None
        try:
            self._client.set(PREFIX + job.digest.hex().encode(), job.value, ex=ttl)
        except Exception as error:
            self._failed(error)

    # ---- failures

    def _failed(self, error: Exception) -> None:
        """Stop asking when Redis can not be reached; an answer that is an error (no memory left) changes nothing."""
        import redis

        if not isinstance(error, (redis.ConnectionError, redis.TimeoutError, OSError)):
            self._complain(f"Redis refuses: {error}")
            return
        with self._lock:
            if self._ending.is_set() or not self.native.open:
                return
            self.native.open = False
            self._prober = threading.Thread(target=self._probe, name="redis-probe", daemon=True)
            self._prober.start()
        log.warning(f"the redis cache does not answer, requests are executed without it: {error}")

    def _probe(self) -> None:
        pause = FIRST_PAUSE_S
        while not self._pause(pause):
            pause = min(2 * pause, LONGEST_PAUSE_S)
            try:
                self._client.ping()
            except Exception as error:
                log.verbose(1, f"the redis cache still does not answer: {error}")
                continue
            with self._lock:
                self.native.open = True
                self._complained = ""
            log.info("the redis cache answers again")
            return

    def _complain(self, text: str) -> None:
        """Log a text that may come with every request once, until another one comes or Redis was away."""
        with self._lock:
            if text == self._complained:
                return
            self._complained = text
        log.warning(f"redis cache: {text}")
