"""For tests of decoders and encoders: tensors of models without a config, STRING data, and a fixture that finds leaks.

Knows native counters; knows no protocol.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest

from triton_fast._native.core import memory, request


class Io(NamedTuple):
    name: str
    dtype: int
    dims: Sequence[int]
    reshape: Sequence[int] | None = None
    optional: bool = False
    ragged: bool = False


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """Import this into a test module: each test must give back all blocks and requests."""

    def counts() -> tuple[int, int]:
        return memory.stats()["live_blocks"], request.stats()["live_requests"]

    before = counts()
    yield
    assert counts() == before


def strings(*texts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)
