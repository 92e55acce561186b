"""The whole server on a stand-in for the CUDA driver with two devices: placement, flags, pinned memory, its metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import onnx_models, python_models, raw, standin_cuda
from tests.helpers.server import LocalServer, Model, ServerProcess, repository
from tests.integration.onnx_files import add, config, index
from triton_fast._native.core import memory
from triton_fast._native.cuda import pinned

MIB = 1 << 20
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}  # for a machine that has one
FLAGS = ("--exit-on-error=false", "--strict-readiness=false")
PLACE = """
class TritonPythonModel:
    def initialize(self, args):
        self.place = ":".join(args["model_instance_" + part] for part in ("kind", "device_id", "name"))

    def execute(self, requests):
        place = np.array([self.place.encode()], dtype=np.object_)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("PLACE", place)]) for _ in requests]
"""
IO = """
backend: "python"
input { name: "INPUT0" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "PLACE" data_type: TYPE_STRING dims: [ 1 ] }
"""
GROUPS = {
    "auto": "", "two": "instance_group { count: 2 gpus: 1 }", "cpu": "instance_group { kind: KIND_CPU }",
    "model": "instance_group { kind: KIND_MODEL }", "nowhere": "instance_group { kind: KIND_GPU gpus: 7 }",
}  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("gpus")
    for name, groups in GROUPS.items():
        python_models.model_of(root, name, PLACE, IO + groups)
    repository(root, Model("plain"), Model("refused", extra="instance_group { kind: KIND_GPU }"))
    add(root, "onnx", onnx_models.add_sub())
    flags = (
        "--cuda-memory-pool-byte-size=0:1048576",
        "--cuda-memory-pool-byte-size=4:1",
        "--pinned-memory-pool-byte-size=77",
    )
    with ServerProcess(root, *FLAGS, *flags, env=standin_cuda.environment()) as process:
        yield process


def groups_of(process: ServerProcess, model: str) -> list[tuple[str, int, list[int]]]:
    return [(one["kind"], one["count"], one["gpus"]) for one in config(process.http, model)["instance_group"]]


def place(process: ServerProcess, model: str) -> str:
    answer = raw.ask(process.http, raw.infer_json(model, [1.0], shape=[1]))
    assert answer.status == 200, answer.body
    return str(answer.json()["outputs"][0]["data"][0])


def test_the_devices_are_in_the_log(served: ServerProcess) -> None:
    line = served.wait_for_log("GPU 1: Stand-in GPU 1, 1024 MiB")
    assert "GPU-abababab-abab-abab-abab-ababababab01" in line
    assert "--cuda-memory-pool-byte-size names GPU 4, which is not used" in served.log()
    assert "is accepted, but" not in served.log()


def test_models_go_where_their_backend_can_run(served: ServerProcess) -> None:
    assert groups_of(served, "auto") == [("KIND_GPU", 1, [0, 1])]
    assert groups_of(served, "two") == [("KIND_GPU", 2, [1])]
    assert groups_of(served, "plain") == [("KIND_CPU", 1, [])]
    assert {kind for kind, _, _ in groups_of(served, "onnx")} == {"KIND_CPU"}, "this ONNX Runtime is for CPUs"


def test_a_python_model_is_told_its_device(served: ServerProcess) -> None:
    assert place(served, "auto") in ("GPU:0:auto_0", "GPU:1:auto_1")
    assert place(served, "two") in ("GPU:1:two_0_0", "GPU:1:two_0_1")
    assert place(served, "cpu") == "CPU:0:cpu_0_0"
    assert place(served, "model") == "MODEL:0:model_0_0"


def test_why_a_model_can_not_be_placed(served: ServerProcess) -> None:
    rows = index(served.http)
    assert (
        "instance group nowhere_0 of model nowhere specifies invalid or unsupported gpu id 7. Usable GPUs are: 0, 1"
        in (rows["nowhere"]["reason"])
    )
    assert "backend 'identity' as installed runs on the CPU only" in rows["refused"]["reason"]
    assert "but no GPUs are available" not in served.log()


def test_the_pool_is_in_the_metrics_before_anybody_uses_it(served: ServerProcess) -> None:
    text = raw.ask(served.metrics, raw.get("/metrics")).body.decode()
    assert re.search(r"^nv_pinned_memory_pool_total_bytes 77$", text, re.M)
    assert re.search(r"^nv_pinned_memory_pool_used_bytes 0$", text, re.M)


@pytest.mark.parametrize(
    ("env", "flags", "lines"),
    [
        (standin_cuda.environment, ("--min-supported-compute-capability=9.5", "--pinned-memory-pool-byte-size=5"),
         ["GPU 0 \\(Stand-in GPU 0\\) is not used: its compute capability is 9.0", "--pinned-memory-pool-byte"]),
        (lambda: standin_cuda.environment(fail="cuInit:1:803"), (), ["no GPU is used: the NVIDIA driver can not"]),
        (lambda: standin_cuda.environment(devices=0), ("--enable-peer-access=true",), ["--enable-peer-access is acc"]),
        (lambda: NO_GPU, ("--enable-peer-access=true",), ["--enable-peer-access is accepted, but there is no GPU that it"]),
    ],
    ids=["too old", "broken", "none", "no driver"],
)  # fmt: skip
def test_servers_without_a_usable_gpu(env: Any, flags: tuple[str, ...], lines: list[str], tmp_path: Path) -> None:
    repository(tmp_path, Model("plain"))
    python_models.model_of(tmp_path, "auto", PLACE, IO)
    with ServerProcess(tmp_path, *flags, env=env()) as process:
        for line in lines:
            process.wait_for_log(line)
        assert groups_of(process, "auto") == [("KIND_CPU", 1, [])]
        text = raw.ask(process.metrics, raw.get("/metrics")).body.decode()
        assert "\nnv_pinned_memory_pool_total_bytes 0\n" in text


def test_without_gpus_nothing_is_said_of_them(tmp_path: Path) -> None:
    with ServerProcess(repository(tmp_path, Model("plain")), env=NO_GPU) as process:
        assert "GPU" not in re.sub(r"\|.*", "", process.log())


def test_tensors_lie_in_pinned_blocks_while_a_gpu_is_in_use(tmp_path: Path) -> None:
    repository(tmp_path, Model("plain", dims=(-1,), max_batch=0))
    memory.trim()
    data = raw.fp32([1.5] * (MIB // 8))
    with standin_cuda.opened() as fake:
        with LocalServer(tmp_path) as local:
            answer = raw.ask(local.http, raw.infer_binary("plain", data, [len(data) // 4]))
            assert answer.body.endswith(data) and pinned.stats()["pinned"] == 0
            local.call(lambda: local.server.gpus.use(1))
            for _ in range(5):
                answer = raw.ask(local.http, raw.infer_binary("plain", data, [len(data) // 4]))
                assert answer.status == 200 and answer.body.endswith(data)
            made = fake.calls("cuMemHostAlloc")
            assert made > 0 and pinned.stats()["pinned"] >= len(data)
            for _ in range(20):
                answer = raw.ask(local.http, raw.infer_binary("plain", data, [len(data) // 4]))
            assert fake.calls("cuMemHostAlloc") == made, "blocks are reused"
            text = raw.ask(local.metrics, raw.get("/metrics")).body.decode()
            assert "\nnv_pinned_memory_pool_total_bytes 268435456\n" in text
            held = local.server.gpus.pinned_usage()
            assert 0 <= held[1] <= pinned.stats()["pinned"]
        assert fake.held()["pinned"] == 0, "the server gave it back"


def test_a_gpu_that_is_full_takes_no_model(tmp_path: Path) -> None:
    python_models.model_of(tmp_path, "auto", PLACE, IO)
    with (
        standin_cuda.opened() as fake,
        LocalServer(tmp_path, "--model-control-mode=explicit", "--model-load-gpu-limit=0:0.0",
                    "--model-load-gpu-limit=1:0.9") as local,
    ):  # fmt: skip
        from triton_fast._native.cuda.device_pool import DeviceMemory

        held = DeviceMemory(0, MIB)
        answer = raw.ask(local.http, raw.post("/v2/repository/models/auto/load"))
        assert "memory limit set for GPU 0 has exceeded, model loading is rejected." in answer.json()["error"]
        given = json.dumps({"parameters": {"config": json.dumps(
            {"backend": "python", "instance_group": [{"kind": "KIND_GPU", "gpus": [1]}],
             "input": [{"name": "INPUT0", "data_type": "TYPE_FP32", "dims": [1]}],
             "output": [{"name": "PLACE", "data_type": "TYPE_STRING", "dims": [1]}]})}})  # fmt: skip
        answer = raw.ask(local.http, raw.post("/v2/repository/models/auto/load", given.encode()))
        assert answer.status == 200, answer.body
        del held
        assert fake.held()["contexts"] >= 1
