"""How long a call of PyTorch's function holds the GIL, and what that leaves to others.

Run from the repository root as ``python -m bench.server.pytorch``; throughput and copies are in bench.server.backends.
Prints; asserts nothing.
"""

from __future__ import annotations

import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.helpers import torch_models as models
from triton_fast.backends.base import InstanceSpec
from triton_fast.types import DataType

MAX_BATCH, SIZE, DEPTH = 32, 1024, 12
INSTANCE = "instance_group [{ count: 1 kind: KIND_CPU }]\n"
CONFIG = f'backend: "pytorch"\nmax_batch_size: {MAX_BATCH}\ndynamic_batching {{ }}\n{INSTANCE}'


class Dense(torch.nn.Module):
    def __init__(self, size: int, depth: int) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(*[torch.nn.Linear(size, size) for _ in range(depth)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def io(size: int) -> str:
    return models.io("input", x=f"FP32 {size}") + models.io("output", y=f"FP32 {size}")


def forms(module: torch.nn.Module, size: int) -> dict[str, tuple[models.Save, str]]:
    return {
        "TorchScript": (models.saving(module), "model.pt"),
        "exported": (models.exporting(module, torch.ones(2, size)), "model.pt2"),
    }


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


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    gil()
    beside()
