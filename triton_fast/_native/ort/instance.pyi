"""A model instance over an ORT session. Source: ext/triton_fast/_native/ort/instance.pyx."""

from collections.abc import Sequence

from triton_fast._native.ort.session import Session
from triton_fast._native.sched.instance import NativeInstance

# name, DataType number, ONNX element type number, dims with -1
IoRow = tuple[str, int, int, tuple[int, ...]]

class OrtInstance(NativeInstance):
    """Executes batches on a session, without the GIL.

    Parameters
    ----------
    name
        ``<group>_<n>``.
    session
        May be shared: ORT allows concurrent runs.
    max_batch
        0 when the model has no batch dimension.
    inputs, outputs
        In the config's order, with the model's own types and shapes. An output's second item tells whether its first
        dimension is known to be the batch: if its other dimensions are fixed too, its memory is made before the run.
    run_entries
        Run config entries.
    batch_inputs
        Inputs made of the shapes of a batch: name, kind (``BatchInput.Kind``), position of the source input, DataType
        number (INT32 or FP32), ONNX element type number.
    cuts
        Outputs that are cut by the shapes of an input: (position of the output, position of the input).
    device
        The GPU that the session runs on, -1 for the CPU. Inputs in its memory are given to ORT as they are; the driver
        must be open then.

    Raises
    ------
    InvalidArg
        A datatype or rank that no request can have.
    """

    def __init__(
        self,
        name: str,
        session: Session,
        max_batch: int,
        inputs: Sequence[IoRow],
        outputs: Sequence[tuple[IoRow, bool]],
        run_entries: dict[str, str] | None = None,
        *,
        batch_inputs: Sequence[tuple[str, int, int, int, int]] = (),
        cuts: Sequence[tuple[int, int]] = (),
        device: int = -1,
    ) -> None: ...
    def counters(self) -> dict[str, int]:
        """Return counts since the start; exact while no batch runs.

        runs, reruns
            Calls of ORT, and those repeated because an output did not have its declared shape.
        borrowed, copied_bytes
            Input tensors used where they lay, and input bytes copied together.
        bound
            Output tensors whose memory was made before the run.
        device_bytes
            Input bytes copied together in device memory.
        """
