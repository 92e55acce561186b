"""``python -m bench.adversity [--seconds N] [NAME...]``: latency of a gRPC neighbour alone and beside each attack.

Prints one line an attack: neighbour's calls, p50, p99 and longest in ms, and how often the attack ran meanwhile. The
attacker is a process of its own, so that only the server is shared.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from bench.adversity.attacks import ATTACKS, repeat
from tests.helpers.h2attacks import Neighbour
from tests.helpers.h2raw import Address
from tests.helpers.server import Model, ServerProcess, repository, with_repeat

ROUND_S = 3.0
MODELS = (Model("m"), Model("slow", delay_ms=20), Model("big", "UINT8", max_batch=0))


@contextlib.contextmanager
def attacked(address: Address, name: str) -> Iterator[Synchronized[int]]:
    """Attack again and again while the body runs, and at least once."""
    context = multiprocessing.get_context("spawn")
    times = context.Value("i", 0)
    process = context.Process(target=repeat, args=(address, name, times), daemon=True)
    process.start()
    try:
        deadline = time.monotonic() + 10
        while times.value == 0 and time.monotonic() < deadline and process.is_alive():
            time.sleep(0.01)
        if not times.value:
            raise SystemExit(f"the attack '{name}' does not run")
        yield times
    finally:
        process.terminate()
        process.join()


def measure(address: Address, seconds: float) -> list[float]:
    with Neighbour(address) as neighbour:
        time.sleep(seconds)
    return sorted(neighbour.took)


def line(name: str, took: list[float], times: object = "") -> str:
    p50, p99, longest = (1e3 * took[min(len(took) - 1, int(len(took) * part))] for part in (0.5, 0.99, 1.0))
    return f"{name:28}{len(took):>8}{p50:>9.2f}{p99:>9.2f}{longest:>9.2f}{times:>9}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=ROUND_S)
    parser.add_argument("names", nargs="*", help="attacks; all without")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in ATTACKS]
    if unknown:
        parser.error(f"no such attack: {', '.join(unknown)}; there are: {', '.join(ATTACKS)}")
    sys.setswitchinterval(0.0005)
    with tempfile.TemporaryDirectory() as folder:
        root = with_repeat(repository(Path(folder), *MODELS))
        with ServerProcess(root, "--grpc-stall-timeout-secs=1", exit_code=None) as server:
            print(f"{'attack':28}{'calls':>8}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}{'times':>9}")
            measure(server.grpc, 0.5)
            print(line("none", measure(server.grpc, options.seconds)), flush=True)
            for name in options.names or ATTACKS:
                with attacked(server.grpc, name) as times:
                    before = times.value
                    took = measure(server.grpc, options.seconds)
                    print(line(name, took, times.value - before), flush=True)
            print(line("none", measure(server.grpc, options.seconds)), flush=True)
            print(f"server: {server.rss() >> 20} MiB resident, {server.peak_rss() >> 20} at most, {server.fds()} files")


if __name__ == "__main__":
    main()
