"""An instance whose execute is a Python callable, run with the GIL held. Source: sched/pyinstance.pyx."""

from collections.abc import Callable, Mapping, Sequence

from typing_extensions import Buffer

from triton_fast._native.sched.instance import NativeInstance

# input name -> DataType number, shape, read-only memory that is valid during the call only
Request = dict[str, tuple[int, tuple[int, ...], memoryview]]
# output name -> DataType number, shape, bytes (copied); or what fails this request alone
Result = Mapping[str, tuple[int, Sequence[int], Buffer]] | BaseException

class PyInstance(NativeInstance):
    """Adapter from a Python callable to an instance.

    Parameters
    ----------
    function
        Gets the requests of one batch and returns one result for each, in order. Outputs that a request does not want
        are dropped. An exception that leaves the function fails the whole batch: a ``ServerError`` with its code,
        any other as Internal.
    name
        The instance's name.
    """

    def __init__(self, function: Callable[[list[Request]], Sequence[Result]], name: str = "") -> None: ...
