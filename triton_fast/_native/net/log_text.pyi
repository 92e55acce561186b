"""Text from outside as JSON strings on one line, without the GIL; the rules are those of ``observability.escape``."""

def quoted(text: bytes) -> bytes:
    """Return ``text`` as a JSON string, bytes (tests only)."""
