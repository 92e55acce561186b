"""gRPC requests: one checked request from Python, and many from h2load. It knows nothing of models or tables.

h2load knows HTTP statuses only, and those are 200 for gRPC errors too; `unanswered` finds them by their missing bytes.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import grpc
import numpy as np

from bench.server.grpc_cases import PREFIX, GrpcCase, frame
from bench.server.load import Answer

# Answers never wait for h2load: 16 MiB for each stream and connection are more than all answers in flight.
WINDOW_BITS = 24
LEAST_LOGGED = 0.5  # seconds of the run that takes latencies
REQUESTS = re.compile(r"^requests: (\d+) total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, "
                      r"(\d+) timeout$", re.M)
STATUSES = re.compile(r"^status codes: (\d+) 2xx,", re.M)
TRAFFIC = re.compile(r"^traffic: \S+ \((\d+)\) total, \S+ \((\d+)\) headers .*, \S+ \((\d+)\) data$", re.M)


def call(port: int, path: str, body: bytes) -> Answer:
    """One unary call; the answer has the gRPC status and the framed message, or an error's text as body."""
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.max_receive_message_length", -1)]) as channel:
        try:
            reply = channel.unary_unary(path)(body[PREFIX.size :], timeout=30)
        except grpc.RpcError as error:
            return Answer(error.code().value[0], {}, (error.details() or "").encode())
    return Answer(0, {"content-type": "application/grpc"}, frame(reply))


def parse(text: str) -> dict:
    """The counts of h2load's report: requests, bytes received (all, and of DATA frames), errors by kind."""
    requests, statuses, traffic = (pattern.search(text) for pattern in (REQUESTS, STATUSES, TRAFFIC))
    if not requests or not statuses or not traffic:
        raise RuntimeError(f"h2load reports no figures: {text[-500:]}")
    _, done, succeeded, failed, errored, timeout = map(int, requests.groups())
    if not done:
        raise RuntimeError(f"h2load got no answer: {text[-500:]}")
    errors = {"failed": failed, "errored": errored, "timeout": timeout, "status": max(succeeded - int(statuses[1]), 0)}
    return {"requests": done, "bytes": int(traffic[1]), "data_bytes": int(traffic[3]), "errors": errors}


def unanswered(figures: dict, answer: bytes) -> int:
    """Requests that ended without a whole answer's bytes. Answers under way at the end can hide that many at most."""
    return max(0, -(-(figures["requests"] * len(answer) - figures["data_bytes"]) // len(answer)))


class H2load:
    """h2load -t1 with the fixed request of one case."""

    def __init__(self, scratch: Path, case: GrpcCase, seconds: float) -> None:
        self.case = case
        self.seconds = seconds
        self.body = scratch / f"{case.name}.body"
        self.body.write_bytes(case.body)
        self.log = scratch / f"{case.name}.log"

    def run(self, port: int, path: str, seconds: float | None = None) -> dict:
        """Figures of one round: requests, seconds, bytes, latencies in us, errors by kind.

        No warm-up of h2load's own: its requests would not be in the report, but in the server's counters.
        """
        seconds = seconds or self.seconds
        figures = self._load(port, path, seconds)
        rate = figures["requests"] / seconds
        # A row written for each request costs h2load more than some peers need for its answer: latencies are taken by a
        # run of their own.
        self.log.unlink(missing_ok=True)  # h2load appends
        logged = self._load(port, path, max(LEAST_LOGGED, seconds / 4), f"--log-file={self.log}")
        for key in ("requests", "data_bytes"):
            figures[key] += logged[key]
        figures["errors"] = {kind: n + logged["errors"][kind] for kind, n in figures["errors"].items()}
        # Rows of start time, status and duration, in microseconds, one for each request.
        times = np.fromfile(self.log, np.int64, sep=" ").reshape(-1, 3)[:, 2]
        for key, rank in (("p50", 50), ("p90", 90), ("p99", 99), ("p999", 99.9), ("max", 100)):
            figures[key] = int(np.percentile(times, rank))
        return figures | {"mean": round(float(times.mean()), 1), "seconds": seconds, "rate": rate}

    def _load(self, port: int, path: str, seconds: float, *flags: str) -> dict:
        headers = [part for key, value in self.case.headers.items() for part in ("-H", f"{key}: {value}")]
        argv = [
            "h2load", "-t1", f"-c{self.case.connections}", f"-m{self.case.streams}",
            "-D", f"{round(seconds * 1000)}ms", f"-w{WINDOW_BITS}", f"-W{WINDOW_BITS}", "-d", str(self.body), *headers,
            *flags, f"http://127.0.0.1:{port}{path}",
        ]
        done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=seconds + 60)
        if done.returncode:
            raise RuntimeError(f"h2load failed ({done.returncode}): {done.stdout[-500:]}{done.stderr[-500:]}")
        return parse(done.stdout)
