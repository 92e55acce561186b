"""An instance over a forest. Source: ext/triton_fast/_native/fil/instance.pyx."""

from collections.abc import Sequence
from typing import Any

from triton_fast._native.fil.forest import Forest
from triton_fast._native.sched.instance import NativeInstance

class ForestInstance(NativeInstance):
    """Executes batches with GTIL, without the GIL.

    Parameters
    ----------
    forest
        May be shared: it is only read.
    max_batch
        0: no batch dimension, each request is a call.
    dims
        Of the output without the batch dimension; -1 becomes the number of rows.
    classes, pair
        Class numbers, or of one probability two, instead of the scores.
    threshold
        A class of two is 1 above it.
    threads
        Of a run.
    """

    def __init__(
        self,
        forest: Forest,
        max_batch: int,
        dims: Sequence[int],
        *,
        classes: bool = False,
        pair: bool = False,
        threshold: float = 0.5,
        threads: int = 1,
        name: str = "",
    ) -> None: ...
    def counters(self) -> dict[str, int]:
        """Return calls of GTIL, inputs used where they lay, and bytes copied to put requests together."""

def predict(forest: Forest, rows: Any, threads: int = 1) -> bytes:
    """Return the scores, FP32, of a buffer of FP32 rows."""

def reduce(scores: Any, out: Any, width: int, *, pair: bool = False, threshold: float = 0.5) -> None:
    """Write class numbers, or of one probability two, of rows of scores into ``out``; both are buffers of FP32.

    The same rules as of an instance, for scores that were made elsewhere.
    """
