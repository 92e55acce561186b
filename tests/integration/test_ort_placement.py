"""A server with stand-ins for GPUs and ONNX Runtime for CPUs: where its models run, what is said of those for GPUs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.helpers import onnx_models as models
from tests.helpers import standin_cuda
from tests.helpers.binary_http import BinaryClient
from tests.helpers.onnx_repository import write
from tests.helpers.server import ServerProcess

ACCELERATED = """backend: "onnxruntime"
optimization { execution_accelerators { gpu_execution_accelerator { name: "tensorrt" } } }
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("repository")
    for name, config in {
        "auto": "", "accelerated": ACCELERATED, "cpu": 'backend: "onnxruntime" instance_group { kind: KIND_CPU }',
        "gpu": 'backend: "onnxruntime" instance_group { kind: KIND_GPU }',
    }.items():  # fmt: skip
        write(root, models.double(), config, name=name)
    flags = ("--exit-on-error=false", "--strict-readiness=false")
    with ServerProcess(root, *flags, env=standin_cuda.environment()) as process:
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[BinaryClient]:
    made = BinaryClient(server.http)
    yield made
    made.close()


@pytest.mark.parametrize("name", ["auto", "accelerated", "cpu"])
def test_what_may_runs_on_the_cpu(client: BinaryClient, name: str) -> None:
    groups = client.get(f"/v2/models/{name}/config")["instance_group"]
    assert {group["kind"] for group in groups} == {"KIND_CPU"}
    given = np.arange(8, dtype=np.float32).reshape(1, 8)
    status, got = client.infer(name, {"INPUT0": given})
    assert status == 200, got
    np.testing.assert_array_equal(got["OUTPUT0"], given * 2)


def test_a_model_for_gpus_says_what_to_install(client: BinaryClient) -> None:
    _, index = client.post("/v2/repository/index")
    (reason,) = [row["reason"] for row in index if row["name"] == "gpu"]
    assert "KIND_GPU but backend 'onnxruntime' as installed runs on the CPU only: the installed ONNX Runtime" in reason
    assert "pip install onnxruntime-gpu" in reason


def test_the_log_says_once_that_no_gpu_is_used(server: ServerProcess) -> None:
    line = server.wait_for_log("ONNX Runtime uses no GPU")
    assert "pip install onnxruntime-gpu" in line
    assert server.log().count("ONNX Runtime uses no GPU") == 1
