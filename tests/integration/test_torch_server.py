"""Models of PyTorch through the whole server: all forms, several instances, faults that stay with their model."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("torch") is None:
    pytest.skip("PyTorch is not installed: pip install 'triton_fast[pytorch]'", allow_module_level=True)

import torch

from tests.helpers import raw
from tests.helpers.server import ROOT, ServerProcess
from tests.helpers.torch_models import Linear, exporting, io, saving, to_array, write
from tests.integration.onnx_files import config, index, infer, request

# Importing torch in several processes takes long on a busy machine.
pytestmark = pytest.mark.timeout(300)
Tensor = torch.Tensor
# Where torch is, if that is not where the server would look by itself.
FOUND = Path(torch.__file__).resolve().parents[1]
ENV = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(FOUND)])}
COUNTS = ("--backend-config=pytorch,INTRA_OP_THREAD_COUNT=3", "--backend-config=pytorch,INTER_OP_THREAD_COUNT=4")
HEAD = 'backend: "pytorch"\n'
BATCHED = HEAD + "max_batch_size: 8\ndynamic_batching { }\n"
XY = io("input", x="FP32 4", y="FP32 3")
TWO = io("output", OUTPUT__0="FP32 3", OUTPUT__1="FP32 4")
CLASS = """import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x, y):
        if bool((x > 1e6).any()):
            raise ValueError("x is too large")
        return self.layer(x) + y, x - 1
"""


THREADS = """import torch


class Net(torch.nn.Module):
    def forward(self, x):
        return x + torch.tensor([torch.get_num_threads(), torch.get_num_interop_threads()])
"""


class Same(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Slow(torch.nn.Module):
    """Seconds of work in single operators."""

    def forward(self, x: Tensor) -> Tensor:
        m = torch.ones(1500, 1500, dtype=x.dtype) / 1500
        for _ in range(10):
            m = m @ m
        return x + m[0, 0]


def arrays(rows: int) -> tuple[dict[str, np.ndarray[Any, Any]], list[Any]]:
    generator = torch.Generator().manual_seed(rows)
    x, y = torch.randn(rows, 4, generator=generator), torch.randn(rows, 3, generator=generator)
    with torch.inference_mode():
        return {"x": to_array(x), "y": to_array(y)}, [to_array(one) for one in Linear()(x, y)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("torch_models")
    x, y = torch.ones(2, 4), torch.ones(2, 3)
    write(root, saving(Linear()), BATCHED + XY + TWO + "instance_group { count: 2 kind: KIND_CPU }\n", "script")
    write(root, exporting(Linear(), x, y), None, "exported", "model.pt2")
    write(root, exporting(Same(), torch.ones(2, 3, dtype=torch.bfloat16)), None, "bf16", "model.pt2")
    write(root, saving(Slow()), BATCHED + io("input", x="FP32 1") + io("output", y="FP32 1"), "slow")
    folder = write(root, lambda path: torch.save(Linear().state_dict(), path), BATCHED + XY + TWO, "classes") / "1"
    # The class calls its layer as the weights do.
    (folder / "model.py").write_text(CLASS)
    (write(root, None, BATCHED + 'runtime: "model.py"\n' + XY + TWO, "bare") / "1" / "model.py").write_text(CLASS)
    text = 'parameters { key: "INTER_OP_THREAD_COUNT" value { string_value: "2" } }\n' + io("input", x="FP32 2")
    text = BATCHED + 'runtime: "model.py"\n' + text + io("output", y="FP32 2")
    (write(root, None, text, "threads") / "1" / "model.py").write_text(THREADS)
    write(root, b"nonsense", BATCHED + XY + TWO, "broken")
    write(root, saving(Linear()), BATCHED + io("input", x="FP32 4") + TWO, "count")
    write(root, saving(Linear()), BATCHED + XY + TWO + "instance_group { kind: KIND_GPU gpus: [0] }\n", "gpu")
    write(root, saving(Linear()), None, "none")
    with ServerProcess(root, "--exit-on-error=false", *COUNTS, env=ENV, start_s=110) as process:
        yield process


@pytest.mark.parametrize("model", ["script", "exported", "classes"])
@pytest.mark.parametrize("rows", [1, 4])
def test_results_are_torchs(server: ServerProcess, model: str, rows: int) -> None:
    given, expected = arrays(rows)
    found = infer(server.http, model, given)
    for name, array in zip(("OUTPUT__0", "OUTPUT__1"), expected, strict=True):
        assert found[name].tobytes() == array.tobytes()


def test_many_at_once(server: ServerProcess) -> None:
    """Requests of many sizes share batches on two instances of one module; each gets its own rows."""
    faults: list[BaseException] = []
    cases = [arrays(rows) for rows in range(1, 5)]

    def client(seed: int) -> None:
        try:
            for turn in range(25):
                given, expected = cases[(seed + turn) % 4]
                found = infer(server.http, "script", given)
                np.testing.assert_allclose(found["OUTPUT__0"], expected[0], rtol=1e-5, atol=1e-6)
                assert found["OUTPUT__1"].tobytes() == expected[1].tobytes()
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_completed_configs(server: ServerProcess) -> None:
    found = config(server.http, "exported")
    assert (found["backend"], found["platform"], found["max_batch_size"]) == ("pytorch", "torch_aoti", 4)
    shown = [(one["name"], one["data_type"], [int(dim) for dim in one["dims"]]) for one in found["input"]]
    assert shown == [("x", "TYPE_FP32", [4]), ("y", "TYPE_FP32", [3])]
    assert config(server.http, "bf16")["input"][0]["data_type"] == "TYPE_BF16"
    assert config(server.http, "script")["platform"] == "pytorch_libtorch"


def test_faults_stay_with_their_model(server: ServerProcess) -> None:
    rows = index(server.http)
    reasons = {
        "broken": "unable to load model 'broken', 'broken/1/model.pt' is not a model of PyTorch",
        "count": "unable to load model 'count', configuration expects 1 inputs, model provides 2",
        "none": "write input and output into config.pbtxt; its inputs are 'x', 'y'",
    }
    if not torch.cuda.is_available():
        reasons["gpu"] = "has kind KIND_GPU but no GPUs are available"
    for name, text in reasons.items():
        assert rows[name]["state"] == "UNAVAILABLE"
        assert text in rows[name]["reason"]
        assert str(FOUND) not in rows[name]["reason"]
    assert rows["script"]["state"] == "READY"


def test_a_class_that_raises(server: ServerProcess) -> None:
    given, _ = arrays(1)
    answer = raw.ask(server.http, request("bare", {**given, "x": given["x"] + 1e7}))
    assert answer.status == 500
    assert "PyTorch execute failure: x is too large" in answer.error
    assert infer(server.http, "bare", given)["OUTPUT__1"].tobytes() == (given["x"] - 1).tobytes()


def test_a_class_has_the_threads_that_are_given(server: ServerProcess) -> None:
    """Those of the flags, and of the model's own config before them."""
    found = infer(server.http, "threads", {"x": np.zeros((1, 2), np.float32)})
    assert found["y"].ravel().tolist() == [3, 2]


def test_the_gil_is_free_while_torch_computes(server: ServerProcess) -> None:
    """The loop thread answers while the only instance of a slow model is at work: a held GIL would let it wait."""
    ended = threading.Event()

    def slow() -> None:
        infer(server.http, "slow", {"x": np.ones((1, 1), np.float32)})
        ended.set()

    infer(server.http, "slow", {"x": np.ones((1, 1), np.float32)})
    thread = threading.Thread(target=slow)
    thread.start()
    during = 0
    while not ended.is_set():
        raw.ask(server.http, raw.get("/v2/health/live"))
        during += not ended.is_set()
    thread.join()
    assert during >= 1
