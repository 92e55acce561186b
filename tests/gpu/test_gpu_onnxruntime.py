"""ONNX Runtime's CUDA provider in a real server on a real GPU: the same outputs as on the CPU, and where memory goes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import onnx_models as models
from tests.helpers.binary_http import TYPES, BinaryClient
from tests.helpers.onnx_repository import Opened, array, open_on_gpu, tensor, write
from tests.helpers.server import ROOT, ServerProcess
from triton_fast import memory
from triton_fast._native.cuda import copies, device_pool, driver
from triton_fast.types import DataType

DEVICES, FAULT = memory.find()
pytestmark = pytest.mark.skipif(not DEVICES, reason=f"no GPU: {FAULT}")

KINDS = sorted(set(models.ELEMENT) - {"STRING"})
GPU, CPU = "instance_group [{ kind: KIND_GPU }]\n", "instance_group [{ kind: KIND_CPU count: 1 }]\n"
BATCHING = 'backend: "onnxruntime"\nmax_batch_size: 16\ndynamic_batching { max_queue_delay_microseconds: 2000 }\n'
MIB = 1 << 20


def parameters(**values: object) -> str:
    return "".join(f'parameters {{ key: "{k}" value {{ string_value: "{v}" }} }}\n' for k, v in values.items())


def pair(root: Path, name: str, blob: bytes, config: str = BATCHING) -> None:
    """The model twice, on a GPU and on the CPU."""
    write(root, blob, config + GPU, name=name)
    write(root, blob, config + CPU, name=f"{name}_cpu")


def fill(root: Path) -> None:
    for kind in KINDS:
        write(root, models.identity(kind), BATCHING + GPU, name=f"identity_{kind}")
    for kind in ("INT32", "INT64", "FP16", "FP32", "FP64"):
        pair(root, f"double_{kind}", models.double(kind))
    write(root, models.double("BF16"), BATCHING + GPU, name="double_BF16")
    pair(root, "matmul", models.matmul_chain(512, 4))
    pair(root, "exact", models.matmul_chain(512, 4), BATCHING + parameters(use_tf32=0))
    pair(root, "mlp", models.mlp(64, 64, 8), BATCHING + WARMUP)
    pair(root, "conv", models.conv_net(), BATCHING + parameters(cudnn_conv_algo_search=1, use_tf32=0))
    pair(root, "options", models.conv_net(), BATCHING + OPTIONS)
    pair(root, "strings", models.identity("STRING", ("batch", 2)))
    write(root, models.double(), BATCHING + "instance_group [{ kind: KIND_GPU count: 2 }]", name="two")
    write(root, models.double(), BATCHING + "instance_group [{ kind: KIND_GPU }, { kind: KIND_CPU count: 1 }]",
          name="both")  # fmt: skip
    write(root, models.identity("FP32", ("batch", "n")), name="auto")
    limit = BATCHING + parameters(gpu_mem_limit=8 * MIB)
    write(root, models.identity("FP32", ("batch", "n")), limit + GPU, name="limited")
    unknown = ACCELERATOR.format('name: "cuda" parameters { key: "speed_of_light" value: "1" }')
    write(root, models.double(), BATCHING + GPU + unknown, name="unknown_option")
    write(root, models.identity("FP32", ("batch", "n")), BATCHING + GPU, name="unloaded")


ACCELERATOR = "optimization {{ execution_accelerators {{ gpu_execution_accelerator [ {{ {} }} ] }} }}\n"
WARMUP = """model_warmup [{ name: "zeros" batch_size: 4
  inputs { key: "INPUT" value { data_type: TYPE_FP32 dims: 64 zero_data: true } } }]
"""
OPTIONS = (
    parameters(arena_extend_strategy=1, gpu_mem_limit=1024 * MIB, do_copy_in_default_stream=1)
    + parameters(**{"memory.enable_memory_arena_shrinkage": "gpu:0;cpu:0"})
    + ACCELERATOR.format(
        'name: "cuda" parameters { key: "cudnn_conv_use_max_workspace" value: "0" } '
        'parameters { key: "use_ep_level_unified_stream" value: "1" } parameters { key: "use_tf32" value: "0" } '
        'parameters { key: "cudnn_conv1d_pad_to_nc1d" value: "1" } parameters { key: "prefer_nhwc" value: "1" } '
        'parameters { key: "cudnn_conv_algo_search" value: "DEFAULT" }'
    )
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("repository")
    fill(root)
    # Where this process found ONNX Runtime, the server finds it too.
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    flags = ("--model-control-mode=explicit", "--load-model=*", "--exit-on-error=false", "--log-verbose=1")
    with ServerProcess(root, *flags, env={"PYTHONPATH": path}) as process:
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[BinaryClient]:
    made = BinaryClient(server.http)
    yield made
    made.close()


def numbers(kind: str, shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 2 if kind == "BOOL" else 100, shape)
    return values.astype(TYPES[kind])


def good(answer: tuple[int, object]) -> dict[str, np.ndarray]:
    assert answer[0] == 200, answer[1]
    assert isinstance(answer[1], dict)
    return answer[1]


# --- outputs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_datatype(client: BinaryClient, kind: str) -> None:
    for rows in (1, 3):
        given = numbers(kind, (rows, 4), rows)
        got = good(client.infer(f"identity_{kind}", {"INPUT0": given}, {"INPUT0": kind}))["OUTPUT0"]
        np.testing.assert_array_equal(got, given)


@pytest.mark.parametrize("kind", ["INT32", "INT64", "FP16", "FP32", "FP64"])
def test_kernels(client: BinaryClient, kind: str) -> None:
    given = numbers(kind, (5, 8))
    for name in (f"double_{kind}", f"double_{kind}_cpu"):
        np.testing.assert_array_equal(good(client.infer(name, {"INPUT0": given}))["OUTPUT0"], given * 2)


def test_bf16(client: BinaryClient) -> None:
    values = np.arange(24, dtype=np.float32).reshape(3, 8)  # what BF16 has no rounding for
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    got = good(client.infer("double_BF16", {"INPUT0": bits}, {"INPUT0": "BF16"}))["OUTPUT0"]
    np.testing.assert_array_equal((got.astype(np.uint32) << 16).view(np.float32), values * 2)


@pytest.mark.parametrize(
    ("name", "inputs", "shape", "tolerance"),
    [
        ("matmul", "INPUT0", (8, 512), 2e-2), ("exact", "INPUT0", (8, 512), 1e-4), ("mlp", "INPUT", (8, 64), 2e-2),
        ("conv", "INPUT0", (4, 3, 32, 32), 1e-3), ("options", "INPUT0", (4, 3, 32, 32), 1e-3),
    ],
)  # fmt: skip
def test_same_as_on_the_cpu(
    client: BinaryClient, name: str, inputs: str, shape: tuple[int, ...], tolerance: float
) -> None:
    given = {inputs: np.random.default_rng(2).standard_normal(shape).astype(np.float32)}
    one, other = good(client.infer(name, given)), good(client.infer(f"{name}_cpu", given))
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert value.any()
        np.testing.assert_allclose(value, other[key], rtol=tolerance, atol=tolerance)


def test_strings_stay_on_the_cpu(client: BinaryClient) -> None:
    given = np.empty((2, 2), object)
    given[:] = [[b"", b"one"], ["zwölf".encode(), b"x" * 70000]]
    np.testing.assert_array_equal(good(client.infer("strings", {"INPUT0": given}))["OUTPUT0"], given)


@pytest.mark.parametrize("name", ["double_FP32", "two", "both"])
def test_many_clients(server: ServerProcess, client: BinaryClient, name: str) -> None:
    """Each gets its own rows back, of batches that hold the rows of several."""

    def work(number: int) -> None:
        mine = BinaryClient(server.http)
        for turn in range(20):
            given = numbers("FP32", (1 + number % 3, 8), number * 100 + turn)
            got = good(mine.infer(name, {"INPUT0": given}))["OUTPUT0"]
            np.testing.assert_array_equal(got, given * 2)
        mine.close()

    before = client.get(f"/v2/models/{name}/stats")["model_stats"][0]
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(work, range(32)))
    after = client.get(f"/v2/models/{name}/stats")["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] == sum(20 * (1 + n % 3) for n in range(32))
    assert after["execution_count"] - before["execution_count"] < 32 * 20
    assert after["inference_stats"]["fail"]["count"] == before["inference_stats"]["fail"]["count"]


# --- placement, memory, failures -------------------------------------------------------------------------------------


def test_kinds(client: BinaryClient) -> None:
    def kinds(name: str) -> list[str]:
        return [group["kind"] for group in client.get(f"/v2/models/{name}/config")["instance_group"]]

    assert kinds("auto") == ["KIND_GPU"]
    assert kinds("both") == ["KIND_GPU", "KIND_CPU"]
    assert kinds("matmul_cpu") == ["KIND_CPU"]


def test_out_of_memory_ends_that_request_only(client: BinaryClient) -> None:
    for _ in range(3):
        status, text = client.infer("limited", {"INPUT0": np.zeros((1, 4 * MIB), np.float32)})
        assert (status, "Available memory of" in text) == (500, True), text
        small = np.arange(1000, dtype=np.float32).reshape(1, 1000)
        np.testing.assert_array_equal(good(client.infer("limited", {"INPUT0": small}))["OUTPUT0"], small)


def test_an_unknown_option_is_named(client: BinaryClient) -> None:
    status, answer = client.post("/v2/repository/models/unknown_option/load")
    assert status == 400, answer
    assert "unknown parameter 'speed_of_light' is provided for CUDA Execution Accelerator" in answer["error"]


def test_unload_gives_the_memory_back(client: BinaryClient) -> None:
    driver.open_driver()
    load, unload = (f"/v2/repository/models/unloaded/{verb}" for verb in ("load", "unload"))
    big = np.ones((1, 16 * MIB), np.float32)

    def free() -> int:
        return driver.memory_info(0)[0]

    good(client.infer("unloaded", {"INPUT0": big}))  # what stays with the process, modules and the like, is there now
    assert client.post(unload)[0] == 200
    until_unloaded(client, "unloaded")
    before = free()
    assert client.post(load)[0] == 200
    good(client.infer("unloaded", {"INPUT0": big}))
    assert before - free() >= 100 * MIB
    assert client.post(unload)[0] == 200
    until_unloaded(client, "unloaded")
    assert before - free() <= 8 * MIB
    assert client.post(load)[0] == 200


def until_unloaded(client: BinaryClient, name: str) -> None:
    for _ in range(2000):
        _, index = client.post("/v2/repository/index")
        if all(row.get("state") != "UNLOADING" and row.get("state") != "READY" for row in index if row["name"] == name):
            return
    raise AssertionError(f"{name} is not unloaded: {index}")


# --- inputs in device memory, in this process ------------------------------------------------------------------------


@pytest.fixture
def doubling(tmp_path: Path) -> Iterator[Opened]:
    driver.open_driver()
    opened = open_on_gpu(write(tmp_path, models.double(), BATCHING + GPU))
    yield opened
    opened.model.close()


class Device:
    """Arrays in the memory of GPU 0, as inputs of ``drive``."""

    def __init__(self) -> None:
        self._kept: list[device_pool.DeviceMemory] = []

    def __call__(self, value: np.ndarray, offset: int = 0) -> tuple[DataType, tuple[int, ...], tuple[int, int, int]]:
        memory_ = device_pool.DeviceMemory(0, value.nbytes + offset)
        stream = copies.Stream(0)
        stream.copy_in(memory_.address + offset, value.tobytes())
        stream.wait()
        self._kept.append(memory_)
        return DataType.FP32, value.shape, (0, memory_.address + offset, value.nbytes)


def test_inputs_in_device_memory(doubling: Opened) -> None:
    device = Device()
    x = [numbers("FP32", (n, 8), n) for n in (1, 2, 3)]

    def run(*inputs: object) -> tuple[list[np.ndarray], dict[str, int]]:
        before = doubling.instance.counters()
        answers = doubling.raw(*[{"INPUT0": one} for one in inputs])
        after = doubling.instance.counters()
        assert not any(isinstance(answer, Exception) for answer in answers), answers
        return [array(answer["OUTPUT0"]) for answer in answers], {key: after[key] - before[key] for key in after}

    # One request whose bytes lie as ORT's own would: no copy at all.
    (got,), count = run(device(x[0]))
    np.testing.assert_array_equal(got, x[0] * 2)
    assert (count["borrowed"], count["copied_bytes"], count["device_bytes"]) == (1, 0, 0)
    # At an odd place: within device memory.
    (got,), count = run(device(x[0], offset=4))
    np.testing.assert_array_equal(got, x[0] * 2)
    assert (count["borrowed"], count["copied_bytes"], count["device_bytes"]) == (0, 0, x[0].nbytes)
    # Several, one of them in host memory.
    got, count = run(device(x[0]), tensor(x[1]), device(x[2]))
    for mine, given in zip(got, x, strict=True):
        np.testing.assert_array_equal(mine, given * 2)
    assert (count["copied_bytes"], count["device_bytes"]) == (0, sum(one.nbytes for one in x))
