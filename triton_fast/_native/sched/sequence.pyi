"""The sequence batcher: requests of one sequence go one after another to one instance. Source: sched/sequence.pyx."""

from collections.abc import Sequence

from triton_fast._native.core.model import ModelHandle
from triton_fast._native.sched.scheduler import NativeScheduler

# input name, kind (ModelSequenceBatching.Control.Kind), DataType, bytes for false and for true; CORRID has no values
Control = tuple[str, int, int, bytes, bytes]
# input name, output name, DataType, dims with -1, dims and bytes at the start; dims without the batch dimension
State = tuple[str, str, int, Sequence[int], Sequence[int], bytes]

class NativeSequences(NativeScheduler):
    """The sequence batcher of one model.

    Parameters
    ----------
    model : NativeModel
        Its added inputs and outputs are what ``controls`` and ``states`` name; a state may be an output of the client's
        too (``kept``).
    instances : int
        How many will be started.
    slots : int
        Sequences that one instance has at a time.
    direct : bool
        A sequence's slot is its place in each batch, empty places are padded; else sequences are batched as they come.
    idle_us : int
        A sequence without a request for so long is forgotten. The time that a request is executed does not count.
    delay_us : int
        How long a batch may wait for more sequences.
    utilization : float
        Direct: the part of the slots that makes a batch go before that.
    preferred : sequence of int
        Not direct: preferred batch sizes.
    controls, states
        See above.
    iterative : bool
        An instance may have a request executed again; ids are made where clients send none.
    max_waiting : int
        Sequences that may wait for a slot; a request that would begin one more is refused with ``full_code``.
    max_requests : int
        Requests of one sequence that may wait; one more is refused so too.
    max_bytes : int
        Bytes of inputs that may wait, of all sequences; 0: no limit.
    clock : int, optional
        For tests: what time it is in ns, until ``set_clock``. There is no thread that frees slots then.

    Raises
    ------
    ValueError
        A number is out of range, or the model has no such tensor.
    Internal
        The system gives no more threads.
    """

    def __init__(
        self,
        model: ModelHandle,
        *,
        instances: int,
        slots: int,
        direct: bool,
        idle_us: int,
        delay_us: int = 0,
        utilization: float = 0.0,
        preferred: Sequence[int] = (),
        controls: Sequence[Control] = (),
        states: Sequence[State] = (),
        iterative: bool = False,
        max_waiting: int = 65536,
        max_requests: int = 65536,
        max_bytes: int = 0,
        full_code: int = 4,
        clock: int | None = None,
    ) -> None: ...
    def set_clock(self, at: int) -> None:
        """Let it be this time, and do what is due. Only with ``clock``."""

    def counts(self) -> dict[str, int]:
        """Return how many sequences there are (tests only).

        ``seated``, and of them ``idle``; ``waiting`` for a slot; ``named``: requests may still come; ``known`` and
        ``spare``: ever made, and of them free; ``deadlines``: of waiting ones.
        """

    @property
    def bytes(self) -> int:
        """Of inputs that wait, counted where there is a limit."""
