"""What a server with Python models leaves in the system: its workers, their shared memory, its descriptors.

Looks into /proc; knows nothing of requests.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.helpers.server import until

START, TEMPLATE = b"start.py", b"--template"
GONE_TRIES = 4000


def _arguments(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    return _state(pid) not in ("", "Z", "X")


def workers(server: int) -> list[int]:
    """The workers that a server started, ended ones that it has not waited for too."""
    found = []
    for pid in processes():
        arguments = _arguments(pid)
        named = any(Path(os.fsdecode(argument)).name.encode() == START for argument in arguments)
        if _parent(pid) == server and ((named and TEMPLATE not in arguments) or _state(pid) == "Z"):
            found.append(pid)
    return sorted(found)


def templates(server: int) -> list[int]:
    """The processes of which a server has workers made."""
    return [pid for pid in processes() if _parent(pid) == server and TEMPLATE in _arguments(pid)]


def with_marker(marker: str) -> list[int]:
    """Processes, whoever their parent is, whose environment holds the marker."""
    found = []
    for pid in processes():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if marker.encode() in environment and alive(pid):
            found.append(pid)
    return found


def regions(pid: int) -> set[str]:
    """Anonymous shared memory that a process maps or holds: memfd names with their inodes."""
    found = set()
    try:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if "/memfd:" in line:
                fields = line.split(None, 5)
                found.add(f"{fields[4]} {fields[5]}")
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(entry)
            if "/memfd:" in target:
                found.add(f"{entry.stat().st_ino} {target}")
    except OSError:
        pass
    return found


OF_OTHERS = ("triton_python_backend_shm_region_", "triton_fast_test_", "sem.triton_fast_test_")


def named_shared_memory() -> set[str]:
    """Names in /dev/shm, but for those of a reference server and of other tests (helpers/shm) that run beside."""
    found = {entry.name for entry in Path("/dev/shm").iterdir()}  # noqa: S108
    return {name for name in found if not name.startswith(OF_OTHERS)}


def ended(pids: list[int]) -> bool:
    """Wait until none of the processes runs."""
    return until(lambda: not any(map(alive, pids)), tries=GONE_TRIES)
