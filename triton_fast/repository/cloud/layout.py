"""From object keys to the files and directories of one model, and to its fingerprint.

Keys are hostile: whoever may write to the bucket chooses them. What cannot be a path below the model's directory is
refused with the whole model. Source: spec/security.md SEC-01. Touches no disk and no network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from triton_fast.repository.cloud.faults import Kind, StoreError
from triton_fast.repository.cloud.store import Object
from triton_fast.repository.fingerprint import Fingerprint
from triton_fast.repository.versions import parse_version

FOLDER = "_$folder$"
MAX_FILES = 100_000
_MAX_PART_BYTES = 255
_MAX_PATH_BYTES = 1024
_MAX_DEPTH = 32
_CONFIGS = ("config.pbtxt", "configs")
_BYTE_CODE = "__pycache__"


@dataclass
class Layout:
    """A model's directory: ``files`` by their path in it, and its ``folders``, parents included.

    ``unclear``: empty objects that may be files or, since a listing drops the slash at the end of a key, the markers
    of empty directories.
    """

    files: dict[str, Object] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    unclear: set[str] = field(default_factory=set)

    @property
    def size(self) -> int:
        return sum(item.size for item in self.files.values())

    @property
    def versions(self) -> frozenset[str]:
        """Return the directories that are versions, by their names."""
        return frozenset(path for path in self.folders if "/" not in path and parse_version(path) is not None)

    def settle(self, path: str, *, is_folder: bool) -> None:
        """Decide what an unclear path is."""
        self.unclear.discard(path)
        if is_folder:
            self.files.pop(path, None)
            self.folders.add(path)


def lay_out(objects: Iterable[Object], prefix: str) -> Layout:
    """Return the directory that the objects below ``prefix`` (one model's, with a slash at its end) make.

    Raises StoreError for a key that is no path below it, and for one that is a file and a directory.
    """
    found = Layout()
    rows: list[tuple[str, Object]] = []
    for item in objects:
        if not item.key.startswith(prefix):
            # The marker of the model's directory itself.
            if item.key == prefix.rstrip("/") and item.size == 0:
                continue
            raise _refused(item.key, "it is not below the model")
        path = item.key[len(prefix) :]
        if path.endswith(FOLDER) and item.size == 0:
            path = path.removesuffix(FOLDER)
            if path:
                _check(path, item.key)
                found.folders.add(path)
                found.folders.update(_parents(path))
            continue
        _check(path, item.key)
        found.folders.update(_parents(path))
        rows.append((path, item))
        if len(rows) > MAX_FILES:
            raise StoreError(f"the model has more than {MAX_FILES} objects", Kind.KEY)
    for path, item in rows:
        if path in found.folders or path in found.files:
            if item.size or (path in found.files and found.files[path].size):
                raise _refused(item.key, "it is both a file and a directory")
            found.folders.add(path)
            found.settle(path, is_folder=True)
        else:
            found.files[path] = item
            # Directories have no dot in their names, or nobody misses an empty one.
            if item.size == 0 and "." not in path.rpartition("/")[2]:
                found.unclear.add(path)
    return found


def fingerprint_of(layout: Layout) -> Fingerprint:
    """Return the fingerprint; an ETag says more than a time: a file that is stored again unchanged is no change."""
    config, common = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    versions = {path: hashlib.blake2b(digest_size=16) for path in layout.versions}
    for path in sorted([*layout.folders, *layout.files]):
        if _BYTE_CODE in path.split("/"):
            continue
        item = layout.files.get(path)
        line = f"{path!r}/\n" if item is None else f"{path!r} {item.size} {item.etag or item.modified_ns}\n"
        top = path.partition("/")[0]
        (versions.get(top) or (config if top in _CONFIGS else common)).update(line.encode())
    return Fingerprint(config.digest(), common.digest(), {name: row.digest() for name, row in versions.items()})


def is_name(name: str) -> bool:
    """Tell whether one part of a key can be the name of a file."""
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return False
    return (
        0 < length <= _MAX_PART_BYTES and name not in (".", "..") and name.isprintable() and not set(name) & set("/\\")
    )


def _check(path: str, key: str) -> None:
    parts = path.split("/")
    if len(parts) > _MAX_DEPTH or not all(map(is_name, parts)) or len(path.encode()) > _MAX_PATH_BYTES:
        raise _refused(key, "it can not be the path of a file")


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts))]


def _refused(key: str, why: str) -> StoreError:
    shown = key.encode("utf-8", "backslashreplace").decode()[:200]
    return StoreError(f"object key {shown!r} is refused: {why}; remove or rename that object", Kind.KEY)
