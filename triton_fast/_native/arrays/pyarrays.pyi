"""An instance that calls a Python function with the arrays of a batch. Source: arrays/pyarrays.pyx."""

from collections.abc import Callable, Sequence
from typing import Any

from triton_fast._native.core.view import BlockView
from triton_fast._native.sched.instance import NativeInstance

# DataType number, full shape, memory that may be kept as long as it is referred to, and not be written to: a request
# lends it, and other steps of an ensemble may read the same. STRING: the wire form. A list: see gpu.
Input = tuple[int, tuple[int, ...], BlockView | list[BlockView | DeviceView]]
# DataType number, full shape, address, bytes, what keeps that memory: let go after the last response that needs it.
# Where that is what `room` gave, responses keep the memory without it.
Output = tuple[int, Sequence[int], int, int, object]
Function = Callable[[list[Input | None], tuple[bool, ...]], Sequence[Output | None]]
# As Function, told the rows of each request too; returns besides which requests fail, by their place in the batch.
EachFunction = Callable[
    [list[Input | None], tuple[bool, ...], tuple[int, ...]],
    tuple[Sequence[Output | None], Sequence[tuple[int, BaseException]]],
]

class DeviceView:
    """One tensor in a GPU's memory; made by native code only. ``len`` is bytes, wherever they begin."""

    @property
    def device(self) -> int: ...
    @property
    def address(self) -> int: ...
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...
    def __len__(self) -> int: ...

class ArrayInstance(NativeInstance):
    """Adapter from a Python function over arrays to an instance.

    Parameters
    ----------
    function
        ``function(inputs, wanted)``, in the model's order, None for an optional input that is absent. Returns an entry
        for each output of the model; one that is not wanted may be None. The first dimension of each is the batch where
        the model has one. An exception fails the batch: a ``ServerError`` with its code, any other as Internal.
    n_inputs, n_outputs
        Of the model, with those that its scheduler adds.
    max_batch
        0: the model has no batch dimension, and each request is a call of its own.
    each
        The function is an ``EachFunction``: the outputs have the rows of all requests, also of those that it fails.
    gpu
        A device: an input that a request of the batch has in its memory comes as a list, the tensors of all requests in
        their order, each to be used during the call only. -1: the server brings such inputs to the host first.
    """

    def __init__(
        self, function: Function | EachFunction, n_inputs: int, n_outputs: int, max_batch: int, name: str = "", *,
        each: bool = False, gpu: int = -1,
    ) -> None: ...
    def counters(self) -> dict[str, int]:
        """Return calls, arrays lent by requests, bytes copied to make others, and outputs lent to responses."""

def room(nbytes: int) -> BlockView:
    """Return memory of the server's pool for an output, which goes to the responses as it is. Raises MemoryError.

    It is of a size of which the pool has pinned blocks, however few bytes are asked for.
    """

def drop() -> None:
    """Let go of the objects that responses needed and need no more; each execution does it too."""
