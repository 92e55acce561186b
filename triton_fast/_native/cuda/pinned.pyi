"""Pinned host memory: while it is on, blocks of 16 KiB to 64 MiB are memory that GPUs reach by themselves."""

from __future__ import annotations

from typing import TypedDict

class Stats(TypedDict):
    """Bytes that may be, are, and lie free pinned; times that a block went without since the last `trim`, and that the
    driver had no pinned memory to give."""

    budget: int
    pinned: int
    free: int
    refused: int
    failed: int

def start(device: int, n: int) -> None:
    """Pin blocks from now on, ``n`` bytes at most, through the context of ``device``. Process-wide; may be repeated.

    Less than 16 KiB switches it off.

    Raises
    ------
    ValueError
        ``n`` is negative.
    Internal, InvalidArg, Unavailable
        The device can not be used.
    """

def stop() -> None:
    """Pin no more, and unpin what is free; blocks in use stay pinned until they are freed and `stop` comes again."""

def trim() -> None:
    """Unpin what is free, if blocks went without pinned memory since the last call: its sizes are not those wanted."""

def usage() -> tuple[int, int]:
    """Return the budget and the bytes of pinned blocks in use."""

def stats() -> Stats:
    """Return the counters; exact when no other thread takes or releases blocks."""
