"""Model repositories: find models, choose versions, load, unload and reload them, answer lookups.

Knows backends and configs; the scheduler comes in as a callable. Must not import scheduling, front ends or the app.
"""

from __future__ import annotations

from triton_fast.repository.agents import Agents
from triton_fast.repository.changes import Changes
from triton_fast.repository.fingerprint import Fingerprint, fingerprint
from triton_fast.repository.lifecycle import ControlMode, LoadFailure, ModelRepositoryManager
from triton_fast.repository.nested import NestedControl
from triton_fast.repository.poller import Poller
from triton_fast.repository.prepare import Preparer
from triton_fast.repository.sources import LocalSource, MaterializedDir, Source, check_name
from triton_fast.repository.table import IndexRow, Runtime, State

__all__ = [
    "Agents", "Changes", "ControlMode", "Fingerprint", "IndexRow", "LoadFailure", "LocalSource", "MaterializedDir",
    "ModelRepositoryManager", "NestedControl", "Poller", "Preparer", "Runtime", "Source", "State",
    "check_name", "fingerprint",
]  # fmt: skip
