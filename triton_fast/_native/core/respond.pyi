"""Responses before the final one. It has a C interface only (respond.pxd) but for bench/micro and the tests."""

def bench(n: int, max_responses: int = 0) -> int:
    """Fork, send and free n carriers of one request; return how many were delivered (bench/micro only)."""
