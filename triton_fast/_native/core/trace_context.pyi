"""W3C trace contexts, natively. Source: W3C recommendation "Trace Context", level 1."""

from __future__ import annotations

from collections.abc import Iterable

def parse(fields: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, int, int, bytes] | None:
    """Return ``(trace id, span id, flags, tracestate)`` of head fields; None when there is no valid context (tests)."""

def carrier(trace_id: bytes, span: int, state: bytes = b"") -> bytes:
    """Return the JSON that models get for what is below ``span`` (tests)."""

def span_in(text: bytes) -> int | None:
    """Return the span that such a JSON names (tests)."""
