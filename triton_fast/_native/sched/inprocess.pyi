"""Requests from Python code in this process: warm-up, tests. Copies tensors both ways. Source: sched/inprocess.pyx."""

from collections.abc import Iterator, Sequence

from typing_extensions import Buffer

from triton_fast._native.sched.model import NativeModel

# name, DataType number, shape, bytes (STRING in wire form: uint32 LE length + bytes per element)
Input = tuple[str, int, Sequence[int], Buffer]
# DataType number, shape, bytes
Output = tuple[int, tuple[int, ...], bytes]

class Call:
    """What calls of both kinds are: one request on its way. Made as one of them."""

    @property
    def queued(self) -> bool:
        """Whether no instance has it yet."""

    @property
    def model_key(self) -> int:
        """A number that names the model, as Python instances have it."""

    @property
    def runner(self) -> int:
        """Key of the Python instance that has it, 0 when that is not known."""

    @property
    def waits(self) -> tuple[tuple[int, str, int], ...]:
        """Of an ensemble, what it waits for: (model's key, "queued", "running" or "waiting", runner's key or 0), ..."""

    def refuse(self, text: str, code: int = 1) -> bool:
        """Of an ensemble: fail it, with a step's request that no instance has; return whether there was one."""

class InferCall(Call):
    """One request on its way; made is submitted.

    A call that is dropped is executed all the same.

    Parameters
    ----------
    model
        Where to submit it; kept as long as the call.
    inputs
        Copied.
    outputs
        Names wanted; empty for all.
    id
        The request's id, for error texts.
    priority, timeout_us
        As in the protocol; the model's queue policy says what they do.
    flags, correlation
        1 sequence start, 2 sequence end; the sequence's id.
    params
        The request's parameters.
    trace
        Context of a trace, for the model.

    Raises
    ------
    ServerError
        What validation or the queue answered: InvalidArg, or Unavailable when the queue is full or the model stops.
        Unsupported for a decoupled model.
    """

    def __init__(
        self,
        model: NativeModel,
        inputs: Sequence[Input],
        outputs: Sequence[str] = (),
        *,
        id: str = "",
        priority: int = 0,
        timeout_us: int = 0,
        flags: int = 0,
        correlation: int | str = 0,
        params: Sequence[tuple[str, bool | int | str]] = (),
        trace: str = "",
    ) -> None: ...
    @property
    def parameters(self) -> dict[str, bool | int | str] | None:
        """Parameters of the response that was waited for last, but for numbers that are not whole."""

    def cancel(self, *, tell: bool = True) -> bool:
        """Take the request back if no instance has it yet; whoever waits gets ``Cancelled``. ``tell`` one that has it.

        Returns
        -------
        bool
            False when an instance has it, or it has ended: its outcome stands.
        """

    def wait(self, timeout_s: float | None = None) -> dict[str, Output]:
        """Block, without the GIL, until the request has ended; return its outputs. May be called again.

        Raises
        ------
        TimeoutError
            Not finished within timeout_s; the request goes on.
        Cancelled
            ``cancel`` took the request back, before the call or during it.
        ServerError
            The model's or the queue's error.
        """

class StreamCall(Call):
    """One request on its way that may have any number of responses; made is submitted. Any model will do.

    It is an iterator of what ``take`` returns. A call that is dropped is cancelled.

    Parameters
    ----------
    model, inputs, outputs, id, priority, timeout_us
        See ``InferCall``.
    max_responses
        Responses before the final one that may wait to be taken; the model waits with the next. 0: any number.

    Raises
    ------
    ServerError
        What validation or the queue answered.
    """

    def __init__(
        self,
        model: NativeModel,
        inputs: Sequence[Input],
        outputs: Sequence[str] = (),
        *,
        id: str = "",
        priority: int = 0,
        timeout_us: int = 0,
        flags: int = 0,
        correlation: int | str = 0,
        params: Sequence[tuple[str, bool | int | str]] = (),
        trace: str = "",
        max_responses: int = 0,
    ) -> None: ...
    @property
    def parameters(self) -> dict[str, bool | int | str] | None:
        """Parameters of the response that was taken last, but for numbers that are not whole."""

    @property
    def over(self) -> bool:
        """Whether the final response was taken, or nothing comes."""

    def __iter__(self) -> Iterator[tuple[dict[str, Output], bool]]: ...
    def __next__(self) -> tuple[dict[str, Output], bool]: ...
    def take(self, timeout_s: float | None = None) -> tuple[dict[str, Output], bool] | None:
        """Block, without the GIL, for the next response; None after the final one.

        Returns
        -------
        (outputs, is_final)
            The final response of a decoupled model may be without outputs.

        Raises
        ------
        TimeoutError
            Nothing within timeout_s; the request goes on.
        Cancelled
            ``cancel`` took the request back, or the model was told in time and stopped.
        ServerError
            The response is this error. If it was not the final one, the next call goes on after it.
        """

    def cancel(self, *, tell: bool = True) -> bool:
        """Take the request back if no instance has it yet, else ``tell`` the instance to stop.

        Returns
        -------
        bool
            True: nothing more comes. False: an instance has it, what it still sends can be taken; or it has ended.
        """

def infer(
    model: NativeModel,
    inputs: Sequence[Input],
    outputs: Sequence[str] = (),
    *,
    timeout_s: float | None = None,
    id: str = "",
    priority: int = 0,
    timeout_us: int = 0,
) -> dict[str, Output]:
    """Submit and wait: see ``InferCall``."""
