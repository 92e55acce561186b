"""Throughput of a PyTorch model on a GPU through the server, at 32 connections and at 1, against a loop around torch.

Run from the repository root as ``python -m bench.gpu.pytorch [--cpu] [--seconds N]``. Prints lines ``GPU-TABLE: name |
value``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from tests.helpers.server import ROOT, ServerProcess
from tests.helpers.torch_models import io, saving, write
from tests.helpers.torch_wire import HEADER, Wire, infer_message

CONNECTIONS, PROCESSES, BATCH, LENGTH = 32, 8, 8, 128
ENV = {
    "PYTHONPATH": os.pathsep.join([
        str(ROOT), *filter(None, [os.environ.get("PYTHONPATH", "")]), str(Path(torch.__file__).resolve().parents[1])
    ])
}  # fmt: skip


class Layer(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.mix, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.up, self.down = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)
        self.heads = width // 64

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, length, width = x.size(0), x.size(1), x.size(2)
        parts = self.mix(self.first(x)).view(rows, length, 3, self.heads, 64).permute(2, 0, 3, 1, 4)
        seen = torch.nn.functional.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        x = x + self.out(seen.transpose(1, 2).reshape(rows, length, width))
        return x + self.down(torch.nn.functional.gelu(self.up(self.second(x))))


class Encoder(torch.nn.Module):
    """Rows of 128 vectors in, one vector out: a transformer's encoder."""

    def __init__(self, given: int, width: int, layers: int) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.widen = torch.nn.Linear(given, width)
        self.layers = torch.nn.Sequential(*[Layer(width) for _ in range(layers)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(self.widen(x)).mean(1)


def clients(address: tuple[str, int], message: bytes, connections: int, until: float, results: Any) -> None:
    """One process with some connections, each of them asking again and again until a time; puts (answers, faults)."""
    counts = [0] * connections
    faults = [0] * connections

    def one(n: int) -> None:
        with socket.create_connection(address) as sock:
            while time.monotonic() < until:
                sock.sendall(message)
                head = b""
                while b"\r\n\r\n" not in head:
                    head += sock.recv(65536)
                head, _, body = head.partition(b"\r\n\r\n")
                lines = head.lower().split(b"\r\n")
                left = next(int(line[15:]) for line in lines if line.startswith(b"content-length:")) - len(body)
                while left > 0:
                    left -= len(sock.recv(min(left, 1 << 20)))
                counts[n] += 1
                faults[n] += not lines[0].startswith(b"http/1.1 200")

    threads = [threading.Thread(target=one, args=(n,)) for n in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put((sum(counts), sum(faults)))


def ask_all(address: tuple[str, int], model: str, x: torch.Tensor, connections: int, seconds: float) -> Any:
    """Return answers a second and faults of all connections together."""
    size, body = infer_message({"x": x})
    head = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\n{HEADER}: {size}\r\nContent-Type: "
        f"application/octet-stream\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = min(PROCESSES, connections)
    began = time.monotonic()
    until = began + seconds
    made = [
        context.Process(target=clients, args=(address, head + body, connections // processes, until, results))
        for _ in range(processes)
    ]
    for process in made:
        process.start()
    found = [results.get(timeout=seconds + 60) for _ in made]
    took = time.monotonic() - began
    for process in made:
        process.join()
    return sum(count for count, _ in found) / took, sum(fault for _, fault in found)


def served(address: tuple[str, int], model: str, x: torch.Tensor, connections: int, seconds: float) -> Any:
    """Return (rows/s, mean batch, faults)."""
    with Wire(address) as wire:
        ask_all(address, model, x, connections, 1.5)
        [before] = wire.ask(f"/v2/models/{model}/stats", method="GET")["model_stats"]
        rate, faults = ask_all(address, model, x, connections, seconds)
        [after] = wire.ask(f"/v2/models/{model}/stats", method="GET")["model_stats"]
    runs = after["execution_count"] - before["execution_count"]
    rows = after["inference_count"] - before["inference_count"]
    return rate, rows / max(1, runs), faults


def plain_loop(module: Any, device: str, row: torch.Tensor, batch: int, seconds: float) -> tuple[float, float]:
    """Rows per second and ms per call of torch alone, with copies there and back through pinned memory."""
    x = row.expand(batch, -1, -1).contiguous()
    on_gpu = device != "cpu"
    x = x.pin_memory() if on_gpu else x
    calls, began = 0, 0.0
    with torch.inference_mode():
        back = torch.empty(module(x.to(device)).shape, pin_memory=on_gpu)
        for calls in range(-8, 1 << 30):
            if calls == 0:
                began = time.perf_counter()
            elif calls > 0 and time.perf_counter() - began >= seconds:
                break
            back.copy_(module(x.to(device, non_blocking=True)), non_blocking=on_gpu)
            if on_gpu:
                torch.cuda.synchronize()
    took = time.perf_counter() - began
    return calls * batch / took, took / calls * 1e3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    device = "cpu" if options.cpu else "cuda:0"
    width, layers, given = (128, 2, 64) if options.cpu else (1024, 6, 256)
    module = Encoder(given, width, layers).eval()
    row = torch.randn(1, LENGTH, given)
    group = "kind: KIND_CPU" if options.cpu else "kind: KIND_GPU gpus: [ 0 ]"
    # Without TorchScript's optimiser on either side: it compiles kernels for the first sizes of batches that it meets.
    torch._C._set_graph_executor_optimize(False)
    text = (
        f'backend: "pytorch"\nmax_batch_size: {BATCH}\ndynamic_batching {{ }}\n'
        + io("input", x=f"FP32 {LENGTH},{given}") + io("output", y=f"FP32 {width}")
        + 'parameters { key: "DISABLE_OPTIMIZED_EXECUTION" value { string_value: "true" } }\n'
    )  # fmt: skip
    rates: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        save = saving(module)
        for count in (1, 2):
            write(Path(folder), save, text + f"instance_group [{{ count: {count} {group} }}]\n", f"m{count}")
        # Clients fork before this process has anything to do with CUDA.
        with ServerProcess(Path(folder), "--model-control-mode=explicit", env=ENV) as process:
            for model, connections in (("m1", CONNECTIONS), ("m2", CONNECTIONS), ("m1", 1)):
                with Wire(process.http) as wire:
                    wire.ask(f"/v2/repository/models/{model}/load", {})
                    for batch in (1, BATCH):
                        for _ in range(4):
                            wire.infer(model, {"x": row.expand(batch, -1, -1)})
                rates[f"{model} c={connections}"] = served(process.http, model, row, connections, options.seconds)
        scripted = torch.jit.load(str(Path(folder) / "m1" / "1" / "model.pt"), map_location=device)
        loops = {n: plain_loop(scripted, device, row, n, options.seconds) for n in (1, BATCH)}
    for n, (rate, ms) in loops.items():
        print(f"GPU-TABLE: pytorch plain loop, batch {n}, copies both ways | {rate:.0f} rows/s, {ms:.2f} ms a call")
    for name, (rate, batch, faults) in rates.items():
        near = 1 if batch < 1.5 else BATCH
        instances = "1 instance" if name.startswith("m1") else "2 instances"
        print(
            f"GPU-TABLE: pytorch server {name.partition(' ')[2]}, {instances} | {rate:.0f} rows/s in batches of "
            f"{batch:.1f}, {rate / loops[near][0]:.2f}x of the loop with {near}; errors {faults}"
        )
    for name, value in rates.items():
        assert value[2] == 0, f"{name}: {value[2]} requests failed"


if __name__ == "__main__":
    main()
