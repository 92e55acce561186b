"""OpenVINO models through the whole server: configs completed, refused and kept; results equal OpenVINO's own."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import onnx_models, raw
from tests.helpers import openvino_models as models
from tests.helpers.openvino_models import NUMPY, reference, write
from tests.helpers.server import ServerProcess
from tests.integration.onnx_files import arrays, config, index, infer, request, same

GPU = 'backend: "openvino"\ninstance_group [{ kind: KIND_GPU }]'
ONNX = 'backend: "openvino"\ndefault_model_filename: "model.onnx"'


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("openvino")
    for kind in NUMPY:
        write(root, models.swap(kind), name=kind.lower())
    write(root, models.dense(), name="dense")
    write(root, models.add_sub("FP32", (-1, -1)), name="add")
    write(root, onnx_models.mlp(), ONNX, "onnx", "model.onnx")
    write(root, models.dense(), GPU, "gpu")
    (write(root, models.dense(), name="cut") / "1/model.bin").write_bytes(b"short")
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[ServerProcess]:
    with ServerProcess(root, "--exit-on-error=false", "--strict-readiness=false") as process:
        yield process


@pytest.mark.parametrize("kind", sorted(NUMPY))
def test_every_datatype_without_a_config(server: ServerProcess, root: Path, kind: str) -> None:
    array = np.arange(18).reshape(3, 2, 3).astype(NUMPY[kind])
    found = infer(server.http, kind.lower(), {"IN": array})["OUT"]
    assert same(found, reference(root / kind.lower() / "1/model.xml", {"IN": array})["OUT"])
    made = config(server.http, kind.lower())
    assert (made["backend"], made["max_batch_size"], made["input"][0]["data_type"]) == ("openvino", 4, f"TYPE_{kind}")


def test_many_clients(server: ServerProcess, root: Path) -> None:
    def ask(n: int) -> bool:
        array = np.full((1 + n % 3, 64), n, np.float32)
        found = infer(server.http, "dense", {"IN": array})["OUT"]
        return bool(np.allclose(found, reference(root / "dense/1/model.xml", {"IN": array})["OUT"], 1e-4, 1e-3))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(40)))


def test_onnx(server: ServerProcess, root: Path) -> None:
    array = np.ones((2, 16), np.float32)
    found = infer(server.http, "onnx", {"INPUT": array})["OUTPUT"]
    assert np.allclose(found, reference(root / "onnx/1/model.onnx", {"INPUT": array})["OUTPUT"], rtol=1e-5)


def test_what_can_not_be_opened_leaves_the_server_up(server: ServerProcess, root: Path) -> None:
    rows = index(server.http)
    assert (rows["cut"]["state"], rows["gpu"]["state"]) == ("UNAVAILABLE", "UNAVAILABLE")
    assert "Incorrect weights in bin file!" in rows["cut"]["reason"]
    assert str(root) not in rows["cut"]["reason"]
    assert "KIND_GPU but no GPUs are available" in rows["gpu"]["reason"]
    assert rows["dense"]["state"] == "READY"


def test_an_error_of_a_run_ends_that_request(server: ServerProcess) -> None:
    a, b = np.ones((1, 3), np.float32), np.ones((1, 4), np.float32)
    answer = raw.ask(server.http, request("add", {"A": a, "B": b}))
    assert answer.status == 500
    assert answer.json()["error"].startswith("openvino error in inference : ")
    assert (arrays(raw.ask(server.http, request("add", {"A": a, "B": a})))["SUM"] == 2).all()
