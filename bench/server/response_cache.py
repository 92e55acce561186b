"""What a hit of the response cache costs against executing: the same models with and without it, rounds alternating.

Run from the repository root as ``python -m bench.server.response_cache [--quick]``. Each case sends one request over
and over: the first is executed, the others are hits, which the server's own counters must confirm.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from bench.server import h2load, load, models
from bench.server.cases import Case
from bench.server.grpc_cases import GrpcCase
from bench.server.peers import Triton, measure
from scripts.server_process import ServerProcess

CASES: tuple[Case | GrpcCase, ...] = (
    Case("onnx-mlp-c1", "mlp", 1, True),
    Case("onnx-mlp-c32", "mlp", 32, True),
    GrpcCase("onnx-mlp-grpc-c4-m8", "mlp", 4, 8),
    Case("onnx-602KB-c1", "identity", 1, True),
    Case("onnx-602KB-c8", "identity", 8, True),
)
MISSES = re.compile(r'^nv_cache_num_misses_per_model{model="(.*?)".*} (\d+)$', re.M)
PYTHON_CASES = (Case("python-copy-c1", "mlp", 1, True), Case("python-copy-c32", "mlp", 32, True))


def cached(repository: Path) -> None:
    for config in repository.glob("*/config.pbtxt"):
        config.write_text(config.read_text() + "response_cache { enable: true }\n")


def compare(stack: ExitStack, scratch: Path, cases: tuple[Case | GrpcCase, ...], write: object, given: object) -> None:
    peers = {}
    for name in ("executed", "cached"):
        repository = scratch / name
        write(repository)
        flags: tuple[str, ...] = ()
        if name == "cached":
            cached(repository)
            flags = ("--cache-config=local,size=67108864",)
        process = ServerProcess(repository, scratch / f"{name}.log", args=flags)
        peers[name] = Triton(stack.enter_context(process), computes=False)
    for case in cases:
        runner = (h2load.H2load if isinstance(case, GrpcCase) else load.Wrk)(scratch, case, given.seconds)
        answers = {name: peer.check(case) for name, peer in peers.items()}
        found: dict[str, list] = {name: [] for name in peers}
        for _ in range(given.rounds):
            for name, peer in peers.items():
                found[name].append(measure(peer, runner, answers[name]))
        rates = {name: median(round_["rate"] for round_ in several) for name, several in found.items()}
        p50s = {name: median(round_["p50"] for round_ in several) for name, several in found.items()}
        for name in peers:
            print(f"{case.name:22} {name:9} {rates[name]:10.0f}/s   p50 {p50s[name]:8.1f} us")
        print(f"{'':22} {'ratio':9} {rates['cached'] / rates['executed']:10.2f}x", flush=True)
    misses = MISSES.findall(peers["cached"].process.metrics())
    if any(int(n) > 1 for _, n in misses) or not misses:
        raise RuntimeError(f"more than one request of a model was executed: {misses}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.server.response_cache", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1 round of 1 s: does it run, not how fast is it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.seconds = 1, 1
    for cases, write in ((CASES, models.write_onnx), (PYTHON_CASES, models.write_python)):
        with tempfile.TemporaryDirectory(prefix="triton_fast-bench-") as folder, ExitStack() as stack:
            compare(stack, Path(folder), cases, write, given)
    return 0


if __name__ == "__main__":
    sys.exit(main())
