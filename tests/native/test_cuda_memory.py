"""Device memory from its pool, and the pinned blocks of the block pool, on a stand-in for the CUDA driver."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.helpers import standin_cuda
from tests.helpers.standin_cuda import OUT_OF_MEMORY, StandIn
from triton_fast._native.arrays import pyarrays
from triton_fast._native.core import memory
from triton_fast._native.cuda import device_pool, driver, pinned
from triton_fast._native.cuda.device_pool import DeviceMemory
from triton_fast._native.cuda.pinned import HostBlock
from triton_fast.errors import InvalidArg, Unavailable

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def fake() -> Iterator[StandIn]:
    memory.trim()
    before = memory.stats()
    with standin_cuda.opened() as stand_in:
        yield stand_in
        pinned.stop()
        memory.set_keep_bytes(256 * MIB)
        memory.trim()
        assert memory.stats() == before
        for device in (0, 1):
            device_pool.set_budget(device, 64 * MIB)
            assert device_pool.stats(device)["live"] == 0


# --- device memory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "size"),
    [(0, 4096), (1, 4096), (4096, 4096), (4097, 6144), (6145, 8192), (MIB, MIB), (MIB + 1, MIB + MIB // 2)],
)
def test_sizes_are_rounded_up(fake: StandIn, n: int, size: int) -> None:
    assert DeviceMemory(1, n).size == size


def test_freed_memory_is_kept_and_taken_again(fake: StandIn) -> None:
    first = DeviceMemory(0, MIB)
    address = first.address
    assert (device_pool.stats(0)["live"], device_pool.stats(1)["live"]) == (MIB, 0)
    del first
    assert device_pool.stats(0) == {"budget": 64 * MIB, "kept": MIB, "live": 0}
    made = fake.calls("cuMemAlloc_v2")
    again = DeviceMemory(0, MIB - 5)
    assert again.address == address and fake.calls("cuMemAlloc_v2") == made
    assert DeviceMemory(1, MIB).address != address, "each device has its own"


def test_what_is_over_the_budget_goes_back(fake: StandIn) -> None:
    device_pool.set_budget(0, 2 * MIB)
    blocks = [DeviceMemory(0, MIB) for _ in range(3)]
    blocks.clear()
    assert device_pool.stats(0)["kept"] == 2 * MIB
    device_pool.set_budget(0, MIB)
    assert device_pool.stats(0)["kept"] == MIB, "a smaller budget holds at once"
    device_pool.trim(0)
    assert device_pool.stats(0)["kept"] == 0 and fake.held()["allocations"] == 0
    device_pool.set_budget(0, 0)
    del blocks[:]
    DeviceMemory(0, MIB)
    assert fake.held()["allocations"] == 0


def test_memory_counts_for_no_limit_of_the_host(fake: StandIn) -> None:
    before = memory.stats()
    block = DeviceMemory(0, 10 * MIB)
    held = memory.stats()
    assert (held["live_bytes"], held["live_blocks"]) == (before["live_bytes"], before["live_blocks"] + 1)
    del block
    assert memory.stats() == before


def test_out_of_memory_says_how_much_there_is(fake: StandIn) -> None:
    fake.limit(memory=10 * MIB)
    held = DeviceMemory(0, 8 * MIB)
    with pytest.raises(
        Unavailable, match=r"allocate 3145729 bytes on GPU 0: out of memory, 2 of 10 MiB are free; load"
    ):
        DeviceMemory(0, 3 * MIB + 1)
    DeviceMemory(1, 8 * MIB)
    assert held.size == 8 * MIB


def test_kept_memory_of_other_sizes_makes_room(fake: StandIn) -> None:
    fake.limit(memory=10 * MIB)
    kept = [DeviceMemory(0, 2 * MIB) for _ in range(4)]
    kept.clear()
    assert device_pool.stats(0)["kept"] == 8 * MIB
    assert DeviceMemory(0, 6 * MIB).size == 6 * MIB


def test_sizes_that_no_gpu_has(fake: StandIn) -> None:
    with pytest.raises(InvalidArg, match="more than any GPU has"):
        DeviceMemory(0, 1 << 60)
    with pytest.raises(ValueError, match="no GPU 64"):
        device_pool.set_budget(64, 1)
    with pytest.raises(ValueError, match="must be >= 0"):
        device_pool.set_budget(0, -1)


def test_many_threads_at_once(fake: StandIn) -> None:
    def work(seed: int) -> None:
        held = []
        for i in range(200):
            held.append(DeviceMemory(seed & 1, (seed * 7919 + i * 104729) % (300 * KIB)))
            if len(held) > 5:
                held.pop(i * 31 % len(held))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert device_pool.stats(0)["live"] == device_pool.stats(1)["live"] == 0


# --- pinned blocks ---------------------------------------------------------------------------------------------


def test_blocks_are_pinned_by_their_size(fake: StandIn) -> None:
    assert not HostBlock(MIB).pinned, "before it is on"
    pinned.start(0, 256 * MIB)
    sizes = [1, 12 * KIB, 12 * KIB + 1, MIB, 64 * MIB, 64 * MIB + 1]
    assert [HostBlock(n).pinned for n in sizes] == [False, False, True, True, True, False]


@pytest.mark.parametrize("n", [0, 1, 12 * KIB, 16 * KIB])
def test_outputs_of_frameworks_come_into_pinned_memory(fake: StandIn, n: int) -> None:
    """However small: a copy from a GPU to other memory would be waited for, or go through a framework's own."""
    pinned.start(0, 8 * MIB)
    room = pyarrays.room(n)
    assert pinned.usage()[1] == 16 * KIB
    del room
    assert pinned.usage()[1] == 0


def test_blocks_from_before_are_not_handed_out_again(fake: StandIn) -> None:
    HostBlock(MIB)
    HostBlock(1)
    cached = memory.stats()["cached_bytes"]
    pinned.start(1, 8 * MIB)
    assert memory.stats()["cached_bytes"] == cached - MIB
    assert HostBlock(MIB).pinned


def test_pinned_blocks_are_kept_when_idle(fake: StandIn) -> None:
    pinned.start(0, 8 * MIB)
    memory.set_keep_bytes(0)
    block = HostBlock(MIB)
    address = block.address
    assert pinned.usage() == (8 * MIB, MIB)
    del block
    assert pinned.usage() == (8 * MIB, 0) and pinned.stats()["free"] == MIB
    memory.trim()
    pinned.trim()
    assert memory.stats()["cached_bytes"] == pinned.stats()["pinned"] == MIB
    made = fake.calls("cuMemHostAlloc")
    again = HostBlock(MIB)
    assert again.pinned and again.address == address and fake.calls("cuMemHostAlloc") == made


def test_the_budget_of_other_blocks_is_as_it_was(fake: StandIn) -> None:
    memory.set_keep_bytes(4 * KIB)
    pinned.start(0, 2 * MIB)
    small = [HostBlock(1 * KIB) for _ in range(6)]
    HostBlock(MIB)
    small.clear()
    assert memory.stats()["cached_bytes"] == MIB + 4 * KIB
    memory.trim()
    assert memory.stats()["cached_bytes"] == MIB, "trim leaves what is pinned, and nothing else"


def test_past_the_budget_blocks_are_ordinary(fake: StandIn) -> None:
    pinned.start(0, 2 * MIB)
    blocks = [HostBlock(MIB) for _ in range(3)]
    assert [block.pinned for block in blocks] == [True, True, False]
    assert pinned.stats()["refused"] == 1 and pinned.usage()[1] == 2 * MIB
    blocks.clear()
    assert not HostBlock(2 * MIB).pinned, "what is free has the wrong sizes"
    memory.trim()
    assert fake.held()["pinned"] == 2 * MIB
    pinned.trim()
    assert fake.held()["pinned"] == 0
    assert HostBlock(2 * MIB).pinned, "idle time gave the next sizes their share"
    pinned.trim()
    assert pinned.stats()["free"] == 2 * MIB, "nobody went without since"


def test_a_system_that_has_no_pinned_memory(fake: StandIn) -> None:
    pinned.start(0, 8 * MIB)
    fake.fail("cuMemHostAlloc", OUT_OF_MEMORY)
    block = HostBlock(MIB)
    assert not block.pinned and pinned.stats()["failed"] == 1
    memoryview(block)[:] = b"\1" * MIB
    assert HostBlock(MIB).pinned, "the next may be"
    fake.limit(pinned=MIB)
    both = [HostBlock(MIB), HostBlock(MIB)]
    assert sorted(block.pinned for block in both) == [False, True] and pinned.stats()["pinned"] == MIB


def test_switched_off_blocks_in_use_stay_until_they_are_freed(fake: StandIn) -> None:
    pinned.start(0, 8 * MIB)
    block = HostBlock(MIB)
    HostBlock(2 * MIB)
    pinned.stop()
    assert pinned.stats()["pinned"] == MIB and block.pinned
    memoryview(block)[-1:] = b"\1"
    assert not HostBlock(3 * MIB).pinned
    del block
    pinned.stop()
    assert fake.held()["pinned"] == 0


def test_budgets_that_are_none(fake: StandIn) -> None:
    with pytest.raises(ValueError, match="must be >= 0"):
        pinned.start(0, -1)
    with pytest.raises(InvalidArg, match="there is no GPU 9"):
        pinned.start(9, MIB)
    pinned.start(0, 0)
    assert not HostBlock(MIB).pinned and pinned.stats()["budget"] == 0


def test_blocks_of_many_threads(fake: StandIn) -> None:
    pinned.start(1, 4 * MIB)

    def work(seed: int) -> None:
        held = []
        for i in range(300):
            held.append(HostBlock((seed * 7919 + i * 104729) % MIB))
            memoryview(held[-1])[:] = bytes([seed]) * len(memoryview(held[-1]))
            if len(held) > 4:
                one = held.pop(i * 31 % len(held))
                assert set(memoryview(one)[-1:]) <= {seed}
            if i % 50 == 0:
                pinned.trim()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = pinned.stats()
    assert stats["pinned"] == stats["free"] <= 4 * MIB


def test_all_free_blocks_of_a_size_are_taken_out_at_once(fake: StandIn) -> None:
    """Nobody counts or finds what is on its way back to the driver, which takes its time."""
    pinned.start(0, 64 * MIB)
    blocks = [HostBlock(n) for n in (MIB, MIB, MIB, 2 * MIB, 2 * MIB)]
    blocks.clear()
    left: list[tuple[int, int]] = []
    with fake.watched("cuMemFreeHost", lambda: left.append((memory.stats()["cached_bytes"], pinned.stats()["free"]))):
        pinned.stop()
    assert left == [(3 * MIB, 3 * MIB)] * 2 + [(0, 0)] * 3


def test_free_blocks_of_both_kinds_lie_among_each_other(fake: StandIn) -> None:
    pinned.start(0, 3 * MIB)
    blocks = [HostBlock(MIB) for _ in range(6)]
    order = [0, 3, 1, 4, 5, 2]  # freed so: pinned ones first and last, and two others behind each other
    assert [block.pinned for block in blocks] == [True] * 3 + [False] * 3
    addresses = [blocks[i].address for i in order if i < 3]
    for i in order:
        blocks[i] = HostBlock(1)
    assert (memory.stats()["cached_bytes"], pinned.stats()["free"]) == (6 * MIB, 3 * MIB)
    memory.trim(MIB + MIB // 2)
    assert (memory.stats()["cached_bytes"], pinned.stats()["free"]) == (4 * MIB, 3 * MIB), "only as many as must"
    memory.trim()
    assert (memory.stats()["cached_bytes"], pinned.usage()) == (3 * MIB, (3 * MIB, 0))
    made = fake.calls("cuMemHostAlloc")
    again = [HostBlock(MIB) for _ in range(3)]
    assert [block.address for block in again] == addresses[::-1] and fake.calls("cuMemHostAlloc") == made
    assert pinned.usage() == (3 * MIB, 3 * MIB) and pinned.stats()["free"] == 0
    again.clear()
    pinned.stop()
    assert (pinned.stats()["free"], memory.stats()["cached_bytes"]) == (0, 0)


# --- whose GPU a thread is at work on --------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, None], ids=["on another GPU", "on none"])
@pytest.mark.parametrize("fails", [False, True], ids=["", "the driver has none"])
def test_pinned_blocks_leave_a_thread_on_its_gpu(fake: StandIn, at: int | None, fails: bool) -> None:
    pinned.start(0, 8 * MIB)
    seen: list[int | None] = []

    def work() -> None:
        if at is not None:
            driver.enter(at)
        if fails:
            fake.fail("cuMemHostAlloc")
        block = HostBlock(MIB)
        seen.append(fake.current())
        assert block.pinned != fails
        del block
        pinned.stop()
        seen.append(fake.current())

    freed = fake.calls("cuMemFreeHost")
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [at, at]
    assert fake.calls("cuMemFreeHost") == freed + (not fails)


@pytest.mark.parametrize("at", [1, None], ids=["on another GPU", "on none"])
def test_device_memory_is_let_go_of_on_any_thread(fake: StandIn, at: int | None) -> None:
    device_pool.set_budget(0, 0)
    blocks = [DeviceMemory(0, MIB)]
    seen: list[int | None] = []

    def work() -> None:
        if at is not None:
            driver.enter(at)
        blocks.clear()
        seen.append(fake.current())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [at]
    assert fake.held()["allocations"] == 0


@pytest.mark.parametrize("at", [1, None], ids=["on another GPU", "on none"])
def test_device_memory_is_taken_at_its_gpu_where_the_thread_stays(fake: StandIn, at: int | None) -> None:
    """What comes next, copies into it, is for that GPU, whether the memory is new or was kept."""
    seen: list[int | None] = []

    def work() -> None:
        for _ in ("new", "kept"):
            if at is not None:
                driver.enter(at)
            block = DeviceMemory(0, MIB)
            seen.append(fake.current())
            assert block.device == 0
            if at is not None:
                driver.enter(at)
            del block
            seen.append(fake.current())

    made = fake.calls("cuMemAlloc_v2")
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [0, 0 if at is None else at] * 2
    assert fake.calls("cuMemAlloc_v2") == made + 1
