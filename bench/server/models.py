"""The model repositories of the benchmark: ONNX for triton_fast, Python identity models for the real Triton."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

HIDDEN = 64
WIDTH = {"mlp": 16, "identity": 150528}  # elements of INPUT and of OUTPUT; 150528 floats are one 3x224x224 image
MAX_BATCH = {"mlp": 64, "identity": 8}

CONFIG = """backend: "{backend}"
max_batch_size: {max_batch}
input [ {{ name: "INPUT" data_type: TYPE_FP32 dims: [ {width} ] }} ]
output [ {{ name: "OUTPUT" data_type: TYPE_FP32 dims: [ {width} ] }} ]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
dynamic_batching {{ }}
"""

PYTHON_IDENTITY = '''import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor("OUTPUT", pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy())]
            )
            for request in requests
        ]
'''


def sample(model: str) -> np.ndarray:
    """The one input that is sent over and over, float32 of shape (width,)."""
    return np.random.default_rng(7).uniform(-1, 1, WIDTH[model]).astype("<f4")


def weights() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(11)
    width = WIDTH["mlp"]
    shapes = ((width, HIDDEN), (HIDDEN,), (HIDDEN, width), (width,))
    return tuple((rng.standard_normal(shape) / 4).astype(np.float32) for shape in shapes)


def expected(model: str) -> np.ndarray:
    """What the model answers to ``sample(model)``, computed by numpy."""
    values = sample(model)
    if model == "identity":
        return values
    w1, b1, w2, b2 = weights()
    return np.maximum(values @ w1 + b1, 0) @ w2 + b2


def write_onnx(repository: Path) -> None:
    """Two dense layers with a ReLU between them, and a plain copy."""
    constants = dict(zip(("w1", "b1", "w2", "b2"), weights(), strict=True))
    mlp = [
        helper.make_node("Gemm", ["INPUT", "w1", "b1"], ["a1"]),
        helper.make_node("Relu", ["a1"], ["r1"]),
        helper.make_node("Gemm", ["r1", "w2", "b2"], ["OUTPUT"]),
    ]
    identity = [helper.make_node("Identity", ["INPUT"], ["OUTPUT"])]
    for name, nodes, values in (("mlp", mlp, constants), ("identity", identity, {})):
        shape = ["batch", WIDTH[name]]
        graph = helper.make_graph(
            nodes,
            name,
            [helper.make_tensor_value_info("INPUT", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("OUTPUT", TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(value, key) for key, value in values.items()],
        )
        model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
        version = _folder(repository, name, "onnxruntime")
        save(model, version / "model.onnx")


def write_python(repository: Path) -> None:
    """Models of the same names, shapes and scheduling that copy their input, for a Triton without an ONNX backend."""
    for name in WIDTH:
        (_folder(repository, name, "python") / "model.py").write_text(PYTHON_IDENTITY)


def _folder(repository: Path, name: str, backend: str) -> Path:
    version = repository / name / "1"
    version.mkdir(parents=True)
    text = CONFIG.format(backend=backend, max_batch=MAX_BATCH[name], width=WIDTH[name])
    (version.parent / "config.pbtxt").write_text(text)
    return version
