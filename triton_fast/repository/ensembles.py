"""Ensembles and their members: loaded in order, checked against each other, and again after each change of a member.

Whether a member can be had is told here, whether it fits in config/ensemble_members.py. Source: spec/model_config.md
section 7. Each method that loads, ends or checks one ensemble is called in that model's turn, or takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import wait
from dataclasses import replace
from functools import partial
from typing import Any, Generic, NamedTuple

from triton_fast.backends.base import LoadContext
from triton_fast.config import ConfigError, EnsemblePlan, check_members, member_names
from triton_fast.errors import InvalidArg, ServerError, Unavailable, describe
from triton_fast.observability import log
from triton_fast.repository.dependencies import MAX_DEPTH, Edges, Graph, cycle, is_too_deep, levels
from triton_fast.repository.operations import Asking, Operations
from triton_fast.repository.planning import Plan, Planner
from triton_fast.repository.prepare import Preparer
from triton_fast.repository.table import Entry, ModelTable, R, Record, State
from triton_fast.repository.workers import Workers


class Served(NamedTuple):
    """Of a served ensemble version: what it was started with. ``override``: the config it was loaded with, if any."""

    context: LoadContext
    plan: EnsemblePlan
    override: str | None


class Ensembles(Generic[R]):
    """The ensembles of one repository manager.

    Parameters
    ----------
    start
        Starts a version over its members; raises ServerError.
    load
        (name, config that replaces the file's, is_nested) -> loads one model in its turn, False if nothing was to do.
    end
        Ends versions that are served no more.
    threads
        Members that may load at once.
    """

    def __init__(
        self,
        table: ModelTable[R],
        operations: Operations,
        planner: Planner,
        start: Callable[[LoadContext, EnsemblePlan], R],
        *,
        load: Callable[[str, str | None, bool], bool],
        end: Callable[[str, Iterable[Entry[R]]], object],
        threads: int,
        clock: Callable[[], float],
    ) -> None:
        self.graph = Graph()
        self._table = table
        self._operations = operations
        self._planner = planner
        self._start = start
        self._load = load
        self._end = end
        self._threads = threads
        self._clock = clock
        # Not served because of their members -> the config they were loaded with, if not the file's.
        self._unfit: dict[str, str | None] = {}

    def loaded(self, name: str, members: Iterable[str]) -> None:
        """Note that a model, ensemble or not, is served."""
        self.graph.replace(name, members)
        self._unfit.pop(name, None)

    def not_loaded(self, name: str) -> None:
        """Note that a load ended without a change: what is served needs what it needed before."""
        record = self._table.record(name)
        if record is not None and record.ready:
            served = [entry.ensemble for entry in record.ready.values() if entry.ensemble is not None]
            self.graph.replace(name, {member for one in served for member, _ in one.plan.members})

    def forget(self, name: str) -> frozenset[str]:
        """Note that a model is not to be served any more; return the members that it had."""
        members = self.graph.members(name)
        self.loaded(name, ())
        return members

    def start(self, plan: Plan, version: int, dirname: str) -> tuple[R, Served]:
        """Start one version. Raises ServerError."""
        assert plan.ensemble is not None
        context = self._planner.ensemble_context(plan, plan.ensemble, version, dirname)
        return self._start(context, plan.ensemble), Served(context, plan.ensemble, plan.override)

    def claim(
        self, names: list[str], config_json: str | None = None, *, is_uploaded: bool = False
    ) -> dict[str, list[str]]:
        """Return the members of these models, all the way down, after noting that they are needed."""
        edges = self._planner.members(names, config_json, is_uploaded=is_uploaded)
        for name, members in edges.items():
            self.graph.add(name, members)
        return edges

    def load_members(self, name: str, edges: Mapping[str, list[str]], is_nested: bool, asking: Asking) -> list[str]:
        """Load what an ensemble needs, in order; return what was loaded. Failures are told by the ensemble's own load.

        Raises Unavailable where that is not to be waited for.
        """
        changed: list[str] = []
        for level in levels(edges):
            members = [member for member in level if member != name]
            if not members:
                continue
            workers = Workers(min(len(members), self._threads), "model-load-members")
            jobs = {m: workers.submit(partial(self._load_member, m, is_nested, asking)) for m in members}
            workers.close()
            wait(jobs.values())
            changed += [member for member, job in jobs.items() if job.result()]
        return changed

    def _load_member(self, name: str, is_nested: bool, asking: Asking) -> bool:
        try:
            with self._operations.turn(name, asking):
                record = self._table.record(name)
                if record is not None and record.ready and record.mark is None:
                    self.not_loaded(name)  # somebody gave it another config; that stays
                    return False
                return self._load(name, None, is_nested)
        except Unavailable:
            raise
        except ServerError:
            return False

    def fit(self, plan: Plan) -> Plan:
        """Return an ensemble's plan with its steps, over the members as they are served now."""
        record = self._table.record(plan.name)
        is_served = record is not None and bool(record.ready)
        (self.graph.add if is_served else self.graph.replace)(plan.name, plan.members)
        try:
            return replace(plan, ensemble=self._plan_of(plan.name, plan.parsed.config))
        except ConfigError as error:
            log.error(f"failed to load model '{plan.name}': {error}", model=plan.name)
            if not is_served:
                self._unfit[plan.name] = plan.override
            if record is not None and record.suspended:
                self._table.suspend(plan.name, str(error))
            else:
                self._table.failed(plan.name, str(error))
            raise InvalidArg(f"load failed for model '{plan.name}': {error}\n") from None

    def _plan_of(self, name: str, config: Any) -> EnsemblePlan:
        return plan_of(name, config, self._table, self.graph, partial(self._planner.member, name))

    def recheck(self, changed: Iterable[str], asking: Asking) -> None:
        """Bring the ensembles that depend on changed models up to date: go on, start again, stop, come back."""
        for name in self.graph.dependents(self._planner.namesakes(changed)):
            try:
                with self._operations.turn(name, asking):
                    self._recheck_one(name)
            except ServerError as error:
                log.verbose(1, f"ensemble '{name}' is not served: {error}", model=name)

    def _recheck_one(self, name: str) -> None:
        record = self._table.record(name)
        if record is None or not record.ready:
            if record is not None and name in self._unfit:
                self._load(name, self._unfit[name], True)
            return
        fresh: list[Entry[R]] = []
        keep = []
        for version, entry in record.ready.items():
            served = entry.ensemble
            if served is None:
                return
            try:
                plan = self._plan_of(name, served.context.config)
                if plan == served.plan:
                    keep.append(version)
                else:
                    fresh.append(self._restart(entry, served, plan))
            except Exception as error:
                reason = str(error) if isinstance(error, ConfigError) else describe(error)
                log.error(f"ensemble '{name}' is not served any more: {reason}", model=name)
                self._unfit[name] = served.override
                self._end(name, [*self._table.suspend(name, reason), *fresh])
                return
        if fresh:
            retired = self._table.swap(
                name, fresh, keep, mark=record.mark, location=record.location, setup=record.setup
            )
            self._end(name, fresh if retired is None else retired)

    def _restart(self, entry: Entry[R], served: Served, plan: EnsemblePlan) -> Entry[R]:
        begin = self._clock()
        context = Preparer.refit(served.context, plan)
        runtime = self._start(context, plan)
        directory = entry.directory.hold() if entry.directory is not None else None
        kept = Served(context, plan, served.override)
        return Entry(entry.version, State.LOADING, "", runtime, self._clock() - begin, directory, entry.dirname, kept)


def plan_of(
    name: str, config: Any, table: ModelTable[Any], graph: Graph, member: Callable[[str], str] = str
) -> EnsemblePlan:
    """Return the plan of an ensemble over the members as they are served now.

    Parameters
    ----------
    name
        The ensemble's key.
    member
        Name in the config -> key.

    Raises
    ------
    ConfigError
        With Triton's text: a member is missing or does not fit, or the ensemble depends on itself.
    """
    config = _keyed(config, member)
    names = member_names(config)
    edges = {**graph.edges(), name: frozenset(names)}
    refuse_circle(name, edges)
    records = {member: table.record(member) for member in names}
    _check_there(name, records)
    configs = {}
    for step in config.ensemble_scheduling.step:
        record = records[step.model_name]
        assert record is not None
        ready = record.ready
        wanted = max(ready, default=-1) if step.model_version == -1 else step.model_version
        if not ready:
            raise ConfigError(_not_loaded(name, record, step.model_name in edges))
        if wanted not in ready:
            raise no_version(name, record.name, wanted)
        runtime = ready[wanted].runtime
        assert runtime is not None
        configs[step.model_name, step.model_version] = runtime.config
    if is_too_deep(name, edges):
        raise ConfigError(f"ensemble '{name}' is nested more than {MAX_DEPTH} deep")
    return check_members(config, configs)


def refuse_circle(name: str, edges: Edges) -> None:
    """Raise ConfigError where an ensemble depends on itself."""
    if way := cycle(name, edges):
        raise ConfigError(
            f"circular dependency between ensembles: {name} -> ... -> {way[-2]} -> {name}",
            hint=" -> ".join(way) if len(way) > 3 else "",
        )


def no_version(name: str, member: str, version: int) -> ConfigError:
    """Return what to raise where a step asks for a version that its model does not serve."""
    return ConfigError(
        f"ensemble '{name}' depends on '{member}' whose required version {version} is not loaded.",
        hint="write model_version: -1 for the latest" if version == 0 else "",
    )


def _keyed(config: Any, member: Callable[[str], str]) -> Any:
    """Return the config with its steps' models named by key."""
    if all(member(step.model_name) == step.model_name for step in config.ensemble_scheduling.step):
        return config
    own = type(config)()
    own.CopyFrom(config)
    for step in own.ensemble_scheduling.step:
        step.model_name = member(step.model_name)
    return own


def _check_there(name: str, records: dict[str, Record[Any] | None]) -> None:
    """Refuse members that no repository has, that two have, whose config can not be read, or that are unloaded."""
    missing, hints = [], []
    for member, record in sorted(records.items()):
        if record is not None and (record.suspended or (record.failure and not record.is_unread)):
            continue
        if record is not None and (record.ready or (record.entries and not record.failure and record.wanted)):
            continue
        missing.append(member)
        if record is not None and record.failure:
            hints.append(f"{member}: {record.failure}")
    if missing:
        raise ConfigError(
            f"ensemble {name} contains models that are not available or ambiguous: {', '.join(missing)}",
            hint="; ".join(hints),
        )


def _not_loaded(name: str, record: Record[Any], is_ensemble: bool) -> str:
    text = f"ensemble '{name}' depends on '{record.name}' which "
    cause = record.suspended or record.failure
    if is_ensemble and cause:
        return f"{text}is not valid. Model '{record.name}' failed with error: {cause}"
    states = {v: entry.reason for v, entry in record.entries.items() if entry.state is State.UNAVAILABLE}
    cause = cause or reasons_text(states)
    if not cause:
        return f"{text}has no loaded version."
    return f"{text}has no loaded version. Model '{record.name}' loading failed with error: {cause}"


def reasons_text(reasons: dict[int, str]) -> str:
    """Return why versions are not served, as Triton says it."""
    return "".join(f"version {v} is at UNAVAILABLE state: {reason};" for v, reason in sorted(reasons.items()))
