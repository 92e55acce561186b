"""Workers that start as copies of a process that has imported what they need: a few ms instead of 200.

The template runs no model's code. Its copies are children of the supervisor's thread, like workers that are started in
the plain way, so that watching and ending them is the same. What goes wrong here costs time: a worker that gets no copy
is started plainly. On the supervisor's thread but for what is marked. Source: docs/python_worker.md.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import selectors
import signal
import socket
import struct
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import IO, Protocol

from triton_fast.backends.python.supervisor import Supervisor
from triton_fast.observability import log

OPTION = "--template"
READY = b"ready"
_ANSWER = struct.Struct("<q")
# A template that takes longer is not waited for; nor is one that does not answer, which never takes more than some ms.
READY_LIMIT_S = 30.0
COPY_LIMIT_S = 2.0
# How long the number of a copy that was on its way when the template was ended is waited for.
_LATE_S = 0.5
# So many failures one after another, and there is no further try.
MAX_FAULTS = 3


class Child(Protocol):
    """A worker's process, as Popen is one."""

    @property
    def pid(self) -> int: ...
    @property
    def stdout(self) -> IO[bytes] | None: ...
    @property
    def stderr(self) -> IO[bytes] | None: ...
    def poll(self) -> int | None: ...


class Copy:
    """A Child that a template made."""

    def __init__(self, pid: int, stdout: IO[bytes], stderr: IO[bytes]) -> None:
        self.pid = pid
        self.stdout = stdout
        self.stderr = stderr
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            try:
                found, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # somebody else has waited for it, as when SIGCHLD is ignored
                self._code = 0
            else:
                if found:
                    self._code = os.waitstatus_to_exitcode(status)
        return self._code


@dataclass(frozen=True)
class Kind:
    """What a template is started with, and so all of its copies; ``native``: the compiled client's file."""

    argv: Sequence[str]
    variables: Mapping[str, str]
    folder: str | None
    native: str


class Template:
    """A template's process. ``faults``: failures of it and those before it since the last copy."""

    def __init__(self, kind: Kind, supervisor: Supervisor, faults: int = 0) -> None:
        self.kind = kind
        self.faults = faults
        self.closed = False
        self._supervisor = supervisor
        self._ready: Future[bool] = Future()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._process = subprocess.Popen(
                    [*kind.argv, OPTION, str(theirs.fileno()), kind.native], env=dict(kind.variables), cwd=kind.folder,
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    close_fds=True, pass_fds=[theirs.fileno()], start_new_session=True,
                )  # fmt: skip
            supervisor.register(self._socket.fileno(), selectors.EVENT_READ, self._on_socket)
        except (OSError, ValueError) as error:
            self._fail(f"it can not be started: {error}")

    @property
    def failed(self) -> bool:
        """Whether another of its kind is not tried either."""
        return self.faults >= MAX_FAULTS

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def wait(self) -> bool:
        """Return whether it can make copies, once it is known. On any other thread."""
        try:
            return self._ready.result(READY_LIMIT_S)
        except FutureTimeout:
            return False

    def copy(self, fds: Sequence[int]) -> Child | None:
        """Make a worker with these descriptors, the control socket first; None when that can not be."""
        if self.closed or not self._ready.done():
            return None
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            out, err = _pipe(ours, theirs), _pipe(ours, theirs)
            pid = self._ask([fds[0], out[1], err[1], *(fd for fd in fds[1:] if fd >= 0)])
            if pid <= 0:
                return None
            ours.pop_all()
            return Copy(pid, os.fdopen(out[0], "rb", 0), os.fdopen(err[0], "rb", 0))

    def close(self) -> None:
        """End it; workers that it has made live on."""
        if self.closed:
            return
        self.closed = True
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._socket is not None:
            with contextlib.suppress(KeyError, ValueError):
                self._supervisor.unregister(self._socket.fileno())
            self._end_late_copies(self._socket)
            self._socket.close()
        if not self._ready.done():
            self._ready.set_result(False)

    def give_up(self) -> None:
        """It does not get ready, and another would not either: each start would wait for it."""
        if not self.closed and not self._ready.done():
            self.faults = MAX_FAULTS
            self._fail(f"it is not ready after {READY_LIMIT_S:g} s")

    def _fail(self, reason: str) -> None:
        self.faults += 1
        if self.failed:
            log.warning(f"workers of Python models start without a template from now on: {reason}")
        self.close()

    def _end_late_copies(self, pipe: socket.socket) -> None:
        """End copies whose numbers are on their way; one that has not sent it by then can not, and ends by itself."""
        with contextlib.suppress(OSError):
            while (number := _answer(pipe, _LATE_S)) and number != -errno.ETIMEDOUT:
                _end(number)
            pipe.shutdown(socket.SHUT_RD)
            while (number := _answer(pipe, 0)) and number != -errno.ETIMEDOUT:
                _end(number)

    def _on_socket(self, events: int) -> None:
        assert self._socket is not None
        try:
            said = self._socket.recv(64)
        except OSError:
            said = b""
        if said == READY and not self._ready.done():
            self._ready.set_result(True)
        elif self._ready.done():
            self.close()
        else:
            self._fail("it has ended before it was ready")

    def _ask(self, fds: Sequence[int]) -> int:
        """Return the number of the copy; 0 when there is none, and then this template is closed."""
        assert self._socket is not None
        number = 0
        with contextlib.suppress(OSError):
            socket.send_fds(self._socket, [b"start"], fds)
            number = _answer(self._socket, COPY_LIMIT_S)
        if number > 0:
            self.faults = 0
        else:
            # Without a word it ends where its files have changed.
            self._fail(os.strerror(-number) if number else "it has ended")
        return max(number, 0)


def _answer(pipe: socket.socket, limit_s: float) -> int:
    """Return what was answered: a copy's number, an error's below 0; 0 at the end."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    if not poll.poll(limit_s * 1e3):
        return -errno.ETIMEDOUT
    said = pipe.recv(64)
    return int(_ANSWER.unpack(said)[0]) if len(said) == _ANSWER.size else 0


def _end(number: int) -> None:
    """End a copy that nobody knows of; below 0 there is none."""
    if number > 0:
        with contextlib.suppress(OSError):
            os.kill(number, signal.SIGKILL)
            os.waitpid(number, 0)


def _pipe(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[int, int]:
    reading, writing = os.pipe()
    ours.callback(os.close, reading)
    theirs.callback(os.close, writing)
    return reading, writing


def find(kind: Kind, supervisor: Supervisor) -> Template | None:
    """Return the supervisor's template, started now where there is none of that kind; None when one is of no use."""
    found = supervisor.resident
    if isinstance(found, Template):
        if found.kind == kind and (found.failed or not found.closed):
            supervisor.keep(found)
            return None if found.failed else found
        found.close()
    faults = found.faults if isinstance(found, Template) and found.kind == kind else 0
    made = Template(kind, supervisor, faults)
    supervisor.keep(made)
    return None if made.closed else made
