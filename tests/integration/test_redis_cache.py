"""The response cache in a real Redis: two servers share it, it dies and comes back, values that were tampered with, a
password, and what a model's identity is made of."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import raw
from tests.helpers.models import LONG_S, Gate, make_model, submit, value_of
from tests.helpers.redis import RedisServer, needs_redis
from tests.helpers.server import Model, ServerProcess, repository, until
from triton_fast import config as cfg
from triton_fast._native.sched.cache import CacheLayer
from triton_fast.backends.base import LoadContext
from triton_fast.config import parse
from triton_fast.errors import InvalidArg
from triton_fast.observability import log
from triton_fast.scheduling.caches import LocalCache, make_cache
from triton_fast.scheduling.redis_cache import PREFIX, RedisCache, RedisSettings, identity_of, key_of
from triton_fast.scheduling.redis_cache import parse as settings_of

CACHED = "response_cache { enable: true }"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as found:
        yield found


@pytest.fixture
def clean(server: RedisServer) -> RedisServer:
    with server.client() as client:
        client.flushall()
    return server


def settings(server: RedisServer, **more: Any) -> RedisSettings:
    return RedisSettings(host="127.0.0.1", port=server.port, **more)


@contextlib.contextmanager
def model(cache: RedisCache, gate: Gate, identity: bytes = b"same") -> Iterator[Any]:
    made = make_model(gate)
    made.add_layer(CacheLayer(cache.native, identity))
    try:
        yield made
    finally:
        gate.open()
        made.stop()


def keys(server: RedisServer) -> list[bytes]:
    with server.client() as client:
        return sorted(client.keys())


@needs_redis
def test_what_one_process_stores_another_finds(clean):
    gates = [Gate(held=False), Gate(held=False)]
    caches = [RedisCache(settings(clean)), RedisCache(settings(clean))]
    with model(caches[0], gates[0]) as one, model(caches[1], gates[1]) as other:
        assert value_of(submit(one, 5)) == 5
        assert until(lambda: len(keys(clean)) == 1)
        assert value_of(submit(other, 5)) == 5
        assert value_of(submit(other, 6)) == 6
        assert [gate.batches for gate in gates] == [[[5]], [[6]]]
        assert other.snapshot()["cache"][0] == 1
    for cache in caches:
        cache.close()
        cache.close()
    assert all(key.startswith(PREFIX) and len(key) == len(PREFIX) + 64 for key in keys(clean))


@needs_redis
def test_another_identity_finds_nothing(clean):
    gate, cache = Gate(held=False), RedisCache(settings(clean))
    for identity in (b"a", b"b", b"a"):
        with model(cache, gate, identity) as one:
            assert value_of(submit(one, 5)) == 5
            assert until(lambda: len(keys(clean)) == (1 if gate.batches == [[5]] else 2))
    assert gate.batches == [[5], [5]]
    cache.close()


@needs_redis
def test_tampered_values_are_executed_again_and_replaced(clean):
    gate, cache = Gate(held=False), RedisCache(settings(clean))
    with model(cache, gate) as one, clean.client() as client:
        value_of(submit(one, 5))
        assert until(lambda: len(keys(clean)) == 1)
        (key,) = keys(clean)
        whole = client.get(key)
        for k, value in enumerate((b"", b"x", whole[:-1], whole + b"x", b"TFC\x09" + whole[4:], bytes(10_000))):
            client.set(key, value)
            assert value_of(submit(one, 5)) == 5
            assert until(lambda: client.get(key) == whole)
            assert len(gate.batches) == 2 + k
        client.delete(key)
        client.lpush(key, b"a list")  # an answer that is an error
        assert value_of(submit(one, 5)) == 5
        assert cache.native.open
        client.delete(key)
    cache.close()


@needs_redis
def test_entries_may_end(clean):
    gate, cache = Gate(held=False), RedisCache(settings(clean, response_ttl=1000))
    with model(cache, gate) as one, clean.client() as client:
        value_of(submit(one, 5))
        assert until(lambda: len(keys(clean)) == 1)
        assert 0 < client.ttl(keys(clean)[0]) <= 1000
    cache.close()


@needs_redis
def test_a_password_is_needed_and_given(clean):
    with RedisServer("--requirepass", "secret") as locked:
        gate = Gate(held=False)
        for password in ("secret", None):
            cache = RedisCache(settings(locked, password=password), pause=lambda _: True)
            with model(cache, gate) as one:
                assert value_of(submit(one, 5)) == 5
                with locked.client(password="secret") as client:  # noqa: S106
                    assert until(lambda client=client: len(client.keys()) == 1)
                assert until(lambda cache=cache, open_=password is not None: cache.native.open == open_)
            cache.close()


@needs_redis
def test_a_dead_redis_makes_misses_until_it_is_back(monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(log, "warning", lambda text, **_: lines.append(text))
    monkeypatch.setattr(log, "info", lambda text, **_: lines.append(text))
    go, asked = threading.Semaphore(0), threading.Semaphore(0)
    pauses: list[float] = []

    def pause(seconds: float) -> bool:
        pauses.append(seconds)
        asked.release()
        assert go.acquire(timeout=LONG_S)
        return False

    gate = Gate(held=False)
    with RedisServer() as first:
        cache = RedisCache(settings(first), pause=pause)
        with model(cache, gate) as one:
            value_of(submit(one, 1))
            assert until(lambda: len(keys(first)) == 1)
            first.kill()
            for k in range(2, 12):
                assert value_of(submit(one, k)) == k
            assert until(lambda: not cache.native.open)
            assert asked.acquire(timeout=LONG_S)
            go.release()  # it looks, and nobody is there
            assert asked.acquire(timeout=LONG_S)
            assert not cache.native.open
            with RedisServer(port=first.port) as second:
                go.release()
                assert until(lambda: cache.native.open)
                assert pauses == [1.0, 2.0]
                value_of(submit(one, 1))
                assert until(lambda: len(keys(second)) == 1)
                value_of(submit(one, 1))
                assert gate.batches.count([1]) == 2
                # a thread that was still waiting for the dead one may have failed late
                assert sum("does not answer, requests are executed without it" in line for line in lines) == 1
                assert sum("answers again" in line for line in lines) == 1
        cache.close()


def test_a_slow_redis_is_not_waited_for_in_line():
    """One that answers nothing holds up one lookup per thread; those behind have waited too long and are executed."""

    class Slow:
        def __init__(self) -> None:
            self.asked = threading.Semaphore(0)
            self.go = threading.Event()

        def get(self, key: bytes) -> None:
            self.asked.release()
            assert self.go.wait(LONG_S)

        def set(self, *args: object, **options: object) -> None: ...
        def close(self) -> None: ...

    client, gate = Slow(), Gate(held=False)
    cache = RedisCache(RedisSettings("h", 1, pool_size=1, wait_timeout=1), client=client)
    with model(cache, gate) as one:
        calls = [submit(one, 0)]
        # On a busy machine the thread comes late, and the first has waited too long itself.
        while not client.asked.acquire(timeout=0.1):
            calls.append(submit(one, len(calls)))
        calls += [submit(one, len(calls) + k) for k in range(5)]
        line_ends = time.monotonic_ns() + 2_000_000
        while time.monotonic_ns() < line_ends:
            pass
        client.go.set()
        assert [value_of(call) for call in calls] == list(range(len(calls)))
        assert not client.asked.acquire(blocking=False)
    cache.close()


# --- settings ---------------------------------------------------------------------------------------------------------


def test_settings_have_tritons_names():
    found = settings_of(
        {"host": "h", "port": "6380", "user": "u", "password": "p", "db": "3", "connect_timeout": "5", "pool_size": "2",
         "socket_timeout": "6", "wait_timeout": "7", "cacert": "/ca.pem", "response_ttl": "60"}
    )  # fmt: skip
    assert found == RedisSettings("h", 6380, "u", "p", 3, 5, 6, 2, 7, 60, cacert="/ca.pem")
    assert "p'" not in repr(found)
    environ = {"TRITONCACHE_REDIS_USERNAME": "eu", "TRITONCACHE_REDIS_PASSWORD": "ep"}
    assert settings_of({"host": "h", "port": "1"}, environ).password == "ep"  # noqa: S105
    assert settings_of({"host": "h", "port": "1", "password": "own"}, environ).password == "own"  # noqa: S105


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "didn't specify address. Must at a minimum specify 'host' and 'port'"),
        ({"host": "h"}, "didn't specify address"),
        ({"host": "h", "port": "x"}, "'port' must be a whole number, got 'x'"),
        ({"host": "h", "port": "70000"}, "'port' must be 1 to 65535"),
        ({"host": "h", "port": "1", "pool_size": "0"}, "'pool_size' 1 to 64"),
        ({"host": "h", "port": "1", "hots": "x"}, "no setting 'hots'; there are cacert, "),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(given, text):
    with pytest.raises(InvalidArg, match=text):
        settings_of(given, {})


def test_the_kind_of_cache():
    assert make_cache({}, "/caches") is None
    local = make_cache({"local": {"size": "4096"}}, "/caches")
    assert isinstance(local, LocalCache)
    assert local.native.stats()["budget"] == 4096
    with pytest.raises(InvalidArg, match=r"unable to find 'libtritoncache_nope.so' for cache. Searched: /caches"):
        make_cache({"nope": {"a": "b"}}, "/caches")


def test_keys_are_framed():
    fields: list[list[Any]] = [[1], [b"\1"], [b"ab", b"c"], [b"a", b"bc"], [], [b""], [0], [-1]]
    assert len({key_of(b"m", field) for field in fields}) == len(fields)
    assert key_of(b"m", [b"abc"]) == key_of(b"m", [memoryview(b"abc")]) != key_of(b"n", [b"abc"])


def test_identity_is_of_config_and_files(tmp_path):
    def identity(text: str = "", version: int = 1, name: str = "m") -> bytes:
        config = parse.parse_text(f'name: "{name}" backend: "x" {text}'.encode(), "f").config
        cfg.normalize(config, cpu_count=2)
        return identity_of(LoadContext(name, version, tmp_path, tmp_path / "1", config))

    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "weights").write_bytes(b"one")
    first = identity()
    assert identity() == first
    assert identity("instance_group { count: 7 kind: KIND_CPU }") == first
    assert len({first, identity("max_batch_size: 3"), identity(version=2), identity(name="n")}) == 4
    (tmp_path / "1" / "weights").write_bytes(b"two")
    assert identity() != first
    (tmp_path / "1" / "weights").write_bytes(b"one")
    (tmp_path / "1" / "__pycache__").mkdir()
    (tmp_path / "1" / "__pycache__" / "x.pyc").write_bytes(b"x")
    assert identity() == first


# --- whole servers ----------------------------------------------------------------------------------------------------


def cache_counts(process: ServerProcess) -> tuple[int, int, int]:
    (stats,) = raw.ask(process.http, raw.get("/v2/models/m/stats")).json()["model_stats"]
    found = stats["inference_stats"]
    return found["cache_hit"]["count"], found["cache_miss"]["count"], stats["execution_count"]


@needs_redis
def test_two_servers_share_it(tmp_path: Path, clean):
    root = repository(tmp_path, Model("m", dims=(2,), extra=CACHED))
    flags = ("--cache-config=redis,host=127.0.0.1", f"--cache-config=redis,port={clean.port}")
    ask = raw.infer_json("m", [1.0, 2.0], shape=[1, 2])
    with ServerProcess(root, *flags) as one, ServerProcess(root, *flags) as other:
        answers = [json.loads(raw.ask(one.http, ask).body)]
        assert until(lambda: len(keys(clean)) == 1)
        answers += [json.loads(raw.ask(other.http, ask).body) for _ in range(2)]
        assert answers[0] == answers[1] == answers[2]
        assert cache_counts(one) == (0, 1, 1)
        assert cache_counts(other) == (2, 0, 0)
        metrics = raw.ask(other.metrics, raw.get("/metrics")).body.decode()
        assert 'nv_cache_num_hits_per_model{model="m",version="1"} 2' in metrics
        assert "nv_cache_util" not in metrics
