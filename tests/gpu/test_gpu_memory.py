"""A real GPU: copies bit for bit, waits, events, memory between processes, the pools, and what a server says of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from triton_fast._native.cuda import device_pool, driver, ipc, pinned
from triton_fast._native.cuda.copies import Event, Stream
from triton_fast._native.cuda.device_pool import DeviceMemory
from triton_fast._native.cuda.pinned import HostBlock
from triton_fast.errors import InvalidArg, Unavailable

ROOT = Path(__file__).resolve().parents[2]
KIB, MIB = 1 << 10, 1 << 20
SIZES = (1, 2, 255, 4096, 65 * KIB + 1, MIB, 3 * MIB + 7, 64 * MIB, 256 * MIB)
Table = Callable[[str, object], None]


def some_bytes(n: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.random.default_rng(n).integers(0, 256, n, dtype=np.uint8)


@pytest.fixture
def blocks(cuda: None) -> None:
    """Blocks of the server are pinned, up to 512 MiB."""
    pinned.start(0, 512 * MIB)


def test_the_device(cuda: None, gpu_table: Table) -> None:
    device = driver.devices()[0]
    assert device.total_bytes > 0 and device.capability >= (5, 0)
    assert re.fullmatch(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", device.uuid)
    gpu_table("GPU", f"{device.name}, capability {device.capability[0]}.{device.capability[1]}")
    gpu_table("driver is for CUDA", "{}.{}".format(*driver.version()))
    start = time.perf_counter()
    driver.enter(0)
    gpu_table("making the primary context", f"{(time.perf_counter() - start) * 1e3:.0f} ms")
    left, total = driver.memory_info(0)
    assert 0 < left <= total


@pytest.mark.parametrize("n", SIZES)
def test_bytes_go_there_and_back(cuda: None, n: int) -> None:
    data, back = some_bytes(n), np.zeros(n, np.uint8)
    stream, there, other = Stream(0), DeviceMemory(0, n), DeviceMemory(0, n)
    stream.copy_in(there.address, data)
    stream.copy_device(other.address, there.address, n)
    stream.copy_out(back, other.address)
    stream.wait()
    assert np.array_equal(data, back)


@pytest.mark.parametrize("n", [n for n in SIZES if 12 * KIB < n <= 64 * MIB])
def test_pinned_bytes_go_there_and_back(blocks: None, n: int) -> None:
    data, source, target = some_bytes(n), HostBlock(n), HostBlock(n)
    assert source.pinned and target.pinned
    np.frombuffer(source, np.uint8)[:] = data
    np.frombuffer(target, np.uint8)[:] = 0
    stream, there = Stream(0), DeviceMemory(0, n)
    stream.copy_in(there.address, source)
    stream.copy_out(target, there.address)
    stream.wait()
    assert np.array_equal(np.frombuffer(target, np.uint8), data)


def test_a_stream_follows_an_event_of_another(blocks: None) -> None:
    n = 32 * MIB
    source, target = HostBlock(n), HostBlock(n)
    np.frombuffer(source, np.uint8)[:] = 5
    np.frombuffer(target, np.uint8)[:] = 0
    first, second, event, there = Stream(0), Stream(0), Event(0), DeviceMemory(0, n)
    for _ in range(8):
        first.fill(there.address, 1, n)
    first.copy_in(there.address, source)
    first.record(event)
    second.follow(event)
    second.copy_out(target, there.address)
    second.wait()
    assert event.done()
    assert np.frombuffer(target, np.uint8).min() == np.frombuffer(target, np.uint8).max() == 5
    event.wait()


def test_bandwidth(blocks: None, gpu_table: Table) -> None:
    n, rounds = 64 * MIB, 10
    stream, there = Stream(0), DeviceMemory(0, n)
    start, end = Event(0, timed=True), Event(0, timed=True)
    pageable, locked = bytearray(n), HostBlock(n)
    assert locked.pinned
    for name, host in (("pageable", pageable), ("pinned", locked)):
        for way in ("in", "out"):
            took = []
            for _ in range(3):
                began = time.perf_counter()
                stream.record(start)
                for _ in range(rounds):
                    if way == "in":
                        stream.copy_in(there.address, host)
                    else:
                        stream.copy_out(host, there.address)
                stream.record(end)
                queued = time.perf_counter() - began
                busy = not end.done()
                stream.wait()
                took.append(end.ms_since(start))
            speed = n * rounds / (min(took) / 1e3) / 1e9
            assert speed > 0
            gpu_table(f"copy {way}, 64 MiB, {name}", f"{speed:.1f} GB/s")
            gpu_table(f"copy {way}, 64 MiB, {name}: host time to queue one",
                      f"{queued / rounds * 1e6:.0f} us, {'still running' if busy else 'done'} then")  # fmt: skip


def test_small_copies(blocks: None, gpu_table: Table) -> None:
    for n in (4 * KIB, 64 * KIB, 602 * KIB):
        there, stream, host, page = DeviceMemory(0, n), Stream(0), HostBlock(max(n, 16 * KIB)), bytearray(n)
        for name, memory in (("pinned", memoryview(host)[:n]), ("pageable", memoryview(page))):
            times = []
            for _ in range(300):
                began = time.perf_counter()
                stream.copy_in(there.address, memory)
                stream.copy_out(memory, there.address)
                stream.wait()
                times.append(time.perf_counter() - began)
            gpu_table(f"in, out and wait, {n // KIB} KiB, {name}", f"{sorted(times)[150] * 1e6:.1f} us")


def test_pinned_blocks_are_reused(blocks: None, gpu_table: Table) -> None:
    pinned.stop()
    pinned.start(0, 512 * MIB)
    began = time.perf_counter()
    block = HostBlock(32 * MIB)
    made = time.perf_counter() - began
    address = block.address
    del block
    began = time.perf_counter()
    again = HostBlock(32 * MIB)
    gpu_table("a pinned block of 32 MiB, new and reused",
              f"{made * 1e6:.0f} us, {(time.perf_counter() - began) * 1e6:.1f} us")  # fmt: skip
    assert again.pinned and again.address == address
    assert pinned.usage() == (512 * MIB, 32 * MIB)


def test_the_pool_of_device_memory(cuda: None, gpu_table: Table) -> None:
    device_pool.trim()
    left = driver.memory_info(0)[0]
    began = time.perf_counter()
    block = DeviceMemory(0, 32 * MIB)
    made = time.perf_counter() - began
    address = block.address
    assert driver.memory_info(0)[0] <= left - 32 * MIB
    del block
    began = time.perf_counter()
    block = DeviceMemory(0, 32 * MIB)
    gpu_table("device memory of 32 MiB, new and reused",
              f"{made * 1e6:.0f} us, {(time.perf_counter() - began) * 1e6:.1f} us")  # fmt: skip
    assert block.address == address
    del block
    device_pool.trim()
    assert device_pool.stats(0)["kept"] == device_pool.stats(0)["live"] == 0


def test_more_memory_than_there_is(cuda: None) -> None:
    total = driver.memory_info(0)[1]
    with pytest.raises(Unavailable, match=r"failed to allocate \d+ bytes on GPU 0: out of memory, \d+ of \d+ MiB are"):
        DeviceMemory(0, 2 * total)
    assert DeviceMemory(0, 1).size >= 1, "the context works on"


OWNER = """
import sys
from triton_fast._native.cuda import copies, device_pool, driver, ipc
driver.open_driver()
memory, stream = device_pool.DeviceMemory(0, int(sys.argv[1])), copies.Stream(0)
stream.copy_in(memory.address, bytes(range(200)))
stream.wait()
print(ipc.export(0, memory.address).hex(), flush=True)
sys.stdin.readline()
back = bytearray(3)
stream.copy_out(back, memory.address)
stream.wait()
print(bytes(back).decode(), flush=True)
"""


@pytest.mark.parametrize("n", [5000, 4 * MIB])
def test_memory_of_another_process(cuda: None, n: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as owner:
        assert owner.stdin is not None and owner.stdout is not None
        handle = bytes.fromhex(owner.stdout.readline())
        mapping = ipc.Mapping(0, handle)
        assert mapping.size >= n
        stream, back = Stream(0), bytearray(200)
        stream.copy_out(back, mapping.address)
        stream.wait()
        assert bytes(back) == bytes(range(200))
        stream.copy_in(mapping.address, b"yes")
        stream.wait()
        owner.stdin.write("\n")
        owner.stdin.flush()
        assert owner.stdout.readline() == "yes\n"
        mapping.close()
    assert ipc.opened() == 0


def test_handles_that_are_none(cuda: None) -> None:
    with pytest.raises(InvalidArg):
        ipc.Mapping(0, b"\xff" * 64)
    own = DeviceMemory(0, 4 * MIB)
    with pytest.raises(InvalidArg):
        ipc.Mapping(0, ipc.export(0, own.address))
    stream, back = Stream(0), bytearray(1)
    stream.copy_out(back, own.address)
    stream.wait()
    assert ipc.opened() == 0, "the context works on"


def test_torch_shares_the_context(cuda: None) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(1000, dtype=torch.int32, device="cuda:0")
    torch.cuda.synchronize()
    back, stream = np.zeros(1000, np.int32), Stream(0)
    stream.copy_out(back.view(np.uint8), tensor.data_ptr())
    stream.wait()
    assert np.array_equal(back, np.arange(1000, dtype=np.int32))
    with torch.cuda.stream(torch.cuda.ExternalStream(stream.handle)):
        doubled = tensor * 2
    stream.copy_out(back.view(np.uint8), doubled.data_ptr())
    stream.wait()
    assert np.array_equal(back, np.arange(1000, dtype=np.int32) * 2)


PLACE = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.place = args["model_instance_kind"] + ":" + args["model_instance_device_id"]

    def execute(self, requests):
        place = np.array([self.place.encode()], dtype=np.object_)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("PLACE", place)]) for _ in requests]
"""
CONFIG = """
backend: "python"
input { name: "INPUT0" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "PLACE" data_type: TYPE_STRING dims: [ 1 ] }
instance_group { kind: KIND_GPU gpus: 0 }
"""


def test_a_server_and_its_metrics(tmp_path: Path, gpu_table: Table) -> None:
    from tests.helpers import raw
    from tests.helpers.server import ServerProcess

    (tmp_path / "place" / "1").mkdir(parents=True)
    (tmp_path / "place" / "config.pbtxt").write_text(CONFIG)
    (tmp_path / "place" / "1" / "model.py").write_text(PLACE)
    with ServerProcess(tmp_path) as process:
        line = process.wait_for_log("GPU 0: ")
        uuid = re.search(r"GPU-[0-9a-f-]{36}", line)
        assert uuid is not None
        answer = raw.ask(process.http, raw.infer_json("place", [1.0], shape=[1]))
        assert json.loads(answer.body)["outputs"][0]["data"] == ["GPU:0"]
        text = raw.ask(process.metrics, raw.get("/metrics")).body.decode()
        assert "\nnv_pinned_memory_pool_total_bytes 268435456\n" in text
        rows = re.findall(r'^(nv_(?:gpu|energy)\w+)\{gpu_uuid="([^"]+)"\} (\S+)$', text, re.M)
        assert rows, "NVML's families are there"
        # A part of a divided GPU (MIG) has an id of its own in CUDA, the whole GPU's figures are NVML's.
        label = uuid[0] if any(row[1] == uuid[0] for row in rows) else rows[0][1]
        found = {name: value for name, of, value in rows if of == label}
        assert float(found["nv_gpu_memory_total_bytes"]) > float(found["nv_gpu_memory_used_bytes"]) >= 0
        assert 0 <= float(found["nv_gpu_utilization"]) <= 1
        gpu_table("/metrics names the GPU as CUDA does", "yes" if label == uuid[0] else "no")
        for name, value in found.items():
            gpu_table(f"/metrics {name}", value)
