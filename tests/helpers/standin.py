"""A stand-in for the Python backend's worker and for its native half, for tests of the server's side.

The worker speaks the control protocol of docs/python_worker.md and nothing else. Its model file is Python code that may
define ``init(worker, message)``, ``auto_complete(worker, config)``, ``is_ready(worker)`` and ``finalize(worker)``.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from triton_fast.backends.python.native import Call, Engine

WAIT_S = 30.0
SOURCE = '''
import json, os, runpy, socket, struct, sys, threading, time, traceback

HEADER = struct.Struct("<II")

class Worker:
    def __init__(self, fds):
        self.control = socket.socket(fileno=fds[0])
        self.work = fds[2]
        self.lock = threading.Lock()
        self.answers, self.came = {}, threading.Condition()
        self.numbers = iter(range(1, 1 << 30))

    def raw(self, data):
        with self.lock:
            self.control.sendall(data)

    def send(self, message, blob=b""):
        text = json.dumps(message).encode()
        self.raw(HEADER.pack(len(text), len(blob)) + text + blob)

    def call(self, message, blob=b""):
        number = next(self.numbers)
        self.send({**message, "call": number}, blob)
        with self.came:
            self.came.wait_for(lambda: number in self.answers)
            answer = self.answers.pop(number)
        return answer.get("error") or answer.get("value")

    def exactly(self, n):
        data = b""
        while len(data) < n:
            piece = self.control.recv(n - len(data))
            if not piece:
                os._exit(0)
            data += piece
        return data

    def handle(self, message):
        try:
            kind = message["type"]
            if kind in ("init", "auto_complete"):
                self.context = message["context"]
                self.model = runpy.run_path(message["context"]["model_path"])
                default = (lambda w, c: c) if kind == "auto_complete" else (lambda w, m: None)
                argument = message["config"] if kind == "auto_complete" else message
                value = self.model.get(kind, default)(self, argument)
                if kind == "init":
                    value = {"is_ready": "is_ready" in self.model}
                    if self.work >= 0:
                        threading.Thread(target=self.finalize, daemon=True).start()
            else:
                value = self.model["is_ready"](self)
            self.send({"type": "answer", "call": message["call"], "value": value})
        except BaseException as error:
            text = type(error).__name__ + ": " + str(error)
            self.send({"type": "answer", "call": message["call"], "error": {"code": 1, "message": text}})

    def finalize(self):
        os.read(self.work, 8)
        self.model.get("finalize", lambda w: None)(self)
        self.send({"type": "finalized", "error": None})
        os._exit(0)

    def run(self):
        while True:
            n_json, n_blob = HEADER.unpack(self.exactly(8))
            message = json.loads(self.exactly(n_json))
            self.exactly(n_blob)
            if message["type"] == "answer":
                with self.came:
                    self.answers[message["call"]] = message
                    self.came.notify_all()
            else:
                threading.Thread(target=self.handle, args=(message,), daemon=True).start()

Worker([int(text) for text in sys.argv[1:]]).run()
'''


def write(folder: Path) -> Path:
    """Write the stand-in's start.py and return its path."""
    path = folder / "start.py"
    path.write_text(SOURCE)
    return path


class FakeChannel:
    """Descriptors of the right kinds, with nothing behind them."""

    limit = 1 << 62

    def __init__(self, in_bytes: int, out_bytes: int) -> None:
        if in_bytes + out_bytes > self.limit:
            raise MemoryError("too large")
        self.size = in_bytes + out_bytes
        self._fds = (os.memfd_create("t", os.MFD_CLOEXEC), *(os.eventfd(0, os.EFD_CLOEXEC) for _ in range(4)))

    def fds(self) -> tuple[int, int, int, int, int]:
        return self._fds  # type: ignore[return-value]

    def __del__(self) -> None:
        for fd in self.__dict__.get("_fds", ()):
            os.close(fd)


class FakeInstance:
    """Records what it is told; ``events`` are (what, reason), ``saw`` waits for one."""

    def __init__(self, name: str, resolve: Callable[..., object] | None = None, epoch: object = None) -> None:
        self.name = name
        self.key = id(self)
        self.model_key = 0
        self.broken = False
        self.events: deque[tuple[str, str]] = deque()
        self.channel: FakeChannel | None = None
        self.executing = False
        self.execution_started_ns = 0
        self.in_flight = 0
        self.open_calls: list[Call] = []
        self.failed: list[tuple[int, str]] = []
        self._changed = threading.Condition()

    def _note(self, what: str, reason: str = "") -> None:
        with self._changed:
            self.events.append((what, reason))
            self._changed.notify_all()

    def saw(self, what: str, times: int = 1) -> str:
        """Wait until ``what`` was told so many times; return its last reason."""
        with self._changed:
            found = self._changed.wait_for(lambda: [e for e in self.events if e[0] == what][times - 1 :], WAIT_S)
            assert found, f"no {what} x{times} in {list(self.events)}"
            return found[0][1]

    def attach(self, channel: FakeChannel) -> None:
        self.channel = channel
        self._note("attach")

    def fail(self, reason: str, code: int = 1) -> None:
        self.channel = None
        self._note("fail", reason)

    def give_up(self, reason: str) -> None:
        self._note("give_up", reason)

    def finalize(self) -> None:
        assert self.channel is not None
        os.eventfd_write(self.channel.fds()[1], 1)
        self._note("finalize")

    def drain(self, timeout_s: float) -> bool:
        return True

    def trim(self, keep: int) -> None:
        self._note("trim")

    def calls(self) -> list[Call]:
        return self.open_calls

    def fail_call(self, call_id: int, text: str) -> bool:
        self.failed.append((call_id, text))
        return True


def engine(channel: type[FakeChannel] = FakeChannel) -> Engine:
    return Engine(channel, FakeInstance)  # type: ignore[arg-type]


def is_running(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Callable[[], bool]) -> None:
    """Poll what has no event to wait for."""
    pause = threading.Event()
    limit = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < limit, "it did not come true"
        pause.wait(0.005)
