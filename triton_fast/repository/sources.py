"""Where models come from: the source interface, the local directory, and the names that may reach them.

A name from the network is never joined to a path: it is looked up among the names that the directory lists.
Source: spec/http.md section 7, spec/security.md SEC-01. Knows nothing of versions, configs or loading.
"""

from __future__ import annotations

import os
import threading
import time
import unicodedata
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Protocol

from triton_fast.config.errors import did_you_mean
from triton_fast.config.files import is_dir
from triton_fast.errors import Internal, InvalidArg, NotFound
from triton_fast.repository.fingerprint import Fingerprint, fingerprint

# What to fetch of a model whose files are elsewhere: given its directory without what is in the version directories,
# the names of those that are needed; None for all.
Choose = Callable[[Path], Collection[str] | None]
EMPTY_NAME = "Model name cannot be empty. Please enter a valid name to deploy."
DUPLICATE = "model appears in two or more repositories"
_SHOWN_NAME = 256
# The coarsest clock of a file system in use (FAT).
_SETTLED_NS = 2_000_000_000


class MaterializedDir:
    """A model directory on the local disk, shared by the versions loaded from it.

    Starts with one holder. ``on_unused`` runs once, when the last holder releases it.
    """

    def __init__(self, path: Path, on_unused: Callable[[], None] | None = None, *, is_renamed: bool = False) -> None:
        self.path = path
        # The model has another name than its directory and its config say.
        self.is_renamed = is_renamed
        self._on_unused = on_unused
        self._holders = 1
        self._lock = threading.Lock()

    def completed(self) -> None:
        """Called once a load from it has succeeded."""

    def hold(self) -> MaterializedDir:
        with self._lock:
            self._holders += 1
        return self

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            is_last = self._holders == 0
        if is_last and self._on_unused is not None:
            self._on_unused()


class Source(Protocol):
    """One ``--model-repository``."""

    @property
    def location(self) -> str: ...

    def list_models(self) -> list[str]:
        """Return the model names, sorted. Raises Internal when they can not be listed whole."""

    def list_others(self) -> list[str]:
        """Return names that look like models but are none (files); for hints only."""

    def fingerprint(self, name: str) -> Fingerprint:
        """Return how the model looks now, told from listings alone: no file is read or fetched.

        It changes whenever what ``materialize`` would give changes, and two loads compare it version by version.
        Raises NotFound for a name that is not listed, Internal when it can not be told whole.
        """

    def materialize(self, name: str, choose: Choose | None = None) -> MaterializedDir:
        """Return the model's directory on the local disk. Raises NotFound for a name that is not listed.

        Where it has to be fetched, version directories that ``choose`` does not name are not there.
        """


class LocalSource:
    """A directory whose sub-directories are the models."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises InvalidArg when ``path`` is no directory."""
        if not os.fspath(path):
            raise InvalidArg("the model repository path is empty")
        self._path = Path(os.path.abspath(path))
        if not self._path.is_dir():
            what = "is not a directory" if self._path.exists() else "does not exist"
            raise InvalidArg(f"model repository '{path}' {what}")
        self._device = os.stat(self._path).st_dev
        # (how the directory looked, sub-directories, other entries): good while it looks the same.
        self._listed: tuple[tuple[int, int, int], tuple[str, ...], tuple[str, ...]] | None = None

    @property
    def location(self) -> str:
        return str(self._path)

    def list_models(self) -> list[str]:
        return list(self._entries()[0])

    def list_others(self) -> list[str]:
        return list(self._entries()[1])

    def fingerprint(self, name: str) -> Fingerprint:
        # Not looked up in the listing, which would make a poll of n models n listings: only their names get here.
        check_name(name)
        try:
            return fingerprint(self._path / name)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"model '{name}' is not in the repository") from None
        except OSError as error:
            raise Internal(f"failed to look at model directory '{shown(name)}': {error.strerror}") from None

    def materialize(self, name: str, choose: Choose | None = None) -> MaterializedDir:
        if name not in self._entries()[0]:
            raise NotFound(f"model '{name}' is not in the repository")
        return MaterializedDir(self._path / name)

    def _entries(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the sub-directories and the other entries, from memory while the directory has not changed.

        Raises Internal when it can not be read, or when what was mounted there is gone.
        """
        try:
            stat = os.stat(self._path)
            look = stat.st_mtime_ns, stat.st_ino, stat.st_dev
            listed = self._listed
            if listed is not None and listed[0] == look:
                return listed[1], listed[2]
            began = time.time_ns()
            with os.scandir(self._path) as entries:
                found = [(e.name, _is_dir(e), e.is_symlink()) for e in entries if e.name[0] != "." and _is_utf8(e.name)]
        except OSError as error:
            raise Internal(f"failed to open model repository {self._path}: {error.strerror}") from None
        if not found and stat.st_dev != self._device:
            # A mount point without its file system is an empty directory, not a repository without models.
            raise Internal(f"failed to open model repository {self._path}: its file system is not mounted any more")
        self._device = stat.st_dev
        models = tuple(sorted(name for name, is_dir, _ in found if is_dir))
        others = tuple(sorted(name for name, is_dir, _ in found if not is_dir))
        # A change within the clock's tick leaves no trace in the time, and one behind a link never does.
        is_sure = began - stat.st_mtime_ns > _SETTLED_NS and not any(is_link for _, _, is_link in found)
        self._listed = (look, models, others) if is_sure else None
        return models, others


def check_name(name: str) -> None:
    """Refuse a model name that could mean a path. Raises InvalidArg with Triton's text."""
    if not name:
        raise InvalidArg(EMPTY_NAME)
    if name in (".", "..") or any(char in name for char in "/\\\0") or not _is_utf8(name):
        raise InvalidArg(f"invalid model name '{shown(name)}', model name must not contain path traversal characters")


def shown(name: str) -> str:
    """Return a name from outside as it may stand in a message: of bounded length and always valid UTF-8."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _SHOWN_NAME else f"{text[:_SHOWN_NAME]}..."


def name_hint(name: str, models: Iterable[str], files: Iterable[str] = ()) -> str:
    """Return what was probably meant by a model name that does not exist, or an empty string."""
    models = list(models)
    plain = _plain(name)
    for model in models:
        if _plain(model) != plain:
            continue
        if model != model.strip():
            return f"the directory is named '{model}', with a space at an end: rename it to '{model.strip()}'"
        if name != name.strip():
            return f"the name has a space at an end: did you mean '{model}'?"
        return f"did you mean '{model}'?"
    if name in files:
        return f"'{shown(name)}' is a file, a model is a directory"
    return did_you_mean(name, models)


def odd_names(models: Iterable[str]) -> list[str]:
    """Return the names with white space at an end: nobody can see it, and no request will match."""
    return [model for model in models if model != model.strip()]


def _plain(name: str) -> str:
    return unicodedata.normalize("NFKC", name[:_SHOWN_NAME]).strip().casefold().replace("-", "_")


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return is_dir(entry)
    except OSError:
        # A link behind which nobody can look now: a model may be there, and is not unloaded.
        return True


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
