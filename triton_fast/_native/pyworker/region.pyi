"""Memory shared with Python workers. Source: ext/triton_fast/_native/pyworker/region.pyx."""

def stats() -> dict[str, int]:
    """Return the debug counter: live_regions."""
