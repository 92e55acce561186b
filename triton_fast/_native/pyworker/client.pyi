"""The worker's end of the wire to a Python model's worker (docs/python_worker.md), compiled.

Worker processes load this module by file path, without the package. Classes that models see derive from the cores here:
a core holds data and gives access to it; checks, conversions and texts are the subclass's, in `_construct`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any

Message = tuple[int, int, int, int, int]

class Region:
    """The mapped region, the leases of inbound allocations and the outbound heap.

    Raises
    ------
    ValueError
        The descriptor's file is no such region, or its parts do not fit into it.
    """

    wait_s: float
    """Seconds that a message waits for outbound memory; one whose requests are all cancelled waits no longer."""

    def __init__(self, fd: int) -> None: ...
    def lease(self, off: int, n: int) -> Lease:
        """Return a buffer of the inbound allocation at a region offset; ValueError if not in use or less than n."""

    def allocate(self, n: int) -> int:
        """Return the offset of n outbound bytes, in use until the server writes 0 into their word.

        Waits up to ``wait_s``, without the GIL, for the server to read what it has.

        Raises
        ------
        MemoryError
            They do not fit into the heap, or the server read nothing. ``wanted``: bytes of heap with which they would.
        """

    def write(self, off: int, data: Any) -> None:
        """Copy bytes to outbound memory; ValueError if it does not lie in the outbound heap."""

    def trim(self, keep: int) -> None:
        """Give the memory of free outbound allocations back to the system, but for about ``keep`` bytes."""

    def stats(self) -> dict[str, int]:
        """Return used (outbound allocations), bump (bytes ever given out), kept (messages with leases), leases."""

class Lease:
    """A writable buffer of one inbound allocation, whose word is set to 0 when the last view has gone."""

    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class TensorCore:
    """Name, datatype, shape and data of a tensor.

    ``_construct(*arguments)`` of the subclass is called unless the arguments are a str, not empty, and a C-contiguous
    ndarray of a native datatype; it calls `_set` or raises. ``_no_numpy()`` of the subclass raises for BF16, and
    ``_bad_strings(raw, count)`` raises, or returns the array, for serialized strings that do not hold together.
    """

    def __init__(self, *arguments: Any) -> None: ...
    def _set(self, name: str, dtype: int, data: Any, shape: Sequence[int] | None = None) -> None:
        """Take an ndarray, or with ``shape`` any C-contiguous buffer; STRING needs an array of objects.

        Raises
        ------
        ValueError
            Not contiguous, not as many bytes as the shape needs, no such datatype, or the tensor has data already.
        """

    def _raw(self) -> Any:
        """Return the data as an ndarray, BF16 as uint16, STRING serialized as uint8."""

    def name(self) -> str: ...
    def triton_dtype(self) -> int: ...
    def shape(self) -> list[int]: ...
    def is_cpu(self) -> bool: ...
    def as_numpy(self) -> Any:
        """Return the data as an ndarray, always the same one: a view, or for STRING an object array of bytes."""

class RequestCore:
    """What a request says; of the server's, each part is made when it is first asked for."""

    _flags: int
    _release: int

    @property
    def _wanted(self) -> tuple[str, ...]: ...
    @property
    def _slot(self) -> int: ...
    @property
    def _generation(self) -> int: ...
    def _set(self, request_id: str, correlation_id: int | str, inputs: Iterable[TensorCore], wanted: Iterable[str],
             flags: int, timeout: int, params: dict[str, str | int | bool] | None, params_json: str | None,
             trace: str = "") -> None:
        """Take the checked values of a request that a model made."""

    def _trace_text(self) -> str:
        """Return the carrier of the trace as JSON text, "" for none."""

    def inputs(self) -> list[Any]: ...
    def request_id(self) -> str: ...
    def correlation_id(self) -> int | str: ...
    def flags(self) -> int: ...
    def timeout(self) -> int: ...
    def parameters(self) -> str: ...
    def requested_output_names(self) -> set[str]: ...
    def is_cancelled(self) -> bool: ...

class ResponseCore:
    """Outputs, error and parameters of a response.

    ``_construct(output_tensors, error, parameters)`` of the subclass is called unless there is only a list of tensors.
    """

    def __init__(self, output_tensors: Any = (), error: Any = None, parameters: Any = None) -> None: ...
    def _set(self, tensors: Iterable[TensorCore], error: Any, params: dict[str, str | int | bool] | None,
             params_json: str | None) -> None:
        """Take checked values; ``error`` is None or has ``code()`` and ``message()``."""

    def output_tensors(self) -> list[Any]: ...
    def has_error(self) -> bool: ...
    def error(self) -> Any: ...
    def parameters(self) -> str: ...

class Transport:
    """A worker's region and rings. The descriptors are those of the worker's command line and stay the caller's.

    ``spin_us``: how long to look for a message before sleeping; None: 20, or 0 on one processor.
    """

    @property
    def region(self) -> Region: ...
    def __init__(self, region_fd: int, work_fd: int, answers_fd: int, done_fd: int, events_fd: int, *,
                 spin_us: float | None = None) -> None: ...
    def bind(self, tensor: type[TensorCore], request: type[RequestCore], response: type[ResponseCore],
             error: Callable[[str, int], Any] | None, inputs: Iterable[str], outputs: Iterable[str]) -> None:
        """Set the classes to make, and the names of inputs and outputs in the config's order."""

    def wait_work(self) -> Message:
        """Wait for work; return (kind, id, off, len, arg). Signals are handled; RuntimeError if the ring lies."""

    def take_answer(self, timeout: float | None = None) -> Message | None:
        """The same for an answer; None after ``timeout`` seconds. One thread at a time."""

    def publish_done(self, batch: int, off: int = 0, n: int = 0) -> None:
        """Say that an execution is done. Waits without the GIL while the ring is full; any thread may."""

    def publish_event(self, kind: int, call: int = 0, off: int = 0, n: int = 0) -> None:
        """Publish an event. Waits without the GIL while the ring is full; any thread may."""

    def answer(self, batch: int, requests: list[Any], responses: Any) -> None:
        """`encode_done` and `publish_done` in one."""

    def is_cancelled(self, slot: int, generation: int) -> bool: ...
    def is_held(self, slot: int, generation: int) -> bool:
        """Return whether the server wants no further response of the request now."""

    def wait_hold(self, slot: int, generation: int) -> None:
        """Wait, without the GIL, until it takes one."""

def decode_batch(transport: Transport, off: int, n: int) -> list[Any]:
    """Return the requests of an execution; ValueError if the payload does not hold together."""

def decode_answer(transport: Transport, off: int, n: int) -> tuple[Any, bool]:
    """Return (response or None, whether it is the last) of an answer; ValueError as above."""

def encode_done(transport: Transport, requests: list[Any], responses: Any) -> tuple[int, int]:
    """Put responses into outbound memory; return offset and bytes for `Transport.publish_done`.

    None stands for a request that its sender answers, or with ``_release`` 2 for a rescheduled one. Outputs of 16 KiB
    and more that lie in memory the server sent are not copied; that memory is kept until the server has released the
    message.

    Raises
    ------
    TypeError
        Not a list of as many responses or None as there are requests.
    """

def encode_failure(transport: Transport, code: int, text: str) -> tuple[int, int]:
    """The same for an execution that failed as a whole."""

def encode_response(transport: Transport, slot: int, generation: int, response: ResponseCore | None,
                    wanted: Container[str] | None, flags: int, may_wait: bool = True) -> tuple[int, int]:
    """The same for a sender's response; None carries only the flags. ``wanted``: the outputs that go, None for all.

    ``may_wait``: for memory; False raises MemoryError at once.
    """

def encode_bls(transport: Transport, request: RequestCore, model: str, version: int, options: int,
               parent_slot: int = 0, parent_generation: int = 0) -> tuple[int, int]:
    """The same for a request to another model."""

def fork_sibling() -> int:
    """Copy this process; return 0 in the copy and its number here. The copy is a child of this process's parent.

    Python's own handlers of forks run, those of C libraries do not: none may have anything to tell a copy.

    Raises
    ------
    RuntimeError
        There are other threads.
    OSError
        The system can not do this.
    """

def get_input_tensor_by_name(inference_request: RequestCore, name: str) -> Any:
    """Return the input tensor of that name, or None."""

def get_output_tensor_by_name(inference_response: ResponseCore, name: str) -> Any:
    """Return the output tensor of that name, or None."""

def decode_bytes(buffer: Any, count: int = -1) -> Any:
    """Return the serialized strings of a buffer as a 1-D object array of bytes.

    Raises
    ------
    ValueError
        Lengths do not fit, or there are not ``count`` (-1: any number) strings.
    """

def encode_bytes(array: Any) -> bytes:
    """Return an array's elements in serialized form, in C order: bytes as they are, others as UTF-8 of ``str()``."""
