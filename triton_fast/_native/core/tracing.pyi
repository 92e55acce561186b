"""Traces of sampled requests, natively: nothing for Python but a counter. See ``core.collector``."""

from __future__ import annotations

from typing import TypedDict

class Stats(TypedDict):
    """Traces that are not written or dropped yet."""

    live_traces: int

def stats() -> Stats:
    """Return the debug counter; it is back at its base when all ended traces were taken."""
