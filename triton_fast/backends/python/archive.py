"""Safe extraction of an environment's tar archive: nothing lands outside the target, nothing is more than a file.

Refused: absolute names, ``..``, names through links, links that lead out, devices, pipes; more entries or bytes than
the limits. Modes lose setuid, setgid and what others may write. Knows nothing of environments.
"""

from __future__ import annotations

import os
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO

from triton_fast.errors import Internal

MAX_BYTES = 64 << 30
MAX_ENTRIES = 2_000_000
MAX_NAME = 4096
_PIECE = 1 << 20


def extract(archive: Path, target: Path, *, max_bytes: int = MAX_BYTES, max_entries: int = MAX_ENTRIES) -> None:
    """Extract ``archive`` into ``target``, which is made and must be new. Raises Internal."""
    target.mkdir(mode=0o700)
    try:
        with tarfile.open(archive, "r:*") as tar:
            _Extraction(target, archive.name, max_bytes, max_entries).run(tar)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        # zlib.error and lzma.LZMAError come as TarError or OSError; names of ours are no client's business.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Internal(f"Failed to extract {archive.name}: {reason}") from None


class _Extraction:
    def __init__(self, target: Path, shown: str, max_bytes: int, max_entries: int) -> None:
        self._target = target
        self._shown = shown
        self._bytes_left = max_bytes
        self._entries_left = max_entries
        # Made by this archive: what is not in here never gets followed or replaced.
        self._links: set[str] = set()

    def run(self, tar: tarfile.TarFile) -> None:
        for member in tar:
            self._entries_left -= 1
            if self._entries_left < 0:
                raise self._refusal(member.name, "has too many entries")
            parts = self._parts(member.name)
            # Headers of sparse members and of PAX records are not data, but are held by tarfile: let go of them.
            tar.members = []  # type: ignore[attr-defined]
            if parts:
                self._one(tar, member, parts)

    def _parts(self, name: str) -> tuple[str, ...]:
        """Return the parts of a name that stays inside; () for the root itself."""
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name or len(name) > MAX_NAME:
            raise self._refusal(name, "has a name that leads out of it")
        parts = tuple(part for part in path.parts if part != ".")
        for end in range(1, len(parts)):
            if "/".join(parts[:end]) in self._links:
                raise self._refusal(name, "has a name that goes through a link")
        return parts

    def _one(self, tar: tarfile.TarFile, member: tarfile.TarInfo, parts: tuple[str, ...]) -> None:
        place = self._target.joinpath(*parts)
        key = "/".join(parts)
        if member.isdir():
            if key in self._links:
                raise self._refusal(member.name, "has a name that goes through a link")
            place.mkdir(mode=0o755, parents=True, exist_ok=True)
            return
        place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if place.is_dir() and not place.is_symlink():
            raise self._refusal(member.name, "replaces a directory")
        place.unlink(missing_ok=True)
        self._links.discard(key)
        if member.issym():
            self._check_link(member, parts)
            os.symlink(member.linkname, place)
            self._links.add(key)
        elif member.islnk():
            source = self._target.joinpath(*self._parts(member.linkname))
            if source.is_symlink() or not source.is_file():
                raise self._refusal(member.name, "has a hard link to what is no file of it")
            os.link(source, place)
        elif member.isreg():
            stream = tar.extractfile(member)
            if stream is None:
                raise self._refusal(member.name, "can not be read")
            self._copy(stream, place, member)
        else:
            raise self._refusal(member.name, "has a device or a pipe")

    def _check_link(self, member: tarfile.TarInfo, parts: tuple[str, ...]) -> None:
        """Refuse a link that leads out, by itself or by way of the links that there are.

        A link into a later link can not lead out either: that one is checked from where it stands, and its own target
        is inside. ``..`` behind a link would step out of where the link leads, so only leading ones are allowed.
        """
        link = PurePosixPath(member.linkname)
        if link.is_absolute() or not member.linkname or "\0" in member.linkname or len(member.linkname) > MAX_NAME:
            raise self._refusal(member.name, "has a link that leads out of it")
        climbs = 0
        for part in link.parts:
            if part != "..":
                break
            climbs += 1
        if climbs > len(parts) - 1 or ".." in link.parts[climbs:]:
            raise self._refusal(member.name, "has a link that leads out of it")

    def _copy(self, stream: IO[bytes], place: Path, member: tarfile.TarInfo) -> None:
        mode = 0o755 if member.mode & 0o111 else 0o644
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with os.fdopen(os.open(place, flags, mode), "wb") as out:
            while piece := stream.read(_PIECE):
                self._bytes_left -= len(piece)
                if self._bytes_left < 0:
                    raise self._refusal(member.name, "is too large")
                out.write(piece)

    def _refusal(self, name: str, what: str) -> Internal:
        return Internal(f"Failed to extract {self._shown}: the archive {what} ({name[:200]!r})")
