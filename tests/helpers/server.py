"""Servers for tests: one in a process of its own, one in a thread of this process, and repositories for both.

Knows how a server is started and watched; knows nothing of HTTP messages (helpers/raw.py).
"""

from __future__ import annotations

import asyncio
import codecs
import fcntl
import io
import os
import re
import select
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import psutil
import uvloop

from triton_fast import cli
from triton_fast.app import Server

ROOT = Path(__file__).resolve().parents[2]
# Generous: a machine that compiles and tests at once starts a server in tens of seconds.
START_TIMEOUT_S = 90.0
EXIT_TIMEOUT_S = 40.0
Address = tuple[str, int]
T = TypeVar("T")
_STARTED = re.compile(r"Started ([A-Za-z ]*Service) at ([0-9.]+):([0-9]+)")
_ATTRIBUTES = {"HTTPService": "http", "Metrics Service": "metrics", "GRPCInferenceService": "grpc",
               "Sagemaker HTTPService": "sagemaker", "Vertex AI HTTPService": "vertex"}  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A model of the identity backend. ``dims`` without the batch dimension; ``extra``: more config.pbtxt text."""

    name: str = "m"
    datatype: str = "FP32"
    dims: Sequence[int] = (-1,)
    max_batch: int = 8
    delay_ms: int = 0
    tensors: int = 1
    extra: str = ""

    def config(self) -> str:
        dims = ", ".join(map(str, self.dims))
        kind = "STRING" if self.datatype == "BYTES" else self.datatype
        lines = ['backend: "identity"', f"max_batch_size: {self.max_batch}"]
        for i in range(self.tensors):
            for side in ("input", "output"):
                lines.append(f'{side} [{{ name: "{side.upper()}{i}" data_type: TYPE_{kind} dims: [{dims}] }}]')
        if self.delay_ms:
            value = f'value {{ string_value: "{self.delay_ms}" }}'
            lines.append(f'parameters {{ key: "execute_delay_ms" {value} }}')
        return "\n".join([*lines, self.extra, ""])


def repository(root: Path, *models: Model) -> Path:
    """Write the models under ``root`` and return it."""
    for model in models:
        (root / model.name / "1").mkdir(parents=True, exist_ok=True)
        (root / model.name / "config.pbtxt").write_text(model.config())
    return root


def with_repeat(root: Path, name: str = "repeat") -> Path:
    """Add a decoupled model of the repeat backend."""
    (root / name / "1").mkdir(parents=True, exist_ok=True)
    (root / name / "config.pbtxt").write_text('backend: "repeat"\n')
    return root


# Where the front ends of clouds listen when a test asks for them.
CLOUDS = ("--sagemaker-address=127.0.0.1", "--sagemaker-port=0", "--vertex-ai-address=127.0.0.1", "--vertex-ai-port=0")


class ServerProcess:
    """``python -m triton_fast`` on free ports of 127.0.0.1.

    Entering waits until it serves, ``start_s`` at most. Leaving sends SIGTERM and asserts exit code 0, unless
    ``exit_code`` says otherwise or the process was ended before.
    """

    def __init__(
        self, root: Path, *flags: str, exit_code: int | None = 0, env: dict[str, str] | None = None,
        start_s: float = START_TIMEOUT_S,
    ) -> None:  # fmt: skip
        self._start_s = start_s
        self.argv = [
            sys.executable, "-m", "triton_fast", f"--model-repository={root}", "--http-address=127.0.0.1",
            "--http-port=0", "--metrics-port=0", "--grpc-address=127.0.0.1", "--grpc-port=0", *CLOUDS, *flags,
        ]  # fmt: skip
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
        self.env = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **(env or {})}
        self.exit_code = exit_code
        self.http: Address = ("", 0)
        self.metrics: Address = ("", 0)
        self.grpc: Address = ("", 0)
        self.sagemaker: Address = ("", 0)
        self.vertex: Address = ("", 0)
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False

    def __enter__(self) -> ServerProcess:
        self.process = subprocess.Popen(
            self.argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=self.env, bufsize=0
        )
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()
        try:
            self.wait_for_log(r"ready in \d+ ms", self._start_s)
        except BaseException:
            self.kill()
            raise
        for line in self._lines:
            if found := _STARTED.search(line):
                address = (found[2], int(found[3]))
                setattr(self, _ATTRIBUTES[found[1]], address)
        self.ps = psutil.Process(self.process.pid)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is not None:
            self.kill()
            sys.stderr.write("---- server log\n" + self.log()[-4000:])
            return
        if self.process.poll() is None:
            code = self.stop()
        else:
            code = self.process.returncode
            self._finish()
        if self.exit_code is not None:
            assert code == self.exit_code, f"exit code {code}, expected {self.exit_code}\n{self.log()[-4000:]}"

    def _collect(self) -> None:
        assert self.process.stdout is not None
        fd, rest = self.process.stdout.fileno(), ""
        ready = select.poll()
        ready.register(fd, select.POLLIN)
        decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")("replace"), translate=True)
        while True:
            ready.poll()
            # What is out of the pipe is in the lines: no moment between.
            with self._changed:
                if self._ended:
                    return
                data = os.read(fd, 1 << 16)
                self._ended = not data
                *lines, rest = (rest + decoder.decode(data, final=self._ended)).split("\n")
                self._lines += [*lines, rest] if self._ended and rest else lines
                self._changed.notify_all()

    def _is_read(self) -> bool:
        """Whether all that the process has printed so far is in the lines."""
        if self._ended:
            return True
        assert self.process.stdout is not None
        waiting = fcntl.ioctl(self.process.stdout.fileno(), termios.FIONREAD, b"\0\0\0\0")
        return waiting == b"\0\0\0\0"

    def _finish(self) -> None:
        self._thread.join(EXIT_TIMEOUT_S)
        with self._changed:
            self._ended = True  # also where a child that it left keeps the pipe open
            if self.process.stdout is not None:
                self.process.stdout.close()

    def wait_for_log(self, pattern: str, timeout: float = START_TIMEOUT_S) -> str:
        """Return the first line of the log that holds ``pattern``, waiting for it."""
        wanted = re.compile(pattern)

        def found() -> str | None:
            return next((line for line in self._lines if wanted.search(line)), None)

        with self._changed:
            self._changed.wait_for(lambda: found() is not None or self._ended, timeout)
            line = found()
        assert line is not None, f"no {pattern!r} in the log:\n{self.log()[-4000:]}"
        return line

    def log(self) -> str:
        """Return what the process has printed so far: what it says before it answers is there after the answer."""
        with self._changed:
            self._changed.wait_for(self._is_read, START_TIMEOUT_S)
            return "\n".join(self._lines)

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for the end of the process and return its exit code."""
        code = self.process.wait(EXIT_TIMEOUT_S)
        self._finish()
        return code

    def stop(self) -> int:
        self.signal()
        return self.wait()

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(EXIT_TIMEOUT_S)
        self._finish()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def rss(self) -> int:
        """Resident bytes."""
        return int(self.ps.memory_info().rss)

    def peak_rss(self) -> int:
        """The most resident bytes there were since the start or the last ``reset_peak``."""
        return _peak(self.process.pid)

    def reset_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def fds(self) -> int:
        """Count its descriptors: with connections that were closed and that it has not noticed yet."""
        return int(self.ps.num_fds())

    def connections(self, address: Address) -> int:
        """Count the connections that it has on a port."""
        found = self.ps.net_connections(kind="tcp")
        return sum(one.status == psutil.CONN_ESTABLISHED and one.laddr.port == address[1] for one in found)


def _peak(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


class LocalServer:
    """The server on a thread of this process, for tests that read native counters or the repository.

    ``server`` is the ``app.Server``; ``call`` runs a function on its loop's thread.
    """

    def __init__(self, root: Path, *flags: str, env: dict[str, str] | None = None) -> None:
        self.options = cli.parse(
            [f"--model-repository={root}", "--http-address=127.0.0.1", "--http-port=0", "--metrics-port=0",
             "--grpc-address=127.0.0.1", "--grpc-port=0", *CLOUDS, *flags],
            None if env is None else {**os.environ, **env},
        )  # fmt: skip
        self._up = threading.Event()
        self._error: BaseException | None = None
        self._stop: asyncio.Event | None = None

    def __enter__(self) -> LocalServer:
        self._thread = threading.Thread(target=self._run, name="local-server")
        self._thread.start()
        assert self._up.wait(START_TIMEOUT_S), "the server did not start"
        if self._error is not None:
            self._thread.join()
            raise self._error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self._stop is not None
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(EXIT_TIMEOUT_S)
        assert not self._thread.is_alive(), "the server did not stop"
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            uvloop.run(self._main())
        except BaseException as error:
            self._error = error
        finally:
            self._up.set()

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.server = Server(self.options)
        started = self.server.repository.start
        await self.loop.run_in_executor(self.server.work, started, self.options.load_model)
        await self.server.endpoints.open()
        self.server.plane.started = True
        self.http, self.grpc, self.metrics, self.sagemaker, self.vertex = (
            (getattr(self.server.endpoints, name).address, getattr(self.server.endpoints, name).port)
            if getattr(self.server.endpoints, name) is not None
            else ("", 0)
            for name in ("http", "grpc", "metrics", "sagemaker", "vertex")
        )
        self._up.set()
        await self._stop.wait()
        await self.server._drain()

    def call(self, function: Callable[[], T]) -> T:
        """Return ``function()``, run between two events of the loop."""

        async def run() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(START_TIMEOUT_S)

    def snapshot(self, model: str) -> dict[str, object]:
        """The native counters of a model."""
        return dict(self.server.plane.native_model(model, -1).snapshot())

    @property
    def native(self) -> object:
        """The native HTTP server: connections, requests, in_flight."""
        assert self.server.endpoints.http is not None
        return self.server.endpoints.http.native


def until(condition: Callable[[], bool], tries: int = 2000, step_s: float = 0.005) -> bool:
    """Poll what has no event to wait for; whether it came true."""
    pause = threading.Event()
    for _ in range(tries):
        if condition():
            return True
        pause.wait(step_s)
    return condition()
