"""The cache on disk: one file for each content of a cloud object, and model directories made of hard links to them.

Several servers may share it. Below ``root``: ``blobs/ab/<key>`` whole files, never changed; ``parts/<key>`` downloads
under way, each locked by who writes it, resumed by the next; ``trees/<server>/<n>/`` model directories of one server.
What a tree links to is in use and stays; the rest goes, least recently used first. Knows no store.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import hashlib
import itertools
import os
import shutil
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from triton_fast.errors import Internal, InvalidArg, Unavailable
from triton_fast.observability import log
from triton_fast.repository.cloud.faults import PASSING, Kind, StoreError

_ATTEMPTS = 6
_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 10.0
# Another server's eviction may take a file between its download and its link.
_LINK_TRIES = 8
_OPEN = os.O_NOFOLLOW | os.O_CLOEXEC
Read = Callable[[int], Iterator[bytes]]


class Cache:
    """One cache directory in this process.

    Parameters
    ----------
    root
        Made if it does not exist. Nobody else may write to it.
    limit
        Bytes that unused files may make the cache grow to; 0 for no limit.
    wait
        Called with the seconds to wait before a download goes on.
    """

    def __init__(self, root: Path, limit: int = 0, *, wait: Callable[[float], object] | None = None) -> None:
        """Raises InvalidArg when the directory can not be used."""
        self.root = root
        self.limit = limit
        self._wait = threading.Event().wait if wait is None else wait
        self._numbers = itertools.count()
        self._is_closed = False
        self._guard = threading.Lock()
        self._make()
        self._name, self._lock = self._take_tree()
        atexit.register(self.close)
        self.clean()

    def _make(self) -> None:
        _private(self.root)
        for name in ("blobs", "parts", "trees"):
            _private(self.root / name)

    # ---- files

    def fetch(self, key: str, size: int, modified_ns: int, read: Read, target: Path, *, resume: bool = True) -> None:
        """Have ``target``, which must not exist, be the content called ``key``; downloads what is missing.

        Parameters
        ----------
        read
            Yields the content from an offset on; raises StoreError.
        resume
            Whether what was downloaded before is surely the beginning of the same content.
        """
        for _ in range(_LINK_TRIES):
            if not self._is_whole(key, size, modified_ns):
                self._download(key, size, modified_ns, read, resume)
            try:
                self._link(key, modified_ns, target)
            except FileNotFoundError:
                continue
            return
        raise Internal(f"the cache directory {self.root} is emptied while it is used")

    def has(self, key: str, size: int, modified_ns: int) -> bool:
        """Tell whether a content lies here whole."""
        return self._is_whole(key, size, modified_ns)

    def _blob(self, key: str) -> Path:
        return self.root / "blobs" / key[:2] / key

    def _is_whole(self, key: str, size: int, modified_ns: int) -> bool:
        # A model that wrote to its own file has changed the time, and mostly the size.
        try:
            found = self._blob(key).lstat()
        except FileNotFoundError:
            return False
        return stat.S_ISREG(found.st_mode) and (found.st_size, found.st_mtime_ns) == (size, modified_ns)

    def _link(self, key: str, modified_ns: int, target: Path) -> None:
        blob = self._blob(key)
        os.utime(blob, ns=(time.time_ns(), modified_ns))
        try:
            os.link(blob, target, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            shutil.copy2(blob, target, follow_symlinks=False)

    def _download(self, key: str, size: int, modified_ns: int, read: Read, resume: bool) -> None:
        part = self.root / "parts" / key
        with told():
            descriptor = self._lock_part(key, size, modified_ns, part)
            if descriptor < 0:
                return
            try:
                self._fill(descriptor, size, read, resume)
                os.fchmod(descriptor, 0o444)
                os.utime(descriptor, ns=(time.time_ns(), modified_ns))
                os.fsync(descriptor)
                blob = self._blob(key)
                blob.parent.mkdir(mode=0o700, exist_ok=True)
                os.replace(part, blob)
            finally:
                os.close(descriptor)

    def _lock_part(self, key: str, size: int, modified_ns: int, part: Path) -> int:
        """Return the part's descriptor, its lock taken; -1 when somebody else has finished meanwhile."""
        while True:
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | _OPEN, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_at(descriptor, part):
                if not self._is_whole(key, size, modified_ns):
                    return descriptor
                part.unlink(missing_ok=True)
            os.close(descriptor)
            if self._is_whole(key, size, modified_ns):
                return -1

    def _fill(self, descriptor: int, size: int, read: Read, resume: bool) -> None:
        offset = os.fstat(descriptor).st_size
        if not resume or offset > size:
            offset = 0
        delay, failures = _FIRST_WAIT_S, 0
        while True:
            os.ftruncate(descriptor, offset)
            os.lseek(descriptor, offset, os.SEEK_SET)
            if offset == size:
                return
            began = offset
            try:
                for chunk in read(offset):
                    if self._is_closed:
                        raise Unavailable("Server not ready")
                    if len(chunk) > size - offset:
                        raise StoreError("the object is longer than the listing said", Kind.CHANGED)
                    offset += len(chunk)
                    _write(descriptor, chunk)
                if offset == size:
                    return
                raise StoreError("the download ended early", Kind.NETWORK)
            except StoreError as error:
                failures = 1 if offset > began else failures + 1
                if error.kind not in PASSING or failures >= _ATTEMPTS:
                    raise
            if not resume:
                offset = 0
            self._wait(delay if failures > 1 else _FIRST_WAIT_S)
            delay = min(delay * 2, _LONGEST_WAIT_S)

    # ---- trees

    def new_tree(self) -> Path:
        """Return a new directory for a model's directory; ``drop_tree`` removes it. Raises InvalidArg, Internal."""
        with self._guard, told():
            trees = self.root / "trees"
            self._make()
            # Who tidied up may have left the one without the other.
            if not _is_at(self._lock, trees / f"{self._name}.lock") or not (trees / self._name).is_dir():
                log.warning(f"the repository cache directory {self.root} was emptied while it is used")
                name, lock = self._take_tree()
                os.close(self._lock)
                self._name, self._lock = name, lock
            path = trees / self._name / str(next(self._numbers))
            path.mkdir(mode=0o700)
            return path

    def drop_tree(self, path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)

    def _take_tree(self) -> tuple[str, int]:
        trees = self.root / "trees"
        while True:
            name = uuid.uuid4().hex
            lock = trees / f"{name}.lock"
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL | _OPEN, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Somebody who cleans may have taken it for a dead server's.
            if _is_at(descriptor, lock):
                (trees / name).mkdir(mode=0o700)
                return name, descriptor
            os.close(descriptor)

    def clean(self) -> None:
        """Remove the directories of servers that are no more, then what is too much."""
        trees = self.root / "trees"
        for lock in trees.glob("*.lock"):
            with _locked(lock) as is_mine:
                if is_mine:
                    shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                    lock.unlink(missing_ok=True)
        # The lock is made first and goes last.
        for tree in trees.iterdir():
            if tree.suffix != ".lock" and not tree.with_suffix(".lock").exists():
                shutil.rmtree(tree, ignore_errors=True)
        self.trim()

    # ---- size

    def trim(self, needed: int = 0) -> None:
        """Remove unused files, least recently used first, until ``needed`` more bytes are within the limit."""
        if not self.limit:
            return
        unused: list[tuple[int, int, Path]] = []
        total = needed
        for folder in ("parts", "blobs"):
            for path, found in _files(self.root / folder):
                total += found.st_size
                if found.st_nlink == 1:
                    unused.append((found.st_atime_ns, found.st_size, path))
        for _, size, path in sorted(unused):
            if total <= self.limit:
                return
            if path.parent.name == "parts":
                with _locked(path) as is_mine:
                    if not is_mine:
                        continue
                    path.unlink(missing_ok=True)
            else:
                # A server that links it just now keeps the content, and one that comes late downloads it again.
                path.unlink(missing_ok=True)
            total -= size

    def usage(self) -> int:
        """Return the bytes of everything kept."""
        return sum(found.st_size for folder in ("parts", "blobs") for _, found in _files(self.root / folder))

    def close(self) -> None:
        """End downloads and remove this server's model directories. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        atexit.unregister(self.close)
        trees = self.root / "trees"
        shutil.rmtree(trees / self._name, ignore_errors=True)
        (trees / f"{self._name}.lock").unlink(missing_ok=True)
        os.close(self._lock)


def key_of(*parts: str) -> str:
    """Return the name of a content that the parts tell apart from every other."""
    digest = hashlib.blake2b(digest_size=32)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Turn what the file system refuses into an error that says what to do."""
    try:
        yield
    except OSError as error:
        hint = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "; free some space, or name another directory by TRITON_{AWS,GCS,AZURE}_MOUNT_DIRECTORY"
        raise Internal(f"failed to write to the repository cache: {error.strerror}{hint}") from None


def _private(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise InvalidArg(
            f"the repository cache directory {path} can not be made: {error.strerror}; name another one by "
            "TRITON_{AWS,GCS,AZURE}_MOUNT_DIRECTORY or XDG_CACHE_HOME"
        ) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise InvalidArg(
            f"the repository cache directory {path} must be a directory of this user that only he may write"
        )


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield the files below, one level of directories deep; what vanishes meanwhile is left out."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    yield from _files(Path(entry.path))
                else:
                    yield Path(entry.path), entry.stat(follow_symlinks=False)


def _is_at(descriptor: int, path: Path) -> bool:
    """Tell whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold a file's lock if nobody has it; yield whether it is held."""
    try:
        descriptor = os.open(path, os.O_RDWR | _OPEN)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        yield False
    else:
        yield _is_at(descriptor, path)
    finally:
        os.close(descriptor)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
