"""Files of /dev/shm as clients make them: written, read, made smaller, and gone at the end. Knows no server."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from types import TracebackType

DIRECTORY = Path("/dev/shm")  # noqa: S108


class File:
    """A file of ``size`` bytes under a name nobody else has; ``key`` is what a client registers it with."""

    def __init__(self, size: int, data: bytes = b"") -> None:
        self.name = f"triton_fast_test_{uuid.uuid4().hex}"
        self.key = f"/{self.name}"
        self.path = DIRECTORY / self.name
        self.size = size
        self._data = data

    def __enter__(self) -> File:
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self.resize(self.size)
        self.write(self._data)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        os.close(self._fd)
        self.path.unlink(missing_ok=True)

    def resize(self, size: int) -> None:
        os.ftruncate(self._fd, size)

    def write(self, data: bytes, offset: int = 0) -> None:
        os.pwrite(self._fd, data, offset)

    def read(self, size: int, offset: int = 0) -> bytes:
        return os.pread(self._fd, size, offset)


def mappings(pid: int | str = "self") -> int:
    """Count the mappings of a process."""
    return Path(f"/proc/{pid}/maps").read_text().count("\n")


def named_mappings(name: str, pid: int | str = "self") -> int:
    """Count the mappings of a file of /dev/shm."""
    return Path(f"/proc/{pid}/maps").read_text().count(f"{DIRECTORY}/{name}")
