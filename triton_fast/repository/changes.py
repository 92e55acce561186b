"""What differs between the repositories on disk and what is served. Reads directories; changes nothing."""

from __future__ import annotations

from typing import Any, NamedTuple

from triton_fast.repository.sources import Repositories
from triton_fast.repository.table import ModelTable


class Changes(NamedTuple):
    """Names of models."""

    added: list[str]
    removed: list[str]
    modified: list[str]


def detect(repositories: Repositories, table: ModelTable[Any]) -> Changes:
    """Compare; overridden models count as modified."""
    listing = repositories.listing()
    changes = Changes([], [], [])
    for name, owners in listing.items():
        record = table.record(name)
        if record is None or not record.wanted:
            changes.added.append(name)
        elif len(owners) > 1 or record.mark is None or record.location != owners[0].location:
            changes.modified.append(name)
        elif owners[0].fingerprint(name) != record.mark:
            changes.modified.append(name)
    for name in table.names():
        record = table.record(name)
        if name not in listing and record is not None and record.wanted:
            changes.removed.append(name)
    return changes
