"""The state of every model version, and the lookup on the data path.

Writers hold a lock; readers do not: each model has one immutable snapshot, replaced whole, and the epoch counts
the replacements. Source: spec/http.md section 2, spec/model_config.md section 12. Knows nothing of files and loading.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from triton_fast._native.sched.model import Epoch
from triton_fast.errors import InvalidArg, NotFound, ServerError, Unavailable
from triton_fast.repository.fingerprint import Fingerprint
from triton_fast.repository.sources import DUPLICATE, MaterializedDir, shown

UNLOADED = "unloaded"


class State(str, Enum):
    UNKNOWN = "UNKNOWN"
    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


class Runtime(Protocol):
    """What the repository needs of a running model version."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int: ...

    @property
    def config(self) -> Any: ...

    @property
    def ready_may_block(self) -> bool: ...

    def is_ready(self) -> bool: ...

    def renew(self) -> None: ...

    def stop(self, timeout_s: float | None = None) -> bool: ...


R = TypeVar("R", bound=Runtime)


class IndexRow(NamedTuple):
    """``version`` -1: no version; ``state`` UNKNOWN: never loaded; an empty field is left out on the wire."""

    name: str
    version: int
    state: State
    reason: str


@dataclass(eq=False)
class Entry(Generic[R]):
    """One version. ``load_s``: seconds its load took; ``directory``: held while the runtime may read from it."""

    version: int
    state: State
    reason: str = ""
    runtime: R | None = None
    load_s: float = 0.0
    directory: MaterializedDir | None = None
    dirname: str = ""
    # What the repository keeps of an ensemble's version.
    ensemble: Any = None


@dataclass(eq=False)
class Record(Generic[R]):
    """One model. ``wanted``: loaded or asked to be; ``failure``: why it could not even reach its versions."""

    name: str
    entries: dict[int, Entry[R]] = field(default_factory=dict)
    wanted: bool = True
    failure: str = ""
    # The failure is that the model was not found or its config could not be read.
    is_unread: bool = False
    # Why an ensemble that nobody has unloaded is not served for now; it comes back with its members.
    suspended: str = ""
    # How the directory looked at the last successful load, where it was; None after unload or a load with overrides.
    mark: Fingerprint | None = None
    location: str = ""
    # What its versions were configured with then, the choice of versions apart.
    setup: object = None
    # Where and how it looked when a load was last tried without overrides, whatever came of it.
    seen: tuple[str, Fingerprint] | None = None

    def is_at(self, location: str, mark: Fingerprint) -> bool:
        return self.location == location and self.mark == mark

    @property
    def is_asked_for(self) -> bool:
        """It should be served, though an ensemble's members may stand against it for now."""
        return self.wanted or bool(self.suspended)

    @property
    def lives(self) -> bool:
        """A version is served, or on its way in or out."""
        return any(entry.state not in (State.UNAVAILABLE, State.UNKNOWN) for entry in self.entries.values())

    @property
    def ready(self) -> dict[int, Entry[R]]:
        return {v: entry for v, entry in sorted(self.entries.items()) if entry.state is State.READY}


class _Snapshot(NamedTuple, Generic[R]):
    latest: R | None
    ready: Mapping[int, R]
    known: frozenset[int]


class ModelTable(Generic[R]):
    """All records. ``epoch`` advances after every change that a lookup can see; the data path compares it.

    ``on_change`` is called after the same changes, with the table's lock held, on whatever thread made them.
    ``split`` gives the namespace and the name that a key stands for.
    """

    def __init__(
        self, epoch: Epoch | None = None, split: Callable[[str], tuple[str, str]] = lambda key: ("", key)
    ) -> None:
        self.epoch = epoch or Epoch()
        self._split = split
        self.on_change: Callable[[], None] = _nothing
        self.closing = False
        # Whether the readiness of any served version is a question that may wait for an answer.
        self.may_block = False
        self._lock = threading.Lock()
        self._records: dict[str, Record[R]] = {}
        self._published: dict[str, _Snapshot[R]] = {}
        # Counts what the index may show otherwise, and the index as it was last: revision, listing, rows.
        self._revision = 0
        self._indexed: tuple[int, Mapping[str, int], list[IndexRow]] = (-1, {}, [])
        # Name -> keys of the models in namespaces that it may mean.
        self._namesakes: dict[str, tuple[str, ...]] = {}

    # Lookup: no lock.

    def resolve(self, name: str, version: int = -1) -> R:
        """Return the runtime of a version, -1 for the highest ready one.

        Raises
        ------
        NotFound, Unavailable
            With Triton's texts.
        """
        snapshot = self._find(name)
        if snapshot is not None:
            found = snapshot.latest if version < 0 else snapshot.ready.get(version)
            if found is not None:
                return found
        raise self._missing(snapshot, name, version)

    def _find(self, name: str) -> _Snapshot[R] | None:
        """Return what a name or key means. Raises InvalidArg with Triton's text when it means more than one model."""
        snapshot = self._published.get(name)
        if snapshot is not None or not self._namesakes:
            return snapshot
        keys = self._namesakes.get(name, ())
        if len(keys) > 1:
            raise InvalidArg(
                f"Request for unknown model: There are {len(keys)} identifiers of model '{name}' in global map, model "
                "namespace must be provided to resolve ambiguity."
            )
        return self._published.get(keys[0]) if keys else None

    def is_ready(self, name: str, version: int = -1) -> bool:
        """Tell whether a version is ready. Raises NotFound for a model or version nobody ever loaded.

        Blocks where ``may_block``.
        """
        snapshot = self._find(name)
        if snapshot is None or (version >= 0 and version not in snapshot.known):
            raise self._missing(snapshot, name, version)
        found = snapshot.latest if version < 0 else snapshot.ready.get(version)
        return found is not None and found.is_ready()

    def versions(self, name: str) -> list[int]:
        """Return the ready versions, ascending. Raises NotFound when there is none."""
        snapshot = self._find(name)
        if snapshot is None or snapshot.latest is None:
            raise self._missing(snapshot, name, -1)
        return sorted(snapshot.ready)

    def ready_of(self, name: str) -> list[R]:
        """Return the runtimes of a model's ready versions, ascending; none for an unknown model. Raises InvalidArg."""
        snapshot = self._find(name)
        return [] if snapshot is None else [runtime for _, runtime in sorted(snapshot.ready.items())]

    def all_ready(self) -> list[R]:
        """Return the runtimes of all ready versions, by name and version."""
        with self._lock:
            published = sorted(self._published.items())
        return [runtime for _, snapshot in published for _, runtime in sorted(snapshot.ready.items())]

    def _missing(self, snapshot: _Snapshot[R] | None, name: str, version: int) -> ServerError:
        if self.closing:
            return Unavailable("Server not ready")
        text = f"Request for unknown model: '{shown(name)}'"
        if snapshot is None:
            return NotFound(f"{text} is not found")
        if version < 0:
            return NotFound(f"{text} has no available versions")
        if version in snapshot.known:
            return Unavailable(f"{text} version {version} is not at ready state")
        return NotFound(f"{text} version {version} is not found")

    # Reports.

    def index(self, listing: Mapping[str, int], *, ready_only: bool = False) -> list[IndexRow]:
        """Return one row a version, by name and version. ``listing``: name -> repositories that hold it."""
        with self._lock:
            revision, known, found = self._indexed
            if (revision, known) != (self._revision, listing):
                found = self._all_rows(listing)
                self._indexed = self._revision, listing, found
        return [row for row in found if row.state is State.READY] if ready_only else list(found)

    def _all_rows(self, listing: Mapping[str, int]) -> list[IndexRow]:
        # What no repository has (files of a load request, a directory that was removed) is listed while it lives.
        living = {key for key, record in self._records.items() if record.lives}
        keys = sorted({*listing, *living}, key=lambda key: (self._split(key)[1], key))
        return [row for key in keys for row in self._rows(key, listing.get(key, 0))]

    def _rows(self, key: str, owners: int, shown_as: str = "") -> list[IndexRow]:
        record = self._records.get(key)
        name = shown_as or self._split(key)[1]
        if record is not None and (record.ready or (record.entries and not record.failure and owners < 2)):
            return [
                IndexRow(name, version, entry.state, entry.reason) for version, entry in sorted(record.entries.items())
            ]
        if owners > 1:
            return [IndexRow(name, -1, State.UNAVAILABLE, DUPLICATE)]
        if record is not None and record.failure:
            return [IndexRow(name, -1, State.UNAVAILABLE, record.failure)]
        return [IndexRow(name, -1, State.UNKNOWN, "")]

    def summary(self) -> list[tuple[str, str, str]]:
        """Return (model, version, status) of everything that was asked for; version ``-`` where there is none."""
        with self._lock:
            rows = [row for name in sorted(self._records) for row in self._rows(name, 0, name)]
        return [
            (name, str(version) if version >= 0 else "-", f"{state.value}: {reason}" if reason else state.value)
            for name, version, state, reason in rows
            if state is not State.UNKNOWN
        ]

    def all_wanted_ready(self) -> bool:
        """Tell whether every model that should be served is. Blocks where ``may_block``."""
        with self._lock:
            if not all(record.ready for record in self._records.values() if record.wanted):
                return False
        return all(runtime.is_ready() for runtime in self.all_ready())

    def load_seconds(self) -> dict[tuple[str, int], float]:
        """Return how long the load of each ready version took."""
        with self._lock:
            return {(r.name, v): entry.load_s for r in self._records.values() for v, entry in r.ready.items()}

    def served(self) -> list[tuple[R, float]]:
        """Return each ready version with the seconds that its load took."""
        with self._lock:
            entries = [entry for _, record in sorted(self._records.items()) for entry in record.ready.values()]
            return [(entry.runtime, entry.load_s) for entry in entries if entry.runtime is not None]

    def unfinished(self) -> list[IndexRow]:
        """Return the versions that are neither gone nor failed."""
        done = (State.UNKNOWN, State.UNAVAILABLE)
        return [row for row in self.index({}) if row.state not in done]

    # Changes.

    def record(self, name: str) -> Record[R] | None:
        """Return the model's record, for reading under the model's operation lock."""
        with self._lock:
            return self._records.get(name)

    def keys_of(self, name: str) -> list[str]:
        """Return the keys of all models of this name; the name itself where there are no namespaces."""
        return list(self._namesakes.get(name, ())) or [name]

    def names(self) -> list[str]:
        with self._lock:
            return sorted(self._records)

    def loading(self, name: str, versions: Iterable[int]) -> None:
        """Show the versions as LOADING unless they are served now."""
        with self._lock:
            record = self._wanted(name)
            for version in versions:
                entry = record.entries.get(version)
                if entry is None or entry.state is not State.READY:
                    record.entries[version] = Entry(version, State.LOADING)
            record.failure = ""
            self._publish(record)

    def tried(self, name: str, seen: tuple[str, Fingerprint] | None) -> None:
        """Note what a load was tried with: only other files are worth another try by themselves."""
        with self._lock:
            if record := self._records.get(name):
                record.seen = seen

    def failed(self, name: str, reason: str, *, is_unread: bool = False) -> None:
        """Note that the model did not get as far as loading a version."""
        with self._lock:
            record = self._wanted(name)
            record.failure, record.is_unread = reason, is_unread
            self._publish(record)

    def suspend(self, name: str, reason: str) -> list[Entry[R]]:
        """Stop serving an ensemble until its members are back; return what was served. Not wanted meanwhile."""
        with self._lock:
            record = self._records[name]
            retired = list(record.ready.values())
            for entry in record.entries.values():
                if entry.state in (State.READY, State.UNAVAILABLE):
                    entry.reason = reason
            for entry in retired:
                entry.state = State.UNLOADING
            record.wanted, record.failure, record.suspended, record.mark = False, "", reason, None
            self._publish(record)
            return retired

    def versions_failed(self, name: str, reasons: Mapping[int, str]) -> None:
        """Note why the versions that were loading are not served; those that were served before stay."""
        with self._lock:
            record = self._records[name]
            for version, reason in reasons.items():
                if record.entries[version].state is State.LOADING:
                    record.entries[version] = Entry(version, State.UNAVAILABLE, reason)
            self._publish(record)

    def swap(
        self,
        name: str,
        fresh: Iterable[Entry[R]],
        keep: Collection[int],
        *,
        mark: Fingerprint | None,
        location: str,
        setup: object = None,
    ) -> list[Entry[R]] | None:
        """Serve ``fresh`` and the kept versions, in one step; return what was served and is not any more.

        None, and nothing is changed, when the server is closing.
        """
        with self._lock:
            if self.closing:
                return None
            record = self._records[name]
            retired = [entry for version, entry in record.ready.items() if version not in keep]
            for entry in retired:
                entry.state = State.UNLOADING
            for entry in fresh:
                entry.state = State.READY
                record.entries[entry.version] = entry
            record.mark, record.location, record.setup = mark, location, setup
            record.failure, record.suspended = "", ""
            self._publish(record)
            return retired

    def adopt_policy(self, name: str, keep: Collection[int], config: Any) -> None:
        """Show the versions that stay with the choice of versions that they stay by."""
        for version, entry in self._records[name].ready.items():
            if version in keep and entry.runtime is not None:
                entry.runtime.config.version_policy.CopyFrom(config.version_policy)

    def retire(self, name: str) -> list[Entry[R]]:
        """Stop serving a model; return what was served."""
        with self._lock:
            record = self._records.get(name)
            if record is None:
                return []
            retired = list(record.ready.values())
            for entry in record.entries.values():
                # A failure that the user has answered with an unload is settled.
                if entry.state is State.UNAVAILABLE:
                    entry.reason = UNLOADED
                elif entry.state is State.UNLOADING:
                    entry.reason = ""
            for entry in retired:
                entry.state = State.UNLOADING
            record.wanted, record.failure, record.suspended, record.mark = False, "", "", None
            record.seen = None
            self._publish(record)
            return retired

    def gone(self, entry: Entry[R]) -> None:
        """Note that a retired version has ended."""
        with self._lock:
            entry.state, entry.reason, entry.runtime = State.UNAVAILABLE, entry.reason or UNLOADED, None
            self._revision += 1

    def close(self) -> None:
        """From now on nothing new is served, and a failed lookup says that the server is not ready."""
        with self._lock:
            self.closing = True
            self.epoch.advance()
            self.on_change()

    def _wanted(self, name: str) -> Record[R]:
        record = self._records.setdefault(name, Record(name))
        record.wanted, record.suspended = True, ""
        return record

    def _publish(self, record: Record[R]) -> None:
        if record.is_unread and record.failure and not record.entries:
            # What was never understood is as unknown to clients as what is not there.
            self._published.pop(record.name, None)
            self._tell()
            return
        ready = {version: entry.runtime for version, entry in record.ready.items() if entry.runtime is not None}
        latest = ready[max(ready)] if ready else None
        self._revision += 1
        self._published[record.name] = _Snapshot(latest, ready, frozenset(record.entries))
        namespace, name = self._split(record.name)
        if namespace:
            keys = {key for key in self._namesakes.get(name, ()) if key != record.name}
            self._namesakes[name] = tuple(sorted({*keys, record.name} if record.is_asked_for else keys))
        self.may_block = any(
            runtime.ready_may_block for snapshot in self._published.values() for runtime in snapshot.ready.values()
        )
        self._tell()

    def _tell(self) -> None:
        # After the snapshot: who reads the new number sees the new snapshot.
        self.epoch.advance()
        self.on_change()


def _nothing() -> None:
    """Nobody listens."""
