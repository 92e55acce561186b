"""The repeat backend's instance. Source: ext/triton_fast/_native/backends/repeat.pyx."""

from triton_fast._native.sched.instance import NativeInstance

class RepeatInstance(NativeInstance):
    """An instance of a decoupled model: one response for each element of IN, then the final one without outputs.

    Response i has OUT = IN[i] and IDX = i and comes DELAY[i] ms after the one before. The final one comes WAIT ms after
    the start of the execution, or after the last response if that is later. Delays end at once when the request is
    cancelled, which is then its error. IN and DELAY of different lengths fail the request with InvalidArg.

    Parameters
    ----------
    name
        The instance's name.
    inputs
        The positions of IN (INT32), DELAY and WAIT (UINT32) among the model's inputs. What is not given is 0.
    outputs
        The positions of OUT (INT32) and IDX (UINT32) among its outputs.
    """

    def __init__(
        self, name: str = "", inputs: tuple[int, int, int] = (0, 1, 2), outputs: tuple[int, int] = (0, 1)
    ) -> None: ...
