"""Inputs in GPU memory, brought to the host, and in clients' own, copied out, before a backend sees them.

The contract: ext/triton_fast/_native/sched/fetch.pxd.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from triton_fast._native.core.model import ModelHandle
from triton_fast._native.core.regions import SharedRegions

# name of its region, DataType number, shape, offset, byte_size
Row = tuple[bytes, int, Sequence[int], int, int]
# kind of memory, device, bytes unless they are a GPU's
Input = tuple[int, int, bytes | None]

def fetched(
    regions: SharedRegions,
    model: ModelHandle,
    rows: list[list[Row]],
    device: int = -1,
    placed: bool = False,
    copies_from: int = ...,
    restored: bool = False,
    kept: Collection[int] = (),
) -> tuple[int, list[tuple[int, str | None, list[Input]]]]:
    """Do for a batch what is done before an instance executes it (tests only).

    Returns how many may be executed, and all requests in the order that they have then: where they stood, their error,
    their inputs. ``restored``: after an execution, of which the backend kept those of ``kept`` that it had.
    """
