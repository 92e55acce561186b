"""Tensor: a name, a datatype and numpy memory. Inputs are views, made when as_numpy() asks for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import dlpack
from .byte_tensors import decode_bytes
from .dtypes import BF16, BYTES, STORAGE, number_of
from .errors import BINDING, TritonModelException, incompatible

NO_NAME = "Tensor name cannot be an empty string."
_new_array = np.ndarray

# The seam for the compiled client's decoder: (buffer, count) -> 1-D object array.
_decode = decode_bytes


def use_decoder(decoder: Any) -> None:
    global _decode  # noqa: PLW0603
    _decode = decoder


class Tensor:
    """Constructed with an array, or by ``over`` with memory that somebody else owns."""

    __module__ = BINDING
    # _array: what as_numpy returns, None until it is wanted. _owner: an object with the buffer interface, whose bytes
    # from _offset are the tensor; a view keeps it.
    __slots__ = ("__weakref__", "_array", "_dims", "_dtype", "_name", "_nbytes", "_offset", "_owner")

    _name: str
    _dtype: int
    _dims: Any
    _array: Any
    _owner: Any
    _offset: int
    _nbytes: int

    def __init__(self, *args: Any) -> None:
        if len(args) != 2 or not isinstance(args[0], str) or not isinstance(args[1], np.ndarray):
            raise incompatible("__init__", f"{BINDING}.Tensor(arg0: str, arg1: numpy.ndarray)", *args)
        name, array = args
        if not name:
            raise TritonModelException(NO_NAME)
        self._dtype = number_of(array.dtype)
        if not array.flags.c_contiguous:
            array = np.ascontiguousarray(array)
        self._name = name
        self._array = array
        self._dims = array.shape
        self._owner = None
        self._offset = 0
        self._nbytes = array.nbytes

    @staticmethod
    def over(name: str, dtype: int, dims: Any, owner: Any, offset: int, nbytes: int) -> Tensor:
        """A tensor over ``owner[offset:offset + nbytes]``; BYTES are in their serialized form there."""
        self = Tensor.__new__(Tensor)
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
                array = _decode(self._raw(), self._count()).reshape(self._dims)
            elif dtype == BF16:
                raise TritonModelException(
                    "Tensor dtype is BF16 and cannot be converted to NumPy. Use to_dlpack() and from_dlpack() instead."
                )
            else:
                array = _new_array(self._dims, STORAGE[dtype], self._owner, self._offset)
            self._array = array
        return array

    def to_dlpack(self) -> Any:
        if self._dtype == BYTES:
            raise TritonModelException("DLPack does not have support for string tensors.")
        return dlpack.export(self.bits(), self._dtype)

    def __dlpack__(self, stream: Any = None, **wishes: Any) -> Any:
        # Wishes (max_version, dl_device, copy) are of newer consumers, which take an unversioned capsule as well.
        return self.to_dlpack()

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CPU, 0

    @staticmethod
    def from_dlpack(name: str, tensor: Any) -> Tensor:
        if not isinstance(name, str):
            raise incompatible("from_dlpack", f"(arg0: str, arg1: object) -> {BINDING}.Tensor", name, tensor)
        if not name:
            raise TritonModelException(NO_NAME)
        dtype, dims, owner = dlpack.borrow(tensor)
        return Tensor.over(name, dtype, dims, owner, 0, owner.nbytes)

    def bits(self) -> Any:
        """For transports: the numpy memory to send, C-contiguous, BF16 as uint16; an array of objects for BYTES."""
        if self._dtype == BF16:
            return _new_array(self._dims, STORAGE[BF16], self._owner, self._offset)
        return self.as_numpy()

    def serialized(self) -> Any | None:
        """For transports: the serialized form of BYTES that came so and need not be encoded again, else None."""
        # After as_numpy() the model may have written into the array.
        return self._raw() if self._array is None else None

    def _raw(self) -> Any:
        return _new_array((self._nbytes,), np.uint8, self._owner, self._offset)

    def _count(self) -> int:
        count = 1
        for extent in self._dims:
            count *= extent
        return count
