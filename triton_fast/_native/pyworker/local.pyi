"""Python models in this process. Source: ext/triton_fast/_native/pyworker/local.pyx."""

from collections.abc import Callable, Sequence

from typing_extensions import Buffer

from triton_fast._native.sched.instance import NativeInstance

class BlockView:
    """A writable buffer over one tensor's data; the memory lives while any view of it does."""

    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __len__(self) -> int: ...

class LocalRequest:
    """A request that a model in this process has; it is over with ``send(..., final=True)``.

    One that is dropped before fails. Several threads may send; the order is kept within each.
    """

    def inputs(self) -> list[tuple[str, int, list[int], BlockView]]:
        """Return (name, DataType number, shape, buffer) of each; shape with the batch dimension."""

    def wanted(self) -> list[str]:
        """Return the names of the outputs asked for; all when the client named none."""

    def facts(self) -> tuple[str, int, str, int, int, int, str, str]:
        """Return (id, correlation number, its text, flags, timeout in us, priority, parameters as JSON, trace)."""

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants its responses any more."""

    @property
    def over(self) -> bool: ...
    def execute_again(self) -> bool:
        """Have the request executed again, in a later batch: it is over, and comes as a new one.

        Returns
        -------
        bool
            False: its model is not iterative, nothing has happened.
        """

    def send(
        self,
        outputs: Sequence[tuple[str, int, Sequence[int], Buffer]] | None = None,
        *,
        error: tuple[int, str] | None = None,
        params: Sequence[tuple[str, bool | int | str]] = (),
        final: bool = False,
    ) -> bool:
        """Send a response, or with neither outputs nor an error only the end.

        Outputs not asked for are dropped. Of a model that is not decoupled every response is the last. Returns False
        when nobody wants it any more. Blocks, without the GIL, while the client is slow.

        Raises
        ------
        Internal
            The request is over, or an output is not the model's.
        """

class LocalInstance(NativeInstance):
    """An instance of a Python model in this process.

    Parameters
    ----------
    name
        As of ``NativeInstance``.
    function
        ``function(requests)``: answers each with ``send``, now or later. What leaves it as an exception fails those
        that are not over. Called on the instance's own thread.
    """

    def __init__(self, name: str, function: Callable[[list[LocalRequest]], object]) -> None: ...
    @property
    def in_flight(self) -> int:
        """Requests that the model has and that are not over."""

    @property
    def executing(self) -> bool: ...
    @property
    def key(self) -> int:
        """As of ``PythonInstance``."""

    @property
    def model_key(self) -> int:
        """As of ``PythonInstance``."""
