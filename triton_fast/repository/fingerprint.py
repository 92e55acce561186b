"""Change detection: what a model directory looks like, without reading any file. Also for polling.

Names, sizes and times are compared, not only the newest time: a file put back with an older date is a change too.
The time of a file's last change of any kind besides that of its content: tools set the latter as they like, and new
weights have the size of the old ones. Knows no configuration and no loading.
"""

from __future__ import annotations

import errno
import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from triton_fast.config.files import NOWHERE
from triton_fast.repository.versions import parse_version

_MAX_DEPTH = 16
_CONFIGS = ("config.pbtxt", "configs")
# What has gone meanwhile, leads nowhere or is not for this user is left out; anything else (a file system that does not
# answer) means that nobody can tell how the model looks.
_LEFT_OUT = NOWHERE | {errno.EACCES, errno.EPERM}


@dataclass(frozen=True)
class Fingerprint:
    """``config``: config.pbtxt and configs/; ``common``: labels and other shared files; ``versions``: by directory."""

    config: bytes
    common: bytes
    versions: dict[str, bytes] = field(default_factory=dict)

    def same_version(self, other: Fingerprint, name: str) -> bool:
        """Tell whether the version directory and everything it shares with others is the same in both."""
        return self.config == other.config and self.same_files(other, name)

    def same_files(self, other: Fingerprint, name: str) -> bool:
        """As ``same_version``, whatever the config."""
        return self.common == other.common and name in self.versions and self.versions[name] == other.versions.get(name)


def fingerprint(model_dir: Path) -> Fingerprint:
    """Return the fingerprint of a model directory; what vanishes during the walk is left out.

    Raises OSError when the directory, or a part of it that is there, can not be looked at.
    """
    config, common = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    versions: dict[str, bytes] = {}
    for name, entry in _sorted(model_dir):
        if _is_dir(entry) and parse_version(name) is not None:
            digest = hashlib.blake2b(digest_size=16)
            _add(digest, entry, name, depth=0)
            versions[name] = digest.digest()
        else:
            _add(config if name in _CONFIGS else common, entry, name, depth=0)
    return Fingerprint(config.digest(), common.digest(), versions)


def _add(digest: hashlib.blake2b, entry: os.DirEntry[str], path: str, depth: int) -> None:
    try:
        stat = entry.stat()
    except OSError as error:
        _leave_out(error)
        return
    if not _is_dir(entry):
        digest.update(f"{path!r} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}\n".encode())
        return
    digest.update(f"{path!r}/\n".encode())
    # A symlink may lead back up: the depth ends that.
    if depth < _MAX_DEPTH:
        for name, child in _entries(entry.path):
            _add(digest, child, f"{path}/{name}", depth + 1)


def _entries(path: str) -> list[tuple[str, os.DirEntry[str]]]:
    try:
        return _sorted(path)
    except OSError as error:
        _leave_out(error)
        return []


def _sorted(path: str | Path) -> list[tuple[str, os.DirEntry[str]]]:
    """Return the entries of a directory by name. A Python model's own byte code is no change to the model."""
    with os.scandir(path) as entries:
        return sorted((entry.name, entry) for entry in entries if entry.name != "__pycache__")


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        _leave_out(error)
        return False


def _leave_out(error: OSError) -> None:
    if error.errno not in _LEFT_OUT:
        raise error
