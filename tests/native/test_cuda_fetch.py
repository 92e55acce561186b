"""Inputs in GPU memory before an instance executes: which requests it gets, in which order, and where their bytes lie.

The memory is another process's, which has the stand-in for the driver too.
"""

from __future__ import annotations

import base64
import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.helpers import shm, standin_cuda
from tests.helpers.cuda_client import CLIENT
from tests.helpers.standin_cuda import StandIn
from triton_fast._native.core import memory
from triton_fast._native.core.model import ModelHandle
from triton_fast._native.core.regions import Loan, SharedRegions
from triton_fast._native.cuda import driver, flow, ipc
from triton_fast._native.cuda import regions as cuda_regions
from triton_fast._native.sched.fetch import fetched
from triton_fast.errors import AlreadyExists, Internal, InvalidArg
from triton_fast.shared_memory import SharedMemory
from triton_fast.types import DataType

CPU, GPU, CLIENT_HOST = 0, 2, 3
Row = tuple[bytes, int, tuple[int, ...], int, int]
SIZE = 4096
WAIT_S = 60.0
DATA = bytes(range(64)) + b"\x03\0\0\0abc\x09\0\0\0"
FAILED = "failed to copy from device memory on GPU 0: "


@pytest.fixture(scope="module")
def handle() -> Iterator[bytes]:
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(SIZE), DATA.hex()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=standin_cuda.environment(),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        yield base64.b64decode(process.stdout.readline())
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def fake() -> Iterator[StandIn]:
    before = memory.stats()["live_blocks"]
    with standin_cuda.opened() as made:
        yield made
        flow.trim()
        cuda_regions.settle()
        assert ipc.opened() == 0
    assert memory.stats()["live_blocks"] == before


@pytest.fixture
def regions(fake: StandIn, handle: bytes) -> Iterator[SharedRegions]:
    made = SharedRegions()
    assert cuda_regions.register(made, "r", handle, 0, SIZE) == ""
    yield made
    made.unregister_all(cuda=True)


@pytest.fixture
def model() -> ModelHandle:
    return ModelHandle("m", 1, 8, [], [])


def numbers(offset: int = 0, count: int = 4) -> Row:
    return (b"r", DataType.FP32, (1, count), offset, 4 * count)


def texts(offset: int, nbytes: int, count: int = 1) -> Row:
    return (b"r", DataType.STRING, (1, count), offset, nbytes)


def test_all_inputs_of_a_batch_at_once(regions: SharedRegions, model: ModelHandle, fake: StandIn) -> None:
    waits = fake.calls("cuEventSynchronize")
    count, rows = fetched(regions, model, [[numbers(), numbers(5, 3)], [numbers(0, 0)], [texts(64, 7)]])
    assert count == 3
    assert rows == [
        (0, None, [(CPU, 0, DATA[:16]), (CPU, 0, DATA[5:17])]), (1, None, [(CPU, 0, b"")]),
        (2, None, [(CPU, 0, DATA[64:71])]),
    ]  # fmt: skip
    assert fake.calls("cuEventSynchronize") == waits + 1


def test_a_backend_that_takes_device_memory(regions: SharedRegions, model: ModelHandle) -> None:
    """Numbers of its own GPU stay; texts do not, nor does what lies on another one."""
    rows = [[numbers(), texts(64, 7)]]
    assert fetched(regions, model, rows, device=0)[1] == [(0, None, [(GPU, 0, None), (CPU, 0, DATA[64:71])])]
    assert fetched(regions, model, rows, device=1)[1] == [(0, None, [(CPU, 0, DATA[:16]), (CPU, 0, DATA[64:71])])]


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_who_fails_goes_behind_the_others(regions: SharedRegions, model: ModelHandle, fake: StandIn, nth: int) -> None:
    fake.fail("cuMemcpyDtoHAsync_v2", nth=nth)
    count, rows = fetched(regions, model, [[numbers(4 * i)] for i in range(4)])
    assert count == 3
    assert [row[0] for row in rows] == [i for i in range(4) if i != nth - 1] + [nth - 1]
    assert rows[3][1] is not None and rows[3][1].startswith(FAILED)
    for number, error, inputs in rows[:3]:
        assert (error, inputs) == (None, [(CPU, 0, DATA[4 * number : 4 * number + 16])])


def test_how_many_are_left_says_whether_a_clients_memory_is_copied(regions: SharedRegions, model: ModelHandle) -> None:
    """A backend that copies the inputs of several requests looks at those of one where they lie."""
    with shm.File(SIZE, DATA) as file:
        regions.register("s", file.key, 0, 64)
        host: list[Row] = [(b"s", DataType.FP32, (1, 4), 0, 16)]
        lie = [[(CLIENT_HOST, 0, DATA[:16])]] * 2
        for bad, copied in (([], False), ([[texts(71, 4)]], True)):
            good = [host] if bad else [host, host]
            count, rows = fetched(regions, model, [*bad, *good], copies_from=2)
            assert count == len(good)
            assert [inputs for _, error, inputs in rows if error is None] == (
                [[(CPU, 0, DATA[:16])]] if copied else lie
            )
        regions.unregister("s")


@pytest.mark.parametrize("kept", [(), (0,), (2, 5), range(6)])
def test_afterwards_each_stands_where_it_stood(regions: SharedRegions, model: ModelHandle, kept: Sequence[int]) -> None:
    """But for those that the backend has taken out, which are none of its answers."""
    rows = [[texts(71, 4) if i in (1, 3) else numbers(4 * i)] for i in range(6)]
    count, left = fetched(regions, model, rows, restored=True, kept=kept)
    assert count == 4
    assert [row[0] for row in left] == [i for i in range(6) if i in (1, 3) or i not in kept]
    assert [row[0] for row in left if row[1] is not None] == [1, 3]


def test_who_fails_keeps_its_place_where_it_has_a_meaning(
    regions: SharedRegions, model: ModelHandle, fake: StandIn
) -> None:
    fake.fail("cuMemcpyDtoHAsync_v2", nth=3)
    count, rows = fetched(
        regions, model, [[numbers()], [numbers(), numbers(8), texts(64, 7)], [texts(71, 4)], [numbers(4)]], placed=True
    )
    assert count == 4
    assert [row[0] for row in rows] == [0, 1, 2, 3]
    assert rows[1][1] is not None and rows[1][1].startswith(FAILED)
    # Zeros are texts of no length.
    assert [data for _, _, data in rows[1][2]] == [bytes(16), bytes(16), bytes(4)]
    assert rows[2][1] is not None and "incomplete string data for inference input 'X'" in rows[2][1]
    assert rows[2][2] == [(CPU, 0, bytes(4))]
    assert rows[0][1:] == (None, [(CPU, 0, DATA[:16])])
    assert rows[3][1:] == (None, [(CPU, 0, DATA[4:20])])


@pytest.mark.parametrize("placed", [False, True])
def test_a_wait_that_fails_fails_all_that_were_waited_for(
    regions: SharedRegions, model: ModelHandle, fake: StandIn, placed: bool
) -> None:
    fake.fail("cuEventSynchronize", standin_cuda.ILLEGAL_ADDRESS)
    count, rows = fetched(regions, model, [[numbers()], [numbers(0, 0)]], placed=placed)
    assert count == (2 if placed else 0)
    assert all(row[1] is not None and row[1].startswith("failed in a stream on GPU 0: ") for row in rows)
    assert rows[0][2] == [(CPU, 0, bytes(16))]
    assert [device for device, _ in driver.lost()] == [0]


@pytest.mark.parametrize("placed", [False, True])
def test_no_memory_is_left(regions: SharedRegions, model: ModelHandle, placed: bool) -> None:
    memory.set_body_limit(memory.stats()["live_bytes"] + 1024)
    try:
        count, rows = fetched(regions, model, [[numbers()], [numbers(0, 1024)]], placed=placed)
    finally:
        memory.set_body_limit(0)
    assert count == (0 if placed else 1)
    assert rows[1][1] is not None and rows[1][1].startswith("the request needs more memory than is left")
    assert (rows[0][1] is not None) == placed


# ---- regions


def test_a_region_is_open_until_its_last_loan_ends(regions: SharedRegions, fake: StandIn) -> None:
    loan = Loan(regions, b"r", 0, 16)
    regions.unregister("r")  # of the other kind
    assert regions.device_status() == [("r", 0, SIZE)]
    regions.unregister("r", cuda=True)
    assert regions.device_status() == [("r", 0, SIZE)] and regions.status() == []
    assert ipc.opened() == 1
    driver.enter(1)
    loan.end()
    assert fake.current() == 1, "whatever GPU the thread that ends it is at work on"
    cuda_regions.settle()
    assert regions.device_status() == []
    assert ipc.opened() == 0 and fake.held()["mappings"] == 0


def test_a_region_is_listed_until_it_is_closed(regions: SharedRegions, fake: StandIn) -> None:
    """A client that sees it no longer frees the memory, which it may not while it is open here."""
    loan = Loan(regions, b"r", 0, 16)
    regions.unregister("r", cuda=True)
    listed: list[object] = []
    with fake.watched("cuIpcCloseMemHandle", lambda: listed.append(regions.device_status())):
        loan.end()
        cuda_regions.settle()
    assert listed == [[("r", 0, SIZE)]]
    assert regions.device_status() == [] and len(regions) == 0


def test_whoever_takes_a_region_away_waits_for_no_other(fake: StandIn, handle: bytes) -> None:
    shared = SharedMemory(allowed=True)
    for name in ("r", "other", "third"):
        assert cuda_regions.register(shared.regions, name, handle, 0, SIZE) == ""
    loan = Loan(shared.regions, b"other", 0, 16)
    shared.unregister("cuda", "other")
    entered, gate, first = threading.Event(), threading.Event(), itertools.count()

    def hold() -> None:
        if next(first) == 0:
            entered.set()
            gate.wait(WAIT_S)

    with fake.watched("cuIpcCloseMemHandle", hold), ThreadPoolExecutor(2) as pool:
        loan.end()
        assert entered.wait(WAIT_S)
        try:
            pool.submit(shared.unregister, "cuda", "r").result(WAIT_S)
            assert [row["name"] for row in shared.status("cuda")] == ["other", "third"]
            again = pool.submit(shared.unregister, "cuda", "other")
            pool.submit(shared.unregister, "cuda", "third").result(WAIT_S)
            assert not again.done(), "that it was taken away before does not make it closed"
        finally:
            gate.set()
        again.result(WAIT_S)
        assert shared.status("cuda") == []
        assert ipc.opened() == 0


def test_who_lets_go_last_does_not_wait_for_the_driver(regions: SharedRegions, fake: StandIn) -> None:
    """That is mostly the thread of the event loop, and the driver may wait for the GPU."""
    loan = Loan(regions, b"r", 0, 16)
    regions.unregister("r", cuda=True)
    before = fake.calls("cuIpcCloseMemHandle")
    loan.end()
    cuda_regions.settle()
    assert fake.calls("cuIpcCloseMemHandle") == before + 1
    assert fake.thread("cuIpcCloseMemHandle") not in (0, threading.get_native_id())


def test_a_name_is_free_while_its_memory_is_closed(regions: SharedRegions, handle: bytes) -> None:
    for _ in range(20):
        loan = Loan(regions, b"r", 0, 16)
        regions.unregister("r", cuda=True)
        loan.end()
        assert cuda_regions.register(regions, "r", handle, 0, SIZE) == ""
    assert fetched(regions, ModelHandle("m", 1, 8, [], []), [[numbers()]])[1] == [(0, None, [(CPU, 0, DATA[:16])])]
    cuda_regions.settle()
    assert ipc.opened() == 1


def test_what_is_refused_is_closed(regions: SharedRegions, fake: StandIn, handle: bytes) -> None:
    with pytest.raises(AlreadyExists):
        cuda_regions.register(regions, "r", handle, 0, 8)
    with pytest.raises(InvalidArg, match="failed to register shared memory region 's': invalid args"):
        cuda_regions.register(regions, "s", handle, 0, (1 << 64) - 1)
    assert "failed to open the CUDA IPC handle" in cuda_regions.register(regions, "s", bytes(64), 0, 8)
    for function in ("cuMemGetAddressRange_v2", "cuPointerGetAttribute"):
        fake.fail(function, standin_cuda.ILLEGAL_ADDRESS)
    assert "failed to ask for the size" in cuda_regions.register(regions, "s", handle, 0, 8)
    fake.fail("cuCtxGetCurrent", standin_cuda.ILLEGAL_ADDRESS)
    fake.fail("cuCtxSetCurrent", standin_cuda.ILLEGAL_ADDRESS)
    with pytest.raises(Internal, match="failed to enter the CUDA context"):
        cuda_regions.register(regions, "s", handle, 0, 8)
    cuda_regions.settle()
    assert ipc.opened() == 1


def test_a_registry_closes_what_it_has(fake: StandIn, handle: bytes) -> None:
    made = SharedRegions()
    assert cuda_regions.register(made, "a", handle, 0, 8) == cuda_regions.register(made, "b", handle, 0, 8) == ""
    assert ipc.opened() == 2
    del made
    cuda_regions.settle()
    assert ipc.opened() == 0
