"""SEC-04, inputs that a client, or a worker, changes while a request is executed: nothing may look at them twice.

What a model checks and then uses must be the same, or a client reaches beyond what was checked (here: a crash in ONNX
Runtime); what is looked up in a response cache must be what is executed, or others get the client's answer.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import onnx_models, python_models, raw, shm
from tests.helpers.server import Model, ServerProcess, repository, until
from tests.helpers.shm_requests import place

COUNT = 1 << 18
ROUNDS = 60
# Reads its input before the gate and behind it, and answers both.
TWICE = """
import os
import time


class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            value = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
            first = value.copy()
            open(FOLDER + "/seen", "w").close()
            while not os.path.exists(FOLDER + "/go"):
                time.sleep(0.002)
            both = np.concatenate([first, value], axis=1)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", both)]))
        return answers
"""
# Answers, and when the next model has its answer writes over it, wherever the memory that it shares with the server is.
LIAR = """
import ctypes
import os
import threading
import time

ANSWER, LIE = np.array([[12345.5]], np.float32), np.array([[54321.5]], np.float32)


def lie():
    while not os.path.exists(FOLDER + "/seen"):
        time.sleep(0.002)
    for line in open("/proc/self/maps"):
        if "memfd:triton_fast" in line:
            start, end = (int(number, 16) for number in line.split()[0].split("-"))
            memory = ctypes.string_at(start, end - start)
            at = memory.find(ANSWER.tobytes())
            while at >= 0:
                ctypes.memmove(start + at, LIE.tobytes(), 4)
                at = memory.find(ANSWER.tobytes(), at + 1)
    open(FOLDER + "/go", "w").close()


class TritonPythonModel:
    def execute(self, requests):
        threading.Thread(target=lie).start()
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", ANSWER)]) for _ in requests]
"""
IO = """
max_batch_size: 8
input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [1] }]
output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [-1] }]
"""
IN_PROCESS = 'backend: "python" parameters { key: "EXECUTION_MODE" value { string_value: "in_process" } }' + IO
MEMBER = 'platform: "ensemble"' + IO + """
ensemble_scheduling { step [{ model_name: "cached" model_version: -1
  input_map { key: "INPUT0" value: "INPUT0" } output_map { key: "OUTPUT0" value: "OUTPUT0" } }] }
"""
CHAIN = 'platform: "ensemble"' + IO + """
ensemble_scheduling { step [
  { model_name: "liar" model_version: -1 input_map { key: "INPUT0" value: "INPUT0" }
    output_map { key: "OUTPUT0" value: "between" } },
  { model_name: "twice" model_version: -1 input_map { key: "INPUT0" value: "between" }
    output_map { key: "OUTPUT0" value: "OUTPUT0" } }] }
"""
COMPRESS = f"""
backend: "onnxruntime"
input [{{ name: "X" data_type: TYPE_INT64 dims: [{COUNT}] }}, {{ name: "C" data_type: TYPE_BOOL dims: [{COUNT}] }}]
output [{{ name: "Y" data_type: TYPE_INT64 dims: [1] }}]
"""
# Another process, as a client is one: its writes are not held up by this one's.
WRITER = """
import mmap, sys, time
file = open(sys.argv[1], "r+b")
count = int(sys.argv[2])
memory = mmap.mmap(file.fileno(), 0)
values = b"\\1" * count, b"\\0" * count
print("up", flush=True)
while True:
    for value in values:
        memory[8 * count :] = value
        time.sleep(0.0005)      # about as long as it is looked at
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gate")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[ServerProcess]:
    root = repository(tmp_path_factory.mktemp("models"), Model("m"))
    python_models.model_of(root, "twice", f"FOLDER = {str(folder)!r}\n{TWICE}", IN_PROCESS)
    code = TWICE.replace("np.concatenate([first, value], axis=1)", "value")
    cached = 'backend: "python" response_cache { enable: true }' + IO
    python_models.model_of(root, "cached", f"FOLDER = {str(folder)!r}\n{code}", cached)
    python_models.model_of(root, "liar", f"FOLDER = {str(folder)!r}\n{LIAR}", 'backend: "python"' + IO)
    for name, config in (("ensemble", MEMBER), ("chain", CHAIN)):
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(config)
    (root / "compress" / "1").mkdir(parents=True)
    (root / "compress" / "config.pbtxt").write_text(COMPRESS)
    (root / "compress" / "1" / "model.onnx").write_bytes(onnx_models.count_twice(COUNT))
    flags = "--allow-client-shm=true", "--cache-config=local,size=1048576"
    with ServerProcess(root, *flags, "--backend-config=python,shm-max-byte-size=67108864") as process:
        yield process


@pytest.fixture
def region(served: ServerProcess, folder: Path) -> Iterator[shm.File]:
    with shm.File(9 * COUNT) as file:
        body = json.dumps({"key": file.key, "byte_size": file.size}).encode()
        assert raw.ask(served.http, raw.post("/v2/systemsharedmemory/region/r/register", body)).status == 200
        yield file
        assert raw.ask(served.http, raw.post("/v2/systemsharedmemory/unregister")).status == 200
    for name in ("seen", "go"):
        (folder / name).unlink(missing_ok=True)


def ask(served: ServerProcess, model: str, value: float | None = None) -> list[float]:
    """Return a model's answer to a number; to what lies in the region where there is none."""
    tensor: dict[str, Any] = {"name": "INPUT0", "shape": [1, 1], "datatype": "FP32"}
    tensor.update({"parameters": place(4, 0)} if value is None else {"data": [value]})
    answer = raw.ask(served.http, raw.post(raw.infer_path(model), json.dumps({"inputs": [tensor]}).encode()))
    assert answer.status == 200, answer.body
    return list(answer.json()["outputs"][0]["data"])


def change_meanwhile(served: ServerProcess, folder: Path, region: shm.File, model: str) -> list[float]:
    """Return the answer to 1.0 of a client that writes 2.0 while the model is at its gate."""
    region.write(struct.pack("<f", 1.0))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, served, model)
        assert until((folder / "seen").exists)
        region.write(struct.pack("<f", 2.0))
        (folder / "go").touch()
        return asked.result()


def test_a_model_in_this_process_sees_one_value(served: ServerProcess, folder: Path, region: shm.File) -> None:
    assert change_meanwhile(served, folder, region, "twice") == [1.0, 1.0]


def test_what_a_worker_answered_to_an_ensemble(served: ServerProcess, region: shm.File) -> None:
    assert ask(served, "chain", 1.0) == [12345.5, 12345.5]


def test_the_cache_of_a_member_holds_the_answer_to_its_inputs(
    served: ServerProcess, folder: Path, region: shm.File
) -> None:
    """The ensemble's request has the region; the member's, which is looked up, only a tensor in it."""
    region.write(struct.pack("<f", 1.0))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, served, "cached", 7.0)
        assert until((folder / "seen").exists)
        asked = pool.submit(ask, served, "ensemble")
        assert until(lambda: misses(served) == 2)
        region.write(struct.pack("<f", 2.0))
        (folder / "go").touch()
        assert first.result() == [7.0]
        assert asked.result() == [1.0]
    assert ask(served, "cached", 1.0) == [1.0]


def misses(served: ServerProcess) -> int:
    found = raw.ask(served.http, raw.get("/v2/models/cached/stats")).json()["model_stats"][0]["inference_stats"]
    return int(found["cache_miss"]["count"])


def test_onnx_runtime_sees_one_value(served: ServerProcess, region: shm.File) -> None:
    """Its Compress counts the condition, allocates, and then copies by it: over the end, if there is more by then."""
    tensors = [
        {"name": "X", "datatype": "INT64", "shape": [COUNT], "parameters": place(8 * COUNT, 0)},
        {"name": "C", "datatype": "BOOL", "shape": [COUNT], "parameters": place(COUNT, 8 * COUNT)},
    ]
    request = raw.post(raw.infer_path("compress"), json.dumps({"inputs": tensors}).encode())
    argv = [sys.executable, "-c", WRITER, str(region.path), str(COUNT)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env={**os.environ}) as writer:
        try:
            assert writer.stdout is not None and writer.stdout.readline() == b"up\n"
            for _ in range(ROUNDS):
                answer = raw.ask(served.http, request)
                assert (answer.status, answer.json()["outputs"][0]["data"]) == (200, [0])
        finally:
            writer.kill()
