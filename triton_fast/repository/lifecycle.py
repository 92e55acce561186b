"""Load, unload and reload of models, and what the server asks about them.

One operation a model at a time; a reload starts the new versions beside the old ones and swaps once all are up.
Source: spec/model_config.md sections 1 and 12, spec/http.md section 7. Must not import the scheduler or a front end.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, NoReturn

from triton_fast._native.sched.model import Epoch
from triton_fast.backends.base import Backend, LoadContext
from triton_fast.config import EnsemblePlan
from triton_fast.errors import InvalidArg, ServerError, Unavailable, Unsupported
from triton_fast.observability import log
from triton_fast.repository.changes import Change, Changes, detect
from triton_fast.repository.dependencies import levels
from triton_fast.repository.endings import Endings
from triton_fast.repository.ensembles import Ensembles
from triton_fast.repository.operations import Asking, Operations, unasked
from triton_fast.repository.planning import Planner
from triton_fast.repository.prepare import Preparer
from triton_fast.repository.repositories import Repositories
from triton_fast.repository.sources import DUPLICATE, LocalSource, Source, check_name, odd_names
from triton_fast.repository.sources import shown as shown_name
from triton_fast.repository.starts import Starts
from triton_fast.repository.table import IndexRow, ModelTable, R
from triton_fast.repository.workers import Workers

_WILDCARD = "*"
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
    namespacing
        ``--model-namespacing``.
    open_source, location_of
        Path -> repository, and its location, for those that are registered later.
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
        namespacing: bool = False,
        open_source: Callable[[str], Source] = LocalSource,
        location_of: Callable[[str], str] = os.path.abspath,
    ) -> None:
        self._repositories = Repositories(
            sources, namespacing=namespacing, open_source=open_source, location_of=location_of, clock=clock
        )
        self._mode = mode
        self._load_threads = max(1, load_threads)
        self._strict_readiness = strict_readiness
        self._allow_code_upload = allow_code_upload
        self._clock = clock
        self._table: ModelTable[R] = ModelTable(epoch, self._repositories.split)
        self._operations = Operations(lambda: self._table.closing)
        self._endings: Endings[R] = Endings(self._table, self._operations, clock)
        self._end = self._endings.end
        self._planner = Planner(self._repositories, preparer, self._table, work_dir)
        self._ensembles: Ensembles[R] = Ensembles(
            self._table, self._operations, self._planner, start_ensemble,
            load=lambda name, config, is_nested: self._load(
                name, config, None, keep_reason=False, is_nested=is_nested
            ),
            end=self._end, threads=self._load_threads, clock=clock,
        )  # fmt: skip
        self._starts: Starts[R] = Starts(
            self._table, self._ensembles, self._end, preparer, start_runtime,
            threads=self._load_threads, attempts=1 + max(0, load_retries), clock=clock,
            is_given_up=self._operations.is_given_up,
        )  # fmt: skip
        # Loaded by name, not only as some ensemble's member.
        self._explicit: set[str] = set()
        self._is_started = False
        # Straight to the table: these are on the data path.
        self.resolve = self._table.resolve
        self.is_ready = self._table.is_ready
        self.versions = self._table.versions
        self.ready_of = self._table.ready_of
        self.all_ready = self._table.all_ready
        self.summary = self._table.summary
        self.load_seconds = self._table.load_seconds
        self.served = self._table.served

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
        """Return one row a version, by name and version; may list repositories (not for the loop thread)."""
        return self._table.index(self._repositories.counts(), ready_only=ready_only)

    def ready_state(self) -> bool:
        """Tell whether the server is ready: started, not ending and, with strict readiness, all wanted models up.

        May wait where ``ready_may_block``.
        """
        if not self._is_started or self._table.closing:
            return False
        return not self._strict_readiness or self._table.all_wanted_ready()

    def detect_changes(self) -> Changes:
        """Compare the repositories with what is loaded; overridden models count as modified."""
        return Changes.of(self.look())

    def look(self) -> dict[str, Change]:
        """As ``detect_changes``, by key and with what was seen."""
        return detect(self._repositories, self._table)

    def plain_name(self, key: str) -> str:
        """Return what clients call a model that the repository knows by a key."""
        return self._repositories.split(key)[1]

    # Operations. All of them may block: not for the loop thread.

    def start(self, load_models: Sequence[str] = ()) -> list[LoadFailure]:
        """Load what the control mode wants at start, in parallel, and return what failed.

        ``load_models`` are the ``--load-model`` names (explicit mode); ``*`` alone means all.

        Raises
        ------
        InvalidArg
            ``*`` beside other names, or names in another mode.
        """
        listing, unlisted = self._repositories.listing()
        for name in odd_names(map(self.plain_name, listing)):
            log.warning(f"model directory '{name}' has white space at an end of its name")
        names = list(dict.fromkeys(load_models))
        if names and self._mode is not ControlMode.EXPLICIT:
            raise InvalidArg("Error: Use of '--load-model' requires setting '--model-control-mode=explicit' as well.")
        if _WILDCARD in names and len(names) > 1:
            raise InvalidArg("Wildcard model name '*' must be the ONLY startup model if specified at all.")
        failures = []
        if self._mode is not ControlMode.EXPLICIT or names == [_WILDCARD]:
            names = list(listing)
            # Nobody knows what should be served of them.
            failures = [LoadFailure(location, reason) for location, reason in unlisted.items()]
        names = [key for name in names for key in ([name] if name in listing else self._repositories.keys_of(name))]
        failures += self._load_all(names)
        self._is_started = True
        return failures

    def apply(self, changes: Changes) -> list[LoadFailure]:
        """Follow changes of the repositories: unload, load and reload, then bring ensembles up to date.

        Returns what could not be loaded; of that, what was served before is served still.
        """
        for name in (*changes.removed, *changes.duplicated):
            with self._operations.turn(name, ends=True):
                self._retire(name)
                if name in changes.duplicated:
                    log.error(f"failed to poll model '{name}': not unique across all model repositories")
                    self._table.failed(name, DUPLICATE, is_unread=True)
        names = [*changes.added, *changes.modified]
        failures = self._load_all(names, with_members=False)
        self._ensembles.recheck([*changes.removed, *changes.duplicated, *names], unasked)
        return failures

    def _load_all(self, names: Sequence[str], *, with_members: bool = True) -> list[LoadFailure]:
        """Load models in parallel, members before the ensembles that need them; return what failed."""
        self._explicit.update(names)
        reasons = dict.fromkeys(names, "")
        starters = Workers(self._load_threads, "model-start")
        for level in levels(self._ensembles.claim(list(names))):
            wanted = [name for name in level if with_members or name in reasons]
            jobs = {name: starters.submit(partial(self._load_one, name, name in reasons)) for name in wanted}
            reasons.update({name: job.result() for name, job in jobs.items()})
        starters.close()
        return [LoadFailure(shown_name(name), reason) for name, reason in reasons.items() if reason]

    # Repositories come and go.

    def register_repository(self, path: str, mapping: Mapping[str, str] | None = None) -> None:
        """Add a repository. ``mapping``: sub-directory -> name that it is served under. Loads nothing.

        Raises
        ------
        Unsupported, InvalidArg, AlreadyExists
            With Triton's texts.
        """
        self._check_registration("registration")
        self._repositories.register(path, mapping or {})

    def unregister_repository(self, path: str) -> None:
        """Forget a repository; what was loaded from it is served still. Raises Unsupported, InvalidArg."""
        self._check_registration("unregistration")
        self._repositories.unregister(path)

    def registered_repositories(self) -> dict[str, dict[str, str]]:
        """Return each repository's location with its mapping, those of the start included."""
        return self._repositories.registered

    def _check_registration(self, what: str) -> None:
        if self._mode is not ControlMode.EXPLICIT:
            raise Unsupported(f"repository {what} is not allowed if model control mode is not EXPLICIT")

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
        # The same name in several namespaces: all are loaded.
        for key in [name] if files else self._repositories.keys_of(name):
            self._load_named(key, config_json, files, is_nested, asking)

    def _load_named(
        self, name: str, config_json: str | None, files: Mapping[str, bytes] | None, is_nested: bool, asking: Asking
    ) -> None:
        self._operations.check_asker(name)
        edges = self._ensembles.claim([name], config_json, is_uploaded=bool(files))
        changed = self._ensembles.load_members(name, edges, is_nested, asking)
        try:
            with self._operations.turn(name, asking, is_first=not changed):
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
        for key in self._table.keys_of(name):
            self._unload_named(key, unload_dependents, asking)

    def _unload_named(self, name: str, unload_dependents: bool, asking: Asking) -> None:
        with self._operations.turn(name, asking, is_first=True, ends=True):
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

    def give_up_loads(self) -> None:
        """Have loads that are under way end where they can, with an error. ``shutdown`` is to follow."""
        self._operations.give_up_loads()

    def shutdown(self, timeout_s: float) -> list[str]:
        """Unload everything and wait; return ``model:version STATE`` of what has not ended in time. Idempotent."""
        deadline = self._clock() + timeout_s
        self._endings.stop_by = deadline
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
            self._starts.close()
            self._endings.close()
        return [f"{row.name}:{row.version} {row.state.value}" for row in self._table.unfinished()]

    # One load.

    def _check_request(self, name: str) -> None:
        if self._mode is not ControlMode.EXPLICIT:
            raise Unavailable("explicit model load / unload is not allowed if polling is enabled")
        if self._table.closing:
            raise Unavailable("Server not ready")
        check_name(name)

    def _load_one(self, name: str, keep_reason: bool) -> str:
        """Load one model; return the reason when it failed, else an empty string."""
        try:
            check_name(self.plain_name(name))
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
        directory, location, seen = self._planner.open(name, config_json, files, keep_reason=keep_reason)
        try:
            mark = seen if config_json is None else None
            record = self._table.record(name)
            if record is not None and mark is not None and record.ready and record.is_at(location, mark):
                log.verbose(1, f"model '{name}' is loaded and its files have not changed", model=name)
                return False
            directory = self._planner.invoke_agents(name, directory, config_json)
            plan = self._planner.plan(name, directory, location, mark, config_json)
            if plan.members:
                plan = self._ensembles.fit(plan)
            self._table.loading(name, plan.versions)
            self._starts.run(plan, is_nested)
            directory.completed()
            self._ensembles.loaded(name, plan.members)
            return True
        except BaseException:
            self._ensembles.not_loaded(name)
            raise
        finally:
            self._table.tried(name, None if config_json is not None or seen is None else (location, seen))
            directory.release()
