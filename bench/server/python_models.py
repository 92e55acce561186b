"""The Python backend against the real Triton: the same model.py files, same machine, rounds of the two alternating.

Run from the repository root as ``python -m bench.server.python_models [--quick] [--strict] [--only NAME]``;
TRITON_REFERENCE names the launcher of the real server, without which triton_fast is measured alone. ``make bench`` runs
it after the other cases. Raw figures go to bench/out/.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from bench.server import h2load, load, models
from bench.server.cases import HEADER_LENGTH, Case
from bench.server.grpc_cases import GrpcCase
from bench.server.machine import OUT, machine
from bench.server.peers import Triton, measure
from scripts.server_process import ROOT, ServerProcess

TEXTS = 1_000_000
DECODE_CONFIG = """backend: "python"
max_batch_size: 0
input [ { name: "INPUT" data_type: TYPE_STRING dims: [ -1 ] } ]
output [ { name: "OUTPUT" data_type: TYPE_FP64 dims: [ 2 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""
DECODE = '''import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Milliseconds that as_numpy takes, and how many bytes the elements have."""

    def execute(self, requests):
        responses = []
        for request in requests:
            tensor = pb_utils.get_input_tensor_by_name(request, "INPUT")
            began = time.perf_counter()
            texts = tensor.as_numpy()
            took = (time.perf_counter() - began) * 1000
            found = np.array([took, float(sum(map(len, texts)))])
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", found)]))
        return responses
'''


@dataclass(frozen=True)
class Goal:
    """``rate``: at least so many times the other's requests per second. ``p50``: at most so many times its median."""

    key: str
    factor: float

    def met(self, ratio: float) -> bool:
        return ratio >= self.factor if self.key == "rate" else ratio <= self.factor

    def __str__(self) -> str:
        return f"{self.key} {'>=' if self.key == 'rate' else '<='} {self.factor:g}x"


CASES: tuple[tuple[Case | GrpcCase, Goal], ...] = (
    (Case("python-c32", "mlp", 32, True), Goal("rate", 2.0)),
    (Case("python-c1", "mlp", 1, True), Goal("p50", 0.6)),
    (GrpcCase("python-grpc-c4-m8", "mlp", 4, 8), Goal("rate", 2.0)),
    (Case("python-602KB-c8", "identity", 8, True), Goal("rate", 2.5)),
)
DECODE_NAME, DECODE_LIMIT_MS = "python-bytes-1M", 50.0


def write(repository: Path) -> None:
    models.write_python(repository)
    (repository / "decode" / "1").mkdir(parents=True)
    (repository / "decode" / "config.pbtxt").write_text(DECODE_CONFIG)
    (repository / "decode" / "1" / "model.py").write_text(DECODE)


def texts() -> tuple[bytes, int]:
    """A million elements of 1 to 16 bytes in Triton's form, and their bytes without the lengths."""
    sizes = np.random.default_rng(3).integers(1, 17, TEXTS)
    parts = (size.to_bytes(4, "little") + b"x" * size for size in map(int, sizes))
    return b"".join(parts), int(sizes.sum())


def decode_ms(peer: Triton, body: bytes, head: int, size: int) -> tuple[float, float]:
    """One request of a million texts: the time that the model measured, and that of the whole request.

    Triton decodes before ``execute``: its model measures nothing, and only the whole can be compared.
    """
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(head)}
    began = time.perf_counter()
    answer = load.post(peer.process.http_port, "/v2/models/decode/infer", body, headers)
    whole = (time.perf_counter() - began) * 1000
    if answer.status != 200:
        raise RuntimeError(f"{DECODE_NAME}: status {answer.status}: {answer.body[:500]!r}")
    took, found = json.loads(answer.body)["outputs"][0]["data"]
    if found != size:
        raise RuntimeError(f"{DECODE_NAME}: {found} bytes came, {size} were sent")
    return float(took), whole


def checked(peer: Triton, case: Case | GrpcCase) -> load.Answer:
    """One answer, which must be the input itself: the models copy."""
    answer = peer.check(case)
    found = case.verify_shape(answer.status, answer.headers, answer.body)
    if not np.array_equal(found, models.sample(case.model)):
        raise RuntimeError(f"{case.name}: the output is not the input")
    return answer


def rounds(peers: dict[str, Triton], case: Case | GrpcCase, scratch: Path, n: int, seconds: float) -> dict[str, list]:
    answers = {name: checked(peer, case) for name, peer in peers.items()}
    runner = (h2load.H2load if isinstance(case, GrpcCase) else load.Wrk)(scratch, case, seconds)
    for peer in peers.values():  # one that does not count
        runner.run(*peer.endpoint(case), seconds=1)
    found: dict[str, list] = {name: [] for name in peers}
    for _ in range(n):
        for name, peer in peers.items():
            found[name].append(measure(peer, runner, answers[name]))
    for peer in peers.values():
        checked(peer, case)
    return found


def ratio(found: dict[str, list], key: str) -> float | None:
    """Median over the rounds of triton_fast / Triton, each pair measured back to back."""
    if "triton" not in found:
        return None
    return median(ours[key] / theirs[key] for ours, theirs in zip(found["triton_fast"], found["triton"], strict=True))


def faults(name: str, found: dict[str, list]) -> list[str]:
    return [
        f"{name}: {peer}: {figures['errors'][kind]} {kind} errors in a round"
        for peer, several in found.items() for figures in several for kind in figures["errors"]
        if figures["errors"][kind]
    ]  # fmt: skip


def line(cells: Sequence[str]) -> None:
    print("  ".join(cell.ljust(width) for cell, width in zip(cells, (20, 12, 26, 28, 20, 28), strict=True)).rstrip())


def spread(values: list[float], digits: int = 0) -> str:
    return f"{median(values):.{digits}f} [{min(values):.{digits}f}-{max(values):.{digits}f}]"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.server.python_models", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 rounds of 1 s: does it run, not how fast is it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="length of one round of one peer")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--strict", action="store_true", help="exit code 1 when a goal is missed")
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.seconds = 2, 1
    if not any(given.only in name for name in (DECODE_NAME, *(case.name for case, _ in CASES))):
        return 0
    started = time.strftime("%Y-%m-%dT%H%M%S")
    launcher = os.environ.get("TRITON_REFERENCE")
    raw: dict[str, object] = {"machine": machine(), "options": vars(given), "cases": {}}
    wrong: list[str] = []
    missed = False
    with tempfile.TemporaryDirectory(prefix="triton_fast-bench-") as folder, ExitStack() as stack:
        scratch = Path(folder)
        write(scratch / "models")
        process = ServerProcess(scratch / "models", scratch / "triton_fast.log")
        peers = {"triton_fast": Triton(stack.enter_context(process), computes=False)}
        if launcher:
            other = ServerProcess(scratch / "models", scratch / "triton.log", command=[launcher], ready_timeout=300)
            peers["triton"] = Triton(stack.enter_context(other), computes=False)
        line(("case", "peer", "requests/s", "p50 us", "of Triton", "goal"))
        for case, goal in CASES:
            if given.only not in case.name:
                continue
            found = rounds(peers, case, scratch, given.rounds, given.seconds)
            wrong += faults(case.name, found)
            raw["cases"][case.name] = found
            for name, several in found.items():
                values = [[figures[key] for figures in several] for key in ("rate", "p50")]
                ours = name == "triton_fast"
                of, verdict = "", ""
                if ours and (compared := ratio(found, goal.key)) is not None:
                    met = goal.met(compared)
                    missed |= not met
                    of = f"{ratio(found, 'rate'):.2f}x, p50 {ratio(found, 'p50'):.2f}x"
                    verdict = f"{goal} {'met' if met else 'MISSED'}"
                line((case.name if ours else "", name, spread(values[0]), spread(values[1]), of, verdict))
        if given.only in DECODE_NAME:
            data, size = texts()
            parameters = {"binary_data_size": len(data)}
            tensor = {"name": "INPUT", "datatype": "BYTES", "shape": [TEXTS], "parameters": parameters}
            head = json.dumps({"inputs": [tensor]}).encode()
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in peers}
            for _ in range(given.rounds + 1):
                for name, peer in peers.items():
                    times[name].append(decode_ms(peer, head + data, len(head), size))
            raw["cases"][DECODE_NAME] = times
            for name, several in times.items():
                ours = name == "triton_fast"
                inside, whole = ([pair[i] for pair in several[1:]] for i in range(2))
                met = median(inside) <= DECODE_LIMIT_MS
                missed |= ours and not met
                verdict = f"<= {DECODE_LIMIT_MS:g} ms {'met' if met else 'MISSED'}" if ours else ""
                told = (f"whole {spread(whole)} ms", f"model {spread(inside, 1)} ms")
                line((DECODE_NAME if ours else "", name, *told, "", verdict))
        code = process.stop()
    OUT.mkdir(parents=True, exist_ok=True)
    target = OUT / f"python-{started}{'-quick' if given.quick else ''}.json"
    target.write_text(json.dumps(raw, indent=1) + "\n")
    print(f"raw figures: {target.relative_to(ROOT)}")
    if code:
        wrong.append(f"triton_fast ended with code {code} on SIGTERM")
    for text in wrong:
        print(f"error: {text}", file=sys.stderr)
    return 1 if wrong or (given.strict and missed) else 0


if __name__ == "__main__":
    sys.exit(main())
