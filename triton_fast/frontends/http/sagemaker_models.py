"""The models of a SageMaker multi-model endpoint: where each was loaded from, and under which name it is served.

SageMaker unpacks an archive below /opt/ml/models/<hash>/model and names it by its hash; the model may be served under
another name. Knows nothing of HTTP. Source: spec/http.md section 10, spec/security.md SEC-01.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from triton_fast.errors import AlreadyExists, InvalidArg, ServerError
from triton_fast.observability import log

ROOT = "/opt/ml/models"
# SageMaker gives up after 360.
UNLOAD_S = 350.0
LOOK_S = 0.05
_CONFIG = "config.pbtxt"
_MAX_CONFIG = 1 << 20
_PART = r"(?!\.{1,2}(?:/|$))[0-9A-Za-z._-]{1,255}"
_SHAPE = re.compile(rf"/{_PART}/model(?:/{_PART})?/?")
_ENSEMBLE = re.compile(rb'platform\s*:\s*["\']ensemble["\']|ensemble_scheduling')


class Plane(Protocol):
    """What is asked of the dataplane."""

    @property
    def exiting(self) -> bool: ...
    def register_repository(self, path: str, mapping: Mapping[str, str]) -> None: ...
    def unregister_repository(self, path: str) -> None: ...
    def load_model(self, name: str, parameters: Mapping[str, str | bytes]) -> None: ...
    def unload_model(self, name: str, *, unload_dependents: bool = False) -> None: ...
    def model_ready(self, name: str, version: int) -> bool: ...
    def model_gone(self, name: str) -> bool: ...


class Mapped(NamedTuple):
    """``target``: the name that it is served under; ``repository``: registered for it."""

    target: str
    repository: str


class SageMakerModels:
    """``root`` stands in for /opt/ml/models, ``clock`` and ``pause`` for time, in tests."""

    def __init__(
        self, plane: Plane, root: str | None = None, *, clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] | None = None,
    ) -> None:  # fmt: skip
        self._plane = plane
        self._root = ROOT if root is None else root
        self._clock = clock
        self._pause = pause or threading.Event().wait
        self._mapped: dict[str, Mapped] = {}
        self._busy: set[str] = set()
        self._free = threading.Condition()

    def target(self, name: str) -> str | None:
        """Return the name under which a model is served; None for one that is not loaded here."""
        found = self._mapped.get(name)
        return None if found is None else found.target

    def get(self, name: str) -> dict[str, str] | None:
        found = self._mapped.get(name)
        return None if found is None else {"modelName": name, "modelUrl": found.repository}

    def listing(self) -> list[dict[str, str]]:
        """Return what is loaded; as in Triton, what is not ready (version 1) is an empty object. May wait."""
        return [
            {"modelName": name, "modelUrl": found.repository} if self._is_ready(found.target) else {}
            for name, found in list(self._mapped.items())
        ]

    def load(self, name: str, url: str, target: str) -> None:
        """Register the directory and load what is in it; blocks. Raises ServerError with nothing changed."""
        with self._turn(name):
            if name in self._mapped:
                raise AlreadyExists(f"model '{name}' is already loaded")
            if not name:
                raise InvalidArg("Model name cannot be empty. Please enter a valid name to deploy.")
            repository, folder = place(self.folder(url))
            self._plane.register_repository(repository, {folder: target})
            try:
                self._plane.load_model(target, {})
            except BaseException:
                self._plane.unregister_repository(repository)
                raise
            self._mapped[name] = Mapped(target, repository)

    def unload(self, name: str) -> bool:
        """Unload with members, wait until it has ended, and forget the directory. False: it is not loaded here."""
        with self._turn(name):
            found = self._mapped.get(name)
            if found is None:
                return False
            self._plane.unload_model(found.target, unload_dependents=True)
            until = self._clock() + UNLOAD_S
            while not (is_gone := self._plane.model_gone(found.target)) and self._clock() < until:
                if self._plane.exiting:
                    break
                self._pause(LOOK_S)
            if not is_gone:
                log.error(f"model '{found.target}' did not end within {UNLOAD_S:.0f} s of its unload")
            # From here on it is not loaded, whatever becomes of the repository.
            del self._mapped[name]
            self._plane.unregister_repository(found.repository)
            return True

    def folder(self, url: str) -> str:
        """Return the directory that a load names. Raises InvalidArg for any but those of SageMaker."""
        real = os.path.realpath(self._root)
        if url.startswith(f"{self._root}/") and _SHAPE.fullmatch(url[len(self._root) :]):
            path = os.path.realpath(url)
            if path.startswith(real + os.sep):
                return url.rstrip("/")
        raise InvalidArg(
            f"Invalid \"url\" '{url[:256]}': expected a path of the form {self._root}/<hash>/model[/<subdir>]"
        )

    def _is_ready(self, target: str) -> bool:
        try:
            return self._plane.model_ready(target, 1)
        except ServerError:
            return False

    @contextmanager
    def _turn(self, name: str) -> Iterator[None]:
        """One load or unload of a name at a time."""
        with self._free:
            self._free.wait_for(lambda: name not in self._busy)
            self._busy.add(name)
        try:
            yield
        finally:
            with self._free:
                self._busy.discard(name)
                self._free.notify_all()


def place(folder: str) -> tuple[str, str]:
    """Return the repository to register for a directory and the model's sub-directory in it.

    A directory with a config is the model; else it is a repository: of one model, or of an ensemble and its members.
    """
    here = Path(folder)
    if (here / _CONFIG).is_file():
        return str(here.parent), here.name
    try:
        models = sorted(entry.name for entry in here.iterdir() if entry.is_dir())
    except OSError as error:
        raise InvalidArg(f"failed to read '{folder}': {error.strerror}") from None
    ensembles = [name for name in models if _is_ensemble(here / name / _CONFIG)]
    if len(models) > 1 and len(ensembles) != 1:
        raise InvalidArg(f"'{folder}' holds {len(models)} models, of which exactly one must be an ensemble")
    if not models:
        raise InvalidArg(f"'{folder}' holds no model")
    return folder, (ensembles or models)[0]


def _is_ensemble(config: Path) -> bool:
    try:
        with config.open("rb") as file:
            return _ENSEMBLE.search(file.read(_MAX_CONFIG)) is not None
    except OSError:
        return False
