"""The cache on disk: resumed downloads, what stays and what goes, two servers at once, and nothing outside of it."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from triton_fast.errors import Internal, InvalidArg, Unavailable
from triton_fast.repository.cloud.cache import Cache, key_of
from triton_fast.repository.cloud.faults import Kind, StoreError

WAIT_S = 30
WHEN = 1_700_000_000_000_000_000


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    made = Cache(tmp_path / "cache", wait=lambda seconds: None)
    yield made
    made.close()


class Content:
    """Gives out its bytes, two at a time. ``cuts``: offsets at which it breaks off once each."""

    def __init__(self, data: bytes, *cuts: int, kind: Kind = Kind.NETWORK) -> None:
        self.data = data
        self.key = key_of("content", str(data), str(id(self)))
        self.asked: list[int] = []
        self._cuts = set(cuts)
        self._kind = kind

    def read(self, offset: int) -> Iterator[bytes]:
        self.asked.append(offset)
        for at in range(offset, len(self.data), 2):
            if at in self._cuts:
                self._cuts.discard(at)
                raise StoreError("cut", self._kind)
            yield self.data[at : at + 2]

    def fetch(self, cache: Cache, target: Path, *, resume: bool = True) -> bytes:
        cache.fetch(self.key, len(self.data), WHEN, self.read, target, resume=resume)
        return target.read_bytes()

    def blob(self, cache: Cache) -> Path:
        return cache.root / "blobs" / self.key[:2] / self.key


def test_a_content_is_downloaded_once(cache: Cache) -> None:
    content = Content(b"0123456789")
    tree = cache.new_tree()
    assert content.fetch(cache, tree / "a") == b"0123456789"
    assert content.fetch(cache, tree / "b") == b"0123456789"
    assert content.asked == [0]
    assert os.path.samefile(tree / "a", tree / "b")
    assert stat.S_IMODE((tree / "a").stat().st_mode) == 0o444
    assert (tree / "a").stat().st_mtime_ns == WHEN
    assert not list((cache.root / "parts").iterdir())


def test_an_empty_content_is_not_asked_for(cache: Cache) -> None:
    content = Content(b"")
    assert content.fetch(cache, cache.new_tree() / "a") == b""
    assert content.asked == []


def test_a_cut_download_goes_on_where_it_was(cache: Cache) -> None:
    content = Content(b"0123456789", 4, 8)
    assert content.fetch(cache, cache.new_tree() / "a") == b"0123456789"
    assert content.asked == [0, 4, 8]


def test_without_an_etag_it_starts_again(cache: Cache) -> None:
    content = Content(b"0123456789", 4)
    assert content.fetch(cache, cache.new_tree() / "a", resume=False) == b"0123456789"
    assert content.asked == [0, 0]


def test_a_download_is_given_up_when_nothing_comes(cache: Cache) -> None:
    asked = []

    def read(offset: int) -> Iterator[bytes]:
        asked.append(offset)
        raise StoreError("cut", Kind.NETWORK)
        yield b""

    tree = cache.new_tree()
    with pytest.raises(StoreError, match="cut"):
        cache.fetch("k" * 8, 4, WHEN, read, tree / "a")
    assert 2 < len(asked) < 10
    assert not list(tree.iterdir())


def test_what_was_given_up_is_resumed_by_the_next_server(tmp_path: Path) -> None:
    first = Cache(tmp_path / "cache")
    content = Content(b"0123456789", 6, kind=Kind.DENIED)
    with pytest.raises(StoreError):
        content.fetch(first, first.new_tree() / "a")
    first.close()
    second = Cache(tmp_path / "cache")
    assert content.fetch(second, second.new_tree() / "a") == b"0123456789"
    assert content.asked == [0, 6]
    second.close()


@pytest.mark.parametrize("size", [3, 8])
def test_sizes_are_checked(cache: Cache, size: int) -> None:
    content = Content(b"012345")
    with pytest.raises(StoreError):
        cache.fetch(content.key, size, WHEN, content.read, cache.new_tree() / "a")
    assert not content.blob(cache).exists()


def test_a_file_that_was_written_to_is_downloaded_again(cache: Cache) -> None:
    content = Content(b"0123456789")
    target = cache.new_tree() / "a"
    content.fetch(cache, target)
    target.chmod(0o600)
    target.write_bytes(b"x" * 10)
    assert content.fetch(cache, cache.new_tree() / "a") == b"0123456789"
    assert content.asked == [0, 0]


def test_a_close_ends_downloads(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")

    def read(offset: int) -> Iterator[bytes]:
        cache.close()
        yield b"ab"

    with pytest.raises(Unavailable):
        cache.fetch("k" * 8, 4, WHEN, read, cache.new_tree() / "a")


def test_two_servers_download_one_content_once(tmp_path: Path) -> None:
    caches = [Cache(tmp_path / "cache") for _ in range(2)]
    begun, go_on, asked = threading.Event(), threading.Event(), []

    def read(offset: int) -> Iterator[bytes]:
        asked.append(offset)
        yield b"ab"
        begun.set()
        assert go_on.wait(WAIT_S)
        yield b"cd"

    targets = [cache.new_tree() / "a" for cache in caches]
    threads = [
        threading.Thread(target=cache.fetch, args=("k" * 8, 4, WHEN, read, target))
        for cache, target in zip(caches, targets, strict=True)
    ]
    threads[0].start()
    assert begun.wait(WAIT_S)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert asked == [0]
    assert [target.read_bytes() for target in targets] == [b"abcd"] * 2
    assert os.path.samefile(*targets)
    for cache in caches:
        cache.close()


# ---- what stays and what goes


def used(cache: Cache, contents: list[Content]) -> list[bool]:
    return [content.blob(cache).exists() for content in contents]


def test_the_least_recently_used_goes_first_and_what_is_in_use_stays(cache: Cache) -> None:
    contents = [Content(bytes([65 + i]) * 100) for i in range(4)]
    trees = [cache.new_tree() for _ in contents]
    for content, tree in zip(contents, trees, strict=True):
        content.fetch(cache, tree / "a")
    for i, content in enumerate(contents):
        os.utime(content.blob(cache), ns=(WHEN + (i == 1), WHEN))
    cache.limit = 250
    cache.trim()
    assert used(cache, contents) == [True] * 4
    for tree in trees[:3]:
        cache.drop_tree(tree)
    cache.trim()
    # 400 bytes are there; two have to go, the one used last and the one in use stay.
    assert used(cache, contents) == [False, True, False, True]
    cache.trim(needed=100)
    assert used(cache, contents) == [False, False, False, True]
    assert cache.usage() == 100
    cache.trim(needed=10_000)
    assert used(cache, contents) == [False, False, False, True]


def test_no_limit_keeps_all(cache: Cache) -> None:
    content = Content(b"x" * 100)
    tree = cache.new_tree()
    content.fetch(cache, tree / "a")
    cache.drop_tree(tree)
    cache.trim(1 << 60)
    assert content.blob(cache).exists()


def test_a_file_in_use_by_another_server_stays(tmp_path: Path) -> None:
    first, second = Cache(tmp_path / "cache"), Cache(tmp_path / "cache", limit=1)
    content = Content(b"x" * 100)
    content.fetch(first, first.new_tree() / "a")
    second.trim()
    assert content.blob(second).exists()
    first.close()
    second.trim()
    assert not content.blob(second).exists()
    second.close()


def test_a_download_under_way_is_not_evicted(cache: Cache, tmp_path: Path) -> None:
    def read(offset: int) -> Iterator[bytes]:
        yield b"ab"
        other.trim()
        yield b"cd"

    other = Cache(tmp_path / "cache", limit=1)
    target = cache.new_tree() / "a"
    cache.fetch("k" * 8, 4, WHEN, read, target)
    assert target.read_bytes() == b"abcd"
    other.close()


def test_an_eviction_between_download_and_link_is_mended(cache: Cache) -> None:
    content = Content(b"0123")

    def read(offset: int) -> Iterator[bytes]:
        yield from content.read(offset)

    link, left = cache._link, [2]

    def taken(key: str, modified_ns: int, target: Path) -> None:
        if left[0]:
            left[0] -= 1
            content.blob(cache).unlink()
        link(key, modified_ns, target)

    cache._link = taken  # type: ignore[method-assign]
    target = cache.new_tree() / "a"
    cache.fetch(content.key, 4, WHEN, read, target)
    assert target.read_bytes() == b"0123"
    assert content.asked == [0, 0, 0]


def test_without_hard_links_files_are_copied(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **named: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    content = Content(b"0123")
    target = cache.new_tree() / "a"
    assert content.fetch(cache, target) == b"0123"
    assert not os.path.samefile(target, content.blob(cache))


# ---- the directory


def test_what_a_dead_server_left_is_removed(tmp_path: Path) -> None:
    living = Cache(tmp_path / "cache")
    kept = living.new_tree()
    dead = Cache(tmp_path / "cache")
    tree = dead.new_tree()
    # A killed process's locks are gone.
    os.close(dead._lock)
    dead._is_closed = True
    orphan = tmp_path / "cache" / "trees" / ("0" * 32)
    orphan.mkdir()
    third = Cache(tmp_path / "cache")
    assert not tree.exists() and not orphan.exists() and kept.exists()
    assert len(list((tmp_path / "cache" / "trees").glob("*.lock"))) == 2
    third.close()
    living.close()
    living.close()
    assert not list((tmp_path / "cache" / "trees").iterdir())


@pytest.mark.parametrize("what", [".", "trees", "blobs", "parts"])
def test_a_cache_that_is_emptied_is_filled_again(cache: Cache, what: str) -> None:
    content = Content(b"0123456789")
    content.fetch(cache, cache.new_tree() / "a")
    shutil.rmtree(cache.root / what)
    tree = cache.new_tree()
    assert Content(b"another").fetch(cache, tree / "a") == b"another"
    # Nobody takes it for a dead server's, and the end leaves nothing.
    Cache(cache.root).close()
    assert tree.exists()
    cache.close()
    assert not list((cache.root / "trees").iterdir())


@pytest.mark.parametrize("what", ["file", "link", "open"])
def test_a_directory_that_others_may_write_is_refused(tmp_path: Path, what: str) -> None:
    root = tmp_path / "cache"
    if what == "file":
        root.write_text("")
    elif what == "link":
        (tmp_path / "other").mkdir()
        root.symlink_to(tmp_path / "other")
    else:
        root.mkdir()
        root.chmod(0o777)
    with pytest.raises(InvalidArg, match="can not be made|only he may write"):  # noqa: RUF043
        Cache(root)


def test_a_link_in_place_of_a_part_is_not_followed(cache: Cache, tmp_path: Path) -> None:
    content = Content(b"0123")
    outside = tmp_path / "outside"
    (cache.root / "parts" / content.key).symlink_to(outside)
    with pytest.raises(Internal, match="failed to write to the repository cache"):
        content.fetch(cache, cache.new_tree() / "a")
    assert not outside.exists()


def test_a_link_in_place_of_a_file_is_not_taken(cache: Cache, tmp_path: Path) -> None:
    content = Content(b"0123")
    outside = tmp_path / "outside"
    outside.write_bytes(b"abcd")
    os.utime(outside, ns=(WHEN, WHEN))
    content.blob(cache).parent.mkdir(exist_ok=True)
    content.blob(cache).symlink_to(outside)
    assert content.fetch(cache, cache.new_tree() / "a") == b"0123"
    assert outside.read_bytes() == b"abcd"


def test_keys_tell_their_parts_apart() -> None:
    assert len({key_of("a", "bc"), key_of("ab", "c"), key_of("abc"), key_of("abc", ""), key_of("a\udcff")}) == 5
