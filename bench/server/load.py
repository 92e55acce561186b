"""Requests: one checked request from Python, and many from wrk. It knows nothing of models or tables."""

from __future__ import annotations

import http.client
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.server.cases import HEADER_LENGTH, Case

SCRIPT = Path(__file__).with_name("post.lua")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


def post(port: int, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", path, body, dict(headers))
        reply = connection.getresponse()
        return Answer(reply.status, dict(reply.getheaders()), reply.read())
    finally:
        connection.close()


class Wrk:
    """wrk -t1 with the fixed request of one case."""

    def __init__(self, scratch: Path, case: Case, seconds: float) -> None:
        self.case = case
        self.seconds = seconds
        self.body = scratch / f"{case.name}.body"
        self.body.write_bytes(case.body)

    def run(self, port: int, path: str, seconds: float | None = None) -> dict:
        """Figures of one round: requests, seconds, bytes, latencies in us, errors by kind."""
        seconds = seconds or self.seconds
        argv = [
            "wrk", "-t1", f"-c{self.case.connections}", f"-d{seconds:g}s", "--latency", "-s", str(SCRIPT),
            f"http://127.0.0.1:{port}{path}", "--",
            str(self.body), self.case.headers["Content-Type"], self.case.headers.get(HEADER_LENGTH, ""),
        ]
        done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=seconds + 60)
        lines = [line[7:] for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if done.returncode or not lines:
            raise RuntimeError(f"wrk failed ({done.returncode}): {done.stdout[-500:]}{done.stderr[-500:]}")
        figures = json.loads(lines[0])
        figures["rate"] = figures["requests"] / figures["seconds"]
        return figures
