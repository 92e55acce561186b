"""What an execution of a tiny model costs around OpenVINO; throughput of a larger one is in bench.server.backends.

Run from the repository root as ``python -m bench.server.openvino``. Prints; asserts nothing.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import openvino as ov

from tests.helpers import openvino_models as models
from triton_fast._native.ort import drive
from triton_fast.types import DataType

ROUNDS = 100  # of which the best counts: the machine has other things to do
PROPERTIES = {"NUM_STREAMS": "1", "ENABLE_CPU_PINNING": "NO"}


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


if __name__ == "__main__":
    tiny()
