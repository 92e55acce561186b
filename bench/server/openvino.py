"""What the server costs around OpenVINO: throughput at 32 connections against a plain loop, copies, a tiny model.

Run from the repository root as ``python -m bench.server.openvino [--seconds N]``. Prints; asserts nothing.
"""

from __future__ import annotations

import argparse
import http.client
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from bench.server.cases import HEADER_LENGTH
from bench.server.load import Wrk
from tests.helpers import openvino_models as models
from tests.helpers.server import ServerProcess
from triton_fast._native.ort import drive
from triton_fast.types import DataType

CONNECTIONS, MAX_BATCH, SIZE, DEPTH, THREADS = 32, 32, 1024, 12, 2
ROUNDS = 100  # of which the best counts: the machine has other things to do
CONFIG = f'backend: "openvino"\nmax_batch_size: {MAX_BATCH}\ninstance_group [{{ count: 1 kind: KIND_CPU }}]\n'
PROPERTIES = {"INFERENCE_NUM_THREADS": str(THREADS), "NUM_STREAMS": "1", "ENABLE_CPU_PINNING": "NO"}


@dataclass(frozen=True)
class Request:
    """What ``Wrk`` sends, as a case of bench.server.cases."""

    name: str
    body: bytes
    headers: Mapping[str, str]
    connections: int


def case() -> Any:
    tensor = np.random.default_rng(1).standard_normal((1, SIZE)).astype(np.float32).tobytes()
    head = json.dumps({
        "parameters": {"binary_data_output": True},
        "inputs": [{"name": "IN", "datatype": "FP32", "shape": [1, SIZE],
                    "parameters": {"binary_data_size": len(tensor)}}],
    }).encode()  # fmt: skip
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return Request("openvino", head + tensor, headers, CONNECTIONS)


def statistics(port: int) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/v2/models/m/stats")
    return json.loads(connection.getresponse().read())["model_stats"][0]


def plain_loop(path: Path, batch: int, seconds: float) -> tuple[float, float]:
    """Rows per second and ms per call of OpenVINO's Python package, its input and output memory made once."""
    request = ov.Core().compile_model(str(path), "CPU", PROPERTIES).create_infer_request()
    given = np.random.default_rng(1).standard_normal((batch, SIZE)).astype(np.float32)
    request.set_input_tensor(0, ov.Tensor(given, shared_memory=True))
    request.infer()
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        request.infer()
        calls += 1
    took = time.perf_counter() - began
    return calls * batch / took, took / calls * 1e3


def throughput(seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        models.write(root, models.dense(SIZE, DEPTH), CONFIG)
        path = root / "m/1/model.xml"
        for _ in range(2):
            with ServerProcess(root) as process:
                wrk = Wrk(root, case(), seconds)
                wrk.run(process.http[1], "/v2/models/m/infer", 1)
                before, cpu = statistics(process.http[1]), sum(process.ps.cpu_times()[:2])
                row = wrk.run(process.http[1], "/v2/models/m/infer")
                after, cpu = statistics(process.http[1]), sum(process.ps.cpu_times()[:2]) - cpu
            runs = after["execution_count"] - before["execution_count"]
            batch = round((after["inference_count"] - before["inference_count"]) / max(1, runs))
            rate = row["requests"] / row["seconds"]
            own = time.process_time()
            plain, ms = plain_loop(path, batch, seconds)
            own = time.process_time() - own
            print(
                f"c={CONNECTIONS}: {rate:.0f} rows/s over HTTP in batches of {batch}; plain loop {plain:.0f} rows/s "
                f"({ms:.2f} ms a call): {rate / plain:.2f}x; p50 {row['p50'] / 1e3:.1f} ms, errors {row['errors']}"
            )
            # On a machine that others use too, processor time says more than the clock.
            row_ms, plain_ms = cpu / row["requests"] * 1e3, own / (plain * seconds) * 1e3
            print(f"processor time of a row: {row_ms:.3f} ms, in the loop {plain_ms:.3f} ms: {plain_ms / row_ms:.2f}x")


def copies() -> None:
    with tempfile.TemporaryDirectory() as folder:
        opened = models.open_model(Path(folder), models.add_sub("FP32", (-1, 1024)))
        row = np.ones((1, 1024), np.float32)
        for n in (1, 4):
            before = opened.instance.counters()
            opened.run(*[{"A": row, "B": row}] * n)
            after = opened.instance.counters()
            moved = {key: after[key] - before[key] for key in after}
            print(
                f"{n} request(s) of 2 x 4 KiB in, 2 x 4 KiB out: {moved['copied_bytes'] / n:.0f} bytes of input and "
                f"{moved['copied_outputs'] / n:.0f} of output copied for each; {moved['bound']} outputs in place"
            )


def tiny(times: int = 20_000) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for threads in (1, 2):
            opened = models.open_model(Path(folder) / str(threads), models.dense(8, 1), threads=threads)
            data = np.ones((1, 8), np.float32)
            given = {"IN": (DataType.FP32, data.shape, data.tobytes())}
            drive.repeat(opened.instance, opened.handle, [given], 1000)
            found = [drive.repeat(opened.instance, opened.handle, [given], times // ROUNDS) for _ in range(ROUNDS)]
            ns, failed = min(ns for ns, _ in found) * ROUNDS, sum(failed for _, failed in found)
            path = Path(folder) / str(threads) / "m/1/model.xml"
            compiled = ov.Core().compile_model(str(path), "CPU", {**PROPERTIES, "INFERENCE_NUM_THREADS": str(threads)})
            request = compiled.create_infer_request()
            request.set_input_tensor(0, ov.Tensor(data, shared_memory=True))
            plain = times * 10**9
            for _ in range(ROUNDS):
                began = time.perf_counter_ns()
                for _ in range(times // ROUNDS):
                    request.infer()
                plain = min(plain, (time.perf_counter_ns() - began) * ROUNDS)
            print(
                f"tiny model, {threads} thread(s): {ns / times:.0f} ns an execution ({failed} failed); OpenVINO's "
                f"infer() from Python {plain / times:.0f} ns"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8)
    args = parser.parse_args()
    copies()
    tiny()
    throughput(args.seconds)


if __name__ == "__main__":
    main()
