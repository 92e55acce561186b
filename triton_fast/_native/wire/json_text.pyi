"""JSON text of plain values: numbers by shortest round trip, strings escaped."""

from __future__ import annotations

def quote(text: bytes) -> bytes:
    """Return ``text`` as a JSON string with its quotes; each byte that is not part of UTF-8 becomes U+FFFD."""
