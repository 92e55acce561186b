"""Forests on GPUs in whole servers, on stand-ins of nvforest, cupy and the driver: placement, device memory, faults."""

from __future__ import annotations

import base64
import importlib.util
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

treelite = pytest.importorskip("treelite", reason="needs treelite: pip install 'triton_fast[fil]'")

from tests.helpers import nvforests, raw, standin_cuda, xgboost_files  # noqa: E402
from tests.helpers.cuda_client import Memory  # noqa: E402
from tests.helpers.server import ServerProcess  # noqa: E402
from tests.integration.onnx_files import config, index, infer, request  # noqa: E402
from tests.integration.test_models_fil import CHANCE, CLASSIFIER, LOGISTIC, ROWS  # noqa: E402
from triton_fast.cli import check  # noqa: E402

FLAGS = ("--exit-on-error=false", "--strict-readiness=false")
PROBA = np.stack([1 - CHANCE, CHANCE], 1)
GPU = "instance_group { kind: KIND_GPU gpus: [ 0 ] }\n"
MODELS = {
    "auto": "", "gpu": GPU, "cpu": "instance_group { kind: KIND_CPU }\n", "other": GPU.replace("0", "1"),
    "both": GPU + "instance_group { kind: KIND_CPU count: 2 }\n",
    "two": "instance_group { kind: KIND_GPU gpus: [ 0 ] count: 2 }\ndynamic_batching { }\n",
}  # fmt: skip


def add(root: Path, name: str, text: str, **parameters: str) -> None:
    folder = root / name / "1"
    folder.mkdir(parents=True)
    (folder / "xgboost.json").write_bytes(xgboost_files.as_json(CLASSIFIER, LOGISTIC))
    text += 'backend: "fil"\n'
    text += "".join(f'parameters {{ key: "{k}" value {{ string_value: "{v}" }} }}\n' for k, v in parameters.items())
    (root / name / "config.pbtxt").write_text(text)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("forests")
    for name, text in MODELS.items():
        add(root, name, text, predict_proba="true", storage_type="AUTO", blocks_per_sm="0")
    add(root, "wrong", GPU, chunk_size="5")
    with ServerProcess(root, *FLAGS, "--allow-client-shm=true", env=nvforests.environment()) as process:
        yield process


def groups(process: ServerProcess, model: str) -> list[tuple[str, int, list[int]]]:
    return [(one["kind"], one["count"], one["gpus"]) for one in config(process.http, model)["instance_group"]]


def test_where_instances_are(server: ServerProcess) -> None:
    assert {name: groups(server, name) for name in MODELS} == {
        "auto": [("KIND_GPU", 1, [0, 1])], "gpu": [("KIND_GPU", 1, [0])], "cpu": [("KIND_CPU", 1, [])],
        "other": [("KIND_GPU", 1, [1])], "both": [("KIND_GPU", 1, [0]), ("KIND_CPU", 2, [])],
        "two": [("KIND_GPU", 2, [0])],
    }  # fmt: skip
    reason = index(server.http)["wrong"]["reason"]
    assert reason == "Invalid argument: parameter 'chunk_size' must be a power of 2 from 1 to 32, got '5'"
    assert "parameters without effect on GPUs: storage_type, blocks_per_sm" in server.log()


@pytest.mark.parametrize("model", MODELS)
def test_results_are_the_same_everywhere(server: ServerProcess, model: str) -> None:
    for rows in (ROWS, ROWS[:1], ROWS[3:10]):
        found = infer(server.http, model, {"input__0": rows})["output__0"]
        expected = PROBA[:1] if len(rows) == 1 else PROBA[3:10] if len(rows) == 7 else PROBA
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_many_clients(server: ServerProcess) -> None:
    def one(at: int) -> None:
        found = infer(server.http, "two", {"input__0": ROWS[at : at + 3]})["output__0"]
        np.testing.assert_allclose(found, PROBA[at : at + 3], atol=1e-6)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(0, 400, 3)))


@pytest.fixture
def memory() -> Iterator[Memory]:
    with standin_cuda.opened() as fake, Memory(fake, ROWS.nbytes + PROBA.size * 4) as made:
        made.write(ROWS.tobytes())
        yield made


def test_rows_and_results_in_cuda_shared_memory(server: ServerProcess, memory: Memory) -> None:
    body = {"raw_handle": {"b64": memory.raw_handle.decode()}, "device_id": 0, "byte_size": memory.size}
    path = "/v2/cudasharedmemory/region/r"
    assert raw.ask(server.http, raw.post(f"{path}/register", json.dumps(body).encode())).status == 200
    try:
        # On a GPU, on another one, and on the CPU.
        for model in ("gpu", "other", "cpu"):
            memory.write(bytes(PROBA.size * 4), ROWS.nbytes)
            given = {"shared_memory_region": "r", "shared_memory_byte_size": ROWS.nbytes}
            wanted = {"shared_memory_region": "r", "shared_memory_byte_size": PROBA.size * 4,
                      "shared_memory_offset": ROWS.nbytes}  # fmt: skip
            asked: dict[str, Any] = {
                "inputs": [{"name": "input__0", "shape": list(ROWS.shape), "datatype": "FP32", "parameters": given}],
                "outputs": [{"name": "output__0", "parameters": wanted}],
            }
            answer = raw.ask(server.http, raw.post(raw.infer_path(model), json.dumps(asked).encode()))
            assert answer.status == 200, answer.body
            found = np.frombuffer(memory.read(PROBA.size * 4, ROWS.nbytes), np.float32).reshape(PROBA.shape)
            np.testing.assert_allclose(found, PROBA, atol=1e-6)
    finally:
        assert raw.ask(server.http, raw.post(f"{path}/unregister")).status == 200
    assert base64.b64decode(memory.raw_handle) == memory.handle


def test_loading_again(server: ServerProcess, tmp_path: Path) -> None:
    add(tmp_path, "m", GPU, predict_proba="true")
    flags = ("--model-control-mode=explicit", "--load-model=m")
    with ServerProcess(tmp_path, *flags, env=nvforests.environment()) as process:
        for verb in ("unload", "load", "load"):
            answer = raw.ask(process.http, raw.post(f"/v2/repository/models/m/{verb}"))
            assert answer.status == 200, answer.body
        np.testing.assert_allclose(infer(process.http, "m", {"input__0": ROWS})["output__0"], PROBA, atol=1e-6)


def test_an_error_ends_one_request(tmp_path: Path) -> None:
    add(tmp_path, "m", GPU, predict_proba="true")
    # The first call is that of the load.
    faults = "2:CUDA error in /x/y/infer.cu;4:std::bad_alloc: out of memory"
    with ServerProcess(tmp_path, *FLAGS, env=nvforests.environment(faults=faults)) as process:
        for text in ("CUDA error in infer.cu", "std::bad_alloc: out of memory"):
            answer = raw.ask(process.http, request("m", {"input__0": ROWS[:2]}))
            assert (answer.status, answer.error) == (500, f"FIL execute failure: {text}")
            found = infer(process.http, "m", {"input__0": ROWS})["output__0"]
            np.testing.assert_allclose(found, PROBA, atol=1e-6)
        assert raw.ask(process.http, raw.get("/v2/models/m/ready")).status == 200


def test_a_gpu_that_is_lost_leaves_the_rest(tmp_path: Path) -> None:
    add(tmp_path, "m", GPU, predict_proba="true")
    add(tmp_path, "cpu", MODELS["cpu"], predict_proba="true")
    # The copies down: the first is that of the load.
    env = nvforests.environment(fail=f"cuMemcpyDtoHAsync_v2:2:{standin_cuda.ILLEGAL_ADDRESS}")
    with ServerProcess(tmp_path, *FLAGS, env=env) as process:
        answer = raw.ask(process.http, request("m", {"input__0": ROWS[:2]}))
        assert answer.status == 500
        assert f"({standin_cuda.ILLEGAL_ADDRESS})" in answer.error
        answer = raw.ask(process.http, request("m", {"input__0": ROWS[:2]}))
        assert answer.status == 503
        assert "the server can not use GPU 0 until it is started again" in answer.error
        states = [raw.ask(process.http, raw.get(f"/v2/models/{one}/ready")).status for one in ("m", "cpu")]
        assert states == [400, 200]
        np.testing.assert_allclose(infer(process.http, "cpu", {"input__0": ROWS})["output__0"], PROBA, atol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("nvforest") is not None, reason="nvforest is installed here")
def test_without_nvforest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(tmp_path, "auto", "", predict_proba="true")
    add(tmp_path, "gpu", GPU, predict_proba="true")
    reason = "backend 'fil' as installed runs on the CPU only: nvforest is not installed: pip install nvforest-cu1"
    with ServerProcess(tmp_path, *FLAGS, env=standin_cuda.environment()) as process:
        assert groups(process, "auto") == [("KIND_CPU", 1, [])]
        np.testing.assert_allclose(infer(process.http, "auto", {"input__0": ROWS})["output__0"], PROBA, atol=1e-6)
        assert reason in index(process.http)["gpu"]["reason"]
    with standin_cuda.opened():
        assert check.main([str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert told.startswith("gpu/config.pbtxt:")
    assert reason in told
    assert "2 models, 1 with errors" in told
