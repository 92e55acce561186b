"""A process that has imported what every worker needs, and becomes a worker by copying itself, each time it is asked.

It runs no model's code and has one thread. A copy is the server's child, like a worker that the server starts itself
(docs/python_worker.md); what is the process's own is made anew in it. Needs the compiled client.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import os
import socket
import struct
import sys
import threading
import time
from typing import Any, Callable

READY = b"ready"
# The copy's number; what is not above 0: none was made.
ANSWER = struct.Struct("<q")
OWN_NAME, WORKER_NAME = b"--template", b"--instance"
# A start has a control socket, what it prints to, and if it has a region, that and four eventfds.
MAX_FDS = 8
_NO_REGION = ["-1"] * 5
_ARG_START = 45  # of /proc/self/stat, behind the program's name
_TRIES = 1000


def serve(fd: int, native: str, end_with_parent: Callable[[], None]) -> list[str]:
    """Make copies until the server closes the socket; return, in a copy, the arguments of a worker."""
    pipe = socket.socket(fileno=fd)
    server = os.getppid()
    client = _prepare(native)
    files = _files(client)
    pipe.send(READY)
    while True:
        asked, fds, _, _ = socket.recv_fds(pipe, 16, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
        if not asked or _files(client) != files:
            # Not what a worker that starts now would import.
            os._exit(0)
        # The copy answers itself, as the server could not know of one whose number came from here and was lost.
        reading, writing = os.pipe()
        try:
            number = client.fork_sibling()
        except (OSError, RuntimeError) as error:
            number = -(getattr(error, "errno", None) or 1)
        if number == 0:
            end_with_parent()
            os.close(reading)
            return _become_worker(fds, server, pipe, writing)
        for one in (*fds, writing):
            os.close(one)
        if not os.read(reading, 1):  # there is none, or it has ended without a word
            pipe.send(ANSWER.pack(number))
        os.close(reading)


def _prepare(native: str) -> Any:
    """Import what workers import, and see to it that there is one thread. Return the client."""
    from . import cores

    cores.use(native)
    if cores.client is None:
        raise SystemExit("there is no compiled client")
    import c_python_backend_utils
    import triton_python_backend_utils

    from . import execution, main, native_transport, transport, worker_runtime

    del c_python_backend_utils, triton_python_backend_utils
    del execution, main, native_transport, transport, worker_runtime
    # numpy's threads end before any fork of the C library, and start again when they are needed. The copies that are
    # made later are none of its forks.
    with contextlib.suppress(ChildProcessError):
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
    for _ in range(_TRIES):
        if len(os.listdir("/proc/self/task")) == 1:
            break
        time.sleep(0.001)
    gc.collect()
    gc.freeze()  # what is collected nowhere is written nowhere: copies share it
    return cores.client


def _files(client: Any) -> list[tuple[int, int, int]]:
    """Tell one installation of numpy and the client from the next."""
    found = []
    for file in (sys.modules["numpy"].__file__, client.__file__):
        try:
            status = os.stat(file or "")
        except OSError:
            return []
        found.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return found


def _become_worker(fds: list[int], server: int, pipe: socket.socket, waited: int) -> list[str]:
    os.setsid()
    with contextlib.suppress(OSError, ValueError):
        _rename()
    # An old C library keeps the number of the process that was copied.
    number = os.getpid() if str(os.getpid()) == os.readlink("/proc/self") else -errno.ENOSYS
    try:
        os.write(waited, b"x")
        pipe.send(ANSWER.pack(number))
    except OSError:
        # The server has given this start up, and makes another worker with the same descriptors.
        os._exit(1)
    if number < 0 or os.getppid() != server:
        os._exit(1)
    pipe.close()
    os.close(waited)
    control, out, err, *region = fds
    for fd, to in ((out, 1), (err, 2)):
        os.dup2(fd, to)
        os.close(fd)
    # What Python before 3.13 leaves as it was.
    with contextlib.suppress(AttributeError):
        threading.main_thread()._set_native_id()  # type: ignore[attr-defined]
    # Seeded when it was imported.
    random = sys.modules.get("numpy.random")
    if random is not None:
        random.seed()
    # OpenSSL before 3.0 tells that it was copied by a handler of the C library's fork.
    tls = sys.modules.get("ssl")
    if tls is not None:
        tls.RAND_add(os.urandom(32), 32.0)
    return [str(control), *(map(str, region) if region else _NO_REGION)]


def _rename() -> None:
    """Have the list of processes show a worker."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = map(int, fields[_ARG_START : _ARG_START + 2])
    at = ctypes.string_at(start, end - start).index(b"\0" + OWN_NAME + b"\0") if start else -1
    if at >= 0:
        ctypes.memmove(start + at + 1, WORKER_NAME, len(WORKER_NAME))
