"""The versions of one load: started in parallel, tried again where asked, and served all in one step or none.

Knows the table, and ensembles by what starts them; not where models come from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from typing import Generic

from triton_fast.backends.base import Backend, LoadContext
from triton_fast.errors import InvalidArg, Unavailable, describe
from triton_fast.observability import log
from triton_fast.repository.ensembles import Ensembles, reasons_text
from triton_fast.repository.planning import Plan, without_path
from triton_fast.repository.prepare import Preparer
from triton_fast.repository.table import UNLOADED, Entry, ModelTable, R, State
from triton_fast.repository.workers import Workers


class Starts(Generic[R]):
    """``attempts``: how often a version's start is tried; ``end``: ends versions that are served no more.

    ``is_given_up``: whether nobody wants a model's load any more.
    """

    def __init__(
        self,
        table: ModelTable[R],
        ensembles: Ensembles[R],
        end: Callable[[str, Iterable[Entry[R]]], object],
        preparer: Preparer,
        start_runtime: Callable[[LoadContext, Backend], R],
        *,
        threads: int,
        attempts: int,
        clock: Callable[[], float],
        is_given_up: Callable[[str], bool],
    ) -> None:
        self._table = table
        self._ensembles = ensembles
        self._end = end
        self._preparer = preparer
        self._start_runtime = start_runtime
        self._attempts = attempts
        self._clock = clock
        self._is_given_up = is_given_up
        self._loads = Workers(threads, "model-load")

    def close(self) -> None:
        self._loads.close()

    def run(self, plan: Plan, is_nested: bool) -> None:
        """Start the new versions in parallel; serve them all, or none and say why."""
        # The common threads may all be waiting for loads that are waiting for this one.
        # An ensemble's start is short, and must not wait for models that ask for it.
        own = is_nested or plan.ensemble is not None
        loads = Workers(len(plan.versions), "model-load-nested") if own else self._loads
        jobs = {}
        for version, dirname in plan.versions.items():
            log.info(f"loading: {plan.name}:{version}", model=plan.name, version=version)
            jobs[version] = loads.submit(partial(self._start_one, plan, version, dirname))
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
                text = f"failed to load '{plan.name}' version {version}: {reasons[version]}"
                log.error(text, model=plan.name, version=version)
        retired = None
        if not reasons:
            retired = self._table.swap(
                plan.name, fresh, plan.keep, mark=plan.mark, location=plan.location, setup=plan.setup
            )
        if retired is not None:
            self._table.adopt_policy(plan.name, plan.keep, plan.parsed.config)
            log.info(f"successfully loaded '{plan.name}'", model=plan.name)
            self._end(plan.name, retired)
            return
        self._table.versions_failed(plan.name, {**{entry.version: UNLOADED for entry in fresh}, **reasons})
        self._end(plan.name, fresh)
        log.info(f"failed to load '{plan.name}'", model=plan.name)
        if not reasons:
            raise Unavailable("Server not ready")
        raise InvalidArg(f"load failed for model '{plan.name}': {reasons_text(reasons)}\n")

    def _start_one(self, plan: Plan, version: int, dirname: str) -> Entry[R]:
        """Start one version, again if it fails and retries are left. Runs on a load thread."""
        begin = self._clock()
        model_dir = plan.directory.path
        for attempt in range(1, self._attempts + 1):
            try:
                if plan.ensemble is not None:
                    runtime, kept = self._ensembles.start(plan, version, dirname)
                else:
                    where = plan.model, version, model_dir, model_dir / dirname, plan.parsed
                    context, backend = self._preparer.version(*where, namespace=plan.namespace)
                    context = dataclasses.replace(context, given_up=partial(self._is_given_up, plan.name))
                    runtime, kept = self._start_runtime(context, backend), None
            except Exception as error:
                if attempt == self._attempts or self._is_given_up(plan.name):
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
