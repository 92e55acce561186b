"""A real redis-server on a free port of 127.0.0.1, without persistence. Tests that need it are skipped where Debian's
package redis-server is not installed."""

from __future__ import annotations

import shutil
import socket
import subprocess
from types import TracebackType

import pytest
import redis

BINARY = shutil.which("redis-server")
needs_redis = pytest.mark.skipif(BINARY is None, reason="needs the command redis-server")
START_TIMEOUT_S = 20.0


class RedisServer:
    """Entering waits until it answers. ``flags``: more of its command line; ``port``: one that was used before."""

    def __init__(self, *flags: str, port: int = 0) -> None:
        self.flags = flags
        self.port = port or _free_port()

    def __enter__(self) -> RedisServer:
        assert BINARY is not None
        argv = [
            BINARY,
            "--bind",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--save",
            "",
            "--appendonly",
            "no",
            *self.flags,
        ]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if "Ready to accept connections" in line:
                return self
        raise AssertionError("redis-server did not start")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(START_TIMEOUT_S)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def client(self, **options: object) -> redis.Redis:
        return redis.Redis(host="127.0.0.1", port=self.port, **options)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
