"""TensorRT models through the whole server, on the stand-ins for TensorRT and libcuda."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import raw, trt_plans
from tests.helpers.server import ServerProcess
from tests.helpers.trt_models import NUMPY
from tests.helpers.trt_plans import add_sub, between, nonzero, spread, swap, write
from tests.integration.onnx_files import arrays, config, index, infer, request, same

BACKEND = 'backend: "tensorrt"\n'
GRAPHS = f"{BACKEND}optimization {{ cuda {{ graphs: true }} }}\n"
PROFILES = [between((1, 1), (8, 8)), between((1, 9), (8, 64))]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tensorrt")
    for kind in NUMPY:
        (write(root, swap(kind), name=kind.lower()) / "config.pbtxt").unlink()
    write(root, add_sub(), GRAPHS, "graphs")
    write(
        root,
        add_sub("FP32", (-1, -1), PROFILES),
        f'{BACKEND}instance_group [{{ profile: ["0", "1"] count: 2 }}]\n',
        "two",
    )
    write(root, nonzero(), f"{BACKEND}max_batch_size: 0\n", "nonzero")
    write(root, spread("INT64"), BACKEND, "spread")
    write(root, add_sub(fails="Error Code 2: Internal Error"), BACKEND, "failing")
    write(root, b"\x08\x0a\x12\x07pytorch" + bytes(50), BACKEND, "onnx")
    write(root, swap(version="8.6.1"), BACKEND, "old")
    write(root, swap(memory=1 << 40), BACKEND, "huge")
    write(root, swap(), f"{BACKEND}instance_group [{{ kind: KIND_CPU }}]\n", "cpu")
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[ServerProcess]:
    flags = ("--exit-on-error=false", "--strict-readiness=false")
    with ServerProcess(root, *flags, env=trt_plans.environment()) as process:
        yield process


@pytest.mark.parametrize("kind", sorted(NUMPY))
def test_every_datatype_without_a_config(server: ServerProcess, kind: str) -> None:
    array = np.arange(18).reshape(3, 2, 3).astype(NUMPY[kind])
    found = infer(server.http, kind.lower(), {"IN": array})["OUT"]
    assert same(found, np.ascontiguousarray(array.swapaxes(1, 2)))
    made = config(server.http, kind.lower())
    assert (made["backend"], made["platform"], made["max_batch_size"]) == ("tensorrt", "tensorrt_plan", 8)
    assert made["instance_group"][0]["kind"] == "KIND_GPU"
    assert made["instance_group"][0]["gpus"] == [0, 1]


def test_what_can_not_be_opened_leaves_the_server_up(server: ServerProcess, root: Path) -> None:
    rows = index(server.http)
    causes = {
        "onnx": "it looks like an ONNX model: build a plan from it",
        "old": "The engine plan file is not compatible with this version of TensorRT",
        "huge": "unable to create TensorRT context: Requested amount of GPU memory",
        "cpu": "unable to load model 'cpu', TensorRT backend supports only GPU device",
    }
    for name, cause in causes.items():
        assert rows[name]["state"] == "UNAVAILABLE"
        assert cause in rows[name]["reason"]
        assert str(root) not in rows[name]["reason"]
    assert rows["two"]["state"] == "READY"


def test_many_clients_whose_requests_share_batches(server: ServerProcess) -> None:
    def ask(n: int) -> bool:
        width = (4, 8, 40)[n % 3]
        a = np.full((1 + n % 4, width), n, np.float32)
        found = infer(server.http, "two", {"A": a, "B": a + 1})
        return bool((found["SUM"] == 2 * n + 1).all() and (found["DIFFERENCE"] == -1).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(120)))


def test_many_clients_of_a_model_with_graphs(server: ServerProcess) -> None:
    def ask(n: int) -> bool:
        a = np.full((1 + n % 8, 4), n, np.float32)
        return bool((infer(server.http, "graphs", {"A": a, "B": a})["SUM"] == 2 * n).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(200)))


def test_shapes_that_no_profile_takes(server: ServerProcess) -> None:
    a = np.ones((1, 65), np.float32)
    answer = raw.ask(server.http, request("two", {"A": a, "B": a}))
    assert answer.status == 400
    assert (
        "profile 1, input 'A': model expected the shape of dimension 1 to be between 9 and 64" in answer.json()["error"]
    )


def test_outputs_of_unknown_size_and_shape_tensors(server: ServerProcess) -> None:
    array = np.array([0, 1, 0, 1], np.float32)
    assert same(infer(server.http, "nonzero", {"IN": array})["OUT"], np.array([[1], [3]], np.int64))

    def ask(n: int) -> bool:
        given = {"IN": np.full((1, 1), 7, np.float32), "S": np.array([[2, 1 + n % 3]], np.int64)}
        found = infer(server.http, "spread", given)
        return same(found["OUT"], np.full((1, 2, 1 + n % 3), 7, np.float32)) and same(found["AS"], given["S"])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(60)))


def test_an_error_of_a_run_ends_that_request(server: ServerProcess) -> None:
    a = np.ones((1, 4), np.float32)
    answer = raw.ask(server.http, request("failing", {"A": a, "B": a}))
    assert answer.status == 500
    assert answer.json()["error"].startswith("unable to enqueue for inference failing")
    assert "Error Code 2: Internal Error" in answer.json()["error"]
    assert (arrays(raw.ask(server.http, request("graphs", {"A": a, "B": a})))["SUM"] == 2).all()


def test_models_come_and_go(root: Path, tmp_path: Path) -> None:
    write(tmp_path, swap(), BACKEND)
    flags = ("--model-control-mode=explicit", "--load-model=m")
    with ServerProcess(tmp_path, *flags, env=trt_plans.environment(devices=1)) as process:
        array = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
        for _ in range(3):
            assert same(infer(process.http, "m", {"IN": array})["OUT"], np.ascontiguousarray(array.swapaxes(1, 2)))
            assert raw.ask(process.http, raw.post("/v2/repository/models/m/unload", b"{}")).status == 200
            assert raw.ask(process.http, raw.post("/v2/repository/models/m/load", b"{}")).status == 200


def test_without_a_gpu(root: Path, tmp_path: Path) -> None:
    write(tmp_path, swap(), BACKEND)
    with ServerProcess(tmp_path, "--exit-on-error=false", env=trt_plans.environment(devices=0)) as process:
        row = index(process.http)["m"]
        assert row["state"] == "UNAVAILABLE"
        assert "TensorRT backend supports only GPU device" in row["reason"]
