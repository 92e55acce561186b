"""Tensors in shared memory against tensors in the message: requests/s of one client, over HTTP and gRPC.

``python -m bench.server.shared_memory [--seconds S] [--rounds N]``: an identity model, 602112 bytes of FP32 in and out.
With TRITON_REFERENCE the real server takes part with a Python model. The client writes no input and reads no output
of a region, and does not unpack messages: what is measured is the way between. Rounds of all cases alternate.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from tests.conformance import reference
from tests.helpers import raw, shm
from tests.helpers.server import Model, ServerProcess, repository
from triton_fast import protos

COUNT = 150528
NBYTES = 4 * COUNT
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
Call = Callable[[], None]


def http_call(address: tuple[str, int], shared: bool) -> Call:
    tensor: dict[str, Any] = {"name": "INPUT0", "shape": [1, COUNT], "datatype": "FP32"}
    region = {"shared_memory_region": "bench", "shared_memory_byte_size": NBYTES}
    tensor["parameters"] = region if shared else {"binary_data_size": NBYTES}
    place = {**region, "shared_memory_offset": NBYTES} if shared else {"binary_data": True}
    head = json.dumps({"inputs": [tensor], "outputs": [{"name": "OUTPUT0", "parameters": place}]}).encode()
    request = raw.post(
        raw.infer_path("m"), head + (b"" if shared else bytes(NBYTES)), f"Inference-Header-Content-Length: {len(head)}"
    )
    client = raw.Client(address)

    def call() -> None:
        assert client.ask(request).status == 200

    return call


def grpc_call(address: tuple[str, int], shared: bool) -> Call:
    message = protos.ModelInferRequest(model_name="m")
    tensor = message.inputs.add(name="INPUT0", datatype="FP32", shape=[1, COUNT])
    wanted = message.outputs.add(name="OUTPUT0")
    if shared:
        for one, offset in ((tensor, 0), (wanted, NBYTES)):
            one.parameters["shared_memory_region"].string_param = "bench"
            one.parameters["shared_memory_byte_size"].int64_param = NBYTES
            one.parameters["shared_memory_offset"].int64_param = offset
    else:
        message.raw_input_contents.append(bytes(NBYTES))
    data = message.SerializeToString()
    channel = grpc.insecure_channel(f"{address[0]}:{address[1]}", UNLIMITED)
    infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

    def call() -> None:
        assert infer(data)

    return call


def rate(call: Call, seconds: float) -> float:
    done, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        call()
        done += 1
    return done / took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    calls: dict[tuple[str, str, str], Call] = {}
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        file = stack.enter_context(shm.File(2 * NBYTES))
        root = repository(base / "ours", Model("m"))
        servers: dict[str, Any] = {"triton_fast": stack.enter_context(ServerProcess(root, "--allow-client-shm=true"))}
        if reference.VARIABLE in os.environ:
            theirs = reference.python_models(root, base / "theirs", ("m",))
            servers["Triton"] = stack.enter_context(reference.Reference(theirs, base / "log"))
        for name, server in servers.items():
            body = json.dumps({"key": file.key, "byte_size": 2 * NBYTES}).encode()
            answer = raw.ask(server.http, raw.post("/v2/systemsharedmemory/region/bench/register", body))
            assert answer.status == 200, answer.body
            for shared in (False, True):
                how = "shared memory" if shared else "message"
                calls[name, "HTTP", how] = http_call(server.http, shared)
                calls[name, "gRPC", how] = grpc_call(server.grpc, shared)
        for call in calls.values():
            rate(call, 0.2)
        found: dict[tuple[str, str, str], list[float]] = {case: [] for case in calls}
        for _ in range(given.rounds):
            for case, call in calls.items():
                found[case].append(rate(call, given.seconds))
    for case, rates in found.items():
        middle = statistics.median(rates)
        print(f"{case[0]:12} {case[1]:5} {case[2]:14} {middle:8.0f}/s ({min(rates):.0f} - {max(rates):.0f})")


if __name__ == "__main__":
    main()
