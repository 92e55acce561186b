"""The CUDA driver's functions as this project calls them, on a stand-in for the driver: streams there do nothing until
somebody waits, device memory cannot be followed, any call can be made to fail."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers import standin_cuda
from tests.helpers.standin_cuda import ILLEGAL_ADDRESS, OUT_OF_MEMORY, StandIn
from triton_fast._native.cuda import copies, device_pool, driver, ipc, pinned
from triton_fast._native.cuda.copies import Event, Stream
from triton_fast._native.cuda.device_pool import DeviceMemory
from triton_fast._native.cuda.pinned import HostBlock
from triton_fast.errors import Internal, InvalidArg, NotFound, ServerError, Unavailable, Unsupported

ROOT = Path(__file__).resolve().parents[2]
KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def fake() -> Iterator[StandIn]:
    with standin_cuda.opened() as stand_in:
        pinned.start(0, 64 * MIB)
        yield stand_in


# --- the driver ------------------------------------------------------------------------------------------------


def test_devices_are_described(fake: StandIn) -> None:
    first, second = driver.devices()
    assert (first.id, first.name, first.capability, first.total_bytes) == (0, "Stand-in GPU 0", (9, 0), 1 << 30)
    assert second.uuid == "GPU-abababab-abab-abab-abab-ababababab01"
    assert driver.version() == (13, 0)
    before = fake.calls("cuInit")
    assert driver.open_driver() == 2
    assert fake.calls("cuInit") == before, "calling again is free"


def test_contexts_are_made_at_their_first_use_and_once(fake: StandIn) -> None:
    assert fake.held()["contexts"] == 1, "of the pinned memory"
    for _ in range(3):
        driver.enter(1)
    assert fake.held()["contexts"] == 2
    with pytest.raises(InvalidArg, match="there is no GPU 2: the driver has GPUs 0 to 1"):
        driver.enter(2)
    with pytest.raises(InvalidArg, match="there is no GPU -1"):
        driver.enter(-1)


def test_entering_the_current_context_again_sets_nothing(fake: StandIn) -> None:
    driver.enter(1)
    before = fake.calls("cuCtxSetCurrent")
    driver.enter(1)
    assert fake.calls("cuCtxSetCurrent") == before
    driver.enter(0)
    assert fake.calls("cuCtxSetCurrent") == before + 1


def test_peers_are_enabled_once_for_each_pair(fake: StandIn) -> None:
    assert driver.enable_peer_access([0, 1]) == [(0, 1), (1, 0)]
    assert driver.enable_peer_access([0, 1]) == [(0, 1), (1, 0)], "that it is so already is no failure"
    assert driver.enable_peer_access([1]) == []


def test_without_a_driver() -> None:
    assert driver.devices() == []
    with pytest.raises(NotFound, match=r"there is no NVIDIA driver: nowhere/libcuda\.so\.1"):
        driver.open_driver("nowhere/libcuda.so.1")
    with pytest.raises(Unavailable, match="there is no GPU 0: the server uses no GPU"):
        driver.enter(0)
    with pytest.raises(Unavailable):
        Stream(0)


def test_a_library_that_is_no_driver() -> None:
    import _ctypes

    with pytest.raises(Unsupported, match=r"driver is too old: '_ctypes\S*' lacks cuInit; install a driver"):
        driver.open_driver(_ctypes.__file__)


@pytest.mark.parametrize(
    ("function", "code", "error", "text"),
    [
        ("cuInit", 803, Unavailable, "SYSTEM_DRIVER_MISMATCH (803): .*; its library and its kernel module"),
        ("cuInit", 100, NotFound, "the NVIDIA driver finds no GPU; CUDA_VISIBLE_DEVICES may hide them"),
        ("cuInit", 999, Unavailable, r"can not be started: unknown error \(999\): the driver has no text for it"),
        ("cuDeviceGetCount", 1, Internal, "counting GPUs: CUDA_ERROR_INVALID_VALUE"),
        ("cuDriverGetVersion", 1, Internal, "asking for the driver's version: CUDA_ERROR_INVALID_VALUE"),
        ("cuDeviceGet", 101, Internal, "asking for the device on GPU 0: CUDA_ERROR_INVALID_DEVICE"),
        ("cuDeviceGetName", 101, Internal, "asking for the name on GPU 0"),
        ("cuDeviceTotalMem_v2", 101, Internal, "asking for the size of memory on GPU 0"),
        ("cuDeviceGetAttribute", 101, Internal, "asking for the compute capability on GPU 0"),
    ],
)
def test_a_driver_that_does_not_start(function: str, code: int, error: type[ServerError], text: str) -> None:
    fake = StandIn(standin_cuda.library())
    fake.fail(function, code)
    with pytest.raises(error, match=text.replace("(803)", r"\(803\)")):
        driver.open_driver(str(standin_cuda.library()))
    assert driver.devices() == []


# --- copies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 511, 4096, 3 * MIB + 7])
def test_bytes_go_there_and_back(fake: StandIn, n: int) -> None:
    data = bytes(i * 7 % 251 for i in range(min(n, 5000))) * (n // 5000 + 1)
    data = data[:n]
    stream, there, other = Stream(1), DeviceMemory(1, n), DeviceMemory(1, n)
    back = bytearray(n)
    stream.copy_in(there.address, data)
    stream.copy_device(other.address, there.address, n)
    stream.copy_out(back, other.address)
    stream.wait()
    assert bytes(back) == data


def test_nothing_is_there_before_the_wait(fake: StandIn) -> None:
    n = 64 * KIB
    stream, there, source, back = Stream(0), DeviceMemory(0, n), HostBlock(n), HostBlock(n)
    assert source.pinned and back.pinned
    memoryview(source)[:] = b"\1" * n
    memoryview(back)[:] = bytes(n)
    stream.copy_in(there.address, source)
    stream.copy_out(back, there.address)
    assert fake.peek(there.address, n) == bytes(n) and bytes(back) == bytes(n), "copies of pinned memory are queued"
    memoryview(source)[:1] = b"\2"
    stream.wait()
    assert bytes(back) == b"\2" + b"\1" * (n - 1), "the memory belonged to the copy until then"


def test_streams_that_follow_an_event(fake: StandIn) -> None:
    n = 32 * KIB
    first, second, event = Stream(0), Stream(0), Event(0)
    there, back, source = DeviceMemory(0, n), HostBlock(n), HostBlock(n)
    memoryview(source)[:] = b"\5" * n
    memoryview(back)[:] = bytes(n)
    first.copy_in(there.address, source)
    first.record(event)
    second.follow(event)
    second.copy_out(back, there.address)
    assert not event.done()
    second.wait()
    assert bytes(back) == b"\5" * n and event.done()
    event.wait()


def test_an_event_is_done_when_its_stream_is(fake: StandIn) -> None:
    stream, event, there = Stream(1), Event(1), DeviceMemory(1, 100)
    assert event.done(), "never recorded"
    stream.fill(there.address, 7, 100)
    stream.record(event)
    asked = 0
    while not event.done():
        asked += 1
    assert asked > 0 and fake.peek(there.address, 100) == b"\7" * 100


def test_timed_events(fake: StandIn) -> None:
    stream, start, end = Stream(0), Event(0, timed=True), Event(0, timed=True)
    stream.record(start)
    stream.record(end)
    with pytest.raises(Internal, match=r"time between events on GPU 0: CUDA_ERROR_NOT_READY \(600\)"):
        end.ms_since(start)
    stream.wait()
    assert end.ms_since(start) >= 0
    with pytest.raises(Internal, match="INVALID_HANDLE"):
        end.ms_since(Event(0))


def test_copies_between_devices(fake: StandIn) -> None:
    one, other, stream = DeviceMemory(0, 10), DeviceMemory(1, 10), Stream(1)
    fake.poke(one.address, b"0123456789")
    stream.copy_peer(other.address, 1, one.address, 0, 10)
    stream.wait()
    assert fake.peek(other.address, 10) == b"0123456789"
    stream.copy_peer(other.address + 5, 1, other.address, 1, 5)
    stream.wait()
    assert fake.peek(other.address, 10) == b"0123401234"


def test_nothing_to_copy_asks_for_nothing(fake: StandIn) -> None:
    stream, asked = Stream(0), [fake.calls(name) for name, _, _ in CALLS[:5]]
    stream.copy_in(0, b"")
    stream.copy_out(bytearray(), 0)
    stream.copy_device(0, 0, 0)
    stream.copy_peer(0, 1, 0, 0, 0)
    stream.fill(0, 1, 0)
    assert [fake.calls(name) for name, _, _ in CALLS[:5]] == asked


def test_copies_past_an_allocation_are_refused(fake: StandIn) -> None:
    stream, there = Stream(0), DeviceMemory(0, 4096)
    with pytest.raises(Internal, match="failed to copy to device memory on GPU 0: CUDA_ERROR_INVALID_VALUE"):
        stream.copy_in(there.address + 1, bytes(4096))
    with pytest.raises(Internal, match="failed to copy from device memory on GPU 0"):
        stream.copy_out(bytearray(4097), there.address)


def test_waits_reuse_their_events(fake: StandIn) -> None:
    stream = Stream(0)
    stream.wait()
    made = fake.calls("cuEventCreate")
    for _ in range(100):
        stream.wait()
    assert fake.calls("cuEventCreate") == made
    assert copies.stats()["live_events"] == 0 and copies.stats()["kept_events"] >= 1


def _copy_in(stream: Stream, there: DeviceMemory) -> None:
    stream.copy_in(there.address, b"x")


CALLS: list[tuple[str, str, Callable[[Stream, DeviceMemory], object]]] = [
    ("cuMemcpyHtoDAsync_v2", "failed to copy to device memory", _copy_in),
    ("cuMemcpyDtoHAsync_v2", "failed to copy from device memory", lambda s, m: s.copy_out(bytearray(1), m.address)),
    ("cuMemcpyDtoDAsync_v2", "failed to copy within device", lambda s, m: s.copy_device(m.address, m.address, 1)),
    ("cuMemcpyPeerAsync", "failed to copy between", lambda s, m: s.copy_peer(m.address, 0, m.address, 1, 1)),
    ("cuMemsetD8Async", "failed to fill device memory", lambda s, m: s.fill(m.address, 1, 1)),
    ("cuEventRecord", "failed to record an event", lambda s, m: s.wait()),
    ("cuEventSynchronize", "failed in a stream", lambda s, m: s.wait()),
    ("cuEventSynchronize", "failed to wait for an event", lambda s, m: Event(0).wait()),
    ("cuEventCreate", "failed to create an event", lambda s, m: Event(0, timed=True)),
    ("cuEventCreate", "failed to create an event", lambda s, m: s.wait()),
    ("cuEventQuery", "failed before an event", lambda s, m: Event(0).done()),
    ("cuStreamCreate", "failed to create a stream", lambda s, m: Stream(0)),
    ("cuStreamWaitEvent", "failed to have a stream wait", lambda s, m: s.follow(Event(0))),
    ("cuMemAlloc_v2", "failed to allocate device memory", lambda s, m: DeviceMemory(0, 100 * KIB)),
    ("cuMemGetInfo_v2", "asking for free memory", lambda s, m: driver.memory_info(0)),
    ("cuIpcGetMemHandle", "failed to export device memory", lambda s, m: ipc.export(0, m.address)),
    ("cuIpcOpenMemHandle_v2", "failed to open the CUDA IPC handle", lambda s, m: ipc.Mapping(0, bytes(64))),
]


@pytest.mark.parametrize(("function", "text", "call"), CALLS, ids=[f"{row[0]}-{i}" for i, row in enumerate(CALLS)])
def test_a_call_that_fails_says_what_was_asked(
    fake: StandIn, function: str, text: str, call: Callable[[Stream, DeviceMemory], object]
) -> None:
    stream, there = Stream(0), DeviceMemory(0, 100)
    copies.trim()
    before = copies.stats()["live_events"]
    fake.fail(function, ILLEGAL_ADDRESS)
    with pytest.raises(Internal, match=f"{text}.*on GPU 0: CUDA_ERROR_ILLEGAL_ADDRESS .*illegal memory access"):
        call(stream, there)
    assert copies.stats()["live_events"] == before
    _copy_in(stream, there)
    stream.wait()
    assert fake.peek(there.address, 1) == b"x", "the next call works"


@pytest.mark.parametrize("function", ["cuDevicePrimaryCtxRetain", "cuCtxSetCurrent"])
def test_a_context_that_can_not_be_had(fake: StandIn, function: str) -> None:
    fake.fail(function, OUT_OF_MEMORY)
    with pytest.raises(Unavailable, match="the CUDA context on GPU 1: CUDA_ERROR_OUT_OF_MEMORY"):
        driver.enter(1)
    driver.enter(1)


# --- other processes' memory -----------------------------------------------------------------------------------

OWNER = """
import sys
from triton_fast._native.cuda import device_pool, driver, ipc, copies
driver.open_driver(sys.argv[1])
memory, stream = device_pool.DeviceMemory(1, 5000), copies.Stream(1)
stream.copy_in(memory.address, bytes(range(200)))
stream.wait()
print(ipc.export(1, memory.address).hex(), flush=True)
sys.stdin.readline()
back = bytearray(3)
stream.copy_out(back, memory.address)
print(bytes(back).decode(), flush=True)
"""


def test_memory_of_another_process(fake: StandIn) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(standin_cuda.library())], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, cwd=ROOT,
    ) as owner:  # fmt: skip
        assert owner.stdin is not None and owner.stdout is not None
        handle = bytes.fromhex(owner.stdout.readline())
        mapping = ipc.Mapping(1, handle)
        again = ipc.Mapping(1, handle)
        assert again.address == mapping.address and ipc.opened() == 2
        assert mapping.size == 6144, "the size of the allocation, not what anybody says"
        fake.fail("cuMemGetAddressRange_v2", 1)
        assert ipc.Mapping(1, handle).size == 6144
        fake.fail("cuMemGetAddressRange_v2", 1)
        fake.fail("cuPointerGetAttribute", ILLEGAL_ADDRESS)
        with pytest.raises(Internal, match="failed to ask for the size of another process's memory on GPU 1"):
            ipc.Mapping(1, handle)
        assert ipc.opened() == fake.held()["mappings"] == 2
        stream, back = Stream(1), bytearray(200)
        stream.copy_out(back, mapping.address)
        assert bytes(back) == bytes(range(200))
        stream.copy_in(mapping.address, b"yes")
        stream.wait()
        again.close()
        again.close()
        owner.stdin.write("\n")
        owner.stdin.flush()
        assert owner.stdout.readline() == "yes\n"
        mapping.close()
    assert ipc.opened() == 0
    with pytest.raises(InvalidArg, match="failed to open the CUDA IPC handle on GPU 1"):
        ipc.Mapping(1, handle)


def test_handles_that_are_none(fake: StandIn) -> None:
    with pytest.raises(InvalidArg, match="a CUDA IPC handle has 64 bytes, got 63"):
        ipc.Mapping(0, bytes(63))
    with pytest.raises(InvalidArg, match="failed to open the CUDA IPC handle on GPU 0: CUDA_ERROR_INVALID_VALUE"):
        ipc.Mapping(0, b"\xff" * 64)
    own = DeviceMemory(0, 10)
    with pytest.raises(InvalidArg, match="CUDA_ERROR_INVALID_CONTEXT"):
        ipc.Mapping(0, ipc.export(0, own.address))
    with pytest.raises(Internal, match="failed to export device memory"):
        ipc.export(0, 4096)
    assert ipc.opened() == 0 and device_pool.stats(0)["live"] == own.size


def test_a_wait_looks_before_it_sleeps(fake: StandIn) -> None:
    stream, there = Stream(0), DeviceMemory(0, 4)
    copies.look(10_000_000_000)
    stream.fill(there.address, 7, 4)
    sleeps, looks = fake.calls("cuEventSynchronize"), fake.calls("cuEventQuery")
    stream.wait()
    assert fake.peek(there.address, 4) == b"\7" * 4
    assert fake.calls("cuEventSynchronize") == sleeps and fake.calls("cuEventQuery") > looks
    fake.fail("cuEventQuery", ILLEGAL_ADDRESS)
    with pytest.raises(Internal, match="failed in a stream on GPU 0: CUDA_ERROR_ILLEGAL_ADDRESS"):
        copies.wait_stream(0, stream.handle)


def test_what_is_not_done_soon_is_slept_for(fake: StandIn) -> None:
    stream, there = Stream(0), DeviceMemory(0, 4)
    stream.fill(there.address, 7, 4)
    sleeps = fake.calls("cuEventSynchronize")
    copies.wait_stream(0, stream.handle)
    assert fake.calls("cuEventSynchronize") == sleeps + 1
    assert fake.peek(there.address, 4) == b"\7" * 4


@pytest.mark.parametrize("function", ["cuEventCreate", "cuEventRecord"])
def test_without_an_event_a_stream_is_waited_for_all_the_same(fake: StandIn, function: str) -> None:
    """Who is told that the wait failed gives the memory back that the stream uses."""
    n = 64 * KIB
    stream, there, source = Stream(1), DeviceMemory(1, n), HostBlock(n)
    assert source.pinned
    memoryview(source)[:] = b"\3" * n
    stream.copy_in(there.address, source)
    copies.trim()
    fake.fail(function)
    with pytest.raises(Unavailable, match="an event on GPU 1: CUDA_ERROR_OUT_OF_MEMORY"):
        stream.wait()
    memoryview(source)[:] = bytes(n)
    assert fake.peek(there.address, n) == b"\3" * n
