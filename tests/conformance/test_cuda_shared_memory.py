"""CUDA shared memory through the real clients, with a stand-in for the driver in both processes: the verbs, inputs and
outputs in memory of a GPU, every kind of scheduler and backend between them, and what a request may not do."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient

from tests.conformance.shm_clients import KINDS, At, Client, floats, refused, status
from tests.helpers import raw, shm, shm_models, standin_cuda
from tests.helpers.cuda_client import Memory
from tests.helpers.server import Model, ServerProcess

PAGE = 4096
SIZE = 16 * PAGE
OLDEST = (
    "sequence_batching { oldest { max_candidate_sequences: 8 preferred_batch_size: [4] "
    "max_queue_delay_microseconds: 60000000 } }"
)
FOUR = "dynamic_batching { preferred_batch_size: [4] max_queue_delay_microseconds: 60000000 }"


@pytest.fixture(scope="module")
def fake() -> Iterator[standin_cuda.StandIn]:
    with standin_cuda.opened() as made:
        yield made


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = shm_models.write(
        tmp_path_factory.mktemp("models"),
        Model("split_text", "BYTES", (1,), 2, extra=shm_models.SPLIT),
        Model("oldest_texts", "BYTES", (1,), max_batch=4, extra=OLDEST),
        Model("four", dims=(4,), max_batch=4, extra=FOUR), Model("four_texts", "BYTES", (1,), max_batch=4, extra=FOUR),
        onnx={"onnx_add": "dynamic_batching { }", "direct": "sequence_batching { direct { } }"},
    )  # fmt: skip
    with ServerProcess(root, *shm_models.FLAGS, env=standin_cuda.environment()) as process:
        yield process


@pytest.fixture(params=KINDS)
def client(served: ServerProcess, request: pytest.FixtureRequest) -> Iterator[Client]:
    made = Client(request.param, served)
    yield made
    made.call("unregister_cuda_shared_memory")
    made.call("unregister_system_shared_memory")
    assert not cuda_regions(made)
    made.close()


@pytest.fixture
def memory(fake: standin_cuda.StandIn) -> Iterator[Memory]:
    with Memory(fake, SIZE) as made:
        yield made


def register(client: Client, name: str, memory: Memory, byte_size: int = SIZE, device: int | None = None) -> str:
    client.call(
        "register_cuda_shared_memory", name, memory.raw_handle, memory.device if device is None else device, byte_size
    )
    return name


@pytest.fixture
def region(client: Client, memory: Memory) -> str:
    return register(client, "r", memory)


def cuda_regions(client: Client, name: str = "") -> list[tuple[str, int, int]]:
    status = client.call("get_cuda_shared_memory_status", name)
    rows = [status.regions[key] for key in sorted(status.regions)] if client.is_grpc else status
    if not client.is_grpc:
        assert all(list(row) == ["name", "device_id", "byte_size"] for row in rows)
        return [(row["name"], row["device_id"], row["byte_size"]) for row in rows]
    return [(row.name, row.device_id, row.byte_size) for row in rows]


# ---- verbs


def test_register_status_unregister(client: Client, fake: standin_cuda.StandIn, memory: Memory) -> None:
    other = Memory(fake, PAGE, device=1)
    register(client, "a", memory)
    register(client, "b", other, 100)
    register(client, "c", memory, 8)  # the same memory again
    assert cuda_regions(client) == [("a", 0, SIZE), ("b", 1, 100), ("c", 0, 8)]
    assert cuda_regions(client, "b") == [("b", 1, 100)]
    assert client.regions() == []
    client.call("unregister_system_shared_memory", "a")
    client.call("unregister_system_shared_memory")
    client.call("unregister_cuda_shared_memory", "nothing")
    client.call("unregister_cuda_shared_memory", "a")
    assert [row[0] for row in cuda_regions(client)] == ["b", "c"]
    client.call("unregister_cuda_shared_memory")
    assert cuda_regions(client) == []


def test_verbs_refused(client: Client, memory: Memory, region: str) -> None:
    def said(name: str, handle: bytes, device: int, size: int) -> tuple[str, str]:
        return refused(client, "register_cuda_shared_memory", name, base64.b64encode(handle), device, size)

    invalid = status(client, 400, "INVALID_ARGUMENT")
    failed = (invalid, "failed to register shared memory region: invalid args")
    taken = (status(client, 400, "ALREADY_EXISTS"), "shared memory region 'r' already in manager")
    assert said("r", memory.handle, 0, 8) == taken
    assert said("r", bytes(64), 0, 8) == taken
    assert said("x", bytes(64), 0, 8) == failed
    assert said("x", memory.handle, 2, 8) == failed
    assert said("x", memory.handle, -1, 8) == failed
    assert said("x", memory.handle, 0, memory.size + 1) == (
        invalid, "failed to register shared memory region 'x': invalid args"
    )  # fmt: skip
    wrong = "'raw_handle' must be a valid base64 encoded cudaIpcMemHandle_t"
    assert said("x", memory.handle[:63], 0, 8) == (failed if client.is_grpc else ("400", wrong))
    assert refused(client, "get_cuda_shared_memory_status", "x") == (
        status(client, 404, "NOT_FOUND"), "Unable to find cuda shared memory region: 'x'"
    )  # fmt: skip
    assert refused(client, "get_system_shared_memory_status", "r") == (
        status(client, 404, "NOT_FOUND"),
        "The region named 'r' is registered as CUDA shared memory, not system shared memory",
    )
    assert cuda_regions(client) == [("r", 0, SIZE)]


def test_names_are_common_to_both_kinds(client: Client, memory: Memory, region: str) -> None:
    with shm.File(PAGE) as file:
        taken = status(client, 400, "ALREADY_EXISTS")
        assert refused(client, "register_system_shared_memory", "r", file.key, 8)[0] == taken
        client.call("register_system_shared_memory", "s", file.key, 8)
        assert refused(client, "register_cuda_shared_memory", "s", memory.raw_handle, 0, 8)[0] == taken
        assert refused(client, "get_cuda_shared_memory_status", "s")[1] == (
            "The region named 's' is registered as system shared memory, not CUDA shared memory"
        )


def test_all_of_an_allocation_may_be_registered(client: Client, memory: Memory) -> None:
    register(client, "whole", memory, memory.size)
    memory.write(floats(7).tobytes(), memory.size - 4)
    result = client.infer("fp32", {"INPUT0": At("whole", 4, memory.size - 4, shape=(1, 1))}, {"OUTPUT0": {}})
    assert result.as_numpy("OUTPUT0") == 7


# ---- inputs and outputs


@pytest.mark.parametrize("offset", [0, 24, 3])
def test_an_input_at_an_offset(client: Client, memory: Memory, region: str, offset: int) -> None:
    value = floats(1, 2, 3, 4)
    memory.write(value.tobytes(), offset)
    result = client.infer("fp32", {"INPUT0": At(region, 16, offset, shape=(1, 4))}, {"OUTPUT0": {}})
    assert (result.as_numpy("OUTPUT0") == value).all()


@pytest.mark.parametrize("offset", [0, 44, 41])
def test_an_output_at_an_offset(client: Client, memory: Memory, region: str, offset: int) -> None:
    value = floats(5, 6, 7)
    result = client.infer("fp32", {"INPUT0": value}, {"OUTPUT0": At(region, 40, offset)})
    assert memory.read(64, offset) == value.tobytes() + b"\xee" * 52
    assert client.output(result, "OUTPUT0") == {"name": "OUTPUT0", "datatype": "FP32", "shape": [1, 3]}


def test_large_tensors(client: Client, fake: standin_cuda.StandIn) -> None:
    """Of a size whose blocks are pinned, so that copies are under way when the call returns."""
    value = np.random.default_rng(3).random((1, 1 << 18), np.float32)
    large = Memory(fake, 2 * value.nbytes)
    large.write(value.tobytes())
    register(client, "large", large, 2 * value.nbytes)
    client.infer(
        "fp32", {"INPUT0": At("large", value.nbytes, shape=value.shape)},
        {"OUTPUT0": At("large", value.nbytes, value.nbytes)},
    )  # fmt: skip
    assert large.read(value.nbytes, value.nbytes) == value.tobytes()


def test_no_elements(client: Client, memory: Memory, region: str) -> None:
    client.infer("fp32", {"INPUT0": At(region, 0, 8, shape=(1, 0))}, {"OUTPUT0": At(region, 8, 16)})
    assert memory.read(SIZE) == b"\xee" * SIZE


def test_beside_other_memory(client: Client, fake: standin_cuda.StandIn, memory: Memory, region: str) -> None:
    """Regions of two GPUs, of the system, and the message, each as input and as output."""
    a, b = np.array([[1, 2]], np.int32), np.array([[3, 4]], np.int32)
    second = Memory(fake, PAGE, device=1)
    with shm.File(PAGE) as file:
        register(client, "second", second, PAGE)
        client.call("register_system_shared_memory", "file", file.key, PAGE)
        memory.write(a.tobytes())
        file.write(a.tobytes())
        second.write(b.tobytes())
        for given in (a, At(region, 8, datatype="INT32", shape=(1, 2)), At("file", 8, datatype="INT32", shape=(1, 2))):
            for name, place in (("r", memory), ("file", file), ("second", second)):
                place.write(bytes(16), 64)
                result = client.infer(
                    "two", {"INPUT0": given, "INPUT1": At("second", 8, datatype="INT32", shape=(1, 2))},
                    {"OUTPUT0": At(name, 8, 64), "OUTPUT1": {}},
                )  # fmt: skip
                assert place.read(16, 64) == a.tobytes() + bytes(8)
                assert (result.as_numpy("OUTPUT1") == b).all()
                client.infer(
                    "two", {"INPUT0": given, "INPUT1": At("second", 8, datatype="INT32", shape=(1, 2))},
                    {"OUTPUT0": At(name, 8, 64), "OUTPUT1": At(name, 8, 72)},
                )  # fmt: skip
                assert place.read(16, 64) == a.tobytes() + b.tobytes()
        client.call("unregister_system_shared_memory")


def test_in_place(client: Client, memory: Memory, region: str) -> None:
    value = np.arange(256, dtype=np.float32).reshape(1, 256)
    memory.write(value.tobytes())
    client.infer("fp32", {"INPUT0": At(region, 1024, shape=(1, 256))}, {"OUTPUT0": At(region, 1024, 512)})
    assert memory.read(1024, 512) == value.tobytes()


def test_texts(client: Client, memory: Memory, region: str) -> None:
    wire = b"\x03\0\0\0abc\0\0\0\0"
    memory.write(wire, 7)
    at = At(region, len(wire), 7, "BYTES", (1, 2))
    assert client.infer("text", {"INPUT0": at}, {"OUTPUT0": {}}).as_numpy("OUTPUT0").tolist() == [[b"abc", b""]]
    client.infer("text", {"INPUT0": at}, {"OUTPUT0": At(region, 100, PAGE)})
    assert memory.read(len(wire) + 1, PAGE) == wire + b"\xee"
    memory.write(b"\xff\xff\xff\x7f", 7)
    said = refused(client, "infer", "text", {"INPUT0": at}, {"OUTPUT0": {}})
    assert said[1].endswith("for model 'text', got 1") and said[0] == status(client, 400, "INVALID_ARGUMENT")
    memory.write(b"\x03\0\0\0abc\x09\0\0\0", 7)
    assert "incomplete string data" in refused(client, "infer", "text", {"INPUT0": at}, {"OUTPUT0": {}})[1]
    short = At(region, 7, 7, "BYTES", (1, 2))
    assert refused(client, "infer", "text", {"INPUT0": short}, {"OUTPUT0": {}}) == (
        status(client, 400, "INVALID_ARGUMENT"),
        "[request id: <id_unknown>] expected 2 string elements for inference input 'INPUT0' for model 'text', "
        "got at most 1",
    )


def test_requests_refused(client: Client, memory: Memory, region: str) -> None:
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
    assert memory.read(SIZE) == b"\xee" * SIZE


# ---- what lies between


@pytest.mark.parametrize("model", ["onnx_add", "python_add"])
@pytest.mark.parametrize("rows", [1, 3])
def test_models_that_compute(client: Client, memory: Memory, region: str, model: str, rows: int) -> None:
    a = np.arange(rows * 16, dtype=np.float32).reshape(rows, 16)
    b = a * 0.5 + 1
    memory.write(a.tobytes())
    memory.write(b.tobytes(), PAGE)
    client.infer(
        model, {"INPUT0": At(region, a.nbytes, shape=a.shape), "INPUT1": At(region, b.nbytes, PAGE, shape=b.shape)},
        {"OUTPUT0": At(region, a.nbytes, 2 * PAGE), "OUTPUT1": At(region, a.nbytes, 3 * PAGE)},
    )  # fmt: skip
    assert memory.read(a.nbytes, 2 * PAGE) == (a + b).tobytes()
    assert memory.read(a.nbytes, 3 * PAGE) == (a - b).tobytes()


def test_an_ensemble(client: Client, memory: Memory, region: str) -> None:
    x, y = np.full((1, 16), 2, np.float32), np.arange(16, dtype=np.float32).reshape(1, 16)
    memory.write(x.tobytes())
    memory.write(y.tobytes(), 64)
    result = client.infer(
        "chain", {"X": At(region, 64, shape=(1, 16)), "Y": At(region, 64, 64, shape=(1, 16))},
        {"SUM": At(region, 64, PAGE), "Z": {}},
    )  # fmt: skip
    assert memory.read(64, PAGE) == (x + y).tobytes()
    assert (result.as_numpy("Z") == x).all()


def test_a_request_that_is_split(client: Client, memory: Memory, region: str) -> None:
    value = np.arange(28, dtype=np.float32).reshape(7, 4)
    memory.write(value.tobytes())
    client.infer("split", {"INPUT0": At(region, 112, shape=(7, 4))}, {"OUTPUT0": At(region, 112, PAGE)})
    assert memory.read(112, PAGE) == value.tobytes()


def test_texts_that_are_split(client: Client, memory: Memory, region: str) -> None:
    wire = b"".join(len(text).to_bytes(4, "little") + text for text in (b"a", b"", b"ccc", b"dd", b"e"))
    memory.write(wire)
    at = At(region, len(wire), 0, "BYTES", (5, 1))
    client.infer("split_text", {"INPUT0": at}, {"OUTPUT0": At(region, 100, PAGE)})
    assert memory.read(len(wire), PAGE) == wire
    memory.write(b"\xff", 5)
    assert "string" in refused(client, "infer", "split_text", {"INPUT0": at}, {"OUTPUT0": {}})[1]


def test_a_sequence(client: Client, memory: Memory, region: str) -> None:
    for i in range(3):
        memory.write(np.int32(i).tobytes())
        client.infer(
            "sequence", {"INPUT0": At(region, 4, datatype="INT32", shape=(1, 1))}, {"OUTPUT0": At(region, 4, PAGE)},
            sequence_id=7, sequence_start=i == 0, sequence_end=i == 2,
        )  # fmt: skip
        assert memory.read(4, PAGE) == np.int32(i).tobytes()


def test_a_sequence_beside_an_empty_place(client: Client, memory: Memory, region: str) -> None:
    """The empty place of the batch is filled in the likeness of the request, whose memory is a GPU's."""
    a, b = np.arange(16, dtype=np.float32), np.full(16, 0.5, np.float32)
    memory.write(a.tobytes() + b.tobytes())
    given = {"INPUT0": At(region, 64, 0, shape=(1, 16)), "INPUT1": At(region, 64, 64, shape=(1, 16))}
    steps = ((1, True, False), (2, True, False), (2, False, False), (2, False, True), (1, False, True))
    for sequence, start, end in steps:
        memory.write(bytes(64), PAGE)
        client.infer(
            "direct", given, {"OUTPUT0": At(region, 64, PAGE)}, sequence_id=sequence, sequence_start=start,
            sequence_end=end,
        )  # fmt: skip
        assert memory.read(64, PAGE) == (a + b).tobytes()


def test_the_response_cache_knows_host_memory_only(
    client: Client, memory: Memory, region: str, served: ServerProcess
) -> None:
    def counts() -> tuple[int, int]:
        stats = raw.ask(served.http, raw.get("/v2/models/cached/stats")).json()["model_stats"][0]["inference_stats"]
        return stats["cache_hit"]["count"], stats["cache_miss"]["count"]

    before = counts()
    at, place = At(region, 16, shape=(1, 4)), At(region, 16, PAGE)
    for i in range(2):
        value = floats(i, 2, 3, 4)
        memory.write(value.tobytes())
        client.infer("cached", {"INPUT0": at}, {"OUTPUT0": place})
        assert memory.read(16, PAGE) == value.tobytes()
        client.infer("cached", {"INPUT0": value}, {"OUTPUT0": place})
        assert memory.read(16, PAGE) == value.tobytes()
    assert counts() == before


def test_a_batch(client: Client, memory: Memory, region: str, served: ServerProcess) -> None:
    """Four requests that wait for each other: two in the region, two with their data in the message."""
    values = [np.arange(i, i + 4, dtype=np.float32).reshape(1, 4) for i in range(4)]
    for i, value in enumerate(values):
        memory.write(value.tobytes(), 16 * i)

    def ask(i: int) -> bytes:
        tensor: dict[str, Any] = {"name": "INPUT0", "shape": [1, 4], "datatype": "FP32"}
        tensor.update({"parameters": placed(16, 16 * i)} if i % 2 else {"data": values[i].ravel().tolist()})
        output = {"name": "OUTPUT0", "parameters": placed(16, PAGE + 16 * i)}
        return _ask(served, "four", {"inputs": [tensor], "outputs": [output]}).body

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(4)))
    assert memory.read(64, PAGE) == b"".join(value.tobytes() for value in values)


@pytest.mark.parametrize("model", ["four_texts", "oldest_texts"])
def test_one_of_a_batch_has_broken_texts(
    client: Client, memory: Memory, region: str, served: ServerProcess, model: str
) -> None:
    """Only the others are executed: no place of such a batch has a meaning."""
    texts = [b"\x01\0\0\0a", b"\x09\0\0\0b", b"\x01\0\0\0c", b"\x01\0\0\0d"]
    for i, text in enumerate(texts):
        memory.write(text, 16 * i)

    def ask(i: int) -> raw.Answer:
        tensor = {"name": "INPUT0", "shape": [1, 1], "datatype": "BYTES", "parameters": placed(5, 16 * i)}
        sequence = {"sequence_id": i + 1, "sequence_start": True, "sequence_end": True}
        return _ask(served, model, {"inputs": [tensor], "parameters": sequence if "oldest" in model else {}})

    before = executions(served, model)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(4)))
    assert [answer.status for answer in answers] == [200, 400, 200, 200]
    assert "incomplete string data for inference input 'INPUT0'" in answers[1].error
    assert [answers[i].json()["outputs"][0]["data"] for i in (0, 2, 3)] == [["a"], ["c"], ["d"]]
    # Batches of three, not of four.
    assert executions(served, model) == (before[0] + 1, before[1] + 3, [3])


@pytest.mark.parametrize("model", ["four_texts", "oldest_texts"])
def test_answers_of_a_batch_leave_as_its_requests_came(
    client: Client, memory: Memory, region: str, served: ServerProcess, model: str
) -> None:
    memory.write(b"\x09\0\0\0b")
    answers: SimpleQueue[str] = SimpleQueue()

    def heard(result: Any, error: Any) -> None:
        answers.put("broken" if error else result.as_numpy("OUTPUT0").ravel()[0].decode())

    with grpcclient.InferenceServerClient(f"{served.grpc[0]}:{served.grpc[1]}") as stream:
        stream.start_stream(heard)
        for i in range(4):
            tensor = grpcclient.InferInput("INPUT0", [1, 1], "BYTES")
            if i == 1:
                tensor.set_shared_memory("r", 5)
            else:
                tensor.set_data_from_numpy(np.array([[b"abcd"[i : i + 1]]], object))
            sequence = {"sequence_id": i + 11, "sequence_start": True, "sequence_end": True}
            stream.async_stream_infer(model, [tensor], **(sequence if "oldest" in model else {}))
        assert [answers.get(timeout=60) for _ in range(4)] == ["a", "broken", "c", "d"]


def test_what_no_backend_saw_is_no_execution(
    client: Client, memory: Memory, region: str, served: ServerProcess
) -> None:
    memory.write(b"\x01\0\0\0a\x09\0\0\0b")
    tensor = {"name": "INPUT0", "shape": [1, 2], "datatype": "BYTES", "parameters": placed(10, 0)}
    before = executions(served, "text")
    answer = _ask(served, "text", {"inputs": [tensor]})
    assert "incomplete string data for inference input 'INPUT0'" in answer.error
    assert executions(served, "text") == before


def executions(served: ServerProcess, model: str) -> tuple[int, int, list[int]]:
    stats = raw.ask(served.http, raw.get(f"/v2/models/{model}/stats")).json()["model_stats"][0]
    return stats["execution_count"], stats["inference_count"], [row["batch_size"] for row in stats["batch_stats"]]


def _ask(served: ServerProcess, model: str, body: dict[str, Any]) -> raw.Answer:
    return raw.ask(served.http, raw.post(raw.infer_path(model), json.dumps(body).encode()))


def placed(size: int, offset: int) -> dict[str, Any]:
    return {"shared_memory_region": "r", "shared_memory_byte_size": size, "shared_memory_offset": offset}
