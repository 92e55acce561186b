"""Traces of sampled requests, natively: nothing for Python but a counter. See ``core.collector``."""

from __future__ import annotations

from typing import TypedDict

class Stats(TypedDict):
    """Traces that are not written or dropped yet, and bytes of tensors in them."""

    live_traces: int
    waiting_bytes: int

def stats() -> Stats:
    """Return the debug counters; they are back at their base when all ended traces were taken."""
