"""A repository in a store in memory: listings that break off, objects that change, one poll, one load."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, os.path.dirname(__file__))
from test_repository_support import CONFIG, FakeBackend, FakeEngine, FakeRuntime, error_of

from triton_fast.errors import Internal, InvalidArg, NotFound, ServerError, Unsupported
from triton_fast.repository import ControlMode, ModelRepositoryManager, Preparer
from triton_fast.repository.cloud import OpenedSources, cache_directory
from triton_fast.repository.cloud.cache import Cache
from triton_fast.repository.cloud.faults import Kind, StoreError
from triton_fast.repository.cloud.source import CloudSource
from triton_fast.repository.cloud.store import Object
from triton_fast.repository.cloud.urls import parse
from triton_fast.repository.poller import Poller
from triton_fast.repository.table import State
from triton_fast.repository.workers import Workers

URL = parse("s3://bucket/repo")


class MemoryStore:
    """Objects by key. ``fail``: raised by listings that return more than ``fail_after`` objects, and by reads.

    A key with a slash at its end is a marker: as from the library, the slash is not there in ``walk``.
    """

    def __init__(self) -> None:
        self.url = URL
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.number = 0
        self.fail: Exception | None = None
        self.fail_after = 0
        self.lists = 0
        self.reads: list[str] = []
        self.on_read: Callable[[str], None] = lambda key: None

    def put(self, path: str, data: bytes | str) -> None:
        self.number += 1
        self.objects[f"repo/{path}"] = data if isinstance(data, bytes) else data.encode(), self.number

    def children(self, prefix: str) -> tuple[list[str], list[Object]]:
        self.lists += 1
        below = [key for key in self.objects if key.startswith(prefix) and key != prefix]
        folders = {key[len(prefix) :].partition("/")[0] for key in below if "/" in key[len(prefix) :]}
        self._break(len(below))
        return sorted(folders), [self._object(key) for key in below if "/" not in key[len(prefix) :]]

    def walk(self, prefix: str) -> list[Object]:
        self.lists += 1
        found = [self._object(key) for key in self.objects if key.startswith(prefix)]
        self._break(len(found))
        return found

    def read(self, item: Object, offset: int) -> Iterator[bytes]:
        self.reads.append(item.key)
        self.on_read(item.key)
        if item.key not in self.objects or self._object(item.key) != item:
            raise StoreError("changed", Kind.CHANGED)
        yield self.objects[item.key][0][offset:]

    def _object(self, key: str) -> Object:
        data, number = self.objects[key]
        return Object(key.rstrip("/"), len(data), f"etag{number}", number * 1_000_000_000)

    def _break(self, count: int) -> None:
        if self.fail is not None and count > self.fail_after:
            raise self.fail


@pytest.fixture
def store() -> MemoryStore:
    made = MemoryStore()
    for name in ("a", "b"):
        made.put(f"{name}/config.pbtxt", CONFIG)
        made.put(f"{name}/1/model.fake", "ok")
    return made


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    made = Cache(tmp_path / "cache", wait=lambda seconds: None)
    yield made
    made.close()


@pytest.fixture
def source(store: MemoryStore, cache: Cache) -> Iterator[CloudSource]:
    downloads = Workers(4, "download")
    yield CloudSource(store, cache, downloads, clock=lambda: 0.0)
    downloads.close()


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


Manager = ModelRepositoryManager[FakeRuntime]


@pytest.fixture
def manager(source: CloudSource, engine: FakeEngine) -> Iterator[Manager]:
    preparer = Preparer({"fake": FakeBackend()}.get, cpu_count=2)
    made: Manager = ModelRepositoryManager([source], preparer, engine.start, mode=ControlMode.POLL)
    assert made.start() == []
    yield made
    made.shutdown(30)


def files(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def broken(text: str = "the third page did not come") -> StoreError:
    return StoreError(text, Kind.NETWORK)


# ---- listings


def test_models_and_others(store: MemoryStore, source: CloudSource) -> None:
    for path in ("x.txt", ".hidden/a", ".dot", "c_$folder$", "d/"):
        store.put(path, b"")
    assert source.list_models() == ["a", "b", "c", "d"]
    assert source.list_others() == ["x.txt"]
    assert source.location == "s3://bucket/repo"


def test_a_listing_that_breaks_off_is_none(store: MemoryStore, source: CloudSource) -> None:
    store.fail, store.fail_after = broken(), 0
    assert "third page" in error_of(StoreError, source.list_models)
    assert "third page" in error_of(StoreError, source.list_others)
    assert "third page" in error_of(StoreError, source.fingerprint, "a")
    assert "third page" in error_of(StoreError, source.materialize, "a")


@pytest.mark.parametrize("name", ["none", "x" * 256, "a\nb", "config.pbtxt"])
def test_names_that_are_not_there(source: CloudSource, name: str) -> None:
    error_of(NotFound, source.materialize, name)
    error_of(NotFound, source.fingerprint, name)


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/1", "a\\b", "a\0", "a\udcff"])
def test_names_that_mean_places(store: MemoryStore, source: CloudSource, name: str) -> None:
    error_of(InvalidArg, source.materialize, name)
    error_of(InvalidArg, source.fingerprint, name)
    assert store.lists == 0


# ---- directories


def test_a_directory_as_in_the_store(store: MemoryStore, source: CloudSource) -> None:
    store.put("a/labels/en.txt", "cat")
    directory = source.materialize("a")
    assert directory.path.name == "a"
    assert files(directory.path) == {"config.pbtxt": CONFIG.encode(), "1/model.fake": b"ok", "labels/en.txt": b"cat"}
    directory.release()
    assert not directory.path.exists()
    reads = len(store.reads)
    source.materialize("a").release()
    assert len(store.reads) == reads


def test_an_empty_version_directory(store: MemoryStore, source: CloudSource) -> None:
    store.put("a/2/", b"")
    store.put("a/empty", b"")
    directory = source.materialize("a")
    assert (directory.path / "2").is_dir()
    assert (directory.path / "empty").read_bytes() == b""
    assert set(source.fingerprint("a").versions) == {"1", "2"}


@pytest.mark.parametrize("key", ["../x", "1/../../../x", "/etc/passwd", "a\0b", "a\\b", "1", "x" * 300])
def test_hostile_keys_spoil_their_own_model_only(
    store: MemoryStore, source: CloudSource, cache: Cache, key: str, tmp_path: Path
) -> None:
    store.put(f"a/{key}", b"x")
    before = sorted(tmp_path.rglob("*"))
    text = error_of(StoreError, source.materialize, "a")
    assert text.startswith("model 'a' in 's3://bucket/repo': object key")
    error_of(StoreError, source.fingerprint, "a")
    assert sorted(tmp_path.rglob("*")) == before
    source.materialize("b").release()


def test_a_model_that_changes_while_it_is_downloaded(store: MemoryStore, source: CloudSource) -> None:
    def change(key: str) -> None:
        store.on_read = lambda key: None
        store.put("a/1/model.fake", "ok new")

    store.on_read = change
    directory = source.materialize("a")
    assert files(directory.path)["1/model.fake"] == b"ok new"


def test_a_model_that_changes_all_the_time(store: MemoryStore, source: CloudSource, cache: Cache) -> None:
    store.on_read = lambda key: store.put("a/1/model.fake", f"ok {store.number}")
    text = error_of(Internal, source.materialize, "a")
    assert text == (
        "model 'a' changed in 's3://bucket/repo' each time it was downloaded (3 times): load it when its upload has "
        "finished"
    )
    assert not list((cache.root / "trees").glob("*/*"))


def test_what_can_not_be_read_is_not_tried_again_here(store: MemoryStore, source: CloudSource) -> None:
    def deny(key: str) -> None:
        raise StoreError("denied", Kind.DENIED)

    store.on_read = deny
    assert error_of(StoreError, source.materialize, "a") == "denied"
    assert len(store.reads) == 2


def test_downloads_are_bounded(store: MemoryStore, cache: Cache) -> None:
    lock, running, most = threading.Lock(), [0], [0]
    both = threading.Barrier(2, timeout=30)
    for i in range(8):
        store.put(f"c/{i}.bin", bytes([i]))

    def count(key: str) -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        both.wait()
        with lock:
            running[0] -= 1

    store.on_read = count
    downloads = Workers(2, "download")
    CloudSource(store, cache, downloads).materialize("c").release()
    downloads.close()
    assert most == [2]


# ---- one poll


def test_many_fingerprints_are_one_listing(store: MemoryStore, source: CloudSource) -> None:
    for i in range(100):
        store.put(f"m{i}/1/model.fake", "ok")
    alone = {name: source.fingerprint(name) for name in source.list_models()}
    store.lists = 0
    assert {name: source.fingerprint(name) for name in source.list_models()} == alone
    assert store.lists < 10
    # Each is told once from that listing: a second look is a look.
    store.put("m99/1/model.fake", "ok new")
    assert source.fingerprint("m99") != alone["m99"]


def test_a_hostile_key_does_not_spoil_the_listing_of_all(store: MemoryStore, source: CloudSource) -> None:
    walk = store.walk

    def library(prefix: str) -> list[Object]:
        if prefix == "repo/":
            raise StoreError("a key can not be a path", Kind.KEY)
        return walk(prefix)

    store.walk = library  # type: ignore[method-assign]
    for i in range(10):
        store.put(f"m{i}/1/model.fake", "ok")
    assert len({source.fingerprint(name).common for name in source.list_models()}) == 1


def test_an_old_listing_is_not_used(store: MemoryStore, cache: Cache) -> None:
    now = [0.0]
    source = CloudSource(store, cache, Workers(1, "download"), clock=lambda: now[0])
    for i in range(10):
        store.put(f"m{i}/1/model.fake", "ok")
    for name in source.list_models()[:6]:
        source.fingerprint(name)
    old = source.fingerprint("m5")
    store.put("m6/1/model.fake", "ok new")
    now[0] = 60.0
    assert source.fingerprint("m6") != old


# ---- the manager


def test_it_is_served_and_changes_are_seen(store: MemoryStore, manager: Manager, engine: FakeEngine) -> None:
    assert sorted(engine.started) == [("a", 1), ("b", 1)]
    assert not manager.detect_changes()
    # The same objects stored again: a poll that reloads all the time is what people complain of.
    data, number = store.objects["repo/a/1/model.fake"]
    store.objects["repo/a/1/model.fake"] = data, number
    assert not manager.detect_changes()
    store.put("a/1/model.fake", "ok new")
    store.put("c/config.pbtxt", CONFIG)
    store.put("c/1/model.fake", "ok")
    del store.objects["repo/b/config.pbtxt"], store.objects["repo/b/1/model.fake"]
    changes = manager.detect_changes()
    assert (changes.added, changes.removed, changes.modified) == (["c"], ["b"], ["a"])


def test_polling_follows(store: MemoryStore, manager: Manager) -> None:
    poller = Poller(manager, 0)
    store.put("a/1/model.fake", "ok new")
    store.put("a/2/model.fake", "ok")
    assert not poller.poll_once()
    assert poller.poll_once().modified == ["a"]
    assert manager.resolve("a", -1).text == "ok"
    # The newest version only, as everywhere.
    assert manager.resolve("a", -1).version == 2
    del store.objects["repo/b/config.pbtxt"], store.objects["repo/b/1/model.fake"]
    poller.poll_once()
    assert poller.poll_once().removed == ["b"]


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_failed_or_partial_listing_never_unloads(store: MemoryStore, manager: Manager, after: int) -> None:
    poller = Poller(manager, 0)
    kept = dict(store.objects)
    # Half of it is gone, and then the listing breaks off: nobody can know.
    store.objects = {key: row for key, row in kept.items() if key.startswith("repo/a/")} | {"repo/z/x": (b"", 1)} | {
        f"repo/z/{i}": (b"", 1) for i in range(5)
    }  # fmt: skip
    store.fail, store.fail_after = broken(), after
    for _ in range(3):
        changes = poller.poll_once()
        assert not changes.removed
    assert [manager.is_ready(name, -1) for name in ("a", "b")] == [True, True]
    store.fail, store.objects = None, kept
    for _ in range(3):
        assert not poller.poll_once()


def test_a_failed_download_keeps_what_is_served(store: MemoryStore, manager: Manager) -> None:
    poller = Poller(manager, 0)
    runtime = manager.resolve("a", -1)
    store.put("a/1/model.fake", "ok new")

    def cut(key: str) -> None:
        raise StoreError("denied", Kind.DENIED)

    store.on_read = cut
    for _ in range(3):
        poller.poll_once()
    assert manager.resolve("a", -1) is runtime


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_model_that_can_not_be_fetched_is_wanted_and_not_ready(
    store: MemoryStore, source: CloudSource, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("c/config.pbtxt", CONFIG)
    store.put("c/1/model.fake", "ok")
    monkeypatch.setattr(os, "ftruncate", full)
    preparer = Preparer({"fake": FakeBackend()}.get, cpu_count=2)
    manager: Manager = ModelRepositoryManager([source], preparer, engine.start, mode=ControlMode.POLL)
    failed = manager.start()
    assert {name for name, _ in failed} == {"a", "b", "c"}
    text = "failed to write to the repository cache: No space left on device; free some space"
    assert all(text in reason for _, reason in failed)
    rows = manager.index()
    assert [(row.name, row.state) for row in rows] == [(name, State.UNAVAILABLE) for name in "abc"]
    assert all(text in row.reason for row in rows)
    assert not manager.ready_state()
    # What was in the way is gone: nobody has to touch the models.
    monkeypatch.undo()
    poller = Poller(manager, 0)
    poller.poll_once()
    poller.poll_once()
    assert manager.ready_state()
    manager.shutdown(30)


def test_directories_that_can_not_be_made(source: CloudSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(ServerError, match="No space left on device"):
        source.materialize("a")
    monkeypatch.undo()
    monkeypatch.setattr(os, "link", full)
    assert "No space left on device; free some" in error_of(Internal, source.materialize, "a")


# ---- opening


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    text = error_of(Unsupported, OpenedSources, ["s3://bucket/x"], 0, {"XDG_CACHE_HOME": str(tmp_path)})
    assert text == (
        "'s3://bucket/x' needs the package obstore, which is not installed: run pip install 'triton_fast[cloud]' "
        "(or pip install obstore)"
    )


def test_the_library_is_not_imported_for_local_paths(tmp_path: Path) -> None:
    import subprocess

    (tmp_path / "repo").mkdir()
    code = (
        "import sys\nfrom triton_fast import app\nfrom triton_fast.repository.cloud import OpenedSources\n"
        f"OpenedSources([{str(tmp_path / 'repo')!r}]).close()\nprint('obstore' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_cache_directories(tmp_path: Path) -> None:
    env = {"HOME": "/h", "TRITON_AWS_MOUNT_DIRECTORY": "/m/aws", "TRITON_GCS_MOUNT_DIRECTORY": "/m/gcs"}
    assert cache_directory("s3", env) == Path("/m/aws/triton_fast_repository")
    assert cache_directory("gs", env) == Path("/m/gcs/triton_fast_repository")
    assert cache_directory("as", env) == Path("/h/.cache/triton_fast/repository")
    assert cache_directory("as", {**env, "XDG_CACHE_HOME": "/x"}) == Path("/x/triton_fast/repository")
    assert cache_directory("as", {"TRITON_AZURE_MOUNT_DIRECTORY": "/m"}) == Path("/m/triton_fast_repository")
    assert cache_directory("s3", {}).name == "repository"
