"""Load, unload and reload of models, and what the server asks about them.

One operation a model at a time; a reload starts the new versions beside the old ones and swaps once all are up.
Source: spec/model_config.md sections 1 and 12, spec/http.md section 7. Must not import the scheduler or a front end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Generic, NamedTuple

from triton_fast._native.sched.model import Epoch
from triton_fast.backends.base import Backend, LoadContext
from triton_fast.config import Parsed
from triton_fast.errors import Internal, InvalidArg, NotFound, ServerError, Unavailable, Unsupported, describe
from triton_fast.observability import log
from triton_fast.repository.changes import Changes, detect
from triton_fast.repository.fingerprint import Fingerprint, fingerprint
from triton_fast.repository.overrides import write_override
from triton_fast.repository.prepare import Preparer
from triton_fast.repository.sources import DUPLICATE, MaterializedDir, Repositories, Source, check_name, odd_names
from triton_fast.repository.sources import shown as shown_name
from triton_fast.repository.table import UNLOADED, Entry, IndexRow, ModelTable, R, State
from triton_fast.repository.versions import discover, select
from triton_fast.repository.workers import Workers

_WILDCARD = "*"
# Each may wait for the requests in flight of one version; a load never waits for them.
_UNLOAD_THREADS = 16


class ControlMode(str, Enum):
    NONE = "none"
    POLL = "poll"
    EXPLICIT = "explicit"


class LoadFailure(NamedTuple):
    name: str
    reason: str


@dataclass(frozen=True)
class _Plan:
    """A load that is about to start: ``versions`` (number -> directory name) are new, ``keep`` stay as they are."""

    name: str
    directory: MaterializedDir
    parsed: Parsed
    versions: dict[int, str]
    keep: frozenset[int]
    mark: Fingerprint | None
    location: str


class ModelRepositoryManager(Generic[R]):
    """The models of one server.

    Parameters
    ----------
    start_runtime
        Opens a version and returns it running; raises ServerError. Called on a load thread.
    allow_code_upload
        Take ``file:`` parameters of a load request.
    work_dir
        Where such files are written; the system's temporary directory by default.
    clock
        Seconds; for load durations and time limits.
    epoch
        Advanced whenever a name may resolve to another version.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        preparer: Preparer,
        start_runtime: Callable[[LoadContext, Backend], R],
        *,
        mode: ControlMode = ControlMode.NONE,
        load_threads: int = 4,
        load_retries: int = 0,
        strict_readiness: bool = True,
        allow_code_upload: bool = False,
        work_dir: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        epoch: Epoch | None = None,
    ) -> None:
        self._repositories = Repositories(sources)
        self._preparer = preparer
        self._start_runtime = start_runtime
        self._mode = mode
        self._load_threads = max(1, load_threads)
        self._attempts = 1 + max(0, load_retries)
        self._strict_readiness = strict_readiness
        self._allow_code_upload = allow_code_upload
        self._work_dir = work_dir
        self._clock = clock
        self._loads = Workers(self._load_threads, "model-load")
        self._unloads = Workers(_UNLOAD_THREADS, "model-unload")
        self._table: ModelTable[R] = ModelTable(epoch)
        # Counts what shutdown waits for: loads under way and versions that are ending.
        self._busy = 0
        self._idle = threading.Condition()
        self._operations: dict[str, tuple[threading.Lock, int]] = {}
        self._operations_lock = threading.Lock()
        self._is_started = False
        self._stop_by: float | None = None
        # Straight to the table: these are on the data path.
        self.resolve = self._table.resolve
        self.is_ready = self._table.is_ready
        self.versions = self._table.versions
        self.all_ready = self._table.all_ready
        self.summary = self._table.summary
        self.load_seconds = self._table.load_seconds

    @property
    def generation(self) -> int:
        """Changes with every swap: a resolution may be kept while this number stays."""
        return self._table.epoch.value

    @property
    def ready_may_block(self) -> bool:
        """Whether ``is_ready`` or ``ready_state`` may wait for a model's own check."""
        return self._table.may_block

    def watch(self, changed: Callable[[], None]) -> None:
        """Have ``changed`` called after each change of readiness; see ``ModelTable.on_change``."""
        self._table.on_change = changed

    # Reports.

    def index(self, ready_only: bool = False) -> list[IndexRow]:
        """Return one row a version, by name and version; reads the repositories' listings (not for the loop thread)."""
        listing = {name: len(owners) for name, owners in self._repositories.listing().items()}
        return self._table.index(listing, ready_only=ready_only)

    def ready_state(self) -> bool:
        """Tell whether the server is ready: started, not ending and, with strict readiness, all wanted models up.

        May wait where ``ready_may_block``.
        """
        if not self._is_started or self._table.closing:
            return False
        return not self._strict_readiness or self._table.all_wanted_ready()

    def detect_changes(self) -> Changes:
        """Compare the repositories with what is loaded; overridden models count as modified."""
        return detect(self._repositories, self._table)

    # Operations. All of them may block: not for the loop thread.

    def start(self, load_models: Sequence[str] = ()) -> list[LoadFailure]:
        """Load what the control mode wants at start, in parallel, and return what failed.

        ``load_models`` are the ``--load-model`` names (explicit mode); ``*`` alone means all.

        Raises
        ------
        InvalidArg
            ``*`` beside other names, or names in another mode.
        """
        listing = self._repositories.listing()
        for name in odd_names(listing):
            log.warning(f"model directory '{name}' has white space at an end of its name")
        names = list(dict.fromkeys(load_models))
        if names and self._mode is not ControlMode.EXPLICIT:
            raise InvalidArg("Error: Use of '--load-model' requires setting '--model-control-mode=explicit' as well.")
        if _WILDCARD in names and len(names) > 1:
            raise InvalidArg("Wildcard model name '*' must be the ONLY startup model if specified at all.")
        if self._mode is not ControlMode.EXPLICIT or names == [_WILDCARD]:
            names = list(listing)
        starters = Workers(self._load_threads, "model-start")
        jobs = [(name, starters.submit(partial(self._load_at_start, name))) for name in names]
        failures = [LoadFailure(shown_name(name), reason) for name, job in jobs if (reason := job.result())]
        starters.close()
        self._is_started = True
        return failures

    def load(
        self,
        name: str,
        *,
        config_json: str | None = None,
        files: Mapping[str, bytes] | None = None,
        is_nested: bool = False,
    ) -> None:
        """Load or reload a model; returns when it is served.

        Parameters
        ----------
        is_nested
            A model asks for it, perhaps during its own load: it must not queue behind that.
        config_json
            Config that replaces the one on disk for this load. Always reloads.
        files
            ``file:<path>`` -> content, a model directory that replaces the one on disk.

        Raises
        ------
        ServerError
            With Triton's texts. What was served before is served still.
        """
        self._check_request(name)
        if files and not self._allow_code_upload:
            raise Unsupported(
                "Model file override is disabled. Start the server with '--allow-code-upload=true' to enable."
            )
        if files and config_json is None:
            raise InvalidArg("Load parameter 'config' must be specified for model file override")
        with self._operation(name):
            self._load(name, config_json, files, keep_reason=False, is_nested=is_nested)

    def unload(self, name: str, *, unload_dependents: bool = False) -> None:
        """Stop serving a model and return; its requests in flight finish in the background.

        An unknown model is no error. ``unload_dependents`` has no meaning before there are ensembles.
        """
        self._check_request(name)
        with self._operation(name):
            self._end(name, self._table.retire(name))

    def shutdown(self, timeout_s: float) -> list[str]:
        """Unload everything and wait; return ``model:version STATE`` of what has not ended in time. Idempotent."""
        deadline = self._clock() + timeout_s
        self._stop_by = deadline
        self._table.close()
        for name in self._table.names():
            self._end(name, self._table.retire(name))
        with self._idle:
            self._idle.wait_for(lambda: self._busy == 0, max(0.0, deadline - self._clock()))
            is_idle = self._busy == 0
        if is_idle:
            # Else a load that ends late still needs them; they are daemon threads.
            self._loads.close()
            self._unloads.close()
        return [f"{row.name}:{row.version} {row.state.value}" for row in self._table.unfinished()]

    # One load.

    def _check_request(self, name: str) -> None:
        if self._mode is not ControlMode.EXPLICIT:
            raise Unavailable("explicit model load / unload is not allowed if polling is enabled")
        if self._table.closing:
            raise Unavailable("Server not ready")
        check_name(name)

    def _load_at_start(self, name: str) -> str:
        """Load one model; return the reason when it failed, else an empty string."""
        try:
            check_name(name)
            with self._operation(name):
                self._load(name, None, None, keep_reason=True)
        except ServerError as error:
            return str(error).rstrip("\n")
        return ""

    def _load(
        self,
        name: str,
        config_json: str | None,
        files: Mapping[str, bytes] | None,
        *,
        keep_reason: bool,
        is_nested: bool = False,
    ) -> None:
        directory, location = self._open(name, files, keep_reason=keep_reason)
        try:
            mark = fingerprint(directory.path) if config_json is None else None
            record = self._table.record(name)
            if record is not None and mark is not None and record.ready and record.is_at(location, mark):
                log.verbose(1, f"model '{name}' is loaded and its files have not changed")
                return
            plan = self._plan(name, directory, location, mark, config_json)
            self._table.loading(name, plan.versions)
            self._run(plan, is_nested)
        finally:
            directory.release()

    def _open(self, name: str, files: Mapping[str, bytes] | None, *, keep_reason: bool) -> tuple[MaterializedDir, str]:
        """Return the directory to load from, and the repository it belongs to."""
        if files:
            return write_override(name, files, self._work_dir), ""
        try:
            source = self._repositories.locate(name)
            return source.materialize(name), source.location
        except (NotFound, InvalidArg) as error:
            cause = str(error)
        log.error(f"failed to poll model '{shown_name(name)}': {cause}")
        # A name from the network that no repository has leaves no trace: there is no end to such names.
        if keep_reason or cause == DUPLICATE:
            self._table.failed(shown_name(name), cause)
        raise Internal(f"failed to load '{shown_name(name)}', failed to poll from model repository: {cause}")

    def _plan(
        self, name: str, directory: MaterializedDir, location: str, mark: Fingerprint | None, config_json: str | None
    ) -> _Plan:
        """Read the config and choose the versions."""
        try:
            parsed = self._preparer.read(name, directory.path, config_json)
        except Exception as error:
            cause = _without_path(str(error) if isinstance(error, ServerError) else describe(error), name, directory)
            log.error(f"Poll failed for model directory '{name}': {cause}")
            self._table.failed(name, cause)
            if config_json is not None and cause.startswith("Invalid config override"):
                raise InvalidArg(cause) from None
            raise Internal(f"failed to load '{name}', failed to poll from model repository: {cause}") from error
        available = discover(directory.path, name, log.warning)
        try:
            chosen = select(parsed.config, available, name, log.warning)
        except InvalidArg as error:
            log.error(f"failed to load model '{name}': {error}")
            self._table.failed(name, str(error))
            raise InvalidArg(f"load failed for model '{name}': {error}\n") from None
        keep = self._unchanged(name, location, mark, {version: available[version] for version in chosen})
        versions = {version: available[version] for version in chosen if version not in keep}
        return _Plan(name, directory, parsed, versions, keep, mark, location)

    def _unchanged(
        self, name: str, location: str, mark: Fingerprint | None, chosen: Mapping[int, str]
    ) -> frozenset[int]:
        """Return the chosen versions that are served already from just these files."""
        record = self._table.record(name)
        if record is None or mark is None or record.mark is None or record.location != location:
            return frozenset()
        return frozenset(
            version
            for version, entry in record.ready.items()
            if version in chosen and entry.dirname == chosen[version] and mark.same_version(record.mark, entry.dirname)
        )

    def _run(self, plan: _Plan, is_nested: bool) -> None:
        """Start the new versions in parallel; serve them all, or none and say why."""
        # The common threads may all be waiting for loads that are waiting for this one.
        loads = Workers(len(plan.versions), "model-load-nested") if is_nested else self._loads
        jobs = {}
        for version, dirname in plan.versions.items():
            log.info(f"loading: {plan.name}:{version}")
            jobs[version] = loads.submit(partial(self._start_version, plan, version, dirname))
        if is_nested:
            loads.close()
        fresh: list[Entry[R]] = []
        reasons: dict[int, str] = {}
        for version, job in jobs.items():
            # Not result(): a KeyboardInterrupt of this thread must not pass for the model's failure.
            error = job.exception()
            if error is None:
                fresh.append(job.result())
            else:
                reasons[version] = _without_path(describe(error), plan.name, plan.directory)
                log.error(f"failed to load '{plan.name}' version {version}: {reasons[version]}")
        retired = None if reasons else self._table.swap(plan.name, fresh, plan.keep, plan.mark, plan.location)
        if retired is not None:
            log.info(f"successfully loaded '{plan.name}'")
            self._end(plan.name, retired)
            return
        self._table.versions_failed(plan.name, {**{entry.version: UNLOADED for entry in fresh}, **reasons})
        self._end(plan.name, fresh)
        log.info(f"failed to load '{plan.name}'")
        if not reasons:
            raise Unavailable("Server not ready")
        text = "".join(f"version {v} is at UNAVAILABLE state: {reason};" for v, reason in sorted(reasons.items()))
        raise InvalidArg(f"load failed for model '{plan.name}': {text}\n")

    def _start_version(self, plan: _Plan, version: int, dirname: str) -> Entry[R]:
        """Start one version, again if it fails and retries are left. Runs on a load thread."""
        begin = self._clock()
        model_dir = plan.directory.path
        for attempt in range(1, self._attempts + 1):
            try:
                prepared = self._preparer.version(plan.name, version, model_dir, model_dir / dirname, plan.parsed)
                runtime = self._start_runtime(*prepared)
            except Exception as error:
                if attempt == self._attempts or self._table.closing:
                    raise
                cause = _without_path(describe(error), plan.name, plan.directory)
                left = self._attempts - attempt
                log.warning(f"failed to load '{plan.name}' version {version}, {left} more to try: {cause}")
            else:
                seconds = self._clock() - begin
                directory = plan.directory.hold()
                return Entry(version, State.LOADING, "", runtime, seconds, directory, dirname)
        raise AssertionError("unreachable: the last attempt returns or raises")

    # The end of versions.

    def _end(self, name: str, entries: Iterable[Entry[R]]) -> None:
        for entry in entries:
            with self._idle:
                self._busy += 1
            self._unloads.submit(partial(self._end_version, name, entry))

    def _end_version(self, name: str, entry: Entry[R]) -> None:
        """Wait for the requests in flight and close the version. Runs on an unload thread."""
        is_gone = True
        try:
            if entry.runtime is not None:
                # No limit but the server's own end.
                left = None if self._stop_by is None else max(0.0, self._stop_by - self._clock())
                is_gone = entry.runtime.stop(left)
        except BaseException as error:
            log.error(f"failed to unload '{name}' version {entry.version} cleanly: {describe(error)}")
        finally:
            if is_gone:
                self._table.gone(entry)
                log.info(f"successfully unloaded '{name}' version {entry.version}")
            else:
                log.error(f"'{name}' version {entry.version} still has requests in flight")
            if entry.directory is not None:
                entry.directory.release()
            self._done()

    def _done(self) -> None:
        with self._idle:
            self._busy -= 1
            self._idle.notify_all()

    @contextmanager
    def _operation(self, name: str) -> Iterator[None]:
        """Let one operation a model run at a time; the lock lives only while somebody wants it."""
        with self._operations_lock:
            lock, users = self._operations.get(name, (threading.Lock(), 0))
            self._operations[name] = lock, users + 1
        with self._idle:
            self._busy += 1
        try:
            with lock:
                if self._table.closing:
                    raise Unavailable("Server not ready")
                yield
        finally:
            with self._operations_lock:
                lock, users = self._operations[name]
                if users == 1:
                    del self._operations[name]
                else:
                    self._operations[name] = lock, users - 1
            self._done()


def _without_path(text: str, name: str, directory: MaterializedDir) -> str:
    """Return a reason without the server's own directories: it goes to clients."""
    return text.replace(str(directory.path), name)
