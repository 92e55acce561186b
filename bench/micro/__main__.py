"""make bench-check: instructions per call, counted by callgrind, against bench/baselines.

Run from the repository root as ``python -m bench.micro [--update] [--only NAME] [--no-server]``. A count depends on the
compiler and the interpreter only, not on what else the machine does: each pair has a baseline file of its own.
Exit code 1 when a count exceeds its baseline by more than the tolerance, 2 when there is no baseline to compare with.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bench.micro import server
from bench.micro.cases import CASES
from bench.micro.count import environment, per_call

BASELINES = Path(__file__).resolve().parents[1] / "baselines"
TOLERANCE = 0.02
SLACK = 20  # instructions per call: what the alignment of a buffer may cost a short function
# A whole server has timers and threads whose share is not the same each time; and when malloc puts together what its
# start has freed is chance: 3 million instructions more or less in a run, 1500 for each of 2000 requests.
SERVER_TOLERANCE = 0.10


def limit(name: str, baseline: float) -> float:
    return baseline * (1 + (SERVER_TOLERANCE if name in server.CASES else TOLERANCE)) + SLACK


def measure(only: str, with_server: bool) -> dict[str, float]:
    counts = {}
    for name, calls in CASES.items():
        if only in name:
            counts[name] = per_call(name, calls)
            print(f"  {name}: {counts[name]:.0f}", flush=True)
    for name, requests in server.CASES.items() if with_server else ():
        if only in name:
            counts[name] = server.per_request(name, requests)
            print(f"  {name}: {counts[name]:.0f}", flush=True)
    return counts


def compare(counts: dict[str, float], baseline: dict[str, float]) -> int:
    """Print the table; 1 if any count is above its limit, 2 if one has no baseline, else 0."""
    code = 0
    width = max(map(len, counts))
    print(f"{'case'.ljust(width)}  {'baseline':>10}  {'now':>10}  change")
    for name, now in counts.items():
        old = baseline.get(name)
        if old is None:
            print(f"{name.ljust(width)}  {'none':>10}  {now:10.0f}")
            code = code or 2
            continue
        over = now > limit(name, old)
        print(f"{name.ljust(width)}  {old:10.0f}  {now:10.0f}  {(now - old) / old:+.1%}{'  OVER' if over else ''}")
        if over:
            code = 1
    return code


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.micro", description=__doc__.splitlines()[0])
    parser.add_argument("--update", action="store_true", help="write the counts as the new baseline")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--no-server", action="store_true", help="leave out the whole server, which takes minutes")
    given = parser.parse_args()
    place = environment()
    path = BASELINES / f"{place}.json"
    baseline = json.loads(path.read_text())["instructions"] if path.exists() else {}
    counts = measure(given.only, not given.no_server)
    if not counts:
        raise SystemExit(f"no case contains '{given.only}'; there are {', '.join([*CASES, *server.CASES])}")
    code = compare(counts, baseline)
    if given.update:
        merged = {name: round(value) for name, value in sorted({**baseline, **counts}.items())}
        known = {**CASES, **server.CASES}
        kept = {name: value for name, value in merged.items() if name in known}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"instructions": kept}, indent=2) + "\n")
        print(f"wrote {path.name}")
        return 0
    if code == 1:
        print(f"error: more instructions than bench/baselines/{path.name} allows; if that is meant, run "
              "make bench-check ARGS=--update and say why in the commit", file=sys.stderr)
    if code == 2:
        print(f"error: bench/baselines/{path.name} lacks cases for this compiler and interpreter; run "
              "make bench-check ARGS=--update on the commit to compare with", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
