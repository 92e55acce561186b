"""Warm-up: requests that one given instance executes, past the scheduler. Source: sched/warmup.pyx."""

from collections.abc import Mapping, Sequence

from triton_fast._native.sched.instance import NativeInstance
from triton_fast._native.sched.model import NativeModel

def added_inputs(model: NativeModel) -> list[tuple[str, int, list[int]]]:
    """Return what the scheduler adds to requests of a model (controls, states): name, DataType number, dims."""

def execute(
    model: NativeModel,
    instance: NativeInstance,
    inputs: Sequence[tuple[str, int, Sequence[int], bytes]],
    n: int,
    added: Mapping[str, tuple[Sequence[int], bytes]] | None = None,
) -> list[str]:
    """Have an instance whose thread was not started execute n equal requests as one batch, and wait for their ends.

    Blocks without the GIL. The requests have no id, no flags, correlation id 0, and want all outputs; they are counted
    in the model's statistics.

    Parameters
    ----------
    inputs
        Of each request: name, DataType number, shape with the batch dimension, bytes.
    n
        1 to 4096.
    added
        Name -> shape and bytes of what the scheduler adds; zeros, a variable dimension being 1, for the rest.

    Returns
    -------
    list of str
        The errors of the responses, in the order in which they came.

    Raises
    ------
    ServerError
        The requests are not valid; nothing was executed.
    """
