"""Files and directories that anybody may have made: never a FIFO's end to wait for, never more than is wanted."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

# Of a link: there is nothing behind it. Any other error says that nobody can tell now.
NOWHERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


def is_dir(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a directory, perhaps behind a link. Raises OSError where nobody can tell."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno in NOWHERE:
            return False
        raise


def read_regular(path: Path, limit: int) -> bytes:
    """Return up to ``limit`` bytes of a regular file; of anything else an OSError says that it is none."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(min(limit, status.st_size + 1))
    finally:
        os.close(descriptor)
