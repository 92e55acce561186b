"""What the server costs around ONNX Runtime on a GPU: throughput against a plain loop that calls onnxruntime itself.

Run from the repository root as ``python -m bench.gpu.onnxruntime [--seconds N] [--kind KIND_CPU]``. Prints lines
``GPU-TABLE: name | value``; asserts nothing.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.gpu import load
from tests.helpers import onnx_models as models
from tests.helpers.binary_http import HEADER_LENGTH, BinaryClient, request
from tests.helpers.onnx_repository import write
from tests.helpers.server import ROOT, ServerProcess
from triton_fast.backends.onnxruntime import library, providers

MAX_BATCH, INSTANCES = 8, 2
CONFIG = (
    'backend: "onnxruntime"\nmax_batch_size: {}\ndynamic_batching {{ }}\n'
    "instance_group [{{ count: {} kind: {} }}]\n"
)
MLP, CONV = ("MLP, 48 x 4096x4096", (4096,)), ("conv net, 20 x 3x3x128", (3, 64, 64))


def say(name: str, value: str) -> None:
    print(f"GPU-TABLE: {name} | {value}", flush=True)


def plain_session(path: Path, cuda: bool) -> Callable[[str, Mapping[str, np.ndarray]], Any]:
    """A call of onnxruntime's own Python API, also where only the package's extension is there."""
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"] if cuda else ["CPUExecutionProvider"]
    folder = library.find_library().parent
    if (folder.parent / "__init__.py").is_file():
        sys.path.insert(0, str(folder.parents[1]))
        session: Any = importlib.import_module("onnxruntime").InferenceSession(str(path), providers=names)
        more: tuple[None, ...] = ()
    else:
        sys.path.insert(0, str(folder))
        native = importlib.import_module("onnxruntime_pybind11_state")
        session = native.InferenceSession(native.SessionOptions(), str(path), True, False)
        session.initialize_session(names, [{} for _ in names], set())
        more = (None,)
    if session.get_providers()[0] != names[0]:
        raise SystemExit(f"the plain loop would run on {session.get_providers()}")
    return lambda output, inputs: session.run([output], inputs, *more)


def plain_loop(path: Path, shape: tuple[int, ...], batch: int, seconds: float, cuda: bool) -> tuple[float, float]:
    """Rows per second and ms per call, with the same input each time."""
    run = plain_session(path, cuda)
    given = {"INPUT0": np.random.default_rng(2).standard_normal((batch, *shape)).astype(np.float32)}
    for _ in range(10):
        run("OUTPUT0", given)
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        run("OUTPUT0", given)
        calls += 1
    took = time.perf_counter() - began
    return calls * batch / took, took / calls * 1e3


def request_file(root: Path, name: str, shape: tuple[int, ...]) -> Path:
    row = np.random.default_rng(2).standard_normal((1, *shape)).astype(np.float32)
    body, json_size = request({"INPUT0": row})
    head = (
        f"POST /v2/models/{name}/infer HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
        f"{HEADER_LENGTH}: {json_size}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    file = root / f"{name}.request"
    file.write_bytes(head.encode() + body)
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--kind", default="KIND_GPU")
    parser.add_argument("--small", action="store_true", help="tiny models, to see that it runs")
    args = parser.parse_args()
    cuda = args.kind == "KIND_GPU"
    if cuda and (reason := providers.why_not("cuda")):
        raise SystemExit(f"no GPU for ONNX Runtime: {reason}")
    config = CONFIG.format(MAX_BATCH, INSTANCES, args.kind)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        root = scratch / "repository"
        mlp = models.wide_mlp(64, 4) if args.small else models.wide_mlp()
        conv = models.conv_net(16, 8, 2) if args.small else models.conv_net(64, 128, 20)
        shapes = {"mlp": (64,) if args.small else MLP[1], "conv": (3, 16, 16) if args.small else CONV[1]}
        for name, blob in (("mlp", mlp), ("conv", conv)):
            write(root, blob, config, name=name)
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
        served: dict[tuple[str, int], tuple[float, int, float]] = {}
        with ServerProcess(root, env={"PYTHONPATH": path}) as process:
            client = BinaryClient(process.http)
            for name, shape in shapes.items():
                file = request_file(scratch, name, shape)
                for connections in (32, 1):
                    served[name, connections] = measure(client, file, connections, args.seconds)
            client.close()
        for (name, connections), (rate, batch, errors) in served.items():
            model = root / name / "1" / "model.onnx"
            plain, ms = plain_loop(model, shapes[name], batch, args.seconds / 2, cuda)
            title = f"ONNX Runtime, {MLP[0] if name == 'mlp' else CONV[0]}, c={connections}"
            say(f"{title}, batches of {batch}", f"{rate:.0f} rows/s, errors {errors:.0f}")
            say(f"{title}, plain loop", f"{plain:.0f} rows/s, {ms:.2f} ms a call")
            say(f"{title}, server / plain loop", f"{rate / plain:.2f}x")


def measure(client: BinaryClient, file: Path, connections: int, seconds: float) -> tuple[float, int, float]:
    """Rows per second, rows of a batch, errors."""
    name = file.stem

    def counts() -> tuple[int, int]:
        row = client.get(f"/v2/models/{name}/stats")["model_stats"][0]
        return row["inference_count"], row["execution_count"]

    load.run(client.address, file, connections, 0.2, 0.8)
    before = counts()
    found = load.run(client.address, file, connections, seconds, 0.3)
    after = counts()
    batch = round((after[0] - before[0]) / max(1, after[1] - before[1]))
    return found["requests"] / found["seconds"], max(1, batch), found["errors"]


if __name__ == "__main__":
    main()
