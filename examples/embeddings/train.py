"""Learn the tokenizer and the encoder: python examples/embeddings/train.py [models].

Fixed split and seed, no GPU and no deep-learning framework; half a minute on one core.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import encoder
import numpy as np
import texts
from onnx import TensorProto, checker, helper, numpy_helper, save

sys.path.insert(0, str(Path(__file__).resolve().parent / "models" / "tokenizer" / "1"))
import bpe

MODELS = Path(__file__).resolve().parent / "models"
TOKENS, LENGTH, EPOCHS, SEED = 2000, 128, 8, 3
# Old enough for every onnxruntime that the project supports; a newer onnx package would choose higher ones.
OPSET, IR_VERSION = 13, 8


def counts(tokenizer: bpe.Tokenizer, documents: list[str]) -> np.ndarray:
    """How often each text has each token, padding left out."""
    made = np.zeros((len(documents), len(tokenizer.tokens)), np.float32)
    for row, document in zip(made, documents, strict=True):
        numbers, times = np.unique(tokenizer.encode(document, LENGTH), return_counts=True)
        row[numbers] = times
    made[:, bpe.PADDING] = 0
    return made


def to_onnx(params: encoder.Params):
    """The encoder as a graph: numbers of tokens in, a vector of length 1 out, any number of texts."""
    weight = np.exp(params["weight"])[:, None]
    weight[bpe.PADDING] = 0
    constants = {
        "table": params["table"] * weight, "weight": weight, "w1": params["w1"], "b1": params["b1"], "w2": params["w2"],
        "tokens": np.array([1], np.int64), "least": np.array(1e-6, np.float32),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "ids"], ["vectors"]),
        node("Gather", ["weight", "ids"], ["weights"]),
        node("ReduceSum", ["vectors", "tokens"], ["sum"], keepdims=0),
        node("ReduceSum", ["weights", "tokens"], ["total"], keepdims=0),
        node("Add", ["total", "least"], ["divisor"]),
        node("Div", ["sum", "divisor"], ["mean"]),
        node("Gemm", ["mean", "w1", "b1"], ["first"]),
        node("Tanh", ["first"], ["hidden"]),
        node("MatMul", ["hidden", "w2"], ["second"]),
        node("Add", ["mean", "second"], ["out"]),
        node("LpNormalization", ["out"], ["embedding"], axis=1, p=2),
    ]
    graph = helper.make_graph(
        nodes, "encoder", [helper.make_tensor_value_info("ids", TensorProto.INT32, ["batch", LENGTH])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", encoder.WIDTH])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, producer_name="triton_fast examples", ir_version=IR_VERSION,
                              opset_imports=[helper.make_opsetid("", OPSET)])  # fmt: skip
    checker.check_model(model)
    return model


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else MODELS
    started = time.perf_counter()
    training, _ = texts.load()
    tokens, merges = bpe.learn([f"{text.head} {text.rest}" for text in training], TOKENS)
    tokenizer = bpe.Tokenizer(tokens, merges)
    heads = counts(tokenizer, [text.head for text in training])
    rests = counts(tokenizer, [text.rest or text.head for text in training])
    params, loss = encoder.train(heads, rests, epochs=EPOCHS, seed=SEED)
    for name in ("tokenizer", "encoder"):
        (target / name / "1").mkdir(parents=True, exist_ok=True)
    content = {"length": LENGTH, "tokens": tokens, "merges": merges}
    (target / "tokenizer" / "1" / "tokens.json").write_text(json.dumps(content))
    save(to_onnx(params), target / "encoder" / "1" / "model.onnx")
    print(f"embeddings: {len(tokens)} tokens and an encoder learned from {len(training)} texts in "
          f"{time.perf_counter() - started:.1f} s, loss {loss:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
