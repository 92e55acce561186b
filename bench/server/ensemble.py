"""What an ensemble costs: against its slowest step alone, and for each step of a chain. triton_fast alone, over HTTP.

Run from the repository root as ``python -m bench.server.ensemble [--quick] [--strict]``. Raw figures go to bench/out/.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from bench.server import load
from bench.server.cases import BINARY, HEADER_LENGTH
from bench.server.machine import OUT, machine
from scripts.server_process import ROOT, ServerProcess

WIDTH = 16
LONG = 11  # steps of the long chain
SLOW_MS = 2
RATIO, STEP_US = 0.9, 40.0
TENSORS = """max_batch_size: 8
input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1 ] } ]
"""


@dataclass(frozen=True)
class Request:
    """The same small tensor for every model; what ``load.Wrk`` needs of a case."""

    name: str
    model: str
    connections: int

    @property
    def path(self) -> str:
        return f"/v2/models/{self.model}/infer"

    @property
    def head(self) -> bytes:
        tensor = {
            "name": "INPUT0",
            "datatype": "FP32",
            "shape": [1, WIDTH],
            "parameters": {"binary_data_size": 4 * WIDTH},
        }
        return json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()

    @property
    def body(self) -> bytes:
        return self.head + np.arange(WIDTH, dtype="<f4").tobytes()

    @property
    def headers(self) -> Mapping[str, str]:
        return {"Content-Type": BINARY, HEADER_LENGTH: str(len(self.head))}


def write(root: Path) -> None:
    """Identity models and chains of them; ``slow`` takes SLOW_MS for each execution."""
    names = [f"step{k}" for k in range(LONG)]
    for name in (*names, "slow"):
        delay = (
            f'parameters {{ key: "execute_delay_ms" value {{ string_value: "{SLOW_MS if name == "slow" else 0}" }} }}\n'
        )
        model(
            root, name, 'backend: "identity"\n' + TENSORS + "instance_group [ { kind: KIND_CPU count: 1 } ]\n" + delay
        )
    for name, members in (
        ("one", names[:1]), ("three", names[:3]), ("long", names), ("around_slow", ["step0", "slow", "step1"]),
    ):  # fmt: skip
        tensors = ["INPUT0", *(f"t{k}" for k in range(1, len(members))), "OUTPUT0"]
        steps = ", ".join(
            f'{{ model_name: "{member}" model_version: -1 input_map {{ key: "INPUT0" value: "{tensors[k]}" }} '
            f'output_map {{ key: "OUTPUT0" value: "{tensors[k + 1]}" }} }}'
            for k, member in enumerate(members)
        )
        model(root, name, f'platform: "ensemble"\n{TENSORS}ensemble_scheduling {{ step [ {steps} ] }}\n')


def model(root: Path, name: str, config: str) -> None:
    (root / name / "1").mkdir(parents=True)
    (root / name / "config.pbtxt").write_text(config)


def measure(
    port: int, requests: Sequence[Request], scratch: Path, rounds: int, seconds: float
) -> dict[str, list[dict]]:
    """Figures of each request, the rounds of all alternating; the first round is not counted."""
    found: dict[str, list[dict]] = {request.name: [] for request in requests}
    for turn in range(rounds + 1):
        for request in requests:
            answer = load.post(port, request.path, request.body, request.headers)
            if answer.status != 200 or not answer.body.endswith(request.body[len(request.head) :]):
                raise RuntimeError(f"{request.name}: status {answer.status}: {answer.body[:300]!r}")
            figures = load.Wrk(scratch, request, seconds).run(port, request.path)  # type: ignore[arg-type]
            if any(figures["errors"].values()):
                raise RuntimeError(f"{request.name}: {figures['errors']}")
            if turn:
                found[request.name].append(figures)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.server.ensemble", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 rounds of 1 s: does it run, not how fast is it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3, help="length of one round of one case")
    parser.add_argument("--strict", action="store_true", help="exit code 1 when a goal is missed")
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.seconds = 2, 1
    started = time.strftime("%Y-%m-%dT%H%M%S")
    requests = [
        Request("slow-c16", "slow", 16), Request("around-slow-c16", "around_slow", 16),
        Request("step-c16", "step0", 16), Request("three-c16", "three", 16),
        Request("step-c1", "step0", 1), Request("one-c1", "one", 1),
        Request("long-c1", "long", 1),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="triton_fast-bench-") as folder:
        scratch = Path(folder)
        write(scratch / "models")
        with ServerProcess(scratch / "models", scratch / "log") as process:
            found = measure(process.http_port, requests, scratch, given.rounds, given.seconds)
            code = process.stop()
    middle = {
        name: {key: median(one[key] for one in several) for key in ("rate", "p50")} for name, several in found.items()
    }
    for name, figures in middle.items():
        print(f"{name.ljust(18)} {figures['rate']:9.0f}/s   p50 {figures['p50']:7.0f} us")
    ratio = middle["around-slow-c16"]["rate"] / middle["slow-c16"]["rate"]
    step = (middle["long-c1"]["p50"] - middle["one-c1"]["p50"]) / (LONG - 1)
    met = ratio >= RATIO, step <= STEP_US
    print(f"three steps against the slowest alone: {ratio:.2f}x  (>= {RATIO:g}x {'met' if met[0] else 'MISSED'})")
    print(f"one step more: {step:.1f} us  (<= {STEP_US:g} us {'met' if met[1] else 'MISSED'})")
    OUT.mkdir(parents=True, exist_ok=True)
    target = OUT / f"ensemble-{started}{'-quick' if given.quick else ''}.json"
    target.write_text(json.dumps({"machine": machine(), "options": vars(given), "cases": found}, indent=1) + "\n")
    print(f"raw figures: {target.relative_to(ROOT)}")
    if code:
        print(f"error: triton_fast ended with code {code} on SIGTERM", file=sys.stderr)
        return 1
    return 1 if given.strict and not all(met) else 0


if __name__ == "__main__":
    sys.exit(main())
