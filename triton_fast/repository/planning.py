"""What a load is about to do: the directory, the config, the versions to start and those that stay.

Knows the table of what is served, to leave alone what has not changed; starts nothing. Failures are noted in the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from triton_fast.backends.base import LoadContext
from triton_fast.config import EnsemblePlan, Parsed, member_names
from triton_fast.errors import Internal, InvalidArg, NotFound, ServerError, describe
from triton_fast.observability import log
from triton_fast.repository.fingerprint import Fingerprint
from triton_fast.repository.overrides import write_override
from triton_fast.repository.prepare import Preparer
from triton_fast.repository.repositories import Repositories
from triton_fast.repository.sources import DUPLICATE, MaterializedDir, check_name
from triton_fast.repository.sources import shown as shown_name
from triton_fast.repository.table import ModelTable
from triton_fast.repository.versions import discover, select


@dataclass(frozen=True)
class Plan:
    """A load that is about to start: ``versions`` (number -> directory name) are new, ``keep`` stay as they are.

    ``name`` is the model's key; ``members`` are those of what an ensemble needs, none of another model.
    """

    name: str
    directory: MaterializedDir
    parsed: Parsed
    versions: dict[int, str]
    keep: frozenset[int]
    mark: Fingerprint | None
    location: str
    # The config that replaces the one on disk.
    override: str | None = None
    ensemble: EnsemblePlan | None = None
    members: tuple[str, ...] = ()
    # What clients call it, and the repository that tells it from others of this name.
    model: str = ""
    namespace: str = ""
    # What each version is configured with; compared by the next load.
    setup: object = None


class Planner:
    """``work_dir``: where the files of a load request are written."""

    def __init__(
        self, repositories: Repositories, preparer: Preparer, table: ModelTable[Any], work_dir: Path | None
    ) -> None:
        self._repositories = repositories
        self._preparer = preparer
        self._table = table
        self._work_dir = work_dir

    def members(
        self, names: list[str], config_json: str | None = None, *, is_uploaded: bool = False
    ) -> dict[str, list[str]]:
        """Return the members of the named models and of their members, all the way down; ``[]`` of what is no ensemble.

        What can not be read has none here.

        Parameters
        ----------
        config_json
            Replaces the config of the first.
        is_uploaded
            The first comes with files of its own: no repository has to have it.
        """
        found: dict[str, list[str]] = {}
        todo = list(names)
        for name in todo:
            if name in found:
                continue
            if name == names[0] and is_uploaded:
                sent = self._preparer.members(Path(), config_json)
                found[name] = [self._repositories.member(name, member) for member in sent]
            else:
                found[name] = self._members(name, config_json if name == names[0] else None)
            todo += found[name]
        return found

    def _members(self, name: str, config_json: str | None) -> list[str]:
        model = self._repositories.split(name)[1]
        try:
            check_name(model)
            # Of the model only the config is wanted.
            directory = self._repositories.locate(name).materialize(model, lambda _: ())
        except ServerError:
            return []
        try:
            found = self._preparer.members(directory.path, config_json)
            return [self._repositories.member(name, member) for member in found]
        finally:
            directory.release()

    def member(self, owner: str, name: str) -> str:
        """Return the key of the model that an ensemble means by a name."""
        return self._repositories.member(owner, name)

    def namesakes(self, keys: Iterable[str]) -> set[str]:
        """Return the keys and those of all other models of their names: an ensemble may now mean another of them."""
        if not self._repositories.namespacing:
            return set(keys)
        names = {self._repositories.split(key)[1] for key in keys}
        return {*keys, *names, *(key for name in names for key in self._repositories.known(name))}

    def open(
        self, name: str, config_json: str | None, files: Mapping[str, bytes] | None, *, keep_reason: bool
    ) -> tuple[MaterializedDir, str, Fingerprint | None]:
        """Return the directory to load from, the repository it belongs to, and how the model looked there.

        Looked at before it is fetched: what changes meanwhile is found again by the next comparison.
        """
        if files:
            return write_override(name, files, self._work_dir), "", None
        model = self._repositories.split(name)[1]
        check_name(model)
        is_there = False
        try:
            source = self._repositories.locate(name)
            mark = source.fingerprint(model)
            is_there = True
            choose = partial(self._preparer.wanted_versions, model, config_json)
            return source.materialize(model, choose), source.location, mark
        except (NotFound, InvalidArg, Internal) as error:
            cause = str(error)
        log.error(f"failed to poll model '{shown_name(name)}': {cause}", model=shown_name(name))
        # A name from the network that no repository has leaves no trace: there is no end to such names.
        if keep_reason or is_there or (cause == DUPLICATE and not self._repositories.namespacing):
            self._table.failed(shown_name(name), cause, is_unread=True)
        raise Internal(f"failed to load '{shown_name(name)}', failed to poll from model repository: {cause}")

    def plan(
        self, name: str, directory: MaterializedDir, location: str, mark: Fingerprint | None, config_json: str | None
    ) -> Plan:
        """Read the config and choose the versions."""
        namespace, model = self._repositories.split(name)
        try:
            parsed = self._preparer.read(model, directory.path, config_json, is_renamed=directory.is_renamed)
        except Exception as error:
            raise self._unread(name, directory, error, config_json) from error
        available = discover(directory.path, name, log.warning)
        try:
            chosen = select(parsed.config, available, name, log.warning)
        except InvalidArg as error:
            log.error(f"failed to load model '{name}': {error}", model=name)
            self._table.failed(name, str(error))
            raise InvalidArg(f"load failed for model '{name}': {error}\n") from None
        setup = _setup(parsed)
        keep = self._unchanged(name, location, mark, setup, {version: available[version] for version in chosen})
        versions = {version: available[version] for version in chosen if version not in keep}
        members = []
        for step in parsed.config.ensemble_scheduling.step if member_names(parsed.config) else ():
            members.append(self._repositories.member(name, step.model_name))
            step.model_namespace = self._repositories.split(members[-1])[0]
        return Plan(
            name, directory, parsed, versions, keep, mark, location, config_json,
            members=tuple(dict.fromkeys(members)), model=model, namespace=namespace, setup=setup,
        )  # fmt: skip

    def invoke_agents(self, name: str, directory: MaterializedDir, config_json: str | None) -> MaterializedDir:
        """Have the model's repository agents act on its load; return where to load from, which takes over the hold."""
        try:
            return self._preparer.invoke_agents(self._repositories.split(name)[1], directory, config_json)
        except Exception as error:
            raise self._unread(name, directory, error, config_json) from error

    def _unread(self, name: str, directory: MaterializedDir, error: Exception, config_json: str | None) -> ServerError:
        """Note that a model did not get as far as its versions; return what to raise."""
        cause = without_path(str(error) if isinstance(error, ServerError) else describe(error), name, directory)
        log.error(f"Poll failed for model directory '{name}': {cause}", model=name)
        self._table.failed(name, cause, is_unread=True)
        if config_json is not None and cause.startswith("Invalid config override"):
            return InvalidArg(cause)
        return Internal(f"failed to load '{name}', failed to poll from model repository: {cause}")

    def ensemble_context(self, plan: Plan, fitted: EnsemblePlan, version: int, dirname: str) -> LoadContext:
        """Return what one version of an ensemble is started with. Raises Unsupported."""
        version_dir = plan.directory.path / dirname
        context = LoadContext(
            plan.model, version, plan.directory.path, version_dir, plan.parsed.config, given=plan.parsed.given,
            namespace=plan.namespace,
        )  # fmt: skip
        return self._preparer.ensemble(context, fitted)

    def _unchanged(
        self, name: str, location: str, mark: Fingerprint | None, setup: object, chosen: Mapping[int, str]
    ) -> frozenset[int]:
        """Return the chosen versions that are served already from just these files, configured just so."""
        record = self._table.record(name)
        if record is None or mark is None or record.mark is None or record.location != location:
            return frozenset()
        return frozenset(
            version
            for version, entry in record.ready.items()
            if version in chosen
            and entry.dirname == chosen[version]
            and mark.same_files(record.mark, entry.dirname)
            and (record.setup == setup or mark.same_version(record.mark, entry.dirname))
        )


def _setup(parsed: Parsed) -> object:
    """Return a config, and what its author wrote of it, but for the choice of versions: that concerns none of them."""
    own = type(parsed.config)()
    own.CopyFrom(parsed.config)
    own.ClearField("version_policy")
    return own.SerializeToString(deterministic=True), parsed.given - {"version_policy"}


def without_path(text: str, name: str, directory: MaterializedDir) -> str:
    """Return a reason without the server's own directories: it goes to clients."""
    return text.replace(str(directory.path), name)
