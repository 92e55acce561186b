"""One tensor in and out of a server that does nothing with it: in the message, in system and in CUDA shared memory.

Run from the repository root as ``python -m bench.gpu.shared_memory [--standin] [--rounds N]``. Prints lines
``GPU-TABLE: name | value``. With ``--standin`` it runs without a GPU, to show that it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.helpers import raw, shm
from tests.helpers.server import Model, ServerProcess, repository

SIZES = (4096, 602112, 16 << 20)
WAYS = ("message", "system", "cuda")


def device_memory(stack: contextlib.ExitStack, standin: bool, size: int) -> Any:
    if standin:
        from tests.helpers import standin_cuda
        from tests.helpers.cuda_client import Memory

        return stack.enter_context(Memory(stack.enter_context(standin_cuda.opened()), size))
    from tests.helpers.cuda_memory import DeviceBytes

    return stack.enter_context(DeviceBytes(size))


def request(way: str, size: int) -> bytes:
    tensor: dict[str, Any] = {"name": "INPUT0", "shape": [1, size // 4], "datatype": "FP32"}
    output: dict[str, Any] = {"name": "OUTPUT0"}
    if way == "message":
        tensor["parameters"], output["parameters"] = {"binary_data_size": size}, {"binary_data": True}
    else:
        for place, offset in ((tensor, 0), (output, size)):
            place["parameters"] = {
                "shared_memory_region": way, "shared_memory_byte_size": size, "shared_memory_offset": offset,
            }  # fmt: skip
    head = json.dumps({"inputs": [tensor], "outputs": [output]}).encode()
    data = bytes(size) if way == "message" else b""
    return raw.post(raw.infer_path("m"), head + data, f"Inference-Header-Content-Length: {len(head)}")


def micros(client: raw.Client, data: bytes, rounds: int) -> float:
    """Return the median time of one request, of those behind the first fifth."""
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        assert client.ask(data).status == 200
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[rounds // 5 :]) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--standin", action="store_true")
    parser.add_argument("--rounds", type=int, default=300)
    options = parser.parse_args()
    env = dict(os.environ)
    if options.standin:
        from tests.helpers import standin_cuda

        env = standin_cuda.environment()
    size = 2 * max(SIZES)
    with contextlib.ExitStack() as stack:
        root = repository(Path(stack.enter_context(tempfile.TemporaryDirectory())), Model("m"))
        server = stack.enter_context(ServerProcess(root, "--allow-client-shm=true", env=env))
        file = stack.enter_context(shm.File(size))
        device = device_memory(stack, options.standin, size)
        client = stack.enter_context(raw.Client(server.http))
        system = {"key": file.key, "byte_size": size}
        cuda = {"raw_handle": {"b64": device.raw_handle.decode()}, "device_id": 0, "byte_size": size}
        for kind, body in (("system", system), ("cuda", cuda)):
            data = raw.post(f"/v2/{kind}sharedmemory/region/{kind}/register", json.dumps(body).encode())
            assert client.ask(data).status == 200
        for each in SIZES:
            shown = [f"{way} {micros(client, request(way, each), options.rounds):.0f} µs" for way in WAYS]
            print(f"GPU-TABLE: shared memory, {each} bytes in and out | {', '.join(shown)}", flush=True)
        assert client.ask(raw.post("/v2/cudasharedmemory/unregister")).status == 200


if __name__ == "__main__":
    main()
