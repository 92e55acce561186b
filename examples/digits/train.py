"""Train the digits network and write it as ONNX: python examples/digits/train.py [model.onnx].

Fixed split and seed, no GPU and no deep-learning framework; some seconds on one core.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import cnn
import data
import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper, save

TARGET = Path(__file__).resolve().parents[1] / "models" / "digits" / "1" / "model.onnx"
EPOCHS = 20
# Old enough for every onnxruntime that the project supports; a newer onnx package would choose higher ones.
OPSET, IR_VERSION = 13, 8


def to_onnx(params: cnn.Params):
    """The same network as a graph: pixels 0..16 in, softmax scores out, any batch size."""
    shapes = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    pooling = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        helper.make_node("Mul", ["image", "scale"], ["x"]),
        helper.make_node("Conv", ["x", "w1", "b1"], ["a1"], **shapes),
        helper.make_node("Relu", ["a1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], **pooling),
        helper.make_node("Conv", ["p1", "w2", "b2"], ["a2"], **shapes),
        helper.make_node("Relu", ["a2"], ["r2"]),
        helper.make_node("MaxPool", ["r2"], ["p2"], **pooling),
        helper.make_node("Flatten", ["p2"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
    ]
    constants = {"scale": np.array(1 / cnn.PIXEL_MAX, np.float32), **params}
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", cnn.CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, producer_name="triton_fast examples", ir_version=IR_VERSION,
                              opset_imports=[helper.make_opsetid("", OPSET)])
    checker.check_model(model)
    return model


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    started = time.perf_counter()
    images, _, labels, _ = data.load()
    params, loss = cnn.train(images, labels, epochs=EPOCHS, seed=data.SEED)
    target.parent.mkdir(parents=True, exist_ok=True)
    save(to_onnx(params), target)
    print(f"digits: trained on {len(images)} images in {time.perf_counter() - started:.1f} s, loss {loss:.4f}")


if __name__ == "__main__":
    main()
