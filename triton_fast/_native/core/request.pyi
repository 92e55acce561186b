"""Native requests and responses."""

from __future__ import annotations

from typing import TypedDict

class Stats(TypedDict):
    """Requests that are not freed yet."""

    live_requests: int

def stats() -> Stats:
    """Return the debug counter; it is back at its base when nothing is in flight."""
