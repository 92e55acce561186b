"""A private directory of environments, by content: each is made once, by one caller, while others wait.

``<root>/<kind>-<key>`` exists only when it is complete. A file lock beside it lets several servers share the root.
Knows nothing of what an environment is.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from triton_fast.errors import Internal, Unavailable

_COMPLETE = ".complete"
_WAIT_S = 0.2


class EnvironmentCache:
    """``root`` is made when first used, and refused when somebody else may write to it."""

    def __init__(self, root: Path | None = None) -> None:
        self._root = root or default_root()
        self._lock = threading.Lock()
        # (device, inode, size, mtime, ctime) -> hash: an archive of gigabytes is not read again for each model.
        self._hashes: dict[tuple[int, ...], str] = {}

    def hash_of(self, path: Path) -> str:
        """Return the SHA-256 of a regular file's content. Raises Internal."""
        try:
            with open(path, "rb") as file:
                info = os.fstat(file.fileno())
                if not stat.S_ISREG(info.st_mode):
                    raise Internal(f"{path.name} is not a regular file")
                mark = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
                with self._lock:
                    known = self._hashes.get(mark)
                if known is None:
                    digest = hashlib.sha256()
                    while piece := file.read(1 << 20):
                        digest.update(piece)
                    known = digest.hexdigest()
                    with self._lock:
                        self._hashes[mark] = known
                return known
        except OSError as error:
            raise Internal(f"{path.name} can not be read: {error.strerror}") from None

    def get(
        self,
        kind: str,
        key: str,
        make: Callable[[Path], None],
        *,
        in_place: bool = False,
        stop: threading.Event | None = None,
    ) -> Path:
        """Return the directory of a key, made by ``make(path)`` when there is none.

        Parameters
        ----------
        make
            Gets a path that does not exist yet, on the same file system.
        in_place
            What is made can not be moved (a venv): it is made where it stays, and a mark says that it is complete.
        stop
            Set: do not wait any longer for another's work.

        Raises
        ------
        Internal
            The cache can not be used, or what ``make`` raises; nothing is left of a failure.
        """
        root = self._usable_root()
        place = root / f"{kind}-{key}"
        done = place / _COMPLETE if in_place else place
        if done.exists():
            return place
        with _locked(root / f"{kind}-{key}.lock", stop):
            if done.exists():
                return place
            if in_place:
                # Left by a server that was killed meanwhile.
                shutil.rmtree(place, ignore_errors=True)
                with _removed_on_failure(place):
                    make(place)
                    (place / _COMPLETE).touch()
                return place
            work = Path(tempfile.mkdtemp(dir=root, prefix=".making-"))
            with _removed_on_failure(work):
                make(work / "env")
                os.rename(work / "env", place)
            work.rmdir()
            return place

    def _usable_root(self) -> Path:
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            info = os.lstat(self._root)
        except OSError as error:
            raise Internal(f"the cache of Python environments can not be used: {error.strerror}") from None
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o077:
            raise Internal("the cache of Python environments must be a directory that only its owner may use (0700)")
        return self._root


def default_root() -> Path:
    """Return the directory of this user; TRITON_FAST_CACHE names another."""
    given = os.environ.get("TRITON_FAST_CACHE") or os.environ.get("XDG_CACHE_HOME")
    base = Path(given) if given else Path(os.path.expanduser("~")) / ".cache"
    return base / "triton_fast" / "python_env"


@contextmanager
def _removed_on_failure(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise


@contextmanager
def _locked(path: Path, stop: threading.Event | None) -> Iterator[None]:
    """Hold the lock file. It stays: removing it would let two hold "the" lock."""
    waiter = stop or threading.Event()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if waiter.wait(_WAIT_S):
                    raise Unavailable("Server not ready") from None
        yield
    finally:
        os.close(descriptor)
