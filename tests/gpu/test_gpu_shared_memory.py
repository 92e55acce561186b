"""CUDA shared memory on a real GPU: this process and others are clients, the server is a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import onnx_models, raw, shm_models
from tests.helpers.cuda_memory import CLIENT, DeviceBytes, allocation, client_helpers, raw_handle
from tests.helpers.server import ROOT, Model, ServerProcess, repository

MIB = 1 << 20


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = repository(
        tmp_path_factory.mktemp("models"), Model("fp32"), Model("text", "BYTES"),
        Model("sequence", "INT32", (1,), extra="sequence_batching { }"),
    )  # fmt: skip
    shm_models.write_python_add(root)
    with ServerProcess(root, "--allow-client-shm=true", env=dict(os.environ)) as process:
        yield process


@pytest.fixture(autouse=True)
def regions_go(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "served" in request.fixturenames:
        address = request.getfixturevalue("served").http
        assert raw.ask(address, raw.post("/v2/cudasharedmemory/unregister")).status == 200
        assert raw.ask(address, raw.get("/v2/cudasharedmemory/status")).json() == []


def register(name: str, handle: bytes, size: int) -> bytes:
    body = {"raw_handle": {"b64": handle.decode()}, "device_id": 0, "byte_size": size}
    return raw.post(f"/v2/cudasharedmemory/region/{name}/register", json.dumps(body).encode())


def placed(name: str, size: int, offset: int = 0) -> dict[str, Any]:
    return {"parameters": {
        "shared_memory_region": name, "shared_memory_byte_size": size, "shared_memory_offset": offset,
    }}  # fmt: skip


def infer(model: str, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]], **parameters: Any) -> bytes:
    """Each input: its shape, datatype and data or place; they are named in order, and so are outputs."""
    body = {
        "inputs": [{"name": f"INPUT{i}", **given} for i, given in enumerate(inputs)],
        "outputs": [{"name": f"OUTPUT{i}", **wanted} for i, wanted in enumerate(outputs)], "parameters": parameters,
    }  # fmt: skip
    return raw.post(raw.infer_path(model), json.dumps(body).encode())


def given(place: dict[str, Any], shape: list[int], datatype: str = "FP32") -> dict[str, Any]:
    return {"shape": shape, "datatype": datatype, **place}


def ok(answer: raw.Answer) -> Any:
    assert answer.status == 200, answer.body
    return answer.json() if answer.body else None


# ---- the client's own helpers


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_with_the_clients_own_helpers(served: ServerProcess, protocol: str) -> None:
    module = pytest.importorskip(f"tritonclient.{protocol}")
    shared = client_helpers()
    host, port = served.http if protocol == "http" else served.grpc
    client = module.InferenceServerClient(f"{host}:{port}")
    values = [np.arange(16, dtype=np.float32).reshape(1, 16), np.full((1, 16), 0.5, np.float32)]
    regions = {name: shared.create_shared_memory_region(name, 128, 0) for name in ("in", "out")}
    try:
        shared.set_shared_memory_region(regions["in"], values)
        for name, region in regions.items():
            client.register_cuda_shared_memory(name, shared.get_raw_handle(region), 0, 128)
        inputs = [module.InferInput(f"INPUT{i}", [1, 16], "FP32") for i in range(2)]
        outputs = [module.InferRequestedOutput(f"OUTPUT{i}") for i in range(2)]
        for i in range(2):
            inputs[i].set_shared_memory("in", 64, offset=64 * i)
            outputs[i].set_shared_memory("out", 64, offset=64 * i)
        client.infer("python_add", inputs, outputs=outputs)
        got = shared.get_contents_as_numpy(regions["out"], np.float32, [2, 16])
        assert (got[0] == (values[0] + values[1])[0]).all() and (got[1] == (values[0] - values[1])[0]).all()
        status = client.get_cuda_shared_memory_status()
        if protocol == "http":
            assert status == [{"name": name, "device_id": 0, "byte_size": 128} for name in ("in", "out")]
        else:
            assert {(r.name, r.device_id, r.byte_size) for r in status.regions.values()} == {
                ("in", 0, 128), ("out", 0, 128)
            }  # fmt: skip
        client.unregister_cuda_shared_memory()
    finally:
        client.close()
        for region in regions.values():
            shared.destroy_shared_memory_region(region)


def test_texts_with_the_clients_own_helpers(served: ServerProcess) -> None:
    shared = client_helpers()
    utils = pytest.importorskip("tritonclient.utils")
    words = utils.serialize_byte_tensor(np.array([[b"one", b"", b"three"]], object))
    size = len(words.item())
    region = shared.create_shared_memory_region("texts", size, 0)
    try:
        shared.set_shared_memory_region(region, [words])
        ok(raw.ask(served.http, register("r", shared.get_raw_handle(region), size)))
        tensor = given(placed("r", size), [1, 3], "BYTES")
        shown = ok(raw.ask(served.http, infer("text", [tensor], [{}])))
        assert shown["outputs"][0]["data"] == ["one", "", "three"]
        ok(raw.ask(served.http, infer("text", [tensor], [placed("r", size)])))
        assert shared.get_contents_as_numpy(region, np.object_, [1, 3]).tolist() == [[b"one", b"", b"three"]]
        raw.ask(served.http, raw.post("/v2/cudasharedmemory/unregister"))
    finally:
        shared.destroy_shared_memory_region(region)


# ---- memory of frameworks


def test_a_tensor_of_pytorch(served: ServerProcess) -> None:
    """In memory that PyTorch's allocator cut from a larger allocation, which is what the handle names."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this build of PyTorch is for CPUs only")
    value = torch.arange(1 << 16, dtype=torch.float32, device="cuda").reshape(1, -1)
    into = torch.zeros_like(value)
    torch.cuda.synchronize()
    places = []
    for name, tensor in (("a", value), ("b", into)):
        base, size = allocation(tensor.data_ptr())
        ok(raw.ask(served.http, register(name, raw_handle(tensor.data_ptr()), size)))
        places.append(placed(name, tensor.numel() * 4, tensor.data_ptr() - base))
    ok(raw.ask(served.http, infer("fp32", [given(places[0], [1, 1 << 16])], [places[1]])))
    assert torch.equal(value, into)


def test_an_array_of_cupy(served: ServerProcess) -> None:
    cupy = pytest.importorskip("cupy")
    array = cupy.arange(1 << 10, dtype=cupy.float32)
    cupy.cuda.Device().synchronize()
    address = int(array.data.ptr)
    base, size = allocation(address)
    ok(raw.ask(served.http, register("r", raw_handle(address), size)))
    place = placed("r", 4096, address - base)
    shown = ok(raw.ask(served.http, infer("fp32", [given(place, [1, 1 << 10])], [{}])))
    assert shown["outputs"][0]["data"] == list(range(1 << 10))


# ---- inputs and outputs


@pytest.mark.parametrize("offset", [0, 3, 4096])
def test_offsets(served: ServerProcess, offset: int) -> None:
    value = np.arange(4, dtype=np.float32).tobytes()
    with DeviceBytes(1 << 16) as device:
        device.write(value, offset)
        ok(raw.ask(served.http, register("r", device.raw_handle, device.size)))
        answer = raw.ask(
            served.http, infer("fp32", [given(placed("r", 16, offset), [1, 4])], [placed("r", 32, 8192 + offset)])
        )
        assert ok(answer)["outputs"] == [{"name": "OUTPUT0", "datatype": "FP32", "shape": [1, 4]}]
        assert device.read(24, 8192 + offset) == value + b"\xee" * 8
        raw.ask(served.http, raw.post("/v2/cudasharedmemory/unregister"))


def test_many_bytes(served: ServerProcess) -> None:
    """Of a size that goes past the pool of pinned memory's classes."""
    value = np.random.default_rng(1).random(24 * MIB, np.float32)
    with DeviceBytes(2 * value.nbytes) as device:
        device.write(value.tobytes())
        ok(raw.ask(served.http, register("r", device.raw_handle, device.size)))
        for _ in range(3):
            ok(raw.ask(served.http, infer(
                "fp32", [given(placed("r", value.nbytes), [1, value.size])],
                [placed("r", value.nbytes, value.nbytes)],
            )))  # fmt: skip
        assert device.read(value.nbytes, value.nbytes) == value.tobytes()
        raw.ask(served.http, raw.post("/v2/cudasharedmemory/unregister"))


def test_a_sequence(served: ServerProcess) -> None:
    with DeviceBytes(64) as device:
        ok(raw.ask(served.http, register("r", device.raw_handle, 64)))
        for i in range(3):
            device.write(np.int32(i).tobytes())
            ok(raw.ask(served.http, infer(
                "sequence", [given(placed("r", 4), [1, 1], "INT32")], [placed("r", 4, 32)],
                sequence_id=3, sequence_start=i == 0, sequence_end=i == 2,
            )))  # fmt: skip
            assert device.read(4, 32) == np.int32(i).tobytes()
        raw.ask(served.http, raw.post("/v2/cudasharedmemory/unregister"))


def test_onnx_runtime_on_the_gpu(tmp_path: Path) -> None:
    """A model that takes device memory: inputs as they lie, from regions and from the message, in one request."""
    runtime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in runtime.get_available_providers():
        pytest.skip("this build of ONNX Runtime is for CPUs only")
    (tmp_path / "add" / "1").mkdir(parents=True)
    (tmp_path / "add" / "config.pbtxt").write_text(f'backend: "onnxruntime"{shm_models.ADD}{shm_models.GPU}')
    (tmp_path / "add" / "1" / "model.onnx").write_bytes(onnx_models.add_sub("FP32"))
    a, b = np.arange(16, dtype=np.float32), np.full(16, 0.25, np.float32)
    with ServerProcess(tmp_path, "--allow-client-shm=true") as process, DeviceBytes(1 << 12) as device:
        device.write(a.tobytes())
        device.write(b.tobytes(), 64)
        ok(raw.ask(process.http, register("r", device.raw_handle, device.size)))
        first = given(placed("r", 64), [1, 16])
        for second in (given(placed("r", 64, 64), [1, 16]), given({"data": b.tolist()}, [1, 16])):
            for outputs in ([placed("r", 64, 1024), placed("r", 64, 2048)], [placed("r", 64, 1024), {}]):
                device.write(bytes(2048), 1024)
                shown = ok(raw.ask(process.http, infer("add", [first, second], outputs)))
                assert device.read(64, 1024) == (a + b).tobytes()
                if outputs[1]:
                    assert device.read(64, 2048) == (a - b).tobytes()
                else:
                    assert shown["outputs"][1]["data"] == (a - b).tolist()


# ---- what is refused, and ends


def test_what_is_refused(served: ServerProcess) -> None:
    failed = "failed to register shared memory region: invalid args"
    with DeviceBytes(1 << 16) as device:
        handle = device.raw_handle
        answer = raw.ask(served.http, register("r", handle, 1 << 40))
        assert (answer.status, answer.error) == (400, "failed to register shared memory region 'r': invalid args")
        answer = raw.ask(served.http, register("r", b"A" * 86 + b"==", 16))
        assert (answer.status, answer.error) == (400, failed)
        ok(raw.ask(served.http, register("r", handle, 1 << 16)))
        ok(raw.ask(served.http, register("again", handle, 16)))
        assert "already in manager" in raw.ask(served.http, register("r", handle, 16)).error
        answer = raw.ask(served.http, infer("fp32", [given(placed("again", 32), [1, 8])], [{}]))
        assert (answer.status, answer.error) == (
            400, "Invalid offset + byte size for shared memory region: 'again'"
        )  # fmt: skip
        raw.ask(served.http, raw.post("/v2/cudasharedmemory/unregister"))


def client_process(size: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_several_clients_and_one_that_dies(served: ServerProcess) -> None:
    """Four processes' memory at the same time; one is killed, one frees its memory, both while it is in use."""
    processes = [client_process(MIB) for _ in range(4)]
    try:
        for i, process in enumerate(processes):
            assert process.stdout is not None
            ok(raw.ask(served.http, register(f"c{i}", process.stdout.readline().strip().encode(), MIB)))

        def ask(i: int) -> set[int]:
            value = np.full(1024, i, np.float32)
            seen = set()
            with raw.Client(served.http) as client:
                for n in range(100):
                    data = {"data": value.tolist()}
                    seen.add(client.ask(infer("fp32", [given(data, [1, 1024])], [placed(f"c{i}", 4096)])).status)
                    answer = client.ask(infer("fp32", [given(placed(f"c{i}", 4096), [1, 1024])], [{}]))
                    seen.add(answer.status)
                    if i < 2:
                        assert answer.json()["outputs"][0]["data"] == value.tolist()
                    elif n == 50 and i == 2:
                        processes[2].kill()
                    elif n == 50:
                        process = processes[3]
                        assert process.stdin is not None and process.stdout is not None
                        process.stdin.write("free\n")
                        process.stdin.flush()
                        assert process.stdout.readline() == "freed\n"
            return seen

        with ThreadPoolExecutor(4) as pool:
            seen = list(pool.map(ask, range(4)))
        assert seen[0] == seen[1] == {200}
        assert seen[2] <= {200, 500} and seen[3] <= {200, 500}
        assert raw.ask(served.http, raw.get("/v2/health/ready")).status == 200
        assert raw.ask(served.http, raw.post("/v2/cudasharedmemory/unregister")).status == 200
    finally:
        for process in processes:
            process.kill()
            process.communicate()
