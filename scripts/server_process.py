"""Start a server as a child, wait until it is ready, stop it. For the demo and the benchmarks.

It knows the command line of tritonserver and nothing of models. Ports are picked free on 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRITON_FAST = [sys.executable, "-m", "triton_fast"]
POLL_SECONDS = 0.005
GRPC_STARTED = re.compile(r"Started GRPCInferenceService at [^ ]*:(\d+)")


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used so far, all its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class ServerProcess:
    """One running server; use as a context manager.

    Attributes
    ----------
    http_port, metrics_port
        On 127.0.0.1; `grpc_port` too, where gRPC is served.
    ready_seconds
        From the start of the process to the first 200 of /v2/health/ready, seen from outside.
    log
        File with its stdout and stderr.
    """

    def __init__(self, repository: Path, log: Path, *, command: list[str] | None = None, args: tuple[str, ...] = (),
                 ready_timeout: float = 60.0) -> None:
        self.http_port, grpc_port, self.metrics_port = free_ports(3)
        self.log = log
        argv = [
            *(command or TRITON_FAST),
            f"--model-repository={repository}",
            f"--http-port={self.http_port}",
            f"--grpc-port={grpc_port}",
            f"--metrics-port={self.metrics_port}",
            "--http-address=127.0.0.1",
            "--grpc-address=127.0.0.1",
            *args,
        ]
        started = time.monotonic()
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            self._wait_ready(started + ready_timeout)
        except BaseException:
            self.kill()
            raise
        self.ready_seconds = time.monotonic() - started

    def _wait_ready(self, deadline: float) -> None:
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with code {self.process.returncode}:\n{self.log_tail()}")
            try:
                if self.get("/v2/health/ready")[0] == http.client.OK:
                    return
            except OSError:
                pass
            if time.monotonic() > deadline:
                raise RuntimeError(f"the server did not become ready:\n{self.log_tail()}")
            time.sleep(POLL_SECONDS)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.http_port}"

    @property
    def grpc_port(self) -> int:
        """On 127.0.0.1, read from the log: flags in ``args`` may ask for another port, or for no gRPC, which raises."""
        found = GRPC_STARTED.findall(self.log.read_text(errors="replace"))
        if not found:
            raise RuntimeError(f"the server does not serve gRPC:\n{self.log_tail()}")
        return int(found[-1])

    def metrics(self) -> str:
        """The metrics page."""
        status, body = self.get("/metrics", self.metrics_port)
        if status != http.client.OK:
            raise RuntimeError(f"/metrics answers {status}: {body[:500]!r}")
        return body.decode()

    def get(self, path: str, port: int | None = None) -> tuple[int, bytes]:
        """Status and body of one GET on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.http_port, timeout=10)
        try:
            connection.request("GET", path)
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def log_tail(self, lines: int = 20) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def cpu_seconds(self) -> float:
        return cpu_seconds(self.process.pid)

    def rss_bytes(self) -> int:
        return rss_bytes(self.process.pid)

    def stop(self, timeout: float = 35.0) -> int:
        """Send SIGTERM and return the exit code; a server that hangs is killed and raises."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"the server did not stop within {timeout} s:\n{self.log_tail()}") from None

    def kill(self) -> None:
        """End the process and its children (they share its session)."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()
