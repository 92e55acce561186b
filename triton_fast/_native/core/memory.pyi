"""Pool of reference-counted memory blocks, 64-byte aligned.

Sizes up to 64 MiB are rounded up to 2^k or 1.5 * 2^k bytes (at least 512) and kept for reuse up to a byte budget;
larger blocks go straight to the allocator. Any thread may take and release; no call here or there needs the GIL.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict

class Stats(TypedDict):
    """Blocks in use, the bytes they can hold (capacity, not request), and bytes of free blocks kept for reuse."""

    live_blocks: int
    live_bytes: int
    cached_bytes: int

def trim(keep: int = 0) -> None:
    """Give cached blocks back to the allocator, largest first, until at most ``keep`` bytes are cached."""

def set_body_limit(n: int) -> None:
    """Refuse bytes from networks while blocks hold ``n`` bytes, theirs included; 0 = no limit. Process-wide.

    Raises
    ------
    ValueError
        ``n`` is negative.
    """

def set_keep_bytes(n: int) -> None:
    """Set the byte budget of cached blocks (default 256 MiB).

    Takes effect at the next release; call `trim` to shrink at once.

    Raises
    ------
    ValueError
        If ``n`` is negative.
    """

def stats() -> Stats:
    """Return the pool's counters; exact when no other thread is taking or releasing."""

def _self_test(sizes: Iterable[int]) -> list[int | None]:
    """Hold a block of each size at once, touch both ends, release all; return capacities, None where refused."""

def return_large_memory() -> None:
    """Have the C allocator give memory of 1 MiB and more back to the system when it is freed. Process-wide."""
