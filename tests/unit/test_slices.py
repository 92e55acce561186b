"""Short slices: set for a thread and what it starts, in force for all of a server's threads and its workers'."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.helpers import python_models
from tests.helpers.server import ServerProcess
from triton_fast.scheduling import slices

# sched_getattr
_CALLS = {"x86_64": 315, "aarch64": 275}
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")


def slice_of(thread: int = 0) -> int:
    """Return a thread's slice in ns; 0 where the kernel does not tell."""
    room = ctypes.create_string_buffer(_ATTRIBUTES.size)
    number = _CALLS.get(platform.machine(), -1)
    if ctypes.CDLL(None).syscall(number, thread, room, len(room), 0) != 0:
        return 0
    return int(_ATTRIBUTES.unpack(room.raw)[5])


told = pytest.mark.skipif(
    slice_of() == 0 or os.sched_getscheduler(0) != os.SCHED_OTHER, reason="the kernel has no slices to be set"
)


def in_a_thread(call: object) -> object:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(call()))  # type: ignore[operator]
    thread.start()
    thread.join()
    return found[0]


@told
def test_a_thread_and_what_it_starts() -> None:
    before = slice_of()

    def changed() -> tuple[bool, int, object, int]:
        done = slices.shorten(300_000)
        return done, slice_of(), in_a_thread(slice_of), os.getpriority(os.PRIO_PROCESS, 0)

    assert in_a_thread(changed) == (True, 300_000, 300_000, os.getpriority(os.PRIO_PROCESS, 0))
    assert slice_of() == before


def test_another_policy_is_left_alone() -> None:
    def changed() -> tuple[bool, int]:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        return slices.shorten(), os.sched_getscheduler(0)

    assert in_a_thread(changed) == (False, os.SCHED_BATCH)


def refuse(error: int) -> Callable[[int], int]:
    def call(thread: int) -> int:
        raise OSError(error, os.strerror(error))

    return call


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM, None], ids=["no such call", "filtered", "not in Python"])
def test_where_the_policy_can_not_be_asked_for(monkeypatch: pytest.MonkeyPatch, error: int | None) -> None:
    """Such as with musl, or in a container that filters calls: slices stay as they are, and the server starts."""
    if error is None:
        monkeypatch.delattr(os, "sched_getscheduler")
    else:
        monkeypatch.setattr(os, "sched_getscheduler", refuse(error))
    before = slice_of()
    assert in_a_thread(lambda: (slices.shorten(300_000), slice_of())) == (False, before)


@pytest.mark.parametrize("machine", ["riscv64", ""])
def test_machines_whose_call_is_not_known(monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    before = slice_of()
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert not slices.shorten(300_000)
    monkeypatch.undo()
    assert slice_of() == before


@told
def test_a_server_and_its_workers(tmp_path: Path) -> None:
    root = python_models.write(tmp_path / "models", only=("identity",))
    with ServerProcess(root) as server:
        process = psutil.Process(server.process.pid)
        everybody = [process, *process.children(recursive=True)]
        assert len(everybody) > 1
        threads = [thread.id for one in everybody for thread in one.threads()]
        # 0 is of one that has ended since it was listed.
        assert {slice_of(thread) for thread in threads} - {0} == {slices.SLICE_NS}
