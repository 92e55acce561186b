"""One input or output as the engine is told of it."""

from __future__ import annotations

from dataclasses import dataclass

from triton_fast.types import DataType


@dataclass(frozen=True, slots=True)
class IoSpec:
    """One input or output.

    ``dims`` is the protocol's shape without the batch dimension, ``reshape`` the backend's where it differs
    (``()`` is a scalar per batch item). ``labels``: line n of the label file, as bytes. ``kept``: an output that the
    scheduler needs, whether or not the client asks for it.
    """

    name: str
    dtype: DataType
    dims: tuple[int, ...]
    reshape: tuple[int, ...] | None = None
    optional: bool = False
    ragged: bool = False
    labels: tuple[bytes, ...] = ()
    kept: bool = False
