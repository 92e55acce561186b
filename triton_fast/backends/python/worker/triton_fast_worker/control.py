"""The control socket: frames of JSON with a blob, questions and answers both ways (docs/python_worker.md)."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import socket
import struct
import threading
from typing import Any, Callable, Optional

from triton_fast_worker.errors import TritonModelException

_HEAD = struct.Struct("<II")


class _Answer:
    __slots__ = ("done", "message")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.message: dict[str, Any] = {}


class Control:
    """One end of the socket. A thread reads; ``next`` gives what the main thread has to do.

    ``handlers``: message type -> function of the message, run on a thread of its own, whose value is the answer.
    """

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._writing = threading.Lock()
        self._calls = itertools.count(1)
        self._waiting: dict[int, _Answer] = {}
        self._work: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.handlers: dict[str, Callable[[dict[str, Any]], Any]] = {}
        threading.Thread(target=self._read, name="control", daemon=True).start()

    def next(self) -> dict[str, Any]:
        """Wait for the next message that no handler takes."""
        return self._work.get()

    def send(self, message: dict[str, Any], blob: bytes = b"") -> None:
        data = json.dumps(message).encode("utf-8")
        with self._writing, contextlib.suppress(OSError):  # the reader sees the server's end
            self._socket.sendall(_HEAD.pack(len(data), len(blob)) + data + blob)

    def ask(self, kind: str, blob: bytes = b"", **fields: Any) -> Any:
        """Send a question and wait for its answer. Raises TritonModelException with the server's error."""
        call = next(self._calls)
        answer = self._waiting[call] = _Answer()
        self.send({"type": kind, "call": call, **fields}, blob)
        answer.done.wait()
        error = answer.message.get("error")
        if error is not None:
            raise TritonModelException(error.get("message", ""))
        return answer.message.get("value")

    def answer(self, call: int, value: Any = None, error: Optional[str] = None, code: int = 1) -> None:
        """Answer a question of the server."""
        message: dict[str, Any] = {"type": "answer", "call": call}
        if error is None:
            message["value"] = value
        else:
            message["error"] = {"code": code, "message": error}
        self.send(message)

    def _exactly(self, n: int) -> bytes:
        parts = bytearray()
        while len(parts) < n:
            part = self._socket.recv(min(n - len(parts), 1 << 20))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)

    def _read(self) -> None:
        try:
            while True:
                size, blob = _HEAD.unpack(self._exactly(_HEAD.size))
                message = json.loads(self._exactly(size))
                self._exactly(blob)
                self._dispatch(message)
        except (OSError, EOFError, ValueError):
            # The server has gone: nobody is left to serve, and nothing may hold this process.
            os._exit(1)

    def _dispatch(self, message: dict[str, Any]) -> None:
        kind = message.get("type", "")
        if kind == "answer":
            waiting = self._waiting.pop(message["call"], None)
            if waiting is not None:
                waiting.message = message
                waiting.done.set()
        elif kind in self.handlers:
            threading.Thread(target=self._handle, args=(kind, message), name=kind, daemon=True).start()
        else:
            self._work.put(message)

    def _handle(self, kind: str, message: dict[str, Any]) -> None:
        try:
            self.answer(message["call"], self.handlers[kind](message))
        except BaseException as error:  # noqa: BLE001 - the model's own, told to who asked
            self.answer(message["call"], error=f"{type(error).__name__}: {error}")
