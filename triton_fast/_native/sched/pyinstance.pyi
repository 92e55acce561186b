"""An instance whose execute is a Python callable, run with the GIL held. Source: sched/pyinstance.pyx."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import EllipsisType

from typing_extensions import Buffer

from triton_fast._native.sched.instance import NativeInstance

# input name -> DataType number, shape, read-only memory that is valid during the execution only
Request = dict[str, tuple[int, tuple[int, ...], memoryview]]
# output name -> DataType number, shape, bytes (copied); or what fails this request alone
Result = Mapping[str, tuple[int, Sequence[int], Buffer]] | BaseException
# of a decoupled model: responses before the final one; of an iterative one: executed again
Results = list[Result] | Iterator[Result] | EllipsisType

class PyInstance(NativeInstance):
    """Adapter from a Python callable to an instance.

    Parameters
    ----------
    function
        Gets the requests of one batch and returns one result for each, in order. Outputs that a request does not want
        are dropped. An exception that leaves the function fails the whole batch: a ``ServerError`` with its code,
        any other as Internal. For a decoupled model a result may be a list or an iterator: each item is sent as it
        comes, and the final response is what a generator returns or raises, else it is empty. When the request is
        cancelled, the generator is closed. A list or an iterator fails the request of any other model. Of an iterative
        model ``...``, as a result or as what a generator returns, has the request executed again.
    name
        The instance's name.
    """

    def __init__(self, function: Callable[[list[Request]], Sequence[Result | Results]], name: str = "") -> None: ...
