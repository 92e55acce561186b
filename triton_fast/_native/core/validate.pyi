"""Checks of a decoded request against its model, shared by every protocol.

The engine calls the native functions (``core/validate.pxd``); what is visible here lets tests reach them.
Order of checks, as in Triton's core: duplicate inputs, duplicate outputs, unknown outputs, number of inputs, unknown
inputs, missing required inputs, batch dimension, then for each input datatype, shape, byte size or string elements.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypedDict

from triton_fast._native.core.model import ModelHandle

class Checked(TypedDict):
    """``batch`` rows; ``shape_key`` 0 when the model needs none; ``order[i]``: position in the request of the model's
    input i, None when absent; ``wanted[j]``: index in the model of the j-th output asked for."""

    batch: int
    shape_key: int
    order: list[int | None]
    wanted: list[int]

class CheckedRaw(Checked):
    """``shape`` and ``data`` of the only input; ``binary_default`` is 1: outputs are returned binary."""

    shape: list[int]
    data: bytes
    binary_default: int

def check(
    model: ModelHandle,
    inputs: Iterable[tuple[str, int, Sequence[int], bytes]],
    outputs: Iterable[str] = (),
    id: str = "",
    repeat: int = 1,
) -> Checked:
    """Validate one request.

    Parameters
    ----------
    inputs
        (name, datatype number, full shape, bytes); STRING in the wire form (uint32 LE length + bytes, per element).
    outputs
        Names of the outputs asked for; empty for all.
    repeat
        How often to validate (for instruction counts).

    Raises
    ------
    ServerError
        With Triton's text and code.

    Notes
    -----
    ``shape_key`` is seeded at random in each process: keys of two processes cannot be compared.
    """

def check_raw(model: ModelHandle, data: bytes, id: str = "") -> CheckedRaw:
    """Validate a raw binary request: ``data`` is all of the model's only input, whose shape is deduced."""
