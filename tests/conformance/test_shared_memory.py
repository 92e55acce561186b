"""System shared memory through the real clients: the verbs, inputs and outputs in regions beside other tensors, every
kind of scheduler and backend between them, and what a request may not do."""

from __future__ import annotations

import base64
import json
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc

from tests.conformance.shm_clients import KINDS, At, Client, floats, own_helpers, refused, status
from tests.helpers import raw, shm, shm_models
from tests.helpers.server import Model, ServerProcess, repository, until

PAGE = 4096
SIZE = 16 * PAGE


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = shm_models.write(
        tmp_path_factory.mktemp("models"), Model("big", max_batch=0), onnx={"onnx_add": "dynamic_batching { }"}
    )
    with ServerProcess(root, *shm_models.FLAGS) as process:
        yield process


@pytest.fixture(params=KINDS)
def client(served: ServerProcess, request: pytest.FixtureRequest) -> Iterator[Client]:
    made = Client(request.param, served)
    yield made
    made.call("unregister_system_shared_memory")
    made.close()


@pytest.fixture
def file() -> Iterator[shm.File]:
    with shm.File(SIZE) as made:
        yield made


@pytest.fixture
def region(client: Client, file: shm.File) -> str:
    client.call("register_system_shared_memory", "r", file.key, SIZE)
    return "r"


# ---- verbs


def test_register_status_unregister(client: Client, file: shm.File) -> None:
    assert client.regions() == []
    client.call("register_system_shared_memory", "a", file.key, SIZE)
    client.call("register_system_shared_memory", "b", file.name, 100, offset=PAGE)
    assert client.regions() == [("a", file.key, 0, SIZE), ("b", file.name, PAGE, 100)]
    assert client.regions("b") == [("b", file.name, PAGE, 100)]
    client.call("unregister_system_shared_memory", "a")
    client.call("unregister_system_shared_memory", "nothing")
    assert [row[0] for row in client.regions()] == ["b"]
    client.call("unregister_system_shared_memory")
    assert client.regions() == []


def test_verbs_refused(client: Client, file: shm.File, region: str) -> None:
    def said(*arguments: Any, **named: Any) -> tuple[str, str]:
        return refused(client, "register_system_shared_memory", *arguments, **named)

    failed = "failed to register shared memory region 'x': "
    assert said("r", file.key, 8) == (
        status(client, 400, "ALREADY_EXISTS"), "shared memory region 'r' already in manager"
    )  # fmt: skip
    invalid = status(client, 400, "INVALID_ARGUMENT")
    assert said("x", file.key, SIZE + 1) == (invalid, failed + "invalid args")
    assert said("x", file.key, SIZE, offset=PAGE) == (invalid, failed + "invalid args")
    assert said("x", file.key, 8, offset=4)[0] == invalid
    assert said("x", "/nowhere", 8) == (
        status(client, 500, "INTERNAL"), "Unable to open shared memory region: '/nowhere'"
    )  # fmt: skip
    assert said("x", "/triton_python_backend_shm_region_0", 8)[1].endswith(
        "as the key contains the reserved prefix 'triton_python_backend_shm_region_'"
    )
    assert refused(client, "get_system_shared_memory_status", "x") == (
        status(client, 404, "NOT_FOUND"), "Unable to find system shared memory region: 'x'"
    )  # fmt: skip


def test_cuda_verbs(client: Client, region: str) -> None:
    shown = client.call("get_cuda_shared_memory_status")
    assert not (shown.regions if client.is_grpc else shown)
    assert refused(client, "get_cuda_shared_memory_status", "x") == (
        status(client, 404, "NOT_FOUND"), "Unable to find cuda shared memory region: 'x'"
    )  # fmt: skip
    assert refused(client, "get_cuda_shared_memory_status", region) == (
        status(client, 404, "NOT_FOUND"),
        "The region named 'r' is registered as system shared memory, not CUDA shared memory",
    )
    handle = base64.b64encode(bytes(64))
    assert refused(client, "register_cuda_shared_memory", "c", handle, 0, 64) == (
        status(client, 400, "INVALID_ARGUMENT"),
        "failed to register CUDA shared memory region: 'c', GPUs not supported",
    )
    if not client.is_grpc:
        assert refused(client, "register_cuda_shared_memory", "c", base64.b64encode(bytes(63)), 0, 64) == (
            "400", "'raw_handle' must be a valid base64 encoded cudaIpcMemHandle_t"
        )  # fmt: skip
    client.call("unregister_cuda_shared_memory", "r")
    client.call("unregister_cuda_shared_memory")
    assert [row[0] for row in client.regions()] == ["r"]


# ---- inputs and outputs


def test_with_the_clients_own_helpers(client: Client) -> None:
    client_memory = own_helpers()
    value = np.arange(64, dtype=np.float32).reshape(1, 64)
    handle = client_memory.create_shared_memory_region("mine", "/triton_fast_test_helper", 2 * value.nbytes)
    try:
        client_memory.set_shared_memory_region(handle, [value])
        client.call("register_system_shared_memory", "mine", "/triton_fast_test_helper", 2 * value.nbytes)
        result = client.infer(
            "fp32", {"INPUT0": At("mine", value.nbytes, shape=value.shape)},
            {"OUTPUT0": At("mine", value.nbytes, value.nbytes)},
        )  # fmt: skip
        got = client_memory.get_contents_as_numpy(handle, np.float32, value.shape, offset=value.nbytes)
        assert (got == value).all()
        assert client.output(result, "OUTPUT0") == {"name": "OUTPUT0", "datatype": "FP32", "shape": [1, 64]}
    finally:
        client.call("unregister_system_shared_memory", "mine")
        client_memory.destroy_shared_memory_region(handle)


def test_an_input_at_an_offset(client: Client, file: shm.File, region: str) -> None:
    value = floats(1, 2, 3, 4)
    file.write(value.tobytes(), 24)
    result = client.infer("fp32", {"INPUT0": At(region, 16, 24, shape=(1, 4))}, {"OUTPUT0": {}})
    assert (result.as_numpy("OUTPUT0") == value).all()


def test_an_output_at_an_offset(client: Client, file: shm.File, region: str) -> None:
    value = floats(5, 6, 7)
    file.write(b"\xff" * 64, 40)
    client.infer("fp32", {"INPUT0": value}, {"OUTPUT0": At(region, 40, 44)})
    assert file.read(64, 40) == b"\xff" * 4 + value.tobytes() + b"\xff" * 48


def test_beside_binary_and_json(client: Client, file: shm.File, region: str) -> None:
    """One input and one output in the region, the others in the message, both ways round."""
    a, b = np.array([[1, 2]], np.int32), np.array([[3, 4]], np.int32)
    file.write(a.tobytes())
    at = At(region, 8, datatype="INT32", shape=(1, 2))
    for inputs in ({"INPUT0": at, "INPUT1": b}, {"INPUT1": b, "INPUT0": at}):
        result = client.infer("two", inputs, {"OUTPUT0": {}, "OUTPUT1": At(region, 8, PAGE)})
        assert (result.as_numpy("OUTPUT0") == a).all()
        assert file.read(8, PAGE) == b.tobytes()
        file.write(bytes(8), PAGE)
        result = client.infer("two", inputs, {"OUTPUT1": {}, "OUTPUT0": At(region, 8, PAGE)})
        assert (result.as_numpy("OUTPUT1") == b).all()
        assert file.read(8, PAGE) == a.tobytes()


def test_in_place(client: Client, file: shm.File, region: str) -> None:
    """The output's place overlaps the input that the model hands back."""
    value = np.arange(256, dtype=np.float32).reshape(1, 256)
    file.write(value.tobytes())
    client.infer("fp32", {"INPUT0": At(region, 1024, shape=(1, 256))}, {"OUTPUT0": At(region, 1024, 512)})
    assert file.read(1024, 512) == value.tobytes()


def test_texts(client: Client, file: shm.File, region: str) -> None:
    wire = b"\x03\0\0\0abc\0\0\0\0"
    file.write(wire, 8)
    at = At(region, len(wire), 8, "BYTES", (1, 2))
    assert client.infer("text", {"INPUT0": at}, {"OUTPUT0": {}}).as_numpy("OUTPUT0").tolist() == [[b"abc", b""]]
    client.infer("text", {"INPUT0": at}, {"OUTPUT0": At(region, 100, PAGE)})
    assert file.read(len(wire), PAGE) == wire
    file.write(b"\xff\xff\xff\x7f", 8)
    assert refused(client, "infer", "text", {"INPUT0": at}, {"OUTPUT0": {}})[1].endswith("for model 'text', got 1")
    file.write(b"\x03\0\0\0abc\x09\0\0\0", 8)
    assert "incomplete string data" in refused(client, "infer", "text", {"INPUT0": at}, {"OUTPUT0": {}})[1]


def test_requests_refused(client: Client, file: shm.File, region: str) -> None:
    def of_input(at: At) -> tuple[str, str]:
        return refused(client, "infer", "fp32", {"INPUT0": at._replace(shape=(1, 4))}, {"OUTPUT0": {}})

    def of_output(at: At) -> tuple[str, str]:
        return refused(client, "infer", "fp32", {"INPUT0": floats(1, 2, 3, 4)}, {"OUTPUT0": at})

    invalid = status(client, 400, "INVALID_ARGUMENT")
    for said in (of_input, of_output):
        assert said(At("q", 16)) == (
            status(client, 404, "NOT_FOUND"), "Unable to find shared memory region: 'q'"
        )  # fmt: skip
        assert said(At("r", 16, SIZE)) == (invalid, "Invalid offset for shared memory region: 'r'")
        assert said(At("r", 16, SIZE - 15)) == (invalid, "Invalid offset + byte size for shared memory region: 'r'")
    assert of_input(At("r", 12))[1].endswith("Expected 16, got 12")
    assert of_output(At("r", 12)) == (
        status(client, 500, "INTERNAL"),
        "shared memory size specified with the request for output 'OUTPUT0' (12 bytes) should be at least 16 bytes to "
        "hold the results",
    )
    assert client.call("is_server_ready")


# ---- what lies between


@pytest.mark.parametrize("model", ["onnx_add", "python_add"])
@pytest.mark.parametrize("rows", [1, 3])
def test_models_that_compute(client: Client, file: shm.File, region: str, model: str, rows: int) -> None:
    a = np.arange(rows * 16, dtype=np.float32).reshape(rows, 16)
    b = a * 0.5 + 1
    file.write(a.tobytes())
    file.write(b.tobytes(), PAGE)
    client.infer(
        model, {"INPUT0": At(region, a.nbytes, shape=a.shape), "INPUT1": At(region, b.nbytes, PAGE, shape=b.shape)},
        {"OUTPUT0": At(region, a.nbytes, 2 * PAGE), "OUTPUT1": At(region, a.nbytes, 3 * PAGE)},
    )  # fmt: skip
    assert file.read(a.nbytes, 2 * PAGE) == (a + b).tobytes()
    assert file.read(a.nbytes, 3 * PAGE) == (a - b).tobytes()


def test_an_ensemble(client: Client, file: shm.File, region: str) -> None:
    x, y = np.full((1, 16), 2, np.float32), np.arange(16, dtype=np.float32).reshape(1, 16)
    file.write(x.tobytes())
    result = client.infer("chain", {"X": At(region, 64, shape=(1, 16)), "Y": y}, {"SUM": At(region, 64, PAGE), "Z": {}})
    assert file.read(64, PAGE) == (x + y).tobytes()
    assert (result.as_numpy("Z") == x).all()


def test_a_request_that_is_split(client: Client, file: shm.File, region: str) -> None:
    value = np.arange(28, dtype=np.float32).reshape(7, 4)
    file.write(value.tobytes())
    client.infer("split", {"INPUT0": At(region, 112, shape=(7, 4))}, {"OUTPUT0": At(region, 112, PAGE)})
    assert file.read(112, PAGE) == value.tobytes()


def test_a_sequence(client: Client, file: shm.File, region: str) -> None:
    for i in range(3):
        file.write(np.int32(i).tobytes())
        client.infer(
            "sequence", {"INPUT0": At(region, 4, datatype="INT32", shape=(1, 1))}, {"OUTPUT0": At(region, 4, PAGE)},
            sequence_id=7, sequence_start=i == 0, sequence_end=i == 2,
        )  # fmt: skip
        assert file.read(4, PAGE) == np.int32(i).tobytes()


def test_the_response_cache(client: Client, file: shm.File, region: str, served: ServerProcess) -> None:
    def counts() -> tuple[int, int]:
        stats = raw.ask(served.http, raw.get("/v2/models/cached/stats")).json()["model_stats"][0]["inference_stats"]
        return stats["cache_hit"]["count"], stats["cache_miss"]["count"]

    value = np.random.default_rng().random((1, 32), np.float32)
    file.write(value.tobytes())
    at, place = At(region, 128, shape=(1, 32)), At(region, 128, PAGE)
    hits, misses = counts()
    client.infer("cached", {"INPUT0": at}, {"OUTPUT0": place})
    file.write(bytes(128), PAGE)
    client.infer("cached", {"INPUT0": at}, {"OUTPUT0": place})
    assert file.read(128, PAGE) == value.tobytes()
    assert (client.infer("cached", {"INPUT0": value}, {"OUTPUT0": {}}).as_numpy("OUTPUT0") == value).all()
    assert counts() == (hits + 2, misses + 1)
    file.write(np.flip(value).tobytes())
    client.infer("cached", {"INPUT0": at}, {"OUTPUT0": place})
    assert file.read(128, PAGE) == np.flip(value).tobytes()


def test_a_decoupled_stream(served: ServerProcess, file: shm.File) -> None:
    """Each response of the stream has its output written before it is sent."""
    answers: queue.Queue[tuple[Any, Any, bytes]] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(f"{served.grpc[0]}:{served.grpc[1]}") as client:
        client.register_system_shared_memory("stream", file.key, SIZE)
        values = np.array([11, 22, 33], np.int32)
        file.write(values.tobytes())
        given = tritonclient.grpc.InferInput("IN", [3], "INT32")
        given.set_shared_memory("stream", 12)
        delay, wait = (tritonclient.grpc.InferInput(name, [n], "UINT32") for name, n in (("DELAY", 3), ("WAIT", 1)))
        delay.set_data_from_numpy(np.array([0, 20, 20], np.uint32))
        wait.set_data_from_numpy(np.zeros(1, np.uint32))
        place = tritonclient.grpc.InferRequestedOutput("OUT")
        place.set_shared_memory("stream", 4, offset=PAGE)
        client.start_stream(lambda result, error: answers.put((result, error, file.read(4, PAGE))))
        client.async_stream_infer(
            "repeat", [given, delay, wait], outputs=[place, tritonclient.grpc.InferRequestedOutput("IDX")]
        )
        for i, value in enumerate(values):
            result, error, seen = answers.get(timeout=30)
            assert error is None
            assert result.as_numpy("IDX").tolist() == [i]
            assert seen in {v.tobytes() for v in values[i:]}, value
        client.stop_stream()
        client.unregister_system_shared_memory("stream")
    assert file.read(4, PAGE) == values[-1].tobytes()


def test_many_requests_in_one_batch(served: ServerProcess, file: shm.File) -> None:
    with tritonclient.grpc.InferenceServerClient(f"{served.grpc[0]}:{served.grpc[1]}") as client:
        client.register_system_shared_memory("batch", file.key, SIZE)
        a = np.arange(16 * 16, dtype=np.float32).reshape(16, 16)
        file.write(a.tobytes())
        done: queue.Queue[Any] = queue.Queue()
        for i in range(16):
            inputs = [tritonclient.grpc.InferInput(f"INPUT{k}", [1, 16], "FP32") for k in range(2)]
            for tensor in inputs:
                tensor.set_shared_memory("batch", 64, offset=64 * i)
            place = tritonclient.grpc.InferRequestedOutput("OUTPUT0")
            place.set_shared_memory("batch", 64, offset=PAGE + 64 * i)
            client.async_infer("onnx_add", inputs, lambda result, error: done.put(error), outputs=[place])
        assert [done.get(timeout=30) for _ in range(16)] == [None] * 16
        assert file.read(1024, PAGE) == (a + a).tobytes()
        client.unregister_system_shared_memory("batch")


# ---- life


def test_unregister_while_requests_run(served: ServerProcess, file: shm.File) -> None:
    """Two requests, one behind the other: the region is there until the second is answered."""
    value = floats(1, 2)
    file.write(value.tobytes())
    place = {"shared_memory_region": "held", "shared_memory_byte_size": 8}
    body = json.dumps({
        "inputs": [{"name": "INPUT0", "shape": [1, 2], "datatype": "FP32", "parameters": place}],
        "outputs": [{"name": "OUTPUT0", "parameters": {**place, "shared_memory_offset": PAGE}}],
    }).encode()  # fmt: skip
    client = Client("http", served)
    client.call("register_system_shared_memory", "held", file.key, SIZE)
    with raw.several(served.http, 2) as others:
        for other in others:
            other.send(raw.post("/v2/models/slow/infer", body))
        assert until(lambda: b'pending_request_count{model="slow",version="1"} 1\n' in scrape(served))
        client.call("unregister_system_shared_memory", "held")
        assert [row[0] for row in client.regions()] == ["held"]
        assert refused(client, "register_system_shared_memory", "held", file.key, SIZE)[1].endswith("in manager")
        assert [other.answer().status for other in others] == [200, 200]
    assert file.read(8, PAGE) == value.tobytes()
    assert client.regions() == []
    assert shm.named_mappings(file.name, served.process.pid) == 0
    client.close()


def scrape(served: ServerProcess) -> bytes:
    return raw.ask(served.metrics, raw.get("/metrics")).body


def test_a_file_that_shrinks(client: Client, file: shm.File, region: str, served: ServerProcess) -> None:
    file.resize(PAGE)
    gone = (status(client, 400, "INVALID_ARGUMENT"), "shared memory region 'r' can not be used any more: its file was "
            "made smaller than what was registered, or has no memory left; unregister it")  # fmt: skip
    at = At(region, 16, 2 * PAGE, shape=(1, 4))
    assert refused(client, "infer", "fp32", {"INPUT0": at}, {"OUTPUT0": {}}) == gone
    assert refused(client, "infer", "fp32", {"INPUT0": floats(1)}, {"OUTPUT0": At(region, 4)}) == gone
    client.call("unregister_system_shared_memory", region)
    client.call("register_system_shared_memory", region, file.key, PAGE)
    file.write(floats(9).tobytes())
    result = client.infer("fp32", {"INPUT0": At(region, 4, shape=(1, 1))}, {"OUTPUT0": {}})
    assert result.as_numpy("OUTPUT0").tolist() == [[9]]


def test_off_by_default(tmp_path: Path, file: shm.File) -> None:
    off = "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."
    with ServerProcess(repository(tmp_path, Model("fp32"))) as process:
        for kind in ("http", "grpc"):
            client = Client(kind, process)
            unsupported = status(client, 501, "UNIMPLEMENTED")
            assert refused(client, "register_system_shared_memory", "r", file.key, 8) == (unsupported, off)
            assert refused(client, "unregister_system_shared_memory") == (unsupported, off)
            assert refused(client, "unregister_cuda_shared_memory", "r") == (unsupported, off)
            assert client.regions() == []
            assert refused(client, "infer", "fp32", {"INPUT0": At("r", 4, shape=(1, 1))}, {"OUTPUT0": {}}) == (
                status(client, 404, "NOT_FOUND"), "Unable to find shared memory region: 'r'"
            )  # fmt: skip
            client.close()
