"""Instances of TensorRT models. Source: ext/triton_fast/_native/tensorrt/instance.pyx."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from triton_fast._native.sched.instance import NativeInstance

# name, DataType number, rank in the engine, whether it lies in host memory, values of a shape tensor (0: it is none),
# bytes of its memory (outputs: see ``allocate``)
Io: TypeAlias = tuple[str, int, int, bool, int, int]
# rows (0 without batching), inputs and their dims without the batch's
Graph: TypeAlias = tuple[int, Sequence[tuple[str, Sequence[int]]]]

class Room(Protocol):
    """An output whose shape depends on data; TensorRT tells it the shape in each run."""

    def take(self) -> Sequence[int] | None:
        """Return, and forget, the shape of the last run; None: it was not told."""

class TrtInstance(NativeInstance):
    """Execution contexts of one engine on one device, and the memory that they work in.

    Made in steps, because the sizes of outputs are known only when contexts have been told the largest shapes:
    the instance, then ``add_profile`` for each context, then ``allocate``.

    Parameters
    ----------
    device
        CUDA's ordinal.
    inputs, outputs
        In the config's order, what the scheduler adds behind them. All of the engine.
    complain
        Returns what TensorRT has said of errors since it was asked last.
    warn
        Called once, with the reason, when CUDA graphs can not be used.
    graphs
        Shapes of which CUDA graphs are to be made; none: no graphs.
    priority
        Of the stream: -1 before others, 1 after them.
    busy_wait
        Spin while waiting for the device.
    """

    def __init__(
        self,
        name: str,
        device: int,
        max_batch: int,
        inputs: Sequence[Io],
        outputs: Sequence[Io],
        complain: Callable[[], str],
        *,
        warn: Callable[[str], None],
        graphs: Sequence[Graph] | None = None,
        priority: int = 0,
        busy_wait: bool = False,
    ) -> None: ...
    @property
    def stream(self) -> int:
        """The CUDA stream of all its work."""

    def input_address(self, i: int) -> int:
        """Return the address of an input's memory: the device's, or the host's where it lies there."""

    def set_values(self, i: int, values: Sequence[int]) -> None:
        """Write the values of a shape tensor, so that shapes can be inferred before the first run."""

    def synchronize(self) -> None:
        """Wait for the stream."""

    def add_profile(
        self, context: Any, index: int, low: Sequence[int], best: Sequence[int], high: Sequence[int]
    ) -> None:
        """Add an optimization profile: its ``IExecutionContext``, ready for it, and the ranges of what it takes.

        The numbers are, for all inputs in order, the dims, or for a shape tensor its values instead.
        """

    def allocate(self, sizes: Sequence[int], rooms: Sequence[Room | None]) -> None:
        """Take the memory of outputs: bytes for each, and for those whose shape depends on data their ``Room``."""

    def output_room(self, i: int, size: int) -> int:
        """Return the address of at least ``size`` bytes for an output on the device; 0: there are none."""

    def counters(self) -> dict[str, int]:
        """Return what was done so far.

        ``runs``; of them ``enqueued`` through TensorRT and ``launched`` as a graph; ``captured`` graphs; calls that
        told TensorRT something: ``shapes_set``, ``addresses_set``; bytes: ``gathered`` in host memory, ``copied_in``
        and ``copied_out``; ``in_place``: inputs used where they lay in device memory.
        """

    def close(self) -> None:
        """Let go of contexts and memory. It must not run any more."""
