"""What reloads cost clients that ask all the time, and how fast the index of many models is. Prints; asserts nothing.

Run from the repository root as ``python -m bench.server.reload [--rate N] [--reloads N] [--models N] [--every S]
[--python] [--plainly]``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.helpers.reload import Clients, Control, Site, reloads
from tests.helpers.server import Model, ServerProcess, repository

EXPLICIT = ("--model-control-mode=explicit", "--load-model=*")
CALM_S = 5.0
ASKED = 500


def python_reloads(site: Site, control: Control, count: int) -> Iterator[None]:
    for _ in range(count):
        site.p.begun += 1
        site.write_p(site.p.begun)
        assert control.load("p") == 200
        site.p.loaded = site.p.begun
        yield


def under_load(rate: int, count: int, every_s: float, make: Callable[..., Iterator[object]], *flags: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder))
        with ServerProcess(site.root, *EXPLICIT, *flags) as process, Control(process.http) as control:
            clients = Clients(site, process.http, process.grpc, rate)
            with clients.running():
                clients.wait(20)
                clients.phase = "before"
                time.sleep(CALM_S)
                clients.phase = "reloads"
                began = due = time.monotonic()
                for _ in make(site, control, count):
                    clients.wait(2)
                    due += every_s
                    time.sleep(max(0.0, due - time.monotonic()))
                took = time.monotonic() - began
    answers = sum(len(times) for seen in clients.seen.values() for times in seen.times_ns.values())
    print(f"{count} reloads in {took:.1f} s, {answers} answers at {rate}/s, {len(clients.wrong)} failed or wrong")
    for share in (0.5, 0.99):
        before, during = (clients.percentile_ms(phase, share) for phase in ("before", "reloads"))
        print(f"p{share * 100:g}: {before:.2f} ms without reloads, {during:.2f} ms with them ({during / before:.1f}x)")


def index(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = repository(Path(folder), *(Model(f"model_{k}") for k in range(count)))
        with ServerProcess(root, *EXPLICIT) as process, Control(process.http) as control:
            times = []
            for _ in range(ASKED):
                began = time.perf_counter_ns()
                control.connection.request("POST", "/v2/repository/index", b"")
                control.connection.getresponse().read()
                times.append(time.perf_counter_ns() - began)
    times.sort()
    p50, p99 = (times[int(share * ASKED)] / 1e6 for share in (0.5, 0.99))
    print(f"index of {count} loaded models, seen by a client: p50 {p50:.2f} ms, p99 {p99:.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=500)
    parser.add_argument("--reloads", type=int, default=50)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--every", type=float, default=0.0, help="seconds from one reload to the next, at least")
    parser.add_argument("--python", action="store_true", help="reload the Python model only")
    parser.add_argument("--plainly", action="store_true", help="workers of Python models start without a template")
    given = parser.parse_args()
    if given.models:
        index(given.models)
    flags = ["--backend-config=python,worker-template=no"] if given.plainly else []
    under_load(given.rate, given.reloads, given.every, python_reloads if given.python else reloads, *flags)


if __name__ == "__main__":
    main()
