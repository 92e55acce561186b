"""The registry of shared memory: what may be registered, bounds against plain integers, life until the last request,
and files that shrink under whoever reads them."""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import shm
from triton_fast._native.core import memory
from triton_fast._native.core.model import ModelHandle
from triton_fast._native.core.regions import Loan, SharedRegions, faults
from triton_fast._native.core.request import stats
from triton_fast._native.sched.fetch import fetched
from triton_fast.errors import AlreadyExists, Internal, InvalidArg, NotFound, ServerError
from triton_fast.types import DataType

PAGE = mmap.PAGESIZE
MEM_CPU, MEM_CLIENT = 0, 3
SIZE = 4 * PAGE
DATA = bytes(range(256)) * (SIZE // 256)
TOP = (1 << 64) - 1
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    before = (memory.stats()["live_blocks"], stats()["live_requests"])
    yield
    gc.collect()        # an exception that a test looked at holds the frames it came through
    assert (memory.stats()["live_blocks"], stats()["live_requests"]) == before


@pytest.fixture
def file() -> Iterator[shm.File]:
    with shm.File(SIZE, DATA) as made:
        yield made


def refusal(regions: SharedRegions, key: str, offset: int = 0, byte_size: int = 1, name: str = "r") -> tuple[type, str]:
    with pytest.raises(ServerError) as refused:
        regions.register(name, key, offset, byte_size)
    assert len(regions) == 0 or name not in [row[0] for row in regions.status()] or refused.type is AlreadyExists
    return refused.type, str(refused.value)


# ---- names and files


def test_keys_with_and_without_a_slash(file: shm.File) -> None:
    regions = SharedRegions()
    for name, key in (("a", file.name), ("b", file.key), ("c", f"//{file.name}")):
        regions.register(name, key, 0, SIZE)
        assert Loan(regions, name.encode(), 0, SIZE).read() == DATA
    assert regions.status() == [("a", file.name, 0, SIZE), ("b", file.key, 0, SIZE), ("c", f"//{file.name}", 0, SIZE)]


def test_an_offset_is_where_the_mapping_begins(file: shm.File) -> None:
    regions = SharedRegions()
    regions.register("r", file.key, PAGE, PAGE + 8)
    assert regions.status() == [("r", file.key, PAGE, PAGE + 8)]
    assert Loan(regions, b"r", 8, PAGE).read() == DATA[PAGE + 8 : 2 * PAGE + 8]


@pytest.mark.parametrize("key", ["", "/", "///", ".", "/..", "../etc/passwd", "/a/b", "a/", "a\0b", "x" * 256])
def test_keys_that_name_no_file(key: str) -> None:
    assert refusal(SharedRegions(), key) == (
        InvalidArg, f"cannot register shared memory region 'r' - invalid shm key '{key}'"
    )  # fmt: skip


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_reserved_prefix(slash: str) -> None:
    key = f"{slash}triton_python_backend_shm_region_1"
    assert refusal(SharedRegions(), key) == (
        InvalidArg,
        f"cannot register shared memory region 'r' with key '{key}' as the key contains the reserved prefix "
        "'triton_python_backend_shm_region_'",
    )


def unopened(key: str) -> tuple[type, str]:
    return Internal, f"Unable to open shared memory region: '{key}'"


def test_files_that_are_none(file: shm.File, tmp_path: Path) -> None:
    regions = SharedRegions()
    assert refusal(regions, file.key + "x") == unopened(file.key + "x")
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * 64)
    link = shm.DIRECTORY / f"{file.name}_link"
    made: list[Path] = [link]
    try:
        link.symlink_to(secret)
        assert refusal(regions, link.name) == unopened(link.name)
        link.unlink()
        link.hardlink_to(file.path)
        assert refusal(regions, link.name) == unopened(link.name)
        assert refusal(regions, file.key) == unopened(file.key), "a file with two names may be anybody's"
        link.unlink()
        regions.register("r", file.key, 0, 1)
        link.mkdir()
        assert refusal(regions, link.name, name="d") == unopened(link.name)
        link.rmdir()
        os.mkfifo(link)
        assert refusal(regions, link.name, name="f") == unopened(link.name)
        link.unlink()
        semaphore = shm.DIRECTORY / f"sem.{file.name}"
        made.append(semaphore)
        semaphore.write_bytes(b"x" * 32)
        assert refusal(regions, semaphore.name, name="s") == unopened(semaphore.name)
    finally:
        for path in made:
            path.unlink(missing_ok=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize(
    ("mode", "owner", "group", "taken"),
    [
        (0o600, 12345, 12345, False), (0o604, 12345, 12345, False), (0o660, 12345, 12345, False),
        (0o606, 12345, 12345, True), (0o666, 12345, 12345, True), (0o660, 12345, os.getegid(), True),
        (0o606, 12345, os.getegid(), False), (0o600, 0, 12345, True),
    ],
)  # fmt: skip
def test_the_rights_of_root_are_not_lent(file: shm.File, mode: int, owner: int, group: int, taken: bool) -> None:
    regions = SharedRegions()
    os.chown(file.path, owner, group)
    file.path.chmod(mode)
    if taken:
        regions.register("r", file.key, 0, SIZE)
    else:
        assert refusal(regions, file.key) == unopened(file.key)


def test_names_and_keys_are_not_kept_at_any_length(file: shm.File) -> None:
    """There may be thousands of regions, and each has its own as long as it is registered."""
    regions = SharedRegions()
    regions.register("x" * 1024, "/" * 700 + file.name, 0, PAGE)
    for name, key in (("x" * 1025, file.key), ("y", "/" * 1100 + file.name)):
        with pytest.raises(InvalidArg, match="a name or key has more than 1024 bytes"):
            regions.register(name, key, 0, PAGE)
    assert len(regions) == 1


def test_a_name_that_is_taken(file: shm.File) -> None:
    regions = SharedRegions()
    regions.register("r", file.key, 0, SIZE)
    for key in (file.key, "nothing"):
        assert refusal(regions, key) == (AlreadyExists, "shared memory region 'r' already in manager")
    assert len(regions) == 1


# ---- bounds

near = st.sampled_from([0, 1, PAGE - 1, PAGE, 2 * PAGE, SIZE - 1, SIZE, SIZE + 1, 1 << 31, 1 << 32, 1 << 63, TOP])
number = st.builds(lambda base, off: min(max(base + off, 0), TOP), near, st.integers(-9, 9))


@given(offset=number, size=number)
def test_registered_bounds(offset: int, size: int) -> None:
    with shm.File(SIZE, DATA) as file:
        regions = SharedRegions()
        if offset + size > SIZE:
            assert refusal(regions, file.key, offset, size)[1] == (
                "failed to register shared memory region 'r': invalid args"
            )
        elif size == 0 or offset % PAGE:
            assert refusal(regions, file.key, offset, size)[1].startswith(
                "failed to register shared memory region 'r': unable to process address space"
            )
        else:
            regions.register("r", file.key, offset, size)
            assert Loan(regions, b"r", 0, size).read() == DATA[offset : offset + size]


@given(offset=number, size=number, registered=st.sampled_from([1, 8, PAGE, PAGE + 1, SIZE]))
def test_lent_bounds(offset: int, size: int, registered: int) -> None:
    with shm.File(SIZE, DATA) as file:
        regions = SharedRegions()
        regions.register("r", file.key, 0, registered)
        if offset < registered and offset + size <= registered:
            assert Loan(regions, b"r", offset, size).read() == DATA[offset : offset + size]
            return
        with pytest.raises(InvalidArg) as refused:
            Loan(regions, b"r", offset, size)
        if offset >= registered:
            assert str(refused.value) == "Invalid offset for shared memory region: 'r'"
        elif offset + size > TOP:
            assert str(refused.value) == (
                f"Integer overflow detected: byte_size ({size}) + offset ({offset}) exceeds maximum value ({TOP}) for "
                "region 'r'"
            )
        else:
            assert str(refused.value) == "Invalid offset + byte size for shared memory region: 'r'"


def test_what_is_not_there() -> None:
    for regions in (None, SharedRegions()):
        with pytest.raises(NotFound, match="Unable to find shared memory region: 'r'"):
            Loan(regions, b"r", 0, 1)


# ---- life


def test_a_region_in_use_leaves_with_its_last_request(file: shm.File) -> None:
    regions = SharedRegions()
    regions.register("r", file.key, 0, SIZE)
    first, second = Loan(regions, b"r", 0, 8), Loan(regions, b"r", 8, 8)
    regions.unregister("r")
    regions.unregister("r")
    regions.unregister_all()
    assert [row[0] for row in regions.status()] == ["r"]
    assert refusal(regions, file.key)[0] is AlreadyExists
    first.end()
    assert second.read() == DATA[8:16]
    assert shm.named_mappings(file.name) == 1
    second.end()
    assert regions.status() == []
    assert shm.named_mappings(file.name) == 0
    regions.register("r", file.key, 0, SIZE)


def test_a_request_outlives_the_registry(file: shm.File) -> None:
    regions = SharedRegions()
    regions.register("r", file.key, 0, SIZE)
    loan = Loan(regions, b"r", 0, SIZE)
    del regions
    assert loan.read() == DATA
    loan.end()
    assert shm.named_mappings(file.name) == 0


def test_a_removed_file_stays_readable(file: shm.File) -> None:
    regions = SharedRegions()
    regions.register("r", file.key, 0, SIZE)
    file.path.unlink()
    assert Loan(regions, b"r", 0, SIZE).read() == DATA


def test_500_cycles_leave_nothing(file: shm.File) -> None:
    regions = SharedRegions()
    regions.register("kept", file.key, 0, SIZE)
    regions.register("r", file.key, 0, SIZE)
    regions.unregister("r")
    before = len(os.listdir("/proc/self/fd")), shm.mappings()
    for _ in range(500):
        regions.register("r", file.key, PAGE, PAGE)
        Loan(regions, b"r", 0, PAGE).end()
        regions.unregister("r")
    assert (len(os.listdir("/proc/self/fd")), shm.mappings()) == before


def test_names_from_many_threads(file: shm.File) -> None:
    regions = SharedRegions()
    seen: list[BaseException] = []

    def work(k: int) -> None:
        try:
            for i in range(200):
                name = f"n{(k + i) % 3}"
                with contextlib.suppress(AlreadyExists):
                    regions.register(name, file.key, 0, SIZE)
                with contextlib.suppress(NotFound):
                    assert Loan(regions, name.encode(), i % SIZE, 1).read() == DATA[i : i + 1]
                if i % 2:
                    regions.unregister(name)
                regions.status()
        except BaseException as error:
            seen.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    regions.unregister_all()
    assert not seen
    assert len(regions) == 0
    assert shm.named_mappings(file.name) == 0


# ---- files that shrink


@pytest.mark.parametrize("settle", [False, True], ids=["in place", "copied"])
def test_a_file_that_shrinks(file: shm.File, settle: bool) -> None:
    regions = SharedRegions()
    regions.register("r", file.key, 0, SIZE)
    before = faults()
    loan = Loan(regions, b"r", 0, SIZE)
    file.resize(PAGE)
    with pytest.raises(InvalidArg, match="region 'r' can not be used any more: its file was made smaller"):
        loan.read(settle)
    assert before < faults() <= before + 3, "one fault mends all that is behind it"
    loan.end()
    file.resize(SIZE)
    with pytest.raises(InvalidArg, match="can not be used any more"):
        Loan(regions, b"r", 0, 1)
    regions.unregister("r")
    regions.register("r", file.key, 0, SIZE)
    assert Loan(regions, b"r", 0, PAGE).read() == DATA[:PAGE]


@pytest.mark.parametrize("placed", [False, True], ids=["any order", "placed"])
def test_inputs_are_copied_before_a_backend_sees_them(file: shm.File, placed: bool) -> None:
    """Unless it copies them itself. Whose file shrank is not executed, or keeps its place where that has a meaning."""
    regions, model = SharedRegions(), ModelHandle("m", 1, 8, [], [])
    with shm.File(SIZE, DATA) as other:
        regions.register("r", file.key, 0, SIZE)
        regions.register("o", other.key, 0, SIZE)
        rows = [[(name, DataType.FP32, (1, 4), at, 16)] for name, at in ((b"r", 3 * PAGE), (b"o", 16), (b"o", 5))]
        lie = [(MEM_CLIENT, 0, DATA[at : at + 16]) for at in (0, 16, 5)]
        seen = fetched(regions, model, rows, placed=placed, copies_from=0)
        assert seen == (3, [(k, None, [lie[k]]) for k in range(3)])
        copied = [(MEM_CPU, *one[1:]) for one in lie]
        assert fetched(regions, model, rows, placed=placed) == (3, [(k, None, [copied[k]]) for k in range(3)])
        file.resize(PAGE)
        count, found = fetched(regions, model, rows, placed=placed)
        assert (count, [row[0] for row in found]) == ((3, [0, 1, 2]) if placed else (2, [1, 2, 0]))
        for k, error, inputs in found:
            assert inputs[0][0] == MEM_CPU
            assert (error is None, k == 0) in ((True, False), (False, True))


def test_writing_behind_the_end(file: shm.File) -> None:
    regions = SharedRegions()
    regions.register("r", file.key, 0, SIZE)
    loan = Loan(regions, b"r", 2 * PAGE, PAGE)
    file.resize(PAGE)
    loan.write(b"x" * PAGE)
    with pytest.raises(InvalidArg, match="can not be used any more"):
        loan.read()


def test_a_region_that_broke_is_the_only_one(file: shm.File) -> None:
    regions = SharedRegions()
    with shm.File(SIZE, DATA) as other:
        regions.register("r", file.key, 0, SIZE)
        regions.register("o", other.key, 0, SIZE)
        file.resize(0)
        with pytest.raises(InvalidArg):
            Loan(regions, b"r", 0, 1).read()
        assert Loan(regions, b"o", 0, SIZE).read() == DATA


ELSEWHERE = """
import ctypes, mmap, os, signal, sys
from triton_fast._native.core.regions import SharedRegions
{before}
fd = os.memfd_create("m")
os.ftruncate(fd, mmap.PAGESIZE)
mapped = mmap.mmap(fd, mmap.PAGESIZE)
regions = SharedRegions()
regions.register("r", sys.argv[1], 0, 8)
os.ftruncate(fd, 0)
{act}
"""
CALLED = """
@ctypes.CFUNCTYPE(None, ctypes.c_int)
def handle(number):
    os.write(1, b"handled")
    os._exit(7)
ctypes.CDLL(None).signal(signal.SIGBUS, handle)
"""


@pytest.mark.parametrize(
    ("before", "act", "code", "out"),
    [
        ("", "mapped[0]", -signal.SIGBUS, b""),
        ("", "os.kill(os.getpid(), signal.SIGBUS)", -signal.SIGBUS, b""),
        (CALLED, "mapped[0]", 7, b"handled"),
        ("signal.signal(signal.SIGBUS, signal.SIG_IGN)", "mapped[0]", -signal.SIGBUS, b""),
    ],
    ids=["default", "sent", "a handler", "ignored"],
)
def test_faults_elsewhere_are_the_former_handlers(
    file: shm.File, before: str, act: str, code: int, out: bytes
) -> None:
    # A sanitizer's own handler is not the default one.
    sanitizer = os.environ.get("ASAN_OPTIONS", "") + ":handle_sigbus=0"
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE.format(before=before, act=act), file.key], check=False, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "ASAN_OPTIONS": sanitizer}, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (code, out), done.stderr.decode()
