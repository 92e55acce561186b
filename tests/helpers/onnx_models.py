"""Small real ONNX models for tests, made with the onnx package. Each function returns the bytes of a .onnx file.

Knows nothing of the server. Batched models name their first dimension "batch"; others are fixed or fully variable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Dims = Sequence[int | str | None]

# config name -> ONNX element type, for every datatype of the v2 protocol
ELEMENT = {
    "BOOL": TensorProto.BOOL, "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16, "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64, "INT8": TensorProto.INT8, "INT16": TensorProto.INT16, "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64, "FP16": TensorProto.FLOAT16, "FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE,
    "STRING": TensorProto.STRING, "BF16": TensorProto.BFLOAT16,
}  # fmt: skip


def _info(name: str, kind: str, dims: Dims) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, ELEMENT[kind], list(dims))


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[onnx.TensorProto] = (),
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if metadata:
        helper.set_model_props(model, dict(metadata))
    return model


def identity(kind: str = "FP32", dims: Dims = ("batch", 4), metadata: Mapping[str, str] | None = None) -> bytes:
    """OUTPUT0 = INPUT0, of any datatype and shape."""
    node = helper.make_node("Identity", ["INPUT0"], ["OUTPUT0"])
    model = _model([node], [_info("INPUT0", kind, dims)], [_info("OUTPUT0", kind, dims)], metadata=metadata)
    return model.SerializeToString()


def passthrough(kind: str = "FP32", dims: Dims = ("batch", 4)) -> bytes:
    """A graph input that is a graph output without a node between them, beside a computed output."""
    node = helper.make_node("Identity", ["INPUT0"], ["COPY"])
    infos = [_info("INPUT0", kind, dims), _info("COPY", kind, dims)]
    return _model([node], [_info("INPUT0", kind, dims)], infos).SerializeToString()


def count_twice(count: int) -> bytes:
    """Y = how many of the ``count`` BOOLs C are true, less those that Compress finds, so 0; X: as many INT64."""
    nodes = [
        helper.make_node("Cast", ["C"], ["ones"], to=TensorProto.INT64),
        helper.make_node("ReduceSum", ["ones"], ["sum"]), helper.make_node("Compress", ["X", "C"], ["kept"]),
        helper.make_node("Shape", ["kept"], ["size"]), helper.make_node("Sub", ["sum", "size"], ["Y"]),
    ]  # fmt: skip
    inputs = [_info("X", "INT64", [count]), _info("C", "BOOL", [count])]
    return _model(nodes, inputs, [_info("Y", "INT64", [1])]).SerializeToString()


def add_sub(kind: str = "INT32", dims: Dims = ("batch", 16)) -> bytes:
    """OUTPUT0 = INPUT0 + INPUT1, OUTPUT1 = INPUT0 - INPUT1."""
    nodes = [
        helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
        helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]),
    ]
    inputs = [_info("INPUT0", kind, dims), _info("INPUT1", kind, dims)]
    outputs = [_info("OUTPUT0", kind, dims), _info("OUTPUT1", kind, dims)]
    return _model(nodes, inputs, outputs).SerializeToString()


def mlp(features: int = 16, hidden: int = 16, classes: int = 4, seed: int = 7) -> bytes:
    """Two dense layers with a Relu between them, softmax at the end; dynamic batch."""
    rng = np.random.default_rng(seed)
    shapes = {"w1": (features, hidden), "b1": (hidden,), "w2": (hidden, classes), "b2": (classes,)}
    weights = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Gemm", ["INPUT", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"]),
        helper.make_node("Softmax", ["y"], ["OUTPUT"], axis=-1),
    ]
    return _model(
        nodes, [_info("INPUT", "FP32", ("batch", features))], [_info("OUTPUT", "FP32", ("batch", classes))], weights
    ).SerializeToString()


def scalar(kind: str = "FP32") -> bytes:
    """OUTPUT0 = INPUT0 + INPUT0, both of rank 0."""
    node = helper.make_node("Add", ["INPUT0", "INPUT0"], ["OUTPUT0"])
    return _model([node], [_info("INPUT0", kind, ())], [_info("OUTPUT0", kind, ())]).SerializeToString()


def row_sum(dims: Dims = ("batch", 4)) -> bytes:
    """OUTPUT0[b] = sum of row b: an output without dimensions beside the batch."""
    weights = [numpy_helper.from_array(np.array([1], np.int64), "axes")]
    node = helper.make_node("ReduceSum", ["INPUT0", "axes"], ["OUTPUT0"], keepdims=0)
    outputs = [_info("OUTPUT0", "FP32", dims[:1])]
    return _model([node], [_info("INPUT0", "FP32", dims)], outputs, weights).SerializeToString()


def batch_loser(symbol: str = "found") -> bytes:
    """OUTPUT0 = (row, column) of each non-zero element, declared ``[symbol, 2]``: as many rows as there are non-zeros.

    OUTPUT1 = INPUT0. With ``symbol="batch"`` the model claims that OUTPUT0 has a row per batch item.
    """
    nodes = [
        helper.make_node("NonZero", ["INPUT0"], ["nz"]),
        helper.make_node("Transpose", ["nz"], ["OUTPUT0"]),
        helper.make_node("Identity", ["INPUT0"], ["OUTPUT1"]),
    ]
    outputs = [_info("OUTPUT0", "INT64", (symbol, 2)), _info("OUTPUT1", "FP32", ("batch", 4))]
    return _model(nodes, [_info("INPUT0", "FP32", ("batch", 4))], outputs).SerializeToString()


def gather(rows: int = 8) -> bytes:
    """OUTPUT0 = table[INDEX]: an index out of range is an error at run time."""
    table = numpy_helper.from_array(np.arange(rows, dtype=np.float32), "table")
    node = helper.make_node("Gather", ["table", "INDEX"], ["OUTPUT0"], axis=0)
    return _model(
        [node], [_info("INDEX", "INT64", ("batch", 1))], [_info("OUTPUT0", "FP32", ("batch", 1))], [table]
    ).SerializeToString()


def nonzero() -> bytes:
    """OUTPUT0 = indices of the non-zero elements: its size is known only after the run."""
    node = helper.make_node("NonZero", ["INPUT0"], ["OUTPUT0"])
    return _model([node], [_info("INPUT0", "FP32", ("n",))], [_info("OUTPUT0", "INT64", (1, "k"))]).SerializeToString()


def overridable(default: Sequence[float] = (1.0, 2.0)) -> bytes:
    """OUTPUT0 = INPUT0 + BIAS, where BIAS is an initializer that a request may override."""
    n = len(default)
    weights = [numpy_helper.from_array(np.array(default, np.float32), "BIAS")]
    node = helper.make_node("Add", ["INPUT0", "BIAS"], ["OUTPUT0"])
    inputs = [_info("INPUT0", "FP32", (n,)), _info("BIAS", "FP32", (n,))]
    return _model([node], inputs, [_info("OUTPUT0", "FP32", (n,))], weights).SerializeToString()


def constant_output(values: Sequence[float] = (3.0, 4.0)) -> bytes:
    """CONSTANT is a weight that is an output too; OUTPUT0 = INPUT0 + CONSTANT."""
    n = len(values)
    weights = [numpy_helper.from_array(np.array(values, np.float32), "CONSTANT")]
    node = helper.make_node("Add", ["INPUT0", "CONSTANT"], ["OUTPUT0"])
    outputs = [_info("OUTPUT0", "FP32", (n,)), _info("CONSTANT", "FP32", (n,))]
    return _model([node], [_info("INPUT0", "FP32", (n,))], outputs, weights).SerializeToString()


def sequence_output() -> bytes:
    """An output that is no tensor: refused at load."""
    node = helper.make_node("SequenceConstruct", ["INPUT0"], ["OUTPUT0"])
    value = helper.make_tensor_sequence_value_info("OUTPUT0", TensorProto.FLOAT, [2])
    return _model([node], [_info("INPUT0", "FP32", (2,))], [value]).SerializeToString()


def matmul_chain(size: int = 256, depth: int = 4, seed: int = 3) -> bytes:
    """``depth`` square matrix products: enough work to be split over threads."""
    rng = np.random.default_rng(seed)
    weights = [
        numpy_helper.from_array((rng.standard_normal((size, size)) / size**0.5).astype(np.float32), f"w{i}")
        for i in range(depth)
    ]
    names = ["INPUT0", *(f"h{i}" for i in range(1, depth)), "OUTPUT0"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(depth)]
    return _model(
        nodes, [_info("INPUT0", "FP32", ("batch", size))], [_info("OUTPUT0", "FP32", ("batch", size))], weights
    ).SerializeToString()


def write_external(target: Path, size: int = 64) -> None:
    """Write ``target/model.onnx`` with its weights in ``target/weights.bin``."""
    target.mkdir(parents=True, exist_ok=True)
    model = onnx.load_from_string(matmul_chain(size, 1))
    onnx.save_model(
        model, str(target / "model.onnx"), save_as_external_data=True, all_tensors_to_one_file=True,
        location="weights.bin", size_threshold=0,
    )  # fmt: skip


def ragged(kind: str = "FP32", made: str = "INT32", flat: bool = True) -> bytes:
    """DOUBLE = all elements of X twice as large (strings: as they are), for batch_output.

    ECHO has the values of the batch input MADE in each row, SHAPES (a BATCH_ITEM_SHAPE) tells how many rows there are.
    ``flat``: MADE has one dimension.
    """
    nodes = [
        helper.make_node("Identity" if kind == "STRING" else "Add", ["X"] * (1 + (kind != "STRING")), ["DOUBLE"]),
        helper.make_node("Reshape", ["MADE", "row"], ["values"]),
        helper.make_node("Shape", ["SHAPES"], ["items"], start=0, end=1),
        helper.make_node("Concat", ["items", "one"], ["repeats"], axis=0),
        helper.make_node("Expand", ["values", "repeats"], ["ECHO"]),
    ]
    weights = [
        numpy_helper.from_array(np.array([1, -1], np.int64), "row"),
        numpy_helper.from_array(np.array([1], np.int64), "one"),
    ]
    inputs = [
        _info("X", kind, ("total",)),
        _info("MADE", made, ("n",) if flat else ("n", "rank")),
        _info("SHAPES", "INT32", ("items", "dims")),
    ]
    outputs = [_info("DOUBLE", kind, ("total",)), _info("ECHO", made, ("items", "k"))]
    return _model(nodes, inputs, outputs, weights).SerializeToString()


def recurrent(size: int = 4, start: str = "FP32", seed: int = 5) -> bytes:
    """A recurrent layer: H = tanh(INPUT W + kept U + b) with kept = HIDDEN_IN, or 0 where START is set.

    Outputs are OUTPUT0 = H, HIDDEN_OUT = H and COUNT_OUT = COUNT_IN + 1, which START sets back, too.
    """
    weights = [numpy_helper.from_array(one, name) for name, one in recurrent_weights(size, seed).items()]
    weights.append(numpy_helper.from_array(np.array([1], np.int64), "one"))
    nodes = [
        helper.make_node("Cast", ["START"], ["start"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["one"], ["one_float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["one_float", "start"], ["keeps"]),
        helper.make_node("Mul", ["HIDDEN_IN", "keeps"], ["kept"]),
        helper.make_node("Gemm", ["INPUT0", "W", "b"], ["x"]),
        helper.make_node("MatMul", ["kept", "U"], ["h"]),
        helper.make_node("Add", ["x", "h"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["OUTPUT0"]),
        helper.make_node("Identity", ["OUTPUT0"], ["HIDDEN_OUT"]),
        helper.make_node("Cast", ["keeps"], ["keeps_int"], to=TensorProto.INT64),
        helper.make_node("Mul", ["COUNT_IN", "keeps_int"], ["kept_count"]),
        helper.make_node("Add", ["kept_count", "one"], ["COUNT_OUT"]),
    ]
    row = ("batch", size)
    inputs = [_info("INPUT0", "FP32", row), _info("START", start, ("batch", 1)), _info("HIDDEN_IN", "FP32", row),
              _info("COUNT_IN", "INT64", ("batch", 1))]  # fmt: skip
    outputs = [_info("OUTPUT0", "FP32", row), _info("HIDDEN_OUT", "FP32", row)]
    outputs.append(_info("COUNT_OUT", "INT64", ("batch", 1)))
    return _model(nodes, inputs, outputs, weights).SerializeToString()


def recurrent_weights(size: int = 4, seed: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"W": (size, size), "U": (size, size), "b": (size,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def controls(kind: str = "INT32", corrid: str = "UINT64") -> bytes:
    """Every control as an output of its own, SEEN_<name>, beside OUTPUT0 = INPUT0."""
    kinds = {"INPUT0": "INT32", "START": kind, "END": kind, "READY": kind, "CORRID": corrid}
    nodes = [
        helper.make_node("Identity", [name], ["OUTPUT0" if name == "INPUT0" else f"SEEN_{name}"]) for name in kinds
    ]
    inputs = [_info(name, of, ("batch", 1)) for name, of in kinds.items()]
    outputs = [
        _info("OUTPUT0" if name == "INPUT0" else f"SEEN_{name}", of, ("batch", 1)) for name, of in kinds.items()
    ]
    return _model(nodes, inputs, outputs).SerializeToString()


def appended() -> bytes:
    """OUTPUT0 = LIST_OUT = LIST_IN with INPUT0 behind it: a state that grows. No batch dimension."""
    nodes = [
        helper.make_node("Concat", ["LIST_IN", "INPUT0"], ["LIST_OUT"], axis=0),
        helper.make_node("Identity", ["LIST_OUT"], ["OUTPUT0"]),
    ]
    inputs = [_info("INPUT0", "FP32", (1,)), _info("LIST_IN", "FP32", ("n",))]
    outputs = [_info("OUTPUT0", "FP32", ("k",)), _info("LIST_OUT", "FP32", ("k",))]
    return _model(nodes, inputs, outputs).SerializeToString()


def double(kind: str = "FP32", dims: Dims = ("batch", 8)) -> bytes:
    """OUTPUT0 = INPUT0 + INPUT0, of any datatype of numbers; a kernel, where an identity is a copy."""
    node = helper.make_node("Add", ["INPUT0", "INPUT0"], ["OUTPUT0"])
    return _model([node], [_info("INPUT0", kind, dims)], [_info("OUTPUT0", kind, dims)]).SerializeToString()


def wide_mlp(size: int = 4096, depth: int = 48, seed: int = 3) -> bytes:
    """``depth`` products with one square matrix, which a GPU's cache is too small for from 4096 on."""
    weight = np.random.default_rng(seed).standard_normal((size, size), np.float32) / np.float32(size**0.5)
    names = ["INPUT0", *(f"h{i}" for i in range(1, depth)), "OUTPUT0"]
    nodes = [helper.make_node("MatMul", [names[i], "w"], [names[i + 1]]) for i in range(depth)]
    infos = [_info("INPUT0", "FP32", ("batch", size))], [_info("OUTPUT0", "FP32", ("batch", size))]
    return _model(nodes, *infos, [numpy_helper.from_array(weight, "w")]).SerializeToString()


def conv_net(size: int = 32, channels: int = 16, depth: int = 3, classes: int = 10, seed: int = 3) -> bytes:
    """``depth`` 3x3 convolutions with Relu over images of three colours, the mean of each channel, one dense layer."""
    rng = np.random.default_rng(seed)
    nodes, weights, name, width = [], [], "INPUT0", 3
    for i in range(depth):
        shape = (channels, width, 3, 3)
        value = (rng.standard_normal(shape) * (2 / (9 * width)) ** 0.5).astype(np.float32)
        weights.append(numpy_helper.from_array(value, f"w{i}"))
        nodes.append(helper.make_node("Conv", [name, f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        name, width = f"r{i}", channels
    weights.append(numpy_helper.from_array(rng.standard_normal((channels, classes)).astype(np.float32), "dense"))
    nodes += [
        helper.make_node("GlobalAveragePool", [name], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "dense"], ["OUTPUT0"]),
    ]
    infos = [_info("INPUT0", "FP32", ("batch", 3, size, size))], [_info("OUTPUT0", "FP32", ("batch", classes))]
    return _model(nodes, *infos, weights).SerializeToString()
