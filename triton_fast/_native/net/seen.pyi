"""What is kept of a request for the access log and for Server-Timing."""

from collections.abc import Sequence

def timing(began: int, whole: int, stamps: Sequence[int], taken: int, now: int) -> str:
    """Return the Server-Timing value for these times, ns; ``stamps``: eight, as ``T_*`` counts them (tests only)."""
