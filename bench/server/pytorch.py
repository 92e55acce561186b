"""What the server costs around PyTorch: throughput at 32 connections against a plain loop, copies, the GIL per call.

Run from the repository root as ``python -m bench.server.pytorch [--seconds N]``. Prints; asserts nothing.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.server.cases import HEADER_LENGTH
from bench.server.load import Wrk
from tests.helpers import torch_models as models
from tests.helpers.server import ROOT, ServerProcess
from triton_fast.backends.base import InstanceSpec
from triton_fast.types import DataType

CONNECTIONS, MAX_BATCH, SIZE, DEPTH, THREADS = 32, 32, 1024, 12, 2
ENV = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(torch.__file__).resolve().parents[1])])}
INSTANCE = "instance_group [{ count: 1 kind: KIND_CPU }]\n"
CONFIG = f'backend: "pytorch"\nmax_batch_size: {MAX_BATCH}\ndynamic_batching {{ }}\n{INSTANCE}'


class Dense(torch.nn.Module):
    def __init__(self, size: int, depth: int) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(*[torch.nn.Linear(size, size) for _ in range(depth)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Add(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


@dataclass(frozen=True)
class Request:
    """What ``Wrk`` sends, as a case of bench.server.cases."""

    name: str
    body: bytes
    headers: Mapping[str, str]
    connections: int


def io(size: int) -> str:
    return models.io("input", x=f"FP32 {size}") + models.io("output", y=f"FP32 {size}")


def forms(module: torch.nn.Module, size: int) -> dict[str, tuple[models.Save, str]]:
    return {
        "TorchScript": (models.saving(module), "model.pt"),
        "exported": (models.exporting(module, torch.ones(2, size)), "model.pt2"),
    }


def case() -> Any:
    tensor = np.random.default_rng(1).standard_normal((1, SIZE)).astype(np.float32).tobytes()
    head = json.dumps({
        "parameters": {"binary_data_output": True},
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, SIZE],
                    "parameters": {"binary_data_size": len(tensor)}}],
    }).encode()  # fmt: skip
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return Request("pytorch", head + tensor, headers, CONNECTIONS)


def statistics(port: int) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/v2/models/m/stats")
    return json.loads(connection.getresponse().read())["model_stats"][0]


def plain_loop(path: Path, batch: int, seconds: float) -> tuple[float, float, float]:
    """Rows per second, ms and processor ms per call of torch itself, with the same input tensor each time."""
    torch.set_num_threads(THREADS)
    module: Any = torch.export.load(str(path)).module() if path.suffix == ".pt2" else torch.jit.load(str(path)).eval()
    x = torch.randn(batch, SIZE)
    with torch.inference_mode():
        for _ in range(20):
            module(x)
        began, cpu, calls = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - began < seconds:
            module(x)
            calls += 1
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
    return calls * batch / took, took / calls * 1e3, cpu / calls * 1e3


def throughput(seconds: float) -> None:
    for name, (save, filename) in forms(Dense(SIZE, DEPTH), SIZE).items():
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            models.write(root, save, CONFIG + io(SIZE), filename=filename)
            with ServerProcess(root, env=ENV) as process:
                wrk = Wrk(root, case(), seconds)
                wrk.run(process.http[1], "/v2/models/m/infer", 2)
                before, cpu = statistics(process.http[1]), sum(process.ps.cpu_times()[:2])
                row = wrk.run(process.http[1], "/v2/models/m/infer")
                after, cpu = statistics(process.http[1]), sum(process.ps.cpu_times()[:2]) - cpu
            runs = after["execution_count"] - before["execution_count"]
            batch = round((after["inference_count"] - before["inference_count"]) / max(1, runs))
            rate = row["requests"] / row["seconds"]
            plain, ms, plain_cpu = plain_loop(root / "m" / "1" / filename, batch, seconds)
            # On a machine that others use too, processor time says more than the clock.
            mine, own = cpu / row["requests"] * 1e3, plain_cpu / batch
            print(
                f"{name}, c={CONNECTIONS}: {rate:.0f} rows/s over HTTP in batches of {batch}; plain loop {plain:.0f} "
                f"rows/s ({ms:.2f} ms a call): {rate / plain:.2f}x; processor time of a row {mine:.3f} ms, in the loop "
                f"{own:.3f} ms: {own / mine:.2f}x; errors {row['errors']}"
            )


def copies() -> None:
    for size in (1024, 100_000):
        with tempfile.TemporaryDirectory() as folder:
            opened = models.open_model(Path(folder), models.saving(Add()), CONFIG + io(size))
            row = np.ones((1, size), np.float32)
            for n in (1, 4):
                before = opened.instance.counters()
                opened.run(*[{"x": row}] * n)
                after = opened.instance.counters()
                moved = {key: after[key] - before[key] for key in after}
                print(
                    f"{n} request(s) of {size * 4 >> 10} KiB in and out: {moved['copied_bytes'] / n:.0f} bytes of "
                    f"input copied for each, {moved['borrowed']} inputs borrowed, {moved['lent']} outputs lent"
                )


def gil(times: int = 3000) -> None:
    """The longest that a call can hold the GIL: all of it, of a model that computes next to nothing."""
    for depth in (1, 12):
        for name, (save, filename) in forms(Dense(4, depth), 4).items():
            with tempfile.TemporaryDirectory() as folder:
                opened = models.open_model(Path(folder), save, CONFIG + io(4), filename)
                given = {"x": np.ones((1, 4), np.float32)}
                call = opened.model.call(InstanceSpec("m_1", "KIND_CPU"))
                row = bytearray(given["x"].tobytes())
                best = bare = float("inf")
                x = torch.ones(1, 4)
                run = call.opened.run
                for _ in range(20):
                    best = min(best, timed(lambda: call([(int(DataType.FP32), (1, 4), row)], (True,)), times // 20))  # noqa: B023
                    with torch.inference_mode():
                        bare = min(bare, timed(lambda: run(x), times // 20))  # noqa: B023
                print(f"{name}, {depth} layers of 4: {best * 1e6:.1f} us a call of the backend's function, of which "
                      f"the model itself {bare * 1e6:.1f} us")  # fmt: skip


def timed(function: Any, times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        function()
    return (time.perf_counter() - began) / times


def beside(seconds: float = 2.0) -> None:
    """What a Python thread gets done beside one that runs a model of many ms, compared with being alone."""
    for name, (save, filename) in forms(Dense(SIZE, DEPTH), SIZE).items():
        with tempfile.TemporaryDirectory() as folder:
            opened = models.open_model(Path(folder), save, CONFIG + io(SIZE), filename)
            row = np.ones((MAX_BATCH, SIZE), np.float32)
            stop = threading.Event()

            def work(opened: Any = opened, row: Any = row, stop: Any = stop) -> None:
                while not stop.is_set():
                    opened.run({"x": row})

            alone = ticks(seconds)
            thread = threading.Thread(target=work)
            thread.start()
            beside_it = ticks(seconds)
            stop.set()
            thread.join()
            print(f"{name}: a Python thread beside the model does {beside_it / alone:.2f} of what it does alone")


def ticks(seconds: float) -> float:
    """Turns of a loop per second of wall time."""
    began, turns = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        turns += 1
    return turns / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    copies()
    gil()
    beside()
    throughput(args.seconds)


if __name__ == "__main__":
    main()
