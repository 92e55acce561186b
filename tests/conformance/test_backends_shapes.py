"""Shapes through every backend: no dimensions, any dimensions, none of a dimension, no rows, inputs that may be absent.

Models are y = x + x, so that what comes back tells of its shape and its values.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from tests.conformance.backend_forms import NO_TORCH, OPENVINO, TREELITE, environment, write_forest
from tests.helpers import onnx_models, raw
from tests.helpers.server import ServerProcess
from tests.integration.onnx_files import infer, request

BACKENDS = {
    "onnxruntime": "", "openvino": "" if OPENVINO else "openvino is missing: pip install 'triton_fast[openvino]'",
    "pytorch": NO_TORCH, "python": "",
}  # fmt: skip
# Kind -> shape that the model has, max_batch_size, dims of the config.
KINDS: dict[str, tuple[tuple[int, ...], int, str]] = {
    "dynamic": ((-1, -1, -1), 4, "dims: [-1, -1]"),
    "free": ((-1, -1), 0, "dims: [-1, -1]"),
    "scalar": ((), 0, "dims: [1]"),
    "column": ((-1,), 4, "dims: [1] reshape { shape: [] }"),
    "any size": ((-1, 3), 0, "dims: [-1, 3]"),
}
SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "dynamic": ((1, 3, 2), (4, 1, 5), (2, 0, 3), (1, 2, 0), (3, 0, 0)),
    "free": ((2, 3), (0, 3), (3, 0), (0, 0), (1, 1)),
    "scalar": ((1,),),
    "column": ((1, 1), (4, 1)),
    "any size": ((0, 3), (5, 3)),
}
PYTHON = """import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        found = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            more = pb_utils.get_input_tensor_by_name(request, "more")
            y = x + (x if more is None else more.as_numpy())
            found.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]))
        return found
"""


def onnx(shape: tuple[int, ...]) -> bytes:
    # Dimensions without names are any; the first is the batch.
    dims: list[int | str | None] = [None] * len(shape)
    dims[:1] = ["n"] * bool(shape)
    for at, size in enumerate(shape):
        dims[at] = size if size >= 0 else dims[at]
    node = helper.make_node("Add", ["x", "x"], ["y"])
    made = onnx_models._model([node], [onnx_models._info("x", "FP32", dims)], [onnx_models._info("y", "FP32", dims)])
    return made.SerializeToString()


def put_onnx(folder: Path, shape: tuple[int, ...]) -> None:
    (folder / "model.onnx").write_bytes(onnx(shape))


def put_openvino(folder: Path, shape: tuple[int, ...]) -> None:
    from tests.helpers import openvino_models as models

    given = models.ops.parameter(list(shape), np.float32)
    made = models.model({"x": given}, {"y": models.ops.add(given, given)})
    models.ov.save_model(made, folder / "model.xml", compress_to_fp16=False)


def put_torch(folder: Path, shape: tuple[int, ...]) -> None:
    import torch

    from tests.helpers.torch_models import saving

    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor, more: torch.Tensor | None = None) -> torch.Tensor:
            return x + x if more is None else x + more

    del shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saving(Twice())(str(folder / "model.pt"))


def put_python(folder: Path, shape: tuple[int, ...]) -> None:
    del shape
    (folder / "model.py").write_text(PYTHON)


PUT: dict[str, Callable[[Path, tuple[int, ...]], None]] = {
    "onnxruntime": put_onnx, "openvino": put_openvino, "pytorch": put_torch, "python": put_python,
}  # fmt: skip


def name_of(backend: str, kind: str) -> str:
    return f"{backend}_{kind.replace(' ', '_')}"


def config(backend: str, batch: int, dims: str, more: str = "") -> str:
    return (
        f'backend: "{backend}"\nmax_batch_size: {batch}\n'
        f'input [{{ name: "x" data_type: TYPE_FP32 {dims} }}]\n{more}'
        f'output [{{ name: "y" data_type: TYPE_FP32 {dims} }}]\n'
        "instance_group [{ count: 1 kind: KIND_CPU }]\n"
    )


def add(root: Path, name: str, text: str) -> Path:
    folder = root / name / "1"
    folder.mkdir(parents=True)
    (root / name / "config.pbtxt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("shapes")
    for backend, missing in BACKENDS.items():
        for kind, (shape, batch, dims) in KINDS.items():
            if not missing:
                PUT[backend](add(root, name_of(backend, kind), config(backend, batch, dims)), shape)
        if not missing and backend in OPTIONAL:
            more = 'input [{ name: "more" data_type: TYPE_FP32 dims: [2] optional: true }]\n'
            folder = add(root, f"{backend}_optional", config(backend, 0, "dims: [2]", more))
            PUT[backend](folder, (2,))
    weights = [numpy_helper.from_array(np.array([5, 7], np.float32), "more")]
    node = helper.make_node("Add", ["x", "more"], ["y"])
    x, y, other = (onnx_models._info(name, "FP32", (2,)) for name in ("x", "y", "more"))
    (root / "onnxruntime_optional/1/model.onnx").write_bytes(
        onnx_models._model([node], [x, other], [y], weights).SerializeToString()
    )
    if TREELITE:
        text = 'backend: "fil"\nmax_batch_size: 0\nparameters { key: "predict_proba" value { string_value: "true" } }\n'
        write_forest(add(root, "fil_any_size", text), [], False)
    with ServerProcess(root, env=environment(), start_s=110) as process:
        yield process


def each(names: Any) -> list[Any]:
    return [
        pytest.param(name, marks=[pytest.mark.skip(reason=BACKENDS[name])] if BACKENDS[name] else []) for name in names
    ]


# What the model makes of a missing input.
OPTIONAL = {"onnxruntime": [5, 7], "pytorch": [1, 2], "python": [1, 2]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", each(BACKENDS))
def test_shapes(server: ServerProcess, backend: str, kind: str) -> None:
    for shape in SHAPES[kind]:
        x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        y = infer(server.http, name_of(backend, kind), {"x": x})["y"]
        assert (y.shape, y.tolist()) == (shape, (2 * x).tolist())


@pytest.mark.parametrize("backend", each(BACKENDS))
def test_no_rows(server: ServerProcess, backend: str) -> None:
    """A model with a batch dimension is never asked about none; Triton checks the size of one row first."""
    for shape, text in (((0, 3, 2), "Expected 24, got 0"), ((0, 0, 2), "batch-size must be >= 1 for ")):
        answer = raw.ask(server.http, request(name_of(backend, "dynamic"), {"x": np.zeros(shape, np.float32)}))
        assert answer.status == 400
        assert text in answer.error


@pytest.mark.parametrize("backend", each(OPTIONAL))
def test_optional_inputs(server: ServerProcess, backend: str) -> None:
    x, more = np.array([1, 2], np.float32), np.array([10, 20], np.float32)
    model = f"{backend}_optional"
    assert infer(server.http, model, {"x": x, "more": more})["y"].tolist() == [11, 22]
    assert infer(server.http, model, {"x": x})["y"].tolist() == (x + OPTIONAL[backend]).tolist()


@pytest.mark.skipif(not TREELITE, reason="needs treelite: pip install 'triton_fast[fil]'")
def test_forests_of_any_number_of_rows(server: ServerProcess) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    whole = infer(server.http, "fil_any_size", {"input__0": rows})["output__0"]
    assert whole.shape == (3, 3)
    for count in (0, 1, 2):
        found = infer(server.http, "fil_any_size", {"input__0": rows[:count]})["output__0"]
        assert (found.shape, found.tolist()) == ((count, 3), whole[:count].tolist())
