"""Instances of OpenVINO models. Source: ext/triton_fast/_native/openvino/instance.pyx."""

from collections.abc import Sequence
from typing import TypeAlias

from triton_fast._native.openvino.model import Compiled
from triton_fast._native.sched.instance import NativeInstance

# name, number in the model, DataType number, element type number, dims of the model with the batch's
Io: TypeAlias = tuple[str, int, int, int, tuple[int, ...]]

class OvInstance(NativeInstance):
    """One infer request of a compiled model.

    Parameters
    ----------
    inputs, outputs
        In the config's order, what the scheduler adds behind them. With an output goes whether its first dimension is
        known to be the batch (without batching: whether its shape is the model's).
    fixed_batch, pad
        Rows that every run must have (0: any), and whether smaller batches are filled up.
    direct
        Infer on the instance's own thread. Only where the device then tells of failures: not with one thread.
    """

    def __init__(
        self,
        name: str,
        compiled: Compiled,
        max_batch: int,
        inputs: Sequence[Io],
        outputs: Sequence[tuple[Io, bool]],
        *,
        fixed_batch: int = 0,
        pad: bool = False,
        direct: bool = False,
    ) -> None: ...
    def counters(self) -> dict[str, int]:
        """Return what was done so far.

        ``runs``; ``borrowed``: inputs that were not copied; ``copied_bytes``: of inputs that were; ``bound``: outputs
        written straight into a response's memory; ``lent``: outputs whose memory OpenVINO made and responses keep;
        ``copied_outputs``: bytes of other outputs.
        """
