"""Write a model that adds and subtracts: python examples/add_sub/build.py [model.onnx].

Its repository folder has no config.pbtxt: the server completes the configuration from the ONNX file.
"""

from __future__ import annotations

import sys
from pathlib import Path

from onnx import TensorProto, checker, helper, save

TARGET = Path(__file__).resolve().parents[1] / "models" / "add_sub" / "1" / "model.onnx"
SHAPE = ["batch", 4]


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    graph = helper.make_graph(
        [helper.make_node("Add", ["A", "B"], ["SUM"]), helper.make_node("Sub", ["A", "B"], ["DIFFERENCE"])],
        "add_sub",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in ("A", "B")],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in ("SUM", "DIFFERENCE")],
    )
    model = helper.make_model(graph, producer_name="triton_fast examples", ir_version=8,
                              opset_imports=[helper.make_opsetid("", 13)])
    checker.check_model(model)
    target.parent.mkdir(parents=True, exist_ok=True)
    save(model, target)


if __name__ == "__main__":
    main()
