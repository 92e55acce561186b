"""What differs between the repositories and what is served. Lists and compares; changes nothing.

What could not be listed whole differs in nothing: only a listing that succeeded tells that a model is gone.
Source: spec/model_config.md section 1.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum
from typing import Any, NamedTuple

from triton_fast.errors import NotFound, ServerError
from triton_fast.observability import log
from triton_fast.repository.fingerprint import Fingerprint
from triton_fast.repository.repositories import Listing, Repositories
from triton_fast.repository.sources import DUPLICATE, Source
from triton_fast.repository.table import ModelTable, Record


class Kind(Enum):
    ADDED = "added"
    REMOVED = "removed"
    MODIFIED = "modified"
    # In two repositories now: none of them is served.
    DUPLICATED = "duplicated"


class Change(NamedTuple):
    """``location`` and ``mark``: where the model is and how it looks there, when it is to be loaded."""

    kind: Kind
    location: str = ""
    mark: Fingerprint | None = None


class Changes(NamedTuple):
    """Keys of models."""

    added: list[str]
    removed: list[str]
    modified: list[str]
    duplicated: list[str]

    @classmethod
    def of(cls, changes: Mapping[str, Change]) -> Changes:
        return cls(*([key for key, change in changes.items() if change.kind is kind] for kind in Kind))

    def __bool__(self) -> bool:
        return any(self[:])


def detect(repositories: Repositories, table: ModelTable[Any]) -> dict[str, Change]:
    """Compare, by key. What was tried and failed has changed only when its files have; overridden models have."""
    listing = repositories.listing()
    found: dict[str, Change] = {}
    for key, owners in listing.owners.items():
        record = table.record(key)
        change = _compare(repositories.split(key)[1], owners, record, listing.failed)
        if change is not None:
            found[key] = change
    for key in table.names():
        record = table.record(key)
        if key not in listing.owners and record is not None and record.is_asked_for and _is_gone(record, listing):
            found[key] = Change(Kind.REMOVED)
    return found


def _compare(name: str, owners: list[Source], record: Record[Any] | None, failed: Collection[str]) -> Change | None:
    if len(owners) > 1:
        return None if record is not None and record.failure == DUPLICATE else Change(Kind.DUPLICATED)
    source = owners[0]
    if record is not None and record.ready and record.location in failed:
        return None  # the repository that it is from may have it still, and this is a second one
    try:
        mark = source.fingerprint(name)
    except NotFound:
        return None  # gone since the listing
    except ServerError as error:
        log.error(f"failed to poll model '{name}': {error}")
        return None
    if record is None or not record.is_asked_for:
        return Change(Kind.ADDED, source.location, mark)
    if record.seen == (source.location, mark):
        return None
    return Change(Kind.MODIFIED, source.location, mark)


def _is_gone(record: Record[Any], listing: Listing) -> bool:
    """Tell whether a model that nobody lists is gone, or may be where nobody could look."""
    where = record.location or (record.seen[0] if record.seen else "")
    return not listing.failed or (bool(where) and where not in listing.failed)
