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

OPTION = "--template"
READY = b"ready"
_ANSWER = struct.Struct("<q")
# A template that takes longer is not waited for; nor is one that does not answer, which never takes more than some ms.
READY_LIMIT_S = 10.0
COPY_LIMIT_S = 2.0
# Errors of the system that pass.
_PASSING = (errno.EAGAIN, errno.ENOMEM)


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
            found, status = os.waitpid(self.pid, os.WNOHANG)
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
    """A template's process. ``failed``: it never was of use, and another of its kind would not be either."""

    def __init__(self, kind: Kind, supervisor: Supervisor) -> None:
        self.kind = kind
        self.failed = False
        self.closed = False
        self._supervisor = supervisor
        self._ready: Future[bool] = Future()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process: subprocess.Popen[bytes] | None = None
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [*kind.argv, OPTION, str(theirs.fileno()), kind.native], env=dict(kind.variables), cwd=kind.folder,
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    close_fds=True, pass_fds=[theirs.fileno()], start_new_session=True,
                )  # fmt: skip
        except (OSError, ValueError):
            self.failed = True
            self.close()
        else:
            supervisor.register(self._socket.fileno(), selectors.EVENT_READ, self._on_socket)

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def wait(self, limit_s: float = READY_LIMIT_S) -> bool:
        """Return whether it can make copies, once it is known. On any other thread."""
        try:
            return self._ready.result(limit_s)
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
            self._supervisor.unregister(self._socket.fileno())
            self._process.kill()
            self._process.wait()
            # Nobody knows of a copy whose number comes too late.
            with contextlib.suppress(OSError):
                number = self._answer(0)
                if number > 0:
                    os.kill(number, signal.SIGKILL)
                    os.waitpid(number, 0)
        self._socket.close()
        if not self._ready.done():
            self._ready.set_result(False)

    def _on_socket(self, events: int) -> None:
        try:
            said = self._socket.recv(64)
        except OSError:
            said = b""
        if said == READY and not self._ready.done():
            self._ready.set_result(True)
            return
        self.failed = not self._ready.done()
        self.close()

    def _ask(self, fds: Sequence[int]) -> int:
        """Return the number of the copy; 0 when there is none, and then this template is closed."""
        number = 0
        with contextlib.suppress(OSError):
            socket.send_fds(self._socket, [b"start"], fds)
            number = self._answer(COPY_LIMIT_S)
        if number <= 0:
            # An end without a word is one that it chose: its files have changed.
            self.failed = number < 0 and -number not in _PASSING
            self.close()
        return max(number, 0)

    def _answer(self, limit_s: float) -> int:
        """Return what it answered: a copy's number, an error's below 0; 0 at its end."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if not poll.poll(limit_s * 1e3):
            return -errno.ETIMEDOUT
        said = self._socket.recv(64)
        return int(_ANSWER.unpack(said)[0]) if len(said) == _ANSWER.size else 0


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
    made = Template(kind, supervisor)
    supervisor.keep(made)
    return None if made.failed else made
