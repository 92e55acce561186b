"""The peers behind one face: where a case goes, one checked request, one measured round. nginx has its own file."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from bench.server import h2load, load
from bench.server.cases import Case
from bench.server.grpc_cases import GrpcCase
from bench.server.nginx import Nginx
from scripts.server_process import POLL_SECONDS, ServerProcess

SETTLE_SECONDS = 2.0
SAMPLE = re.compile(r"^nv_inference_request_(success|failure)\{(.*)\} (\S+)$", re.M)


@dataclass(frozen=True)
class Counts:
    """Requests that a server counted itself; cancelled ones, as at the end of a round, are in neither number."""

    success: int
    failure: int


def counts(metrics: str, model: str) -> Counts:
    """A model's counters out of a metrics page."""
    found = {"success": 0.0, "failure": 0.0}
    for kind, labels, value in SAMPLE.findall(metrics):
        if f'model="{model}"' in labels and 'reason="CANCELED"' not in labels:
            found[kind] += float(value)
    return Counts(int(found["success"]), int(found["failure"]))


class Triton:
    """A server with models: triton_fast, or the real one, whose models copy their input (``computes`` is False)."""

    def __init__(self, process: ServerProcess, *, computes: bool = True) -> None:
        self.process = process
        self.computes = computes

    def endpoint(self, case: Case | GrpcCase) -> tuple[int, str]:
        return self.process.grpc_port if case.protocol == "grpc" else self.process.http_port, case.path

    def check(self, case: Case | GrpcCase) -> load.Answer:
        """One request of the case: its success status and the right values, else an error with what came back."""
        port, path = self.endpoint(case)
        if case.protocol == "grpc":
            answer = h2load.call(port, path, case.body)
        else:
            answer = load.post(port, path, case.body, case.headers)
        (case.verify if self.computes else case.verify_shape)(answer.status, answer.headers, answer.body)
        return answer

    def cpu_seconds(self) -> float:
        return self.process.cpu_seconds()

    def rss_bytes(self) -> int:
        return self.process.rss_bytes()

    def counts(self, model: str, *, at_least: int = 0) -> Counts:
        """Its counters, once they have reached a number of successes that must come, or after two seconds."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            found = counts(self.process.metrics(), model)
            if found.success >= at_least or time.monotonic() > deadline:
                return found
            time.sleep(POLL_SECONDS)


def measure(peer: Triton | Nginx, runner: load.Wrk | h2load.H2load, answer: load.Answer) -> dict:
    """Figures of one round. ``answer`` is what the peer gave when checked; each gRPC request must give its like."""
    case = runner.case
    counting = isinstance(peer, Triton) and case.protocol == "grpc"
    before = peer.counts(case.model) if counting else None
    cpu = peer.cpu_seconds()
    figures = runner.run(*peer.endpoint(case))
    figures["cpu_seconds"] = peer.cpu_seconds() - cpu
    figures["rss_bytes"] = peer.rss_bytes()
    if case.protocol == "grpc":
        figures["errors"]["unanswered"] = h2load.unanswered(figures, answer.body)
    if before:
        expected = before.success + figures["requests"]
        after = peer.counts(case.model, at_least=expected)
        figures["errors"]["uncounted"] = max(0, expected - after.success)
        figures["errors"]["inference"] = after.failure - before.failure
    return figures
