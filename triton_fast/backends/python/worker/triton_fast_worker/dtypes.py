"""The numbers of Triton's datatypes as numpy dtypes, and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import TritonModelException

BOOL, UINT8, UINT16, UINT32, UINT64, INT8, INT16, INT32, INT64, FP16, FP32, FP64, BYTES, BF16 = range(1, 15)

NUMPY: dict[int, Any] = {
    BOOL: np.bool_,
    UINT8: np.uint8,
    UINT16: np.uint16,
    UINT32: np.uint32,
    UINT64: np.uint64,
    INT8: np.int8,
    INT16: np.int16,
    INT32: np.int32,
    INT64: np.int64,
    FP16: np.float16,
    FP32: np.float32,
    FP64: np.float64,
    BYTES: np.object_,
}
# BF16 has no numpy type: its bits.
STORAGE = {number: np.dtype(kind) for number, kind in NUMPY.items()}
STORAGE[BF16] = np.dtype(np.uint16)
_NUMBERS = {dtype: number for number, dtype in STORAGE.items() if number != BF16}


def number_of(dtype: Any) -> int:
    """The number of an array's dtype; byte strings of any width are BYTES."""
    number: int | None = _NUMBERS.get(dtype)
    if number is not None:
        return number
    if dtype.type is np.bytes_:
        return BYTES
    # C's long and long long are distinct types of one width.
    for candidate, number in _NUMBERS.items():
        if candidate == dtype:
            return number
    raise TritonModelException("NumPy dtype is not supported.")
