"""Train the voice-activity network and write it as ONNX: python examples/streaming/train.py [model.onnx].

The state goes in and comes out as tensors, so that a server can carry it for each stream. Fixed seeds, no deep-learning
framework; some seconds on one core.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import speech
import vad
from onnx import TensorProto, checker, helper, numpy_helper, save

TARGET = Path(__file__).resolve().parents[1] / "models" / "voice_activity" / "1" / "model.onnx"
RECORDINGS, EPOCHS, SEED = 200, 24, 5
OPSET, IR_VERSION = 13, 8


def to_onnx(p: vad.Params, mean: np.ndarray, scale: np.ndarray):
    """One step of the network for a batch of streams."""
    h = vad.HIDDEN
    names = ("az", "ag", "ac"), ("rz", "rg", "rc")
    nodes = [
        # START is 1 in a stream's first frame: whatever the state was, it does not count.
        helper.make_node("Sub", ["one", "START"], ["keep"]),
        helper.make_node("Mul", ["PREVIOUS", "keep"], ["previous"]),
        helper.make_node("Mul", ["HIDDEN", "keep"], ["hidden"]),
        helper.make_node("Concat", ["previous", "FRAME"], ["window"], axis=1),
        helper.make_node("MatMul", ["window", "cosine"], ["re"]),
        helper.make_node("MatMul", ["window", "sine"], ["im"]),
        helper.make_node("Mul", ["re", "re"], ["re2"]),
        helper.make_node("Mul", ["im", "im"], ["im2"]),
        helper.make_node("Add", ["re2", "im2"], ["power"]),
        helper.make_node("MatMul", ["power", "bands"], ["energy"]),
        helper.make_node("Add", ["energy", "floor"], ["floored"]),
        helper.make_node("Log", ["floored"], ["logs"]),
        helper.make_node("Sub", ["logs", "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "scale"], ["x"]),
        helper.make_node("Gemm", ["x", "wx", "b"], ["a"]),
        helper.make_node("MatMul", ["hidden", "wh"], ["r"]),
        *(helper.make_node("Split", [source, "thirds"], list(parts), axis=1)
          for source, parts in zip("ar", names, strict=True)),
        helper.make_node("Add", ["az", "rz"], ["sz"]),
        helper.make_node("Sigmoid", ["sz"], ["z"]),
        helper.make_node("Add", ["ag", "rg"], ["sg"]),
        helper.make_node("Sigmoid", ["sg"], ["g"]),
        helper.make_node("Mul", ["g", "rc"], ["gc"]),
        helper.make_node("Add", ["ac", "gc"], ["sc"]),
        helper.make_node("Tanh", ["sc"], ["c"]),
        helper.make_node("Sub", ["hidden", "c"], ["gap"]),
        helper.make_node("Mul", ["z", "gap"], ["part"]),
        helper.make_node("Add", ["c", "part"], ["NEXT_HIDDEN"]),
        helper.make_node("Identity", ["FRAME"], ["NEXT_PREVIOUS"]),
        helper.make_node("Gemm", ["NEXT_HIDDEN", "wo", "bo"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["SPEECH"]),
    ]  # fmt: skip
    constants = {
        **vad.spectrum(), **p, "mean": mean, "scale": scale, "one": np.array(1, np.float32),
        "floor": np.array(1e-4, np.float32), "thirds": np.array([h, h, h], np.int64),
    }  # fmt: skip

    def tensors(**sizes: int) -> list:
        return [helper.make_tensor_value_info(k, TensorProto.FLOAT, ["streams", n]) for k, n in sizes.items()]

    graph = helper.make_graph(
        nodes, "voice_activity",
        tensors(FRAME=vad.FRAME, START=1, PREVIOUS=vad.FRAME, HIDDEN=h),
        tensors(SPEECH=1, NEXT_PREVIOUS=vad.FRAME, NEXT_HIDDEN=h),
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, producer_name="triton_fast examples", ir_version=IR_VERSION,
                              opset_imports=[helper.make_opsetid("", OPSET)])  # fmt: skip
    checker.check_model(model)
    return model


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    started = time.perf_counter()
    fixed = vad.spectrum()
    made = [speech.recording(seed) for seed in range(RECORDINGS)]
    x = np.stack([vad.energies(samples, fixed) for samples, _ in made])
    mean, scale = x.mean(axis=(0, 1)), 1 / x.std(axis=(0, 1))
    y = np.stack([labels for _, labels in made]).astype(np.float32)
    params, loss = vad.train((x - mean) * scale, y, epochs=EPOCHS, seed=SEED)
    target.parent.mkdir(parents=True, exist_ok=True)
    save(to_onnx(params, mean.astype(np.float32), scale.astype(np.float32)), target)
    print(
        f"voice_activity: trained on {RECORDINGS} recordings in {time.perf_counter() - started:.1f} s, loss {loss:.4f}"
    )


if __name__ == "__main__":
    main()
