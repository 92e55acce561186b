"""make bench: triton_fast against nginx (and the real Triton, if TRITON_REFERENCE names a launcher), same machine.

Run from the repository root as ``python -m bench.server [--quick] [--strict] [--only NAME]``. Rounds of the peers
alternate, so that a change of the machine's speed meets all of them. wrk loads over HTTP, h2load over gRPC. Raw figures
go to bench/out/.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from bench.server import models, report
from bench.server.cases import CASES
from bench.server.grpc_cases import GRPC_CASES
from bench.server.h2load import H2load
from bench.server.load import Wrk
from bench.server.machine import OUT, machine
from bench.server.nginx import Nginx
from bench.server.peers import Triton, measure
from scripts.server_process import ROOT, ServerProcess


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.server", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 rounds of 1 s: does it run, not how fast is it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="length of one round of one peer")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--strict", action="store_true", help="exit code 1 when a target is missed")
    parser.add_argument("--server-args", default="", help="further flags for triton_fast, separated by spaces")
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.seconds = 2, 1
    return given


def main() -> int:
    given = options()
    cases = [case for case in (*CASES, *GRPC_CASES) if given.only in case.name]
    if not cases:
        names = ", ".join(case.name for case in (*CASES, *GRPC_CASES))
        raise SystemExit(f"no case contains '{given.only}'; there are {names}")
    started = time.strftime("%Y-%m-%dT%H%M%S")
    with tempfile.TemporaryDirectory(prefix="triton_fast-bench-") as folder, ExitStack() as stack:
        scratch = Path(folder)
        models.write_onnx(scratch / "onnx")
        process = stack.enter_context(
            ServerProcess(scratch / "onnx", scratch / "triton_fast.log", args=tuple(given.server_args.split()))
        )
        print(f"triton_fast ready in {process.ready_seconds:.2f} s", flush=True)
        ours = Triton(process)
        # What each peer answers to each case, checked; nginx imitates ours.
        answers = {"triton_fast": {case.name: ours.check(case) for case in cases}}
        answers["nginx"] = answers["triton_fast"]
        nginx = stack.enter_context(Nginx(scratch, [(case, answers["nginx"][case.name]) for case in cases]))
        peers: dict[str, Triton | Nginx] = {"triton_fast": ours, "nginx": nginx}
        if launcher := os.environ.get("TRITON_REFERENCE"):
            models.write_python(scratch / "python")
            real = Triton(stack.enter_context(
                ServerProcess(scratch / "python", scratch / "triton.log", command=[launcher], ready_timeout=300)
            ), computes=False)
            print("reference Triton (Python identity models) ready", flush=True)
            answers["triton"] = {case.name: real.check(case) for case in cases}
            peers["triton"] = real

        results = []
        for case in cases:
            runner: Wrk | H2load = (H2load if case.protocol == "grpc" else Wrk)(scratch, case, given.seconds)
            rounds: dict[str, list[dict]] = {name: [] for name in peers}
            for peer in peers.values():  # one short round that does not count: caches, pools, clock frequency
                runner.run(*peer.endpoint(case), seconds=1)
            for _ in range(given.rounds):
                for name, peer in peers.items():
                    rounds[name].append(measure(peer, runner, answers[name][case.name]))
            print(f"  {case.name}: {given.rounds} rounds done", flush=True)
            for peer in peers.values():
                if isinstance(peer, Triton):
                    peer.check(case)
            results.append(report.Result(case, rounds))
        code = process.stop()

    report.print_table(results)
    OUT.mkdir(parents=True, exist_ok=True)
    target = OUT / f"server-{started}{'-quick' if given.quick else ''}.json"
    target.write_text(json.dumps(report.raw(results, given, machine()), indent=1) + "\n")
    print(f"raw figures: {target.relative_to(ROOT)}")
    wrong = [line for result in results for line in result.faults()]
    if code:
        wrong.append(f"triton_fast ended with code {code} on SIGTERM")
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    missed = given.strict and any(result.met() is False for result in results)
    return 1 if wrong or missed else 0


if __name__ == "__main__":
    sys.exit(main())
