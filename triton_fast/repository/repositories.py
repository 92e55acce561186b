"""All model repositories as one: which models there are, and where. Repositories come and go while the server runs.

A model is known by a key: its name, or ``<repository>::<name>`` where each repository is a namespace of its own.
Source: spec/model_config.md section 1, spec/capi.md section 2. Knows nothing of versions, configs or loading.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from triton_fast.errors import AlreadyExists, Internal, InvalidArg, NotFound, ServerError
from triton_fast.observability import log
from triton_fast.repository.fingerprint import Fingerprint
from triton_fast.repository.sources import (
    DUPLICATE,
    Choose,
    LocalSource,
    MaterializedDir,
    Source,
    check_name,
    name_hint,
)

# How old a listing of a repository that is not on this machine's disks may be when only shown.
LISTING_AGE_S = 15.0


class Listing(NamedTuple):
    """``owners``: key -> sources that hold the model, by key; ``failed``: location that was not listed whole -> why."""

    owners: dict[str, list[Source]]
    failed: dict[str, str]


class MappedSource:
    """A repository some of whose sub-directories are served under other names: ``names`` is alias -> sub-directory."""

    def __init__(self, inner: Source, names: Mapping[str, str]) -> None:
        self._inner = inner
        self.names = dict(names)

    @property
    def location(self) -> str:
        return self._inner.location

    def list_models(self) -> list[str]:
        there = self._inner.list_models()
        renamed = set(self.names.values())
        aliases = [alias for alias, directory in self.names.items() if directory in there]
        return sorted({*aliases, *(name for name in there if name not in renamed)})

    def list_others(self) -> list[str]:
        return self._inner.list_others()

    def fingerprint(self, name: str) -> Fingerprint:
        return self._inner.fingerprint(self._directory(name))

    def materialize(self, name: str, choose: Choose | None = None) -> MaterializedDir:
        directory = self._inner.materialize(self._directory(name), choose)
        directory.is_renamed = name in self.names
        return directory

    def _directory(self, name: str) -> str:
        if name not in self.names and name in self.names.values():
            raise NotFound(f"model '{name}' is not in the repository")
        return self.names.get(name, name)


class Repositories:
    """Safe to use from any thread.

    Parameters
    ----------
    namespacing
        ``--model-namespacing``.
    open_source
        Path -> source, for repositories that are registered; raises ServerError.
    location_of
        Path -> the location that its source has; raises ServerError for what can be no path.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        namespacing: bool = False,
        open_source: Callable[[str], Source] = LocalSource,
        location_of: Callable[[str], str] = os.path.abspath,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lock = threading.Lock()
        self._sources = {source.location: source for source in sources}
        self.namespacing = namespacing
        self._open_source = open_source
        self._location_of = location_of
        self._clock = clock
        # Key -> (namespace, name), of every key ever made.
        self._keys: dict[str, tuple[str, str]] = {}
        # Location -> what it listed last, and when.
        self._seen: dict[str, tuple[list[str], float]] = {}

    @property
    def sources(self) -> tuple[Source, ...]:
        return tuple(self._sources.values())

    # ---- keys

    def split(self, key: str) -> tuple[str, str]:
        """Return the namespace, empty where there are none, and the name of a model."""
        return self._keys.get(key, ("", key)) if self.namespacing else ("", key)

    def keys_of(self, name: str) -> list[str]:
        """Return the keys of all models with this name; the name itself when no repository has it."""
        if not self.namespacing:
            return [name]
        return [self._key(source, name) for source in self.sources if name in self._names(source)] or [name]

    def known(self, name: str) -> list[str]:
        """Return the keys of all models of this name that any repository ever had."""
        return [key for key, (_, found) in list(self._keys.items()) if found == name]

    def member(self, owner: str, name: str) -> str:
        """Return the key of the model that an ensemble means by a name: its own repository's, else the only one."""
        if not self.namespacing:
            return name
        keys = self.keys_of(name)
        own = f"{self.split(owner)[0]}::{name}"
        return own if own in keys else keys[0] if len(keys) == 1 else name

    def _key(self, source: Source, name: str) -> str:
        if not self.namespacing:
            return name
        key = f"{source.location}::{name}"
        self._keys[key] = source.location, name
        return key

    # ---- what is there

    def listing(self) -> Listing:
        """List every source now; what can not be listed is logged."""
        found: dict[str, list[Source]] = {}
        failed = {}
        for source in self.sources:
            try:
                names = source.list_models()
            except Internal as error:
                log.error(str(error))
                failed[source.location] = str(error)
                continue
            self._seen[source.location] = names, self._clock()
            for name in names:
                found.setdefault(self._key(source, name), []).append(source)
        for alias, source in self._aliases().items():
            if not self.namespacing and source in found.get(alias, ()):
                found[alias] = [source]
        return Listing(dict(sorted(found.items())), failed)

    def counts(self) -> dict[str, int]:
        """Return how many repositories have each model, from memory where that is young enough; for showing only."""
        found: dict[str, int] = {}
        for source in self.sources:
            names, at = self._seen.get(source.location, ([], -LISTING_AGE_S))
            # A local directory tells by itself whether it has changed.
            if isinstance(source, LocalSource) or self._clock() - at >= LISTING_AGE_S:
                try:
                    names = source.list_models()
                except Internal as error:
                    log.error(str(error))
                self._seen[source.location] = names, self._clock()
            for name in names:
                key = self._key(source, name)
                found[key] = found.get(key, 0) + 1
        for alias in self._aliases():
            if alias in found:
                found[alias] = 1
        return found

    def locate(self, key: str) -> Source:
        """Return the one source that holds the model.

        Raises
        ------
        NotFound
            No source has it; the message names what was probably meant.
        InvalidArg
            More than one has it.
        Internal
            None of those that could be listed has it, and one could not.
        """
        namespace, name = self.split(key)
        owners, failed = [], ""
        for source in self.sources:
            if namespace in ("", source.location):
                try:
                    owners += [source] if name in source.list_models() else []
                except Internal as error:
                    log.error(str(error))
                    failed = str(error)
        renamed = None if self.namespacing else self._aliases().get(name)
        if renamed in owners:
            return renamed
        if len(owners) > 1:
            raise InvalidArg(DUPLICATE)
        if owners:
            return owners[0]
        if failed:
            raise Internal(failed)
        hint = name_hint(name, [found for source in self.sources for found in self._names(source)], self._others())
        raise NotFound("model not found in any model repository" + (f"; {hint}" if hint else ""))

    def _names(self, source: Source) -> list[str]:
        try:
            return source.list_models()
        except Internal:
            return []

    def _others(self) -> list[str]:
        found: list[str] = []
        for source in self.sources:
            try:
                found += source.list_others()
            except Internal:
                continue
        return found

    def _aliases(self) -> dict[str, Source]:
        return {alias: s for s in self.sources if isinstance(s, MappedSource) for alias in s.names}

    # ---- repositories come and go

    @property
    def registered(self) -> dict[str, dict[str, str]]:
        """Location of each repository -> its sub-directories that are served under another name -> that name."""
        return {
            source.location: {d: a for a, d in source.names.items()} if isinstance(source, MappedSource) else {}
            for source in self.sources
        }

    def register(self, path: str, mapping: Mapping[str, str]) -> None:
        """Add a repository. ``mapping``: sub-directory -> name that it is served under.

        Raises
        ------
        InvalidArg, AlreadyExists
            With Triton's texts.
        """
        for directory, alias in mapping.items():
            check_name(directory)
            check_name(alias)
        try:
            source = self._open_source(path)
        except ServerError as error:
            log.error(f"failed to register '{path}': {error}")
            raise InvalidArg(f"failed to register '{path}', repository not found") from None
        names = {alias: directory for directory, alias in mapping.items()}
        if len(names) < len(mapping):
            raise InvalidArg(f"failed to register '{path}', two of its directories are mapped to one name")
        with self._lock:
            if source.location in self._sources:
                raise AlreadyExists(f"model repository '{path}' has already been registered")
            for alias in names:
                if alias in self._aliases():
                    raise AlreadyExists(f"failed to register '{alias}', there is a conflicting mapping for '{alias}'")
            self._sources = {**self._sources, source.location: MappedSource(source, names) if names else source}
        log.info(f"Model repository registered: {path}")

    def unregister(self, path: str) -> None:
        """Forget a repository; what was loaded from it is served still. Raises InvalidArg."""
        try:
            location = path if path in self._sources else self._location_of(path)
        except ServerError:
            location = ""
        with self._lock:
            if location not in self._sources:
                raise InvalidArg(f"failed to unregister '{path}', repository not found")
            self._sources = {at: source for at, source in self._sources.items() if at != location}
            self._seen.pop(location, None)
        log.info(f"Model repository unregistered: {path}")
