"""What a load is about to do: the directory, the config, the versions to start and those that stay.

Knows the table of what is served, to leave alone what has not changed; starts nothing. Failures are noted in the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triton_fast.backends.base import LoadContext
from triton_fast.config import EnsemblePlan, Parsed, member_names
from triton_fast.errors import Internal, InvalidArg, NotFound, ServerError, describe
from triton_fast.observability import log
from triton_fast.repository.fingerprint import Fingerprint
from triton_fast.repository.overrides import write_override
from triton_fast.repository.prepare import Preparer
from triton_fast.repository.sources import DUPLICATE, MaterializedDir, Repositories, check_name
from triton_fast.repository.sources import shown as shown_name
from triton_fast.repository.table import ModelTable
from triton_fast.repository.versions import discover, select


@dataclass(frozen=True)
class Plan:
    """A load that is about to start: ``versions`` (number -> directory name) are new, ``keep`` stay as they are."""

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

    @property
    def members(self) -> list[str]:
        """The models that an ensemble needs; none of another model."""
        return member_names(self.parsed.config)


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
                found[name] = self._preparer.members(Path(), config_json)
            else:
                found[name] = self._members(name, config_json if name == names[0] else None)
            todo += found[name]
        return found

    def _members(self, name: str, config_json: str | None) -> list[str]:
        try:
            check_name(name)
            directory = self._repositories.locate(name).materialize(name)
        except ServerError:
            return []
        try:
            return self._preparer.members(directory.path, config_json)
        finally:
            directory.release()

    def open(self, name: str, files: Mapping[str, bytes] | None, *, keep_reason: bool) -> tuple[MaterializedDir, str]:
        """Return the directory to load from, and the repository it belongs to."""
        if files:
            return write_override(name, files, self._work_dir), ""
        try:
            source = self._repositories.locate(name)
            return source.materialize(name), source.location
        except (NotFound, InvalidArg) as error:
            cause = str(error)
        log.error(f"failed to poll model '{shown_name(name)}': {cause}", model=shown_name(name))
        # A name from the network that no repository has leaves no trace: there is no end to such names.
        if keep_reason or cause == DUPLICATE:
            self._table.failed(shown_name(name), cause, is_unread=True)
        raise Internal(f"failed to load '{shown_name(name)}', failed to poll from model repository: {cause}")

    def plan(
        self, name: str, directory: MaterializedDir, location: str, mark: Fingerprint | None, config_json: str | None
    ) -> Plan:
        """Read the config and choose the versions."""
        try:
            parsed = self._preparer.read(name, directory.path, config_json)
        except Exception as error:
            cause = without_path(str(error) if isinstance(error, ServerError) else describe(error), name, directory)
            log.error(f"Poll failed for model directory '{name}': {cause}", model=name)
            self._table.failed(name, cause, is_unread=True)
            if config_json is not None and cause.startswith("Invalid config override"):
                raise InvalidArg(cause) from None
            raise Internal(f"failed to load '{name}', failed to poll from model repository: {cause}") from error
        available = discover(directory.path, name, log.warning)
        try:
            chosen = select(parsed.config, available, name, log.warning)
        except InvalidArg as error:
            log.error(f"failed to load model '{name}': {error}", model=name)
            self._table.failed(name, str(error))
            raise InvalidArg(f"load failed for model '{name}': {error}\n") from None
        keep = self._unchanged(name, location, mark, {version: available[version] for version in chosen})
        versions = {version: available[version] for version in chosen if version not in keep}
        return Plan(name, directory, parsed, versions, keep, mark, location, config_json)

    def ensemble_context(self, plan: Plan, fitted: EnsemblePlan, version: int, dirname: str) -> LoadContext:
        """Return what one version of an ensemble is started with. Raises Unsupported."""
        version_dir = plan.directory.path / dirname
        context = LoadContext(
            plan.name, version, plan.directory.path, version_dir, plan.parsed.config, given=plan.parsed.given
        )
        return self._preparer.ensemble(context, fitted)

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


def without_path(text: str, name: str, directory: MaterializedDir) -> str:
    """Return a reason without the server's own directories: it goes to clients."""
    return text.replace(str(directory.path), name)
