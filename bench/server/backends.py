"""What the server costs around each framework: throughput at 32 connections against a plain loop, and copies.

Run from the repository root as ``python -m bench.server.backends [--rounds N] [--seconds N] [--only NAME]``. Both have
the same model and threads, and the loop runs batches of the sizes that the server has just run, as often; their rounds
alternate, and each pair gives a ratio. Prints; asserts nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from bench.server.cases import HEADER_LENGTH
from bench.server.direct import SIZE
from bench.server.load import Wrk
from tests.helpers.server import LocalServer
from triton_fast.scheduling.instances import Starter

CONNECTIONS, MAX_BATCH, DEPTH = 32, 32, 12
MODEL = "m"
# Where a framework takes its number of threads from the environment.
THREADS_ENV = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


# ---- models of some ms a batch: dense layers, or trees


def weights() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [(rng.standard_normal((SIZE, SIZE)) / SIZE**0.5).astype(np.float32) for _ in range(DEPTH)]


def write_onnx(folder: Path) -> None:
    from onnx import helper, numpy_helper

    from tests.helpers import onnx_models as models

    names = ["x", *(f"h{at}" for at in range(1, DEPTH)), "y"]
    nodes = [helper.make_node("MatMul", [names[at], f"w{at}"], [names[at + 1]]) for at in range(DEPTH)]
    info = [models._info(name, "FP32", ("batch", SIZE)) for name in ("x", "y")]
    held = [numpy_helper.from_array(one, f"w{at}") for at, one in enumerate(weights())]
    made = models._model(nodes, info[:1], info[1:], held)
    (folder / "model.onnx").write_bytes(made.SerializeToString())


def write_openvino(folder: Path) -> None:
    from tests.helpers import openvino_models as models

    node = x = models.ops.parameter([-1, SIZE], np.float32)
    for one in weights():
        node = models.ops.matmul(node, models.ops.constant(one), False, False)
    models.ov.save_model(models.model({"x": x}, {"y": node}), folder / "model.xml", compress_to_fp16=False)


def write_forest(folder: Path) -> None:
    import treelite
    from sklearn import ensemble

    rng = np.random.default_rng(3)
    rows = rng.standard_normal((4000, SIZE)).astype(np.float32)
    target = rows[:, :8].sum(1) + rng.standard_normal(4000)
    model = ensemble.ExtraTreesRegressor(500, max_depth=10, max_features=8, random_state=1).fit(rows, target)
    treelite.sklearn.import_model(model).serialize(folder / "checkpoint.tl")


DENSE = f"""import torch


class Dense(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(*[torch.nn.Linear({SIZE}, {SIZE}) for _ in range({DEPTH})])

    def forward(self, x):
        return self.layers(x)
"""


def dense() -> Any:
    names: dict[str, Any] = {}
    exec(DENSE, names)  # noqa: S102
    return names["Dense"]().eval()


def write_script(folder: Path) -> None:
    import torch

    torch.jit.save(torch.jit.trace(dense(), torch.ones(2, SIZE)), str(folder / "model.pt"))


def write_exported(folder: Path) -> None:
    import torch

    rows = ({0: torch.export.Dim("rows", min=1, max=64)},)
    program = torch.export.export(dense(), (torch.ones(2, SIZE),), dynamic_shapes=rows)
    torch.export.save(program, str(folder / "model.pt2"))


def write_class(folder: Path) -> None:
    import torch

    (folder / "model.py").write_text(DENSE)
    torch.save(dense().state_dict(), folder / "model.pt")


PYTHON = f"""import numpy as np
import triton_python_backend_utils as pb_utils

rng = np.random.default_rng(3)
WEIGHTS = [(rng.standard_normal(({SIZE}, {SIZE})) / {SIZE**0.5}).astype(np.float32) for _ in range({DEPTH})]


def compute(x):
    for one in WEIGHTS:
        x = x @ one
    return x


def answer(rows):
    made = compute(np.concatenate(rows) if len(rows) > 1 else rows[0])
    found, at = [], 0
    for one in rows:
        found.append(made[at : at + len(one)])
        at += len(one)
    return found


class TritonPythonModel:
    def execute(self, requests):
        rows = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]) for y in answer(rows)]
"""


def write_python(folder: Path) -> None:
    (folder / "model.py").write_text(PYTHON)


@dataclass(frozen=True)
class Form:
    backend: str
    write: Callable[[Path], None]
    needs: str
    threads: str = ""
    out: int = SIZE
    x: str = "x"
    y: str = "y"
    # Another loop to compare with.
    bare: str = ""

    def config(self, threads: int) -> str:
        more = f'parameters {{ key: "{self.threads}" value {{ string_value: "{threads}" }} }}' if self.threads else ""
        return (
            f'backend: "{self.backend}"\nmax_batch_size: {MAX_BATCH}\ndynamic_batching {{ }}\n'
            f'input [{{ name: "{self.x}" data_type: TYPE_FP32 dims: [{SIZE}] }}]\n'
            f'output [{{ name: "{self.y}" data_type: TYPE_FP32 dims: [{self.out}] }}]\n'
            f"instance_group [{{ count: 1 kind: KIND_CPU }}]\n{more}\n"
        )


FORMS = {
    "onnxruntime": Form("onnxruntime", write_onnx, "onnxruntime", "intra_op_thread_count"),
    "openvino": Form("openvino", write_openvino, "openvino", "INFERENCE_NUM_THREADS"),
    "fil": Form("fil", write_forest, "treelite", "cpu_nthread", 1, "input__0", "output__0"),
    "torchscript": Form("pytorch", write_script, "torch", "INTRA_OP_THREAD_COUNT"),
    "exported": Form("pytorch", write_exported, "torch", "INTRA_OP_THREAD_COUNT"),
    "class": Form("pytorch", write_class, "torch", "INTRA_OP_THREAD_COUNT"),
    "python": Form("python", write_python, "numpy", bare="python_bare"),
}


# ---- the two that are compared


@dataclass(frozen=True)
class Request:
    """What ``Wrk`` sends, as a case of bench.server.cases."""

    name: str
    body: bytes
    headers: Mapping[str, str]
    connections: int


def request(form: Form) -> Any:
    tensor = np.random.default_rng(1).standard_normal((1, SIZE)).astype(np.float32).tobytes()
    head = json.dumps({
        "parameters": {"binary_data_output": True},
        "inputs": [{"name": form.x, "datatype": "FP32", "shape": [1, SIZE],
                    "parameters": {"binary_data_size": len(tensor)}}],
    }).encode()  # fmt: skip
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return Request("backends", head + tensor, headers, CONNECTIONS)


def batches(port: int) -> dict[int, int]:
    """How many there were of each size."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", f"/v2/models/{MODEL}/stats")
    row = json.loads(connection.getresponse().read())["model_stats"][0]
    connection.close()
    return {one["batch_size"]: one["compute_infer"]["count"] for one in row["batch_stats"]}


class Direct:
    """bench.server.direct in a process of its own, which sleeps between its rounds."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        argv = [sys.executable, "-m", "bench.server.direct", name, str(folder), str(threads)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, seconds: float, sizes: Mapping[int, int]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"seconds": seconds, "sizes": sizes}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def processor_ms(others: Collection[int]) -> float:
    """Of the server, which is this process, and of its workers; ``others`` are processes that are none."""
    own = psutil.Process()
    used = sum(own.cpu_times()[:2])
    for child in own.children(recursive=True):
        if child.pid not in others:
            used += sum(child.cpu_times()[:2])
    return used * 1e3


class Watched:
    """The instances that the server makes, for their counters: all in this process, nothing is asked of a request."""

    def __init__(self) -> None:
        self.instances: list[Any] = []
        self._start = Starter.start

    def __enter__(self) -> Watched:
        def start(starter: Any, model: Any, *more: Any) -> Any:
            create = model.create_instance

            def kept(spec: Any) -> Any:
                made = create(spec)
                self.instances.append(made)
                return made

            model.create_instance = kept
            return self._start(starter, model, *more)

        Starter.start = start  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        Starter.start = self._start  # type: ignore[method-assign]
        self.instances.clear()

    def counters(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for instance in self.instances:
            for key, value in (instance.counters() if hasattr(instance, "counters") else {}).items():
                found[key] = found.get(key, 0) + value
        return found


@dataclass(frozen=True)
class Pair:
    """A round of each: rows per second, and the loop's processor time over the server's.

    ``sizes``: the server's batches; ``ms``: of a call, on average; ``bare``: the same two ratios with the other loop.
    On a machine that others use too, processor time says more than the clock.
    """

    rate: float
    sizes: Mapping[int, int]
    plain: float
    ms: float
    processor: float
    bare: tuple[float, float] | None

    @property
    def ratio(self) -> float:
        return self.rate / self.plain


def measure(name: str, rounds: int, seconds: float, threads: int) -> None:
    form = FORMS[name]
    with tempfile.TemporaryDirectory() as scratch, Watched() as watched, contextlib.ExitStack() as stack:
        root = Path(scratch) / "models"
        folder = root / MODEL / "1"
        folder.mkdir(parents=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            form.write(folder)
        (folder.parent / "config.pbtxt").write_text(form.config(threads))
        server = stack.enter_context(LocalServer(root))
        port, path = server.http[1], f"/v2/models/{MODEL}/infer"
        wrk = Wrk(Path(scratch), request(form), seconds)
        loops = [stack.enter_context(contextlib.closing(Direct(one, folder, threads)))
                 for one in (name, form.bare) if one]  # fmt: skip
        others = {loop.pid for loop in loops}
        wrk.run(port, path, 1)
        for loop in loops:
            loop.run(0.5, {MAX_BATCH: 1})
        pairs: list[Pair] = []
        moved: dict[str, int] = {"requests": 0}
        for _ in range(rounds):
            before, copied, used = batches(port), watched.counters(), processor_ms(others)
            row = wrk.run(port, path)
            used = processor_ms(others) - used
            sizes = {size: count - before.get(size, 0) for size, count in batches(port).items()}
            sizes = {size: count for size, count in sizes.items() if count}
            for key, value in watched.counters().items():
                moved[key] = moved.get(key, 0) + value - copied[key]
            inferences = sum(size * count for size, count in sizes.items())
            moved["requests"] += inferences
            assert not any(row["errors"].values()), row["errors"]
            plain, *bare = (loop.run(seconds, sizes) for loop in loops)
            shares = [(row["rate"] / one["rate"], one["cpu_ms"] * inferences / used) for one in (plain, *bare)]
            pairs.append(
                Pair(row["rate"], sizes, plain["rate"], plain["ms"], shares[0][1], shares[1] if bare else None)
            )
        show(name, pairs, moved)


def show(name: str, pairs: list[Pair], moved: dict[str, int]) -> None:
    def middle(key: str) -> float:
        return statistics.median(getattr(pair, key) for pair in pairs)

    ratios = sorted(pair.ratio for pair in pairs)
    sizes: Counter[int] = Counter()
    for pair in pairs:
        sizes.update(pair.sizes)
    mean = sum(size * count for size, count in sizes.items()) / sizes.total()
    often = ", ".join(f"{size} ({count / sizes.total():.0%})" for size, count in sizes.most_common(4))
    print(
        f"{name:12} server {middle('rate'):6.0f} rows/s, loop {middle('plain'):6.0f}, ratio "
        f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f} in {len(pairs)} rounds), by processor "
        f"time {middle('processor'):.2f}\n"
        f"{'':12} batches of {mean:.1f} rows on average, {middle('ms'):.1f} ms each; most often {often}",
        flush=True,
    )
    bare = [pair.bare for pair in pairs if pair.bare is not None]
    if bare:
        rate, processor = (statistics.median(one[at] for one in bare) for at in (0, 1))
        print(f"{'':12} against its matrix products alone: {rate:.2f}, by processor time {processor:.2f}", flush=True)
    requests = max(1, moved.pop("requests"))
    each = SIZE * 4
    if "copied_bytes" in moved:
        moved["copies of an input"] = round(moved["copied_bytes"] / each / requests, 2)  # type: ignore[assignment]
        text = ", ".join(f"{key} {value}" for key, value in moved.items())
        print(f"{'':12} of {requests} requests with {each} bytes: {text}", flush=True)
    else:
        print(f"{'':12} inputs are copied once, into the memory of the worker's process", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--only", default="", help="forms whose name contains this")
    parser.add_argument("--threads", type=int, default=1, help="of a run; both have one instance")
    given = parser.parse_args()
    os.environ.update(dict.fromkeys(THREADS_ENV, str(given.threads)))
    for name, form in FORMS.items():
        if given.only not in name:
            continue
        if importlib.util.find_spec(form.needs) is None:
            print(f"{name:12} left out: {form.needs} is not installed")
            continue
        measure(name, given.rounds, given.seconds, given.threads)


if __name__ == "__main__":
    main()
