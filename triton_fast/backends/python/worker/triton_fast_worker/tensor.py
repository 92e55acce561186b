"""``Tensor``: a named array, of the model's or of the server's memory."""

from __future__ import annotations

from typing import Any, Optional

import numpy as np

from triton_fast_worker import dlpack
from triton_fast_worker.errors import TritonModelException
from triton_fast_worker.strings import decode_bytes

BF16 = 14
STRING = 13
# By number of inference.DataType; BF16 has no numpy type and is kept as its bits.
NUMPY: tuple[Any, ...] = (
    None, np.dtype(np.bool_), np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.uint32), np.dtype(np.uint64),
    np.dtype(np.int8), np.dtype(np.int16), np.dtype(np.int32), np.dtype(np.int64), np.dtype(np.float16),
    np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.object_), np.dtype(np.uint16),
)  # fmt: skip
_NUMBERS = {dtype: number for number, dtype in enumerate(NUMPY[:STRING]) if dtype is not None}


def number_of(dtype: np.dtype) -> Optional[int]:
    """Return the number of a numpy type; STRING for objects, bytes and text; None for what Triton does not have."""
    number = _NUMBERS.get(dtype)
    if number is None and (dtype == np.object_ or dtype.kind in "SU"):
        return STRING
    return number


class Tensor:
    """An input or output.

    Parameters
    ----------
    name : str
    tensor : numpy.ndarray
        Kept as it is when it is C-contiguous, else copied. Objects, bytes and text become BYTES.
    """

    __slots__ = ("_array", "_buffer", "_dtype", "_name", "_owner", "_shape")

    def __init__(self, name: str, tensor: Any) -> None:
        if not isinstance(name, str):
            raise TypeError(f"Tensor name must be a string, found type {type(name)}")
        if name == "":
            raise TritonModelException("Tensor name cannot be an empty string.")
        if not isinstance(tensor, np.ndarray):
            raise TritonModelException(
                f"Tensor '{name}' must be made of a numpy array, found type {type(tensor)}"
            )
        number = number_of(tensor.dtype)
        if number is None:
            raise TritonModelException("NumPy dtype is not supported.")
        self._name = name
        self._array = tensor if tensor.flags.c_contiguous else np.ascontiguousarray(tensor)
        self._dtype = number
        self._shape = tensor.shape
        self._buffer = None
        self._owner = None

    @classmethod
    def _from_buffer(cls, name: str, dtype: int, shape: tuple[int, ...], buffer: Any) -> Tensor:
        """Return a tensor over serialized data: views of them, but for BYTES."""
        made = cls.__new__(cls)
        made._name = name
        made._dtype = dtype
        made._shape = shape
        made._buffer = buffer
        made._owner = None
        made._array = None
        return made

    def name(self) -> str:
        return self._name

    def triton_dtype(self) -> int:
        return self._dtype

    def shape(self) -> list[int]:
        return list(self._shape)

    def is_cpu(self) -> bool:
        return True

    def as_numpy(self) -> np.ndarray:
        """Return the data; BYTES as an object array of ``bytes``, anything else without a copy."""
        if self._dtype == BF16:
            raise TritonModelException(
                "Tensor dtype is BF16 and cannot be converted to NumPy. Use to_dlpack() and from_dlpack() instead."
            )
        return self._numpy()

    def _numpy(self) -> np.ndarray:
        array = self._array
        if array is None:
            if self._dtype == STRING:
                array = decode_bytes(self._buffer).reshape(self._shape)
            else:
                array = np.ndarray(self._shape, NUMPY[self._dtype], self._buffer)
            self._array = array
        return array

    def __dlpack__(self, stream: Any = None, **options: Any) -> Any:
        return self.to_dlpack()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def to_dlpack(self) -> Any:
        """Return a DLPack capsule over the data."""
        if self._dtype == STRING:
            raise TritonModelException("DLPack does not have support for string tensors.")
        return dlpack.capsule_of(self._numpy(), bf16=self._dtype == BF16)

    @staticmethod
    def from_dlpack(name: str, tensor: Any) -> Tensor:
        """Return a tensor over the memory of a DLPack capsule or of an object that makes one."""
        if name == "":
            raise TritonModelException("Tensor name cannot be an empty string.")
        array, dtype, owner = dlpack.array_of(tensor)
        made = Tensor.__new__(Tensor)
        made._name = name
        made._dtype = dtype
        made._shape = array.shape
        made._buffer = None
        made._array = array
        made._owner = owner
        return made
