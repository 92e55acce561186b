"""Load, unload and reload of models, and what the server asks about them.

One operation a model at a time; a reload starts the new versions beside the old ones and swaps once all are up.
Source: spec/model_config.md sections 1 and 12, spec/http.md section 7. Must not import the scheduler or a front end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, NoReturn

from triton_fast._native.sched.model import Epoch
from triton_fast.backends.base import Backend, LoadContext
from triton_fast.config import EnsemblePlan
from triton_fast.errors import InvalidArg, ServerError, Unavailable, Unsupported, describe
from triton_fast.observability import log
from triton_fast.repository.changes import Changes, detect
from triton_fast.repository.dependencies import levels
from triton_fast.repository.ensembles import Ensembles, reasons_text
from triton_fast.repository.fingerprint import fingerprint
from triton_fast.repository.operations import Asking, Operations, unasked
from triton_fast.repository.planning import Plan, Planner, without_path
from triton_fast.repository.prepare import Preparer
from triton_fast.repository.sources import Repositories, Source, check_name, odd_names
from triton_fast.repository.sources import shown as shown_name
from triton_fast.repository.table import UNLOADED, Entry, IndexRow, ModelTable, R, State
from triton_fast.repository.workers import Workers

_WILDCARD = "*"
# Each may wait for the requests in flight of one version; a load never waits for them.
_UNLOAD_THREADS = 16
# How long an unload waits for an ensemble's requests before its members end too.
_DEPENDENTS_WAIT_S = 30.0


class ControlMode(str, Enum):
    NONE = "none"
    POLL = "poll"
    EXPLICIT = "explicit"


class LoadFailure(NamedTuple):
    name: str
    reason: str


def _no_ensembles(context: LoadContext, _: Any) -> NoReturn:
    raise Unsupported(f"model '{context.name}' uses ensembles ('ensemble_scheduling'), which is not served here")


class ModelRepositoryManager(Generic[R]):
    """The models of one server.

    Parameters
    ----------
    start_runtime
        Opens a version and returns it running; raises ServerError. Called on a load thread.
    start_ensemble
        The same for a version of an ensemble, whose members are served.
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
        start_ensemble: Callable[[LoadContext, EnsemblePlan], R] = _no_ensembles,
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
        self._clock = clock
        self._loads = Workers(self._load_threads, "model-load")
        self._unloads = Workers(_UNLOAD_THREADS, "model-unload")
        self._table: ModelTable[R] = ModelTable(epoch)
        self._operations = Operations(lambda: self._table.closing)
        self._planner = Planner(self._repositories, preparer, self._table, work_dir)
        self._ensembles: Ensembles[R] = Ensembles(
            self._table, self._operations, self._planner, start_ensemble,
            load=lambda name, config, is_nested: self._load(
                name, config, None, keep_reason=False, is_nested=is_nested
            ),
            end=self._end, threads=self._load_threads, clock=clock,
        )  # fmt: skip
        # Loaded by name, not only as some ensemble's member.
        self._explicit: set[str] = set()
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
        self._explicit.update(names)
        reasons = dict.fromkeys(names, "")
        starters = Workers(self._load_threads, "model-start")
        for level in levels(self._ensembles.claim(names)):
            jobs = {name: starters.submit(partial(self._load_at_start, name, name in reasons)) for name in level}
            reasons.update({name: job.result() for name, job in jobs.items()})
        starters.close()
        self._is_started = True
        return [LoadFailure(shown_name(name), reason) for name, reason in reasons.items() if reason]

    def load(
        self,
        name: str,
        *,
        config_json: str | None = None,
        files: Mapping[str, bytes] | None = None,
        is_nested: bool = False,
        asking: Asking = unasked,
    ) -> None:
        """Load or reload a model, an ensemble with its members; returns when it is served.

        Parameters
        ----------
        asking
            Entered around each wait for a model's turn; see ``Operations``.
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
        edges = self._ensembles.claim([name], config_json, is_uploaded=bool(files))
        changed = self._ensembles.load_members(name, edges, is_nested, asking)
        try:
            with self._operations.turn(name, asking):
                if self._load(name, config_json, files, keep_reason=False, is_nested=is_nested):
                    changed.append(name)
            self._explicit.add(name)
        finally:
            if self._table.record(name) is None:
                self._ensembles.forget(name)
            self._ensembles.recheck(changed, asking)

    def unload(self, name: str, *, unload_dependents: bool = False, asking: Asking = unasked) -> None:
        """Stop serving a model and return; its requests in flight finish in the background.

        An unknown model is no error. Ensembles that need it are not served until it is back.

        Parameters
        ----------
        unload_dependents
            Of an ensemble: unload those of its members too that nobody loaded by name and no other ensemble has.
        """
        self._check_request(name)
        with self._operations.turn(name, asking):
            members, ended = self._retire(name)
        gone = [name]
        if unload_dependents and members:
            # Its requests in flight still need them.
            wait(ended, _DEPENDENTS_WAIT_S)
            todo = sorted(members)
            for member in todo:
                with self._operations.turn(member, asking):
                    if member not in self._explicit and not self._ensembles.graph.is_used(member):
                        todo += sorted(self._retire(member)[0])
                        gone.append(member)
        self._ensembles.recheck(gone, asking)

    def _retire(self, name: str) -> tuple[frozenset[str], list[Future[None]]]:
        """Stop serving a model; return the members that it had, and what waits for its end."""
        ended = self._end(name, self._table.retire(name))
        members = self._ensembles.forget(name)
        self._explicit.discard(name)
        return members, ended

    def shutdown(self, timeout_s: float) -> list[str]:
        """Unload everything and wait; return ``model:version STATE`` of what has not ended in time. Idempotent."""
        deadline = self._clock() + timeout_s
        self._stop_by = deadline
        self._table.close()
        edges = self._ensembles.graph.edges()
        is_idle = True
        # Ensembles before what they need.
        for level in reversed(levels({name: edges.get(name, ()) for name in self._table.names()}) or [[]]):
            for name in level:
                self._end(name, self._table.retire(name))
            is_idle = self._operations.wait_idle(max(0.0, deadline - self._clock()))
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

    def _load_at_start(self, name: str, keep_reason: bool) -> str:
        """Load one model; return the reason when it failed, else an empty string."""
        try:
            check_name(name)
            with self._operations.turn(name):
                self._load(name, None, None, keep_reason=keep_reason)
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
    ) -> bool:
        """Load one model in its turn; return False when there was nothing to do."""
        directory, location = self._planner.open(name, files, keep_reason=keep_reason)
        try:
            mark = fingerprint(directory.path) if config_json is None else None
            record = self._table.record(name)
            if record is not None and mark is not None and record.ready and record.is_at(location, mark):
                log.verbose(1, f"model '{name}' is loaded and its files have not changed", model=name)
                return False
            plan = self._planner.plan(name, directory, location, mark, config_json)
            if plan.members:
                plan = self._ensembles.fit(plan)
            self._table.loading(name, plan.versions)
            self._run(plan, is_nested)
            self._ensembles.loaded(name, plan.members)
            return True
        except BaseException:
            self._ensembles.not_loaded(name)
            raise
        finally:
            directory.release()

    def _run(self, plan: Plan, is_nested: bool) -> None:
        """Start the new versions in parallel; serve them all, or none and say why."""
        # The common threads may all be waiting for loads that are waiting for this one.
        # An ensemble's start is short, and must not wait for models that ask for it.
        own = is_nested or plan.ensemble is not None
        loads = Workers(len(plan.versions), "model-load-nested") if own else self._loads
        jobs = {}
        for version, dirname in plan.versions.items():
            log.info(f"loading: {plan.name}:{version}", model=plan.name, version=version)
            jobs[version] = loads.submit(partial(self._start_version, plan, version, dirname))
        if own:
            loads.close()
        fresh: list[Entry[R]] = []
        reasons: dict[int, str] = {}
        for version, job in jobs.items():
            # Not result(): a KeyboardInterrupt of this thread must not pass for the model's failure.
            error = job.exception()
            if error is None:
                fresh.append(job.result())
            else:
                reasons[version] = without_path(describe(error), plan.name, plan.directory)
                cause = reasons[version]
                log.error(f"failed to load '{plan.name}' version {version}: {cause}", model=plan.name, version=version)
        retired = None if reasons else self._table.swap(plan.name, fresh, plan.keep, plan.mark, plan.location)
        if retired is not None:
            log.info(f"successfully loaded '{plan.name}'", model=plan.name)
            self._end(plan.name, retired)
            return
        self._table.versions_failed(plan.name, {**{entry.version: UNLOADED for entry in fresh}, **reasons})
        self._end(plan.name, fresh)
        log.info(f"failed to load '{plan.name}'", model=plan.name)
        if not reasons:
            raise Unavailable("Server not ready")
        raise InvalidArg(f"load failed for model '{plan.name}': {reasons_text(reasons)}\n")

    def _start_version(self, plan: Plan, version: int, dirname: str) -> Entry[R]:
        """Start one version, again if it fails and retries are left. Runs on a load thread."""
        begin = self._clock()
        model_dir = plan.directory.path
        for attempt in range(1, self._attempts + 1):
            try:
                if plan.ensemble is not None:
                    runtime, kept = self._ensembles.start(plan, version, dirname)
                else:
                    where = plan.name, version, model_dir, model_dir / dirname, plan.parsed
                    runtime, kept = self._start_runtime(*self._preparer.version(*where)), None
            except Exception as error:
                if attempt == self._attempts or self._table.closing:
                    raise
                cause = without_path(describe(error), plan.name, plan.directory)
                left = self._attempts - attempt
                text = f"failed to load '{plan.name}' version {version}, {left} more to try: {cause}"
                log.warning(text, model=plan.name, version=version)
            else:
                seconds = self._clock() - begin
                directory = plan.directory.hold()
                return Entry(version, State.LOADING, "", runtime, seconds, directory, dirname, kept)
        raise AssertionError("unreachable: the last attempt returns or raises")

    # The end of versions.

    def _end(self, name: str, entries: Iterable[Entry[R]]) -> list[Future[None]]:
        ended = []
        for entry in entries:
            self._operations.begin()
            ended.append(self._unloads.submit(partial(self._end_version, name, entry)))
        return ended

    def _end_version(self, name: str, entry: Entry[R]) -> None:
        """Wait for the requests in flight and close the version. Runs on an unload thread."""
        is_gone = True
        try:
            if entry.runtime is not None:
                # No limit but the server's own end.
                left = None if self._stop_by is None else max(0.0, self._stop_by - self._clock())
                is_gone = entry.runtime.stop(left)
        except BaseException as error:
            text = f"failed to unload '{name}' version {entry.version} cleanly: {describe(error)}"
            log.error(text, model=name, version=entry.version)
        finally:
            if is_gone:
                self._table.gone(entry)
                log.info(f"successfully unloaded '{name}' version {entry.version}", model=name, version=entry.version)
            else:
                text = f"'{name}' version {entry.version} still has requests in flight"
                log.error(text, model=name, version=entry.version)
            if entry.directory is not None:
                entry.directory.release()
            self._operations.done()
