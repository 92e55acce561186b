"""CUDA shared memory when things go wrong: a driver that fails, regions that are taken away while they are used,
clients that end. Each server and this process have the stand-in for the driver."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import python_models, raw, shm, standin_cuda
from tests.helpers.cuda_client import CLIENT, Memory
from tests.helpers.grpc_channel import Channel, add_input, infer_request, set_parameters, value_of
from tests.helpers.server import ROOT, Model, ServerProcess, repository, until

SIZE = 1 << 16
VALUE = raw.fp32([1, 2, 3, 4])
ILLEGAL = standin_cuda.ILLEGAL_ADDRESS
# Several answers to each step of a sequence.
ECHO = """
class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            for value in pb_utils.get_input_tensor_by_name(request, "IN").as_numpy():
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([value], np.int32))]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
ECHO_IO = """
backend: "python"
input [{ name: "IN" data_type: TYPE_INT32 dims: [-1] }, { name: "DELAY" data_type: TYPE_UINT32 dims: [-1] },
       { name: "WAIT" data_type: TYPE_UINT32 dims: [1] }]
output { name: "OUT" data_type: TYPE_INT32 dims: [1] }
model_transaction_policy { decoupled: true }
"""
STEPS = "sequence_batching { direct { } }\n"
INSIDE = 'parameters { key: "EXECUTION_MODE" value { string_value: "in_process" } }\n'
FOUR = "dynamic_batching { preferred_batch_size: [4] max_queue_delay_microseconds: 60000000 }"


@pytest.fixture(scope="module")
def fake() -> Iterator[standin_cuda.StandIn]:
    with standin_cuda.opened() as made:
        yield made


@pytest.fixture(scope="module")
def memory(fake: standin_cuda.StandIn) -> Iterator[Memory]:
    with Memory(fake, SIZE) as made:
        made.write(VALUE)
        yield made


@contextmanager
def serving(tmp_path: Path, memory: Memory | None, *flags: str, **driver: object) -> Iterator[ServerProcess]:
    root = repository(
        tmp_path, Model("m"), Model("slow", delay_ms=600), Model("text", "BYTES"),
        Model("sequence", "FP32", (-1,), extra="sequence_batching { direct { } }"),
        Model("four", dims=(4,), max_batch=4, extra=FOUR),
    )  # fmt: skip
    env = standin_cuda.environment(**driver)  # type: ignore[arg-type]
    with ServerProcess(root, "--allow-client-shm=true", *flags, env=env) as process:
        if memory is not None:
            assert raw.ask(process.http, register(memory)).status == 200
        yield process


def register(memory: Memory, name: str = "r", handle: bytes | None = None, size: int | None = None) -> bytes:
    body = {
        "raw_handle": {"b64": (handle or memory.raw_handle).decode()}, "device_id": 0,
        "byte_size": memory.size if size is None else size,
    }  # fmt: skip
    return raw.post(f"/v2/cudasharedmemory/region/{name}/register", json.dumps(body).encode())


def placed(offset: int, size: int = 16) -> dict[str, Any]:
    return {"shared_memory_region": "r", "shared_memory_byte_size": size, "shared_memory_offset": offset}


def infer(
    model: str = "m", given: dict[str, Any] | None = None, wanted: dict[str, Any] | None = None, **parameters: Any
) -> bytes:
    tensor: dict[str, Any] = {"name": "INPUT0", "shape": [1, 4], "datatype": "FP32"}
    tensor.update({"data": [9, 9, 9, 9]} if given is None else {"parameters": given})
    output = {"name": "OUTPUT0", **({"parameters": wanted} if wanted else {})}
    body = {"inputs": [tensor], "outputs": [output], "parameters": parameters}
    return raw.post(raw.infer_path(model), json.dumps(body).encode())


def data(answer: raw.Answer) -> Any:
    assert answer.status == 200, answer.body
    return answer.json()["outputs"][0]["data"]


# ---- a driver that fails

# With what a wait begins: on one core it does not look before it sleeps.
WAIT = "cuEventQuery" if len(os.sched_getaffinity(0)) > 1 else "cuEventSynchronize"


@pytest.mark.parametrize(
    ("function", "side", "text"),
    [
        ("cuMemcpyDtoHAsync_v2", "input", "failed to copy from device memory on GPU 0: "),
        ("cuMemcpyHtoDAsync_v2", "output", "failed to copy to device memory on GPU 0: "),
        (WAIT, "input", "failed in a stream on GPU 0: "),
        (WAIT, "output", "failed in a stream on GPU 0: "),
        ("cuEventRecord", "input", "failed to record an event on GPU 0: "),
        ("cuEventRecord", "output", "failed to record an event on GPU 0: "),
        ("cuStreamCreate", "input", "failed to create a stream on GPU 0: "),
    ],
)
def test_an_error_is_the_requests_own(tmp_path: Path, memory: Memory, function: str, side: str, text: str) -> None:
    at = (placed(0), None) if side == "input" else (None, placed(64))
    with serving(tmp_path, memory, fail=f"{function}:1:1") as process:
        answer = raw.ask(process.http, infer("m", *at))
        assert answer.status == 500 and answer.error.startswith(text), answer.body
        answer = raw.ask(process.http, infer("m", *at))
        assert answer.status == 200, answer.body
        if side == "input":
            assert data(answer) == [1, 2, 3, 4]
        else:
            assert memory.read(16, 64) == raw.fp32([9, 9, 9, 9])


def test_one_of_a_batch_fails(tmp_path: Path, memory: Memory) -> None:
    with serving(tmp_path, memory, fail="cuMemcpyDtoHAsync_v2:2:1") as process:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda i: raw.ask(process.http, infer("four", placed(0) if i else None)), range(4)))
        assert data(answers[0]) == [9, 9, 9, 9]
        assert sorted(answer.status for answer in answers) == [200, 200, 200, 500]
        assert all(data(answer) == [1, 2, 3, 4] for answer in answers[1:] if answer.status == 200)


def test_a_step_of_a_sequence_fails(tmp_path: Path, memory: Memory) -> None:
    """In its place in the batch, with zeros, while the sequence goes on."""
    with serving(tmp_path, memory, fail="cuMemcpyDtoHAsync_v2:2:1") as process:
        answers = [
            raw.ask(
                process.http,
                infer("sequence", placed(0), sequence_id=5, sequence_start=i == 0, sequence_end=i == 2),
            )
            for i in range(3)
        ]
        assert [answer.status for answer in answers] == [200, 500, 200]
        assert answers[1].error.startswith("failed to copy from device memory on GPU 0: ")
        assert data(answers[0]) == data(answers[2]) == [1, 2, 3, 4]


def step(model: str, at: dict[str, Any], **parameters: Any) -> Any:
    made = infer_request(model, parameters={"sequence_id": 5, **parameters})
    del made.inputs[:], made.raw_input_contents[:]
    made.inputs.add(name="IN", datatype="INT32", shape=[2])
    set_parameters(made.inputs[0].parameters, at)
    add_input(made, "DELAY", [0, 0], "UINT32", [2])
    add_input(made, "WAIT", [0], "UINT32", [1])
    return made


@pytest.mark.parametrize("model", ["repeat", "worker", "inside"])
def test_all_answers_of_a_step_that_fails_are_the_error(tmp_path: Path, memory: Memory, model: str) -> None:
    """It is executed with zeros in its place, and what is made of them is no answer."""
    memory.write(b"\5\0\0\0\6\0\0\0", 64)
    root = tmp_path / "steps"
    if model == "repeat":
        (root / model / "1").mkdir(parents=True)
        (root / model / "config.pbtxt").write_text('backend: "repeat"\n' + STEPS)
    else:
        python_models.model_of(root, model, ECHO, ECHO_IO + STEPS + (INSIDE if model == "inside" else ""))
    env = standin_cuda.environment(fail="cuMemcpyDtoHAsync_v2:2:1")
    with ServerProcess(root, "--allow-client-shm=true", env=env) as process, Channel(process.grpc) as channel:
        assert raw.ask(process.http, register(memory)).status == 200
        seen: list[list[Any]] = []
        for i in range(3):
            request = step(model, placed(64, 8), sequence_start=i == 0, sequence_end=i == 2)
            messages = channel.stream([request]).messages
            seen.append([one.error_message or value_of(one, "OUT") for one in messages if one.infer_response.outputs
                         or one.error_message])  # fmt: skip
    assert seen[0] == seen[2] == [[5], [6]]
    assert len(seen[1]) >= 2
    assert {str(one)[:45] for one in seen[1]} == {"failed to copy from device memory on GPU 0: C"}


def test_a_gpu_that_is_lost(tmp_path: Path, memory: Memory) -> None:
    """What ends a context: its requests fail, others do not, and the server says that it needs a new start."""
    fail = ",".join([f"cuMemcpyDtoHAsync_v2:1:{ILLEGAL}"] * 3)  # the next call each time
    with serving(tmp_path, memory, fail=fail) as process:
        assert raw.ask(process.http, raw.get("/v2/health/ready")).status == 200
        for _ in range(3):
            answer = raw.ask(process.http, infer("m", placed(0)))
            assert answer.status == 500 and f"({ILLEGAL})" in answer.error, answer.body
        assert data(raw.ask(process.http, infer("m"))) == [9, 9, 9, 9]
        assert raw.ask(process.http, raw.get("/v2/health/ready")).status == 400
        assert raw.ask(process.http, raw.get("/v2/health/live")).status == 200
        assert raw.ask(process.http, raw.get("/v2/models/m/ready")).status == 200
        process.wait_for_log("GPU 0 is lost until the server is started anew: ")
        assert raw.ask(process.http, raw.post("/v2/cudasharedmemory/unregister")).status == 200


def test_no_memory_of_requests_is_left(tmp_path: Path, memory: Memory) -> None:
    with serving(tmp_path, memory, f"--request-memory-limit={16 << 10}") as process:
        tensor = {"name": "INPUT0", "shape": [1, SIZE // 4], "datatype": "FP32", "parameters": placed(0, SIZE)}
        body = json.dumps({"inputs": [tensor], "outputs": [{"name": "OUTPUT0", "parameters": placed(0, SIZE)}]})
        answer = raw.ask(process.http, raw.post(raw.infer_path("m"), body.encode()))
        assert (answer.status, answer.error[:46]) == (503, "the request needs more memory than is left (--")
        assert data(raw.ask(process.http, infer("m", placed(0)))) == [1, 2, 3, 4]


def test_texts_that_are_cut_are_few(tmp_path: Path, fake: standin_cuda.StandIn) -> None:
    """The network's thread waits for them, since their lengths tell where they are cut; for no others."""
    config = Model("cut", "BYTES", (1,), 2, extra='parameters { key: "batch_splitting" value { string_value: "true" } }'
                   " dynamic_batching { }")  # fmt: skip
    limit = 1 << 20
    with Memory(fake, limit + 1) as memory, ServerProcess(
        repository(tmp_path, config), "--allow-client-shm=true", env=standin_cuda.environment()
    ) as process:  # fmt: skip
        assert raw.ask(process.http, register(memory)).status == 200

        def ask(rows: int, size: int) -> raw.Answer:
            each = [size // rows - 4 + (size % rows if i == 0 else 0) for i in range(rows)]
            memory.write(b"".join(n.to_bytes(4, "little") + b"x" * n for n in each))
            given = {"name": "INPUT0", "shape": [rows, 1], "datatype": "BYTES", "parameters": placed(0, size)}
            body = json.dumps({"inputs": [given], "outputs": [{"name": "OUTPUT0", "parameters": placed(0, size)}]})
            return raw.ask(process.http, raw.post(raw.infer_path("cut"), body.encode()))

        assert ask(3, limit).status == 200
        answer = ask(3, limit + 1)
        assert (answer.status, answer.error) == (
            400, f"texts in GPU memory of a request that is cut may have {limit} bytes, input 'INPUT0' has {limit + 1}"
        )  # fmt: skip
        assert ask(2, limit + 1).status == 200, "not cut"


def test_without_a_driver_or_a_gpu(tmp_path: Path, memory: Memory) -> None:
    with serving(tmp_path, None, devices=0) as process:
        answer = raw.ask(process.http, register(memory))
        assert (answer.status, answer.error) == (
            400, "failed to register CUDA shared memory region: 'r', GPUs not supported"
        )  # fmt: skip


# ---- life


def opened_memory(process: ServerProcess) -> int:
    """Count the device memory of others that a process has mapped."""
    return sum("memfd:" in line for line in Path(f"/proc/{process.process.pid}/maps").read_text().splitlines())


def test_unregistering_waits_for_requests(tmp_path: Path, memory: Memory) -> None:
    with serving(tmp_path, None) as process, raw.Client(process.http) as client:
        before = opened_memory(process)
        assert client.ask(register(memory)).status == 200
        assert opened_memory(process) > before
        status = raw.get("/v2/cudasharedmemory/status")
        with raw.several(process.http, 2) as others:
            for other in others:  # one executes, one waits
                other.send(infer("slow", placed(0), placed(128)))
            assert until(lambda: b'pending_request_count{model="slow",version="1"} 1\n' in scrape(process))
            assert client.ask(raw.post("/v2/cudasharedmemory/unregister")).status == 200
            assert [row["name"] for row in client.ask(status).json()] == ["r"]
            assert "already in manager" in client.ask(register(memory)).error
            assert [other.answer().status for other in others] == [200, 200]
        assert memory.read(16, 128) == VALUE
        assert until(lambda: client.ask(status).json() == [])
        assert opened_memory(process) == before, "a client that sees it no longer may free it"
        assert raw.ask(process.http, infer("m", placed(0))).error == "Unable to find shared memory region: 'r'"


def scrape(process: ServerProcess) -> bytes:
    return raw.ask(process.metrics, raw.get("/metrics")).body


def test_cycles_leave_nothing_open(tmp_path: Path, memory: Memory) -> None:
    with serving(tmp_path, None) as process, raw.Client(process.http) as client:

        def cycle() -> None:
            assert client.ask(register(memory)).status == 200
            assert client.ask(infer("m", placed(0), placed(64))).status == 200
            assert client.ask(raw.post("/v2/cudasharedmemory/region/r/unregister")).status == 200
            assert client.ask(register(memory, size=SIZE * 2)).status == 400

        for _ in range(5):
            cycle()
        before = process.fds(), shm.mappings(process.process.pid)
        for _ in range(200):
            cycle()
        assert process.fds() == before[0]
        assert abs(shm.mappings(process.process.pid) - before[1]) <= 4


def test_a_client_that_ends(tmp_path: Path, memory: Memory) -> None:
    with serving(tmp_path, memory) as process:
        with subprocess.Popen(
            [sys.executable, "-c", CLIENT, "4096", ""], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=ROOT, env=standin_cuda.environment() | {"PYTHONPATH": str(ROOT)},
        ) as other:  # fmt: skip
            assert other.stdout is not None
            handle = other.stdout.readline().strip().encode()
            assert raw.ask(process.http, register(memory, "gone", handle, 4096)).status == 200
            other.kill()
        answer = raw.ask(process.http, register(memory, "late", handle, 4096))
        assert (answer.status, answer.error) == (400, "failed to register shared memory region: invalid args")
        given = placed(0) | {"shared_memory_region": "gone"}
        assert raw.ask(process.http, infer("m", given, given)).status in (200, 500)
        assert raw.ask(process.http, raw.post("/v2/cudasharedmemory/region/gone/unregister")).status == 200
        assert data(raw.ask(process.http, infer("m", placed(0)))) == [1, 2, 3, 4]


def test_traced_tensors(tmp_path: Path, memory: Memory) -> None:
    """An input is traced when it is queued, where nobody waits for a GPU: its shape is, its values are not."""
    file = tmp_path / "trace.json"
    trace = ("level=TENSORS", "rate=1", f"triton,file={file}")
    flags = [flag for value in trace for flag in ("--trace-config", value)]
    (tmp_path / "models").mkdir()
    with serving(tmp_path / "models", memory, *flags) as process:
        assert data(raw.ask(process.http, infer("m", placed(0)))) == [1, 2, 3, 4]
        assert raw.ask(process.http, infer("m", placed(0), placed(64))).status == 200
    traced = [entry["tensor"] | {"activity": entry["activity"]} for entry in json.loads(file.read_text())
              if "tensor" in entry]  # fmt: skip
    queued = [entry for entry in traced if entry["activity"] == "TENSOR_QUEUE_INPUT"]
    assert [(entry["name"], entry["shape"], entry["data"]) for entry in queued] == [("INPUT0", "1,4", "...")] * 2
    made = [entry["data"] for entry in traced if entry["activity"] == "TENSOR_BACKEND_OUTPUT"]
    assert made == ["1,2,3,4", ""]  # the second went to its place


def test_handles_are_never_printed(tmp_path: Path, memory: Memory) -> None:
    with serving(tmp_path, memory, "--log-verbose=5", "--log-error=true") as process:
        wrong = bytes(range(64))
        answer = raw.ask(process.http, register(memory, "x", base64.b64encode(wrong)))
        assert raw.ask(process.http, infer("m", placed(0), placed(64))).status == 200
        shown = raw.ask(process.http, raw.get("/v2/cudasharedmemory/status")).body + answer.body
        process.wait_for_log("failed to open the CUDA IPC handle")
        text = process.log() + shown.decode()
    for handle in (memory.handle, wrong):
        assert base64.b64encode(handle).decode() not in text
        assert handle.hex() not in text
        assert repr(handle)[2:-1] not in text
