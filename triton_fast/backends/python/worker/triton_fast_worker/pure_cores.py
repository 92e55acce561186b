"""The cores in pure Python: the same members as the compiled client's, and constructors for what a transport received.

``_construct(...)`` of the classes gets the arguments of a constructor; it calls ``_set`` or raises.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from .byte_tensors import decode_bytes
from .dtypes import BF16, BYTES, STORAGE

_new_array = np.ndarray
# (buffer, count) -> 1-D object array; a process that has a faster one says so.
_decode: Any = decode_bytes


def use_decoder(decoder: Any) -> None:
    global _decode  # noqa: PLW0603
    _decode = decoder


class TensorCore:
    """Over an array, or by ``over`` over memory that somebody else owns: a view of it is made when it is asked for."""

    # _array: what as_numpy returns, None until it is wanted. _owner: an object with the buffer interface, whose bytes
    # from _offset are the tensor; a view keeps it.
    __slots__ = ("_array", "_dims", "_dtype", "_name", "_nbytes", "_offset", "_owner")

    _name: str
    _dtype: int
    _dims: Any
    _array: Any
    _owner: Any
    _offset: int
    _nbytes: int

    def __init__(self, *arguments: Any) -> None:
        self._construct(*arguments)

    def _construct(self, *arguments: Any) -> None:
        raise NotImplementedError

    def _no_numpy(self) -> Any:
        raise NotImplementedError

    def _set(self, name: str, dtype: int, data: Any) -> None:
        """Take a C-contiguous array, of uint16 for BF16."""
        self._name = name
        self._dtype = dtype
        self._array = None if dtype == BF16 else data
        self._dims = data.shape
        self._owner = data
        self._offset = 0
        self._nbytes = data.nbytes

    @classmethod
    def over(cls, name: str, dtype: int, dims: Any, owner: Any, offset: int, nbytes: int) -> Any:
        """A tensor over ``owner[offset:offset + nbytes]``; BYTES are in their serialized form there."""
        self = cls.__new__(cls)
        self._name = name
        self._dtype = dtype
        self._dims = dims
        self._array = None
        self._owner = owner
        self._offset = offset
        self._nbytes = nbytes
        return self

    def name(self) -> str:
        return self._name

    def triton_dtype(self) -> int:
        return self._dtype

    def shape(self) -> list[int]:
        return list(self._dims)

    def is_cpu(self) -> bool:
        return True

    def as_numpy(self) -> Any:
        array = self._array
        if array is None:
            dtype = self._dtype
            if dtype == BYTES:
                count = 1
                for extent in self._dims:
                    count *= extent
                array = _decode(self._bytes(), count).reshape(self._dims)
            elif dtype == BF16:
                return self._no_numpy()
            else:
                array = _new_array(self._dims, STORAGE[dtype], self._owner, self._offset)
            self._array = array
        return array

    def bits(self) -> Any:
        """The numpy memory to send, C-contiguous, BF16 as uint16; an array of objects for BYTES."""
        if self._dtype == BF16:
            return _new_array(self._dims, STORAGE[BF16], self._owner, self._offset)
        return self.as_numpy()

    # The compiled core's name for it; nobody asks for that of BYTES.
    _raw = bits

    def serialized(self) -> Any | None:
        """The serialized form of BYTES that came so and need not be encoded again, else None."""
        # After as_numpy() the model may have written into the array.
        return self._bytes() if self._array is None else None

    def _bytes(self) -> Any:
        return _new_array((self._nbytes,), np.uint8, self._owner, self._offset)


class RequestCore:
    """``_ticket`` and ``_runtime`` are None for a request that the model made."""

    __slots__ = (
        "_correlation", "_flags", "_id", "_inputs", "_parameters", "_release", "_runtime", "_ticket", "_timeout",
        "_trace", "_wanted",
    )  # fmt: skip

    def _set(
        self, request_id: str, correlation: Any, inputs: list[Any], wanted: frozenset[str], flags: int, timeout: int,
        params: dict[str, Any] | None, params_json: str, trace: str,
    ) -> None:  # fmt: skip
        self._id = request_id
        self._correlation = correlation
        self._inputs = inputs
        self._wanted = wanted
        self._flags = flags
        self._timeout = timeout
        self._parameters: Any = params
        self._trace = trace
        self._ticket: Any = None
        self._runtime: Any = None
        self._release = 1

    @classmethod
    def received(
        cls, runtime: Any, ticket: Any, inputs: list[Any], wanted: frozenset[str], request_id: str, correlation: Any,
        flags: int, timeout: int, parameters: str, trace: str,
    ) -> Any:  # fmt: skip
        """A request for execute; ``parameters`` is JSON text, "" for none."""
        self = cls.__new__(cls)
        self._runtime = runtime
        self._ticket = ticket
        self._inputs = inputs
        self._wanted = wanted
        self._id = request_id
        self._correlation = correlation
        self._flags = flags
        self._timeout = timeout
        self._parameters = parameters
        self._trace = trace
        self._release = 1
        return self

    def _trace_text(self) -> str:
        return self._trace

    def inputs(self) -> list[Any]:
        return list(self._inputs)

    def request_id(self) -> str:
        return self._id

    def correlation_id(self) -> Any:
        return self._correlation

    def flags(self) -> int:
        return self._flags

    def timeout(self) -> int:
        return self._timeout

    def parameters(self) -> str:
        return parameters_text(self._parameters)

    def requested_output_names(self) -> set[str]:
        return set(self._wanted)

    def is_cancelled(self) -> bool:
        return self._runtime is not None and bool(self._runtime.cancelled(self._ticket))


class ResponseCore:
    __slots__ = ("_error", "_outputs", "_parameters")

    def __init__(self, output_tensors: Any = (), error: Any = None, parameters: Any = None) -> None:
        self._construct(output_tensors, error, parameters)

    def _construct(self, output_tensors: Any, error: Any, parameters: Any) -> None:
        raise NotImplementedError

    def _set(self, tensors: list[Any], error: Any, params: dict[str, Any] | None, params_json: str) -> None:
        self._outputs = tensors
        self._error = error
        self._parameters: Any = params

    def output_tensors(self) -> list[Any]:
        return list(self._outputs)

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> Any:
        return self._error

    def parameters(self) -> str:
        return parameters_text(self._parameters)


def parameters_text(parameters: Any) -> str:
    """The JSON text that parameters() returns; what came from the server is text already."""
    return parameters if isinstance(parameters, str) and parameters else json.dumps(parameters or {})
