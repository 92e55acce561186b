"""Instructions per request of the whole server: n and 2n requests over one connection, under callgrind.

The difference of two runs takes start and stop out of the count. Each request waits for its answer, so every batch
holds one request.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from pathlib import Path

from bench.micro.count import VALGRIND, clean_env, collected
from bench.micro.grpc_client import GrpcClient
from bench.server import models
from bench.server.cases import Case, encode
from bench.server.grpc_cases import GrpcCase
from bench.server.response_cache import cached
from scripts.server_process import ServerProcess

# name -> number of requests
CASES = {
    "server-mlp-binary": 2000, "server-mlp-json": 2000, "server-mlp-grpc": 2000, "server-mlp-binary-logged": 2000,
    "server-mlp-binary-cached": 2000,
}  # fmt: skip
# More flags of a case, by the end of its name.
FLAGS = {"logged": ("--access-log=1",), "cached": ("--cache-config=local,size=1048576",)}
WARM_UP = 200
READY_TIMEOUT = 600  # seconds: everything is some 50 times slower under callgrind


def request_bytes(case: Case) -> bytes:
    body, headers = encode(case.model, case.binary)
    lines = [f"POST {case.path} HTTP/1.1", "Host: 127.0.0.1", *(f"{key}: {value}" for key, value in headers.items()),
             f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


class HttpClient:
    """One keep-alive connection. Answers to equal requests have equal length, so later ones are read by count."""

    def __init__(self, port: int, request: bytes) -> None:
        self.request = request
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def first(self) -> bytes:
        """Send the request and read by Content-Length."""
        self.socket.sendall(self.request)
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._receive()
        head, _, body = data.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"answer {data[:500]!r}")
        fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:])
        while len(body) < int(fields[b"content-length"]):
            body += self._receive()
        return head + b"\r\n\r\n" + body

    def repeat(self, answer: bytes, count: int) -> None:
        for _ in range(count):
            self.socket.sendall(self.request)
            left = len(answer)
            while left:
                data = self._receive()
                left -= len(data)
                if left < 0:
                    raise RuntimeError("more bytes came than the answer has")
            if data[-16:] != answer[-16:]:
                raise RuntimeError(f"another answer than before: {data[-200:]!r}")

    def _receive(self) -> bytes:
        data = self.socket.recv(65536)
        if not data:
            raise RuntimeError("the server closed the connection")
        return data


def connect(server: ServerProcess, case: Case | GrpcCase) -> HttpClient | GrpcClient:
    if isinstance(case, GrpcCase):
        return GrpcClient(server.grpc_port, case.path, case.body)
    return HttpClient(server.http_port, request_bytes(case))


def run(case: Case | GrpcCase, requests: int, flags: tuple[str, ...] = ()) -> int:
    """Instructions of a server's whole life with that many requests."""
    with tempfile.TemporaryDirectory(prefix="triton_fast-callgrind-") as folder:
        scratch = Path(folder)
        models.write_onnx(scratch / "models")
        cached(scratch / "models")      # without a cache of the server's the line has no effect
        counts = scratch / "callgrind.log"
        environment = [f"{key}={value}" for key, value in clean_env().items()]
        # On one core nobody spins while waiting (scheduling/instances.py), so the count does not depend on the clock.
        core = str(min(os.sched_getaffinity(0)))
        command = ["taskset", "-c", core, "env", "-i", *environment,
                   *VALGRIND, f"--log-file={counts}", "--fair-sched=yes", sys.executable, "-S", "-m", "triton_fast"]
        with ServerProcess(scratch / "models", scratch / "server.log", command=command, args=flags,
                           ready_timeout=READY_TIMEOUT) as server:
            client = connect(server, case)
            answer = client.first()
            client.repeat(answer, WARM_UP + requests)
            client.socket.close()
            code = server.stop(timeout=120)
        if code:
            raise RuntimeError(f"the server ended with code {code}:\n{counts.read_text()[-1000:]}")
        return collected(counts.read_text())


def per_request(name: str, requests: int) -> float:
    if name.endswith("grpc"):
        case: Case | GrpcCase = GrpcCase(name, "mlp", 1, 1)
    else:
        case = Case(name, "mlp", 1, "binary" in name)
    flags = FLAGS.get(name.rpartition("-")[2], ())
    return (run(case, 2 * requests, flags) - run(case, requests, flags)) / requests
