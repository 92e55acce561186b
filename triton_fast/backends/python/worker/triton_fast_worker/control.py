"""The control socket: frames both ways. One thread reads; answers go to those who asked, the rest to a handler."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import threading
from typing import Any, Callable

from .errors import TritonModelException
from .gate import Gate
from .layout import FRAME, MAX_BLOB, MAX_JSON, MAX_SENT_CONFIG, MAX_SENT_JSON, MAX_TEXT

Handler = Callable[[dict[str, Any], bytes], None]


class _Question:
    __slots__ = ("answer", "arrived")

    def __init__(self) -> None:
        self.arrived = threading.Lock()
        self.arrived.acquire()
        self.answer: dict[str, Any] = {}


class Control:
    """``on_message`` runs on the reading thread and must not wait for the server."""

    def __init__(self, fd: int, on_message: Handler) -> None:
        self._socket = socket.socket(fileno=fd)
        self._on_message = on_message
        self._gate = Gate()
        self._numbers = itertools.count(1)
        self._asked: dict[int, _Question] = {}
        self.exit_code = 1

    def start(self) -> None:
        threading.Thread(target=self._read, name="triton_fast control", daemon=True).start()

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message; also from finalizers."""
        self._gate.later(self._send, _frame(message, b""))

    def ask(self, message: dict[str, Any], blob: bytes = b"") -> Any:
        """Send it and wait for the value. TritonModelException with the error's text."""
        question = _Question()
        number = next(self._numbers)
        self._asked[number] = question
        frame = _frame({**message, "call": number}, blob)
        with self._gate:
            self._send(frame)
        question.arrived.acquire()
        error = question.answer.get("error")
        if error is not None:
            raise TritonModelException(error["message"])
        return question.answer.get("value")

    def answer_config(self, call: int, config: Any) -> None:
        """Answer ``auto_complete``: a worker that lives for that alone may say more."""
        self._gate.later(self._send, _frame({"type": "answer", "call": call, "value": config}, b"", MAX_SENT_CONFIG))

    def answer(self, call: int, value: Any = None, error: str | None = None) -> None:
        message: dict[str, Any] = {"type": "answer", "call": call}
        if error is None:
            message["value"] = value
        else:
            message["error"] = {"code": 1, "message": cut(error)}
        try:
            self.tell(message)
        except TritonModelException as large:
            self.tell({**message, "value": None, "error": {"code": 1, "message": str(large)}})

    def _send(self, frame: bytes) -> None:
        # When the server is gone, the reading thread sees it too.
        with contextlib.suppress(OSError):
            self._socket.sendall(frame)

    def _read(self) -> None:
        try:
            while True:
                json_bytes, blob_bytes = FRAME.unpack(self._exactly(FRAME.size))
                if json_bytes > MAX_JSON or blob_bytes > MAX_BLOB:
                    break
                message = json.loads(self._exactly(json_bytes))
                blob = self._exactly(blob_bytes)
                if message["type"] == "answer":
                    question = self._asked.pop(message["call"], None)
                    if question is not None:
                        question.answer = message
                        question.arrived.release()
                else:
                    self._on_message(message, blob)
        except (EOFError, OSError):
            pass
        # Nobody is left to work for, whatever the model's threads are doing.
        os._exit(self.exit_code)

    def _exactly(self, count: int) -> bytes:
        pieces = []
        while count:
            piece = self._socket.recv(min(count, 1 << 20))
            if not piece:
                raise EOFError
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)


def cut(text: str) -> str:
    """Return a text as long as the server takes it."""
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + " ... (text cut)"


def _frame(message: dict[str, Any], blob: bytes, limit: int = MAX_SENT_JSON) -> bytes:
    text = json.dumps(message).encode()
    if len(text) > limit or len(blob) > MAX_BLOB:
        kind = message["type"]
        raise TritonModelException(
            f"the message '{kind}' is too large for the server: {len(text)} bytes of JSON and {len(blob)} of files, "
            f"the limits are {limit} and {MAX_BLOB}"
        )
    return FRAME.pack(len(text), len(blob)) + text + blob
