"""What requests are checked against: a served version's name, limits, inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypedDict

class Io(Protocol):
    """An input or output of a model; ``dims`` without the batch dimension, -1 = variable; ``dtype`` a DataType."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> int: ...
    @property
    def dims(self) -> Sequence[int]: ...
    @property
    def reshape(self) -> Sequence[int] | None: ...
    @property
    def optional(self) -> bool: ...
    @property
    def ragged(self) -> bool: ...

class Stats(TypedDict):
    """Models that are not freed yet."""

    live_models: int

class ModelHandle:
    """Owner of one reference to a native ``Model``; requests in flight hold their own.

    Parameters
    ----------
    name, version
        As clients name them.
    max_batch
        0 for models without a batch dimension.
    inputs, outputs
        In the order of the configuration.
    decoupled
        Whether a request may have other than one response.
    """

    def __init__(
        self,
        name: str,
        version: int,
        max_batch: int,
        inputs: Sequence[Io],
        outputs: Sequence[Io],
        decoupled: bool = False,
    ) -> None: ...
    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...

def stats() -> Stats:
    """Return the debug counter; it is back at its base when no version is loaded and no request in flight."""
