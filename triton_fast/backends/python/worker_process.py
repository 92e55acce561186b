"""One worker process: starting it, its control socket, what it prints, its end.

All of it but what is marked so runs on the supervisor's thread. Knows frames, not what they mean: its owner does.
Source: docs/python_worker.md.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import selectors
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Any, Protocol

from triton_fast.backends import host_policy
from triton_fast.backends.host_policy import HostPolicy
from triton_fast.backends.python import frames, health, template
from triton_fast.backends.python.frames import BadFrame, Message
from triton_fast.backends.python.output import Lines
from triton_fast.backends.python.pacing import Allowance
from triton_fast.backends.python.supervisor import Supervisor
from triton_fast.errors import Internal, ServerError
from triton_fast.observability import log

_PIECE = 256 << 10
_PRINTED_PIECE = 16 << 10
# What a worker may print and send in a while: it waits with more, the server does not.
PRINT_RATE, PRINT_BURST = 1 << 20, 256 << 10
MESSAGE_RATE, MESSAGE_BURST = 20_000, 20_000
JSON_RATE, JSON_BURST = 4 << 20, 4 << 20
# Bytes that it has not read of what was sent to it, and calls of it that are under way: above, nothing more is read.
MAX_UNREAD = 4 << 20
MAX_CALLS = 64
_AT_END = 1 << 20
# Seconds that a worker may live on without its control socket.
CLOSED_S = 30.0
NO_FDS = (-1, -1, -1, -1, -1)


@dataclass(frozen=True)
class Launch:
    """How to start a worker: ``argv`` without the descriptors; ``name`` is the instance's."""

    model: str
    name: str
    argv: Sequence[str]
    variables: Mapping[str, str]
    folder: str | None = None
    host_policy: HostPolicy = host_policy.NONE
    version: int = 0
    # Of a template that may start it.
    kind: template.Kind | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """What the log says of whom a line is about."""
        return {"model": self.model, "version": self.version, "instance": self.name}


class Owner(Protocol):
    """Who a worker belongs to. All calls come on the supervisor's thread and must not wait."""

    def on_message(self, process: WorkerProcess, message: Message, blob: bytes) -> None:
        """Take what the worker sent, answers excepted. Raises BadFrame."""

    def on_death(self, process: WorkerProcess, reason: str) -> None: ...

    def hung(self) -> str:
        """Return why the worker counts as hung, in health.py's words; empty when it does not."""


class WorkerProcess:
    """A started process. Attributes: ``pid``; ``reason``, how it ended, empty while it lives; ``ended``."""

    def __init__(
        self, launch: Launch, owner: Owner, supervisor: Supervisor, fds: Sequence[int] = NO_FDS,
        origin: template.Template | None = None, *, max_json: int = frames.MAX_TAKEN_JSON,
    ) -> None:  # fmt: skip
        """Start it. On the supervisor's thread, for others ``start``. Raises Internal."""
        self.launch = launch
        self.reason = ""
        self.returncode = 0
        self.ended = threading.Event()
        self._owner = owner
        self._supervisor = supervisor
        self._lock = threading.Lock()
        self._calls: dict[int, Future[Any]] = {}
        self._numbers = itertools.count(1)
        self._out = bytearray()
        self._serving = 0
        self._cause = ""
        self._paused: set[int] = set()
        self._reader = frames.FrameReader(max_json)
        now = supervisor.clock()
        self._print_allowance = Allowance(PRINT_RATE, PRINT_BURST, now)
        self._message_allowance = Allowance(MESSAGE_RATE, MESSAGE_BURST, now)
        self._json_allowance = Allowance(JSON_RATE, JSON_BURST, now)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with theirs:
                passed = [theirs.fileno(), *fds]
                made = origin.copy(passed) if origin is not None else None
                self._child = made if made is not None else _started(launch, passed)
        except ServerError:
            ours.close()
            raise
        except (OSError, ValueError) as error:
            ours.close()
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise Internal(f"the worker of '{launch.name}' can not be started: {reason}") from None
        self.pid = self._child.pid
        self._socket = ours
        ours.setblocking(False)
        self._printed: dict[int, Lines] = {}
        self._pidfd = os.pidfd_open(self.pid)
        supervisor.watch(self)
        supervisor.register(self._pidfd, selectors.EVENT_READ, self._on_exit)
        for stream, source in ((self._child.stdout, "stdout"), (self._child.stderr, "stderr")):
            assert stream is not None
            fd = stream.fileno()
            os.set_blocking(fd, False)
            self._printed[fd] = Lines(_printer(launch, source))
            supervisor.register(fd, selectors.EVENT_READ, self._reading(fd))
        self._listen()

    # ---- any thread

    @classmethod
    def start(
        cls, launch: Launch, owner: Owner, supervisor: Supervisor, fds: Sequence[int] = NO_FDS,
        *, max_json: int = frames.MAX_TAKEN_JSON,
    ) -> WorkerProcess:  # fmt: skip
        """Start one, by copying a template where that can be, and wait until it runs. Raises Internal."""
        origin, kind = None, launch.kind
        if kind is not None:
            origin = supervisor.call(lambda: template.find(kind, supervisor)).result()
            if origin is not None and not origin.wait():
                supervisor.call(origin.give_up).result()
                origin = None
        return supervisor.call(lambda: cls(launch, owner, supervisor, fds, origin, max_json=max_json)).result()

    def request(self, message: Message, blob: bytes = b"") -> Future[Any]:
        """Send a message that wants an answer; the future gets its value, or a ServerError."""
        future: Future[Any] = Future()
        with self._lock:
            number = next(self._numbers)
            if not self.reason:
                self._calls[number] = future
        if self.reason:
            future.set_exception(Internal(self.reason))
        else:
            self.send({**message, "call": number}, blob)
        return future

    def send(self, message: Message, blob: bytes = b"") -> None:
        data = frames.encode(message, blob)
        self._supervisor.post(lambda: self._push(data))

    def kill(self, cause: str = "") -> None:
        """End it at once; ``cause``, in health.py's words, is told instead of the signal."""
        self._supervisor.post(lambda: self._kill(cause))

    def answered(self, call: int, outcome: Callable[[], object]) -> None:
        """Answer a call of the worker with what ``outcome`` returns or raises; it was counted by ``serve``."""
        try:
            answer = frames.answer(call, outcome())
        except ServerError as error:
            answer = frames.failure(call, error)
        except BaseException as error:
            log.error(f"a call of a Python model failed: {type(error).__name__}: {error}", **self.launch.fields)
            answer = frames.failure(call, error)
        data = frames.encode(answer)

        def finish() -> None:
            self._serving -= 1
            self._push(data)

        self._supervisor.post(finish)

    # ---- the supervisor's thread

    def serve(self, call: int, outcome: Callable[[], object]) -> None:
        """Answer a call of the worker from a thread of its own: what it asks for may take long, and may nest."""
        self._serving += 1
        name = f"py-call-{self.launch.name}"[:64]
        threading.Thread(target=self.answered, args=(call, outcome), name=name, daemon=True).start()

    def look(self) -> None:
        if self.reason or self._cause:
            return
        cause = health.STOPPED if self._is_stopped() else self._owner.hung()
        if cause:
            self._kill(cause)

    def _is_stopped(self) -> bool:
        try:
            found = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
        except OSError:
            return False
        return found is not None

    def _kill(self, cause: str) -> None:
        if not self.reason:
            self._cause = self._cause or cause
            # Not reaped yet, so the number is still its own.
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)

    def _listen(self) -> None:
        """Say what is wanted of the socket now."""
        if self.reason:
            return
        fd = self._socket.fileno()
        events = selectors.EVENT_WRITE if self._out else 0
        if fd not in self._paused and len(self._out) <= MAX_UNREAD and self._serving < MAX_CALLS:
            events |= selectors.EVENT_READ
        self._supervisor.register(fd, events, self._on_socket)

    def _on_socket(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush()
        if events & selectors.EVENT_READ:
            self._receive(_PIECE)
        self._listen()

    def _push(self, data: bytes) -> None:
        if self.reason:
            return
        self._out += data
        self._flush()
        self._listen()

    def _flush(self) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self._out:
                # A copy of a piece, for a view of it would forbid to shorten it.
                sent = self._socket.send(self._out[:_PIECE])
                del self._out[:sent]

    def _receive(self, limit: int) -> int:
        """Read once and act on it; return the bytes read."""
        try:
            data = self._socket.recv(limit)
        except BlockingIOError:
            return 0
        except OSError:
            data = b""
        if not data:
            # It can not be spoken with any more. It is about to end, or is made to.
            self._pause(self._socket.fileno(), 2 * CLOSED_S, self._listen)
            self._supervisor.later(CLOSED_S, lambda: self._kill(health.broke_protocol("the end of its control socket")))
            return 0
        n_messages, taken = 0, self._reader.taken
        try:
            for message, blob in self._reader.feed(data):
                n_messages += 1
                self._take(message, blob)
        except BadFrame as error:
            log.error(f"the worker sent {error}", **self.launch.fields)
            self._kill(health.broke_protocol("a control message that is not valid"))
            # Nothing of it is believed any more.
            self._pause(self._socket.fileno(), 3600.0, self._listen)
            return 0
        now = self._supervisor.clock()
        wait_s = max(
            self._message_allowance.spend(n_messages, now),
            self._json_allowance.spend(self._reader.taken - taken, now),
        )
        if wait_s > 0:
            self._pause(self._socket.fileno(), wait_s, self._listen)
        return len(data)

    def _take(self, message: Message, blob: bytes) -> None:
        if message["type"] != "answer":
            self._owner.on_message(self, message, blob)
            return
        with self._lock:
            future = self._calls.pop(frames.call_number(message), None)
        if future is None:
            raise BadFrame("an answer to nothing")
        try:
            value = frames.outcome(message)
        except (ServerError, BadFrame) as error:
            _settle(future, error=error if isinstance(error, ServerError) else Internal(str(error)))
            if isinstance(error, BadFrame):
                raise
        else:
            _settle(future, value)

    def _reading(self, fd: int) -> Callable[[int], None]:
        def ready(events: int) -> None:
            n_read = self._read_printed(fd)
            wait_s = self._print_allowance.spend(n_read, self._supervisor.clock())
            if n_read < 0:
                self._supervisor.unregister(fd)
            elif wait_s > 0:
                self._supervisor.unregister(fd)
                self._pause(fd, wait_s, lambda: self._supervisor.register(fd, selectors.EVENT_READ, ready))

        return ready

    def _read_printed(self, fd: int) -> int:
        """Read once; return the bytes read, -1 at the end."""
        try:
            data = os.read(fd, _PRINTED_PIECE)
        except BlockingIOError:
            return 0
        except OSError:
            return -1
        self._printed[fd].feed(data)
        return len(data) or -1

    def _pause(self, fd: int, wait_s: float, resume: Callable[[], None]) -> None:
        if fd in self._paused:
            return
        self._paused.add(fd)

        def over() -> None:
            self._paused.discard(fd)
            if not self.reason:
                resume()

        self._supervisor.later(wait_s, over)

    def _on_exit(self, events: int) -> None:
        # Its own children go with it; until it is reaped nobody else can have the number of its group.
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)
        code = self._child.poll()
        if code is None:
            return
        self._drain()
        self.returncode = code
        reason = health.unhealthy(self.launch.name, self._cause or health.end_of(code))
        with self._lock:
            self.reason = reason
            calls, self._calls = self._calls, {}
        self._close()
        for future in calls.values():
            _settle(future, error=Internal(reason))
        self.ended.set()
        self._owner.on_death(self, reason)

    def _drain(self) -> None:
        """Take what it said before its end."""
        left = _AT_END
        while left > 0 and not self._cause and (n_read := self._receive(_PIECE)) > 0:
            left -= n_read
        for fd, lines in self._printed.items():
            left = _AT_END
            while left > 0 and (n_read := self._read_printed(fd)) > 0:
                left -= n_read
            lines.close()

    def _close(self) -> None:
        fds = [self._pidfd, self._socket.fileno(), *self._printed]
        for fd in fds:
            self._supervisor.unregister(fd)
        os.close(self._pidfd)
        self._socket.close()
        for stream in (self._child.stdout, self._child.stderr):
            if stream is not None:
                stream.close()
        self._supervisor.forget(self)


def _started(launch: Launch, passed: Sequence[int]) -> template.Child:
    """Start it as a program of its own."""
    with launch.host_policy.bound():
        return subprocess.Popen(
            [*launch.argv, *map(str, passed)], env=dict(launch.variables), cwd=launch.folder,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            close_fds=True, pass_fds=[fd for fd in passed if fd >= 0], start_new_session=True,
        )  # fmt: skip


def _settle(future: Future[Any], value: object = None, error: ServerError | None = None) -> None:
    # Whoever asked may have given up.
    with contextlib.suppress(InvalidStateError):
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)


def _printer(launch: Launch, source: str) -> Callable[[str], None]:
    """Return what writes a line of a stream to the log; the line's number stands where a record has its place."""
    numbers = itertools.count(1)
    fields = launch.fields

    def write(line: str) -> None:
        log.info(line, source=(source, next(numbers)), **fields)

    return write
