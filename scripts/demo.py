"""make demo: start the server on examples/models, ask it with curl and with tritonclient, stop it.

Run from the repository root as ``python -m scripts.demo``. Exit code 0 only when every answer was right and the server
ended with code 0 on SIGTERM.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scripts.server_process import ROOT, ServerProcess

sys.path.insert(0, str(ROOT / "examples" / "digits"))
import data


def step(text: str) -> None:
    print(f"\n== {text}", flush=True)


def curl(server: ServerProcess, path: str, body: dict, scratch: Path) -> dict:
    """POST body as JSON with curl, print the command and the answer."""
    request = scratch / "request.json"
    request.write_text(json.dumps(body))
    command = ["curl", "-sS", "--fail-with-body", "--max-time", "10", "-d", f"@{request}",
               f"http://{server.address}{path}"]
    print("  $ curl -d @request.json", command[-1])
    reply = subprocess.run(command, check=False, capture_output=True, text=True)
    print(f"  {reply.stdout.strip() or reply.stderr.strip()}")
    if reply.returncode:
        raise SystemExit(f"curl ended with code {reply.returncode}")
    return json.loads(reply.stdout)


def one_digit(server: ServerProcess, scratch: Path) -> None:
    _, images, _, labels = data.load()
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": images[0].ravel().tolist()}
    reply = curl(server, "/v2/models/digits/infer", {"inputs": [tensor]}, scratch)
    scores = reply["outputs"][0]["data"]
    print(f"  most likely {scores.index(max(scores))}, label {labels[0]}")


def no_config(server: ServerProcess, scratch: Path) -> None:
    inputs = [
        {"name": "A", "datatype": "FP32", "shape": [1, 4], "data": [10, 20, 30, 40]},
        {"name": "B", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]},
    ]
    reply = curl(server, "/v2/models/add_sub/infer", {"inputs": inputs}, scratch)
    values = {output["name"]: output["data"] for output in reply["outputs"]}
    if values != {"SUM": [11, 22, 33, 44], "DIFFERENCE": [9, 18, 27, 36]}:
        raise SystemExit("add_sub gave a wrong answer")


def own_line(server: ServerProcess) -> str:
    """The line in which the server itself says how long its start took."""
    lines = [line for line in server.log_tail(500).splitlines() if "ready" in line.lower() and " ms" in line]
    return lines[0].strip() if lines else ""


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="triton_fast-demo-") as folder:
        scratch = Path(folder)
        step("python -m triton_fast --model-repository=examples/models")
        with ServerProcess(ROOT / "examples" / "models", scratch / "server.log") as server:
            print(f"  ready {server.ready_seconds:.2f} s after the process was started (imports included)")
            if line := own_line(server):
                print(f"  {line}")
            step("one real digit as JSON")
            one_digit(server, scratch)
            step("a model without config.pbtxt")
            no_config(server, scratch)
            step("the held-out digits with tritonclient, over HTTP and gRPC (binary tensors, classification)")
            command = [sys.executable, "examples/digits/demo.py", "--http", server.address,
                       "--grpc", f"127.0.0.1:{server.grpc_port}"]
            client = subprocess.run(command, cwd=ROOT, check=False)
            step("100 recordings at once, frame by frame: each a sequence whose state the server carries")
            command = [sys.executable, "examples/streaming/demo.py", "--grpc", f"127.0.0.1:{server.grpc_port}"]
            streams = subprocess.run(command, cwd=ROOT, check=False)
            step("SIGTERM")
            started = time.monotonic()
            code = server.stop()
            print(f"  ended with code {code} in {time.monotonic() - started:.2f} s")
            failed = client.returncode or streams.returncode or code
            if failed:
                print(server.log_tail(), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
