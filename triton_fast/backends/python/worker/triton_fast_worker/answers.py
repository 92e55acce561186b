"""Who reads the answers to BLS requests: one of the waiting threads for all of them.

No thread is started for callers that wait. The leader reads; when its own response has come it passes the lead on to
one that still waits. Callbacks (of async_exec) have nobody who waits: a thread is started with the first of them, and
leads as long as some are open.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import deque
from typing import Any, Callable

from .errors import TritonError
from .layout import BLS_STREAM, EVENT_BLS, EVENT_BLS_CANCEL, EVENT_BLS_CLOSED, FLAGS_ONLY
from .response import InferenceResponse
from .runtime import Call

Callback = Callable[[InferenceResponse], None]


class WorkerCall(Call):
    __slots__ = ("answers", "callback", "number", "ready", "stream", "wake")

    def __init__(self, answers: Answers, number: int, stream: bool, callback: Callback | None) -> None:
        self.answers = answers
        self.number = number
        self.stream = stream
        self.callback = callback
        self.ready: deque[InferenceResponse] = deque()
        self.wake = threading.Lock()
        self.wake.acquire()

    def next(self) -> InferenceResponse:
        return self.answers.wait(self)

    def cancel(self) -> None:
        self.answers.transport.publish_event(EVENT_BLS_CANCEL, self.number)

    def close(self) -> None:
        self.answers.forget(self)

    def rouse(self) -> None:
        with contextlib.suppress(RuntimeError):  # awake already
            self.wake.release()


class Answers:
    __slots__ = (
        "_calls", "_client", "_lead", "_numbers", "_open", "_thread", "_thread_lock", "_waiting", "_wanted",
        "transport",
    )  # fmt: skip

    def __init__(self, client: Any, transport: Any) -> None:
        self._client = client
        self.transport = transport
        self._numbers = itertools.count(1)
        self._calls: dict[int, WorkerCall] = {}
        self._waiting: dict[int, WorkerCall] = {}
        self._lead = threading.Lock()
        # Calls whose first response goes to a callback.
        self._open: dict[int, WorkerCall] = {}
        self._wanted = threading.Event()
        self._thread: threading.Thread | None = None
        self._thread_lock = threading.Lock()

    def submit(self, request: Any, options: int, parent: tuple[int, int], callback: Callback | None) -> WorkerCall:
        number = next(self._numbers) & 0xFFFFFFFF
        encoded = self._client.encode_bls(self.transport, request, options, parent)
        call = WorkerCall(self, number, bool(options & BLS_STREAM), callback)
        self._calls[number] = call
        if callback is not None:
            self._open[number] = call
            self._want_thread()
        self.transport.publish_event(EVENT_BLS, number, *encoded)
        return call

    def wait(self, call: WorkerCall) -> InferenceResponse:
        # Noted before the lead is asked for: a leader that leaves after that sees it.
        self._waiting[call.number] = call
        try:
            while not call.ready:
                if self._lead.acquire(False):
                    try:
                        while not call.ready:
                            self._read()
                    finally:
                        self._lead.release()
                else:
                    call.wake.acquire()
            return call.ready.popleft()
        finally:
            self._waiting.pop(call.number, None)
            self._pass_on()

    def forget(self, call: WorkerCall) -> None:
        """No answer of it is wanted any more; for finalizers."""
        if self._calls.pop(call.number, None) is not None:
            self.transport.event_later(EVENT_BLS_CLOSED, call.number)

    def _pass_on(self) -> None:
        for other in list(self._waiting.values()):
            if self._lead.locked():
                return
            other.rouse()
            return

    def _read(self) -> None:
        message = self.transport.take_answer(None)
        if message is None:
            return
        _, number, off, length, _ = message
        call = self._calls.get(number)
        if call is None:
            self.transport.release(off, length)
            return
        kind, response = self._client.decode_answer(self.transport, off, length)
        if response._last:
            self._calls.pop(number, None)
        if kind == FLAGS_ONLY and not call.stream and not response.has_error():
            response = InferenceResponse([], TritonError("Unexpected empty response."))
        callback = call.callback
        if callback is not None:
            # Let go first: a callback that holds its call would be a cycle.
            call.callback = None
            self._open.pop(number, None)
            callback(response)
        else:
            call.ready.append(response)
            call.rouse()

    def _want_thread(self) -> None:
        if self._thread is None:
            with self._thread_lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._serve, name="triton_fast answers", daemon=True)
                    self._thread.start()
        self._wanted.set()

    def _serve(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            with self._lead:
                while self._open:
                    self._read()
            self._pass_on()
