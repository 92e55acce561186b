"""DLPack capsules from and to numpy arrays, BF16 among them, by looking into the capsule's struct."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from triton_fast_worker.errors import TritonModelException

_CPU, _CUDA_HOST = 1, 3
_INT, _UINT, _FLOAT, _BFLOAT, _BOOL = 0, 1, 2, 4, 6
_TYPES = {
    (_BOOL, 8): (1, np.bool_), (_UINT, 8): (2, np.uint8), (_UINT, 16): (3, np.uint16), (_UINT, 32): (4, np.uint32),
    (_UINT, 64): (5, np.uint64), (_INT, 8): (6, np.int8), (_INT, 16): (7, np.int16), (_INT, 32): (8, np.int32),
    (_INT, 64): (9, np.int64), (_FLOAT, 16): (10, np.float16), (_FLOAT, 32): (11, np.float32),
    (_FLOAT, 64): (12, np.float64), (_BFLOAT, 16): (14, np.uint16),
}  # fmt: skip


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype = ctypes.c_void_p
_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype = ctypes.c_int
_is_valid.argtypes = (ctypes.py_object, ctypes.c_char_p)


def capsule_of(array: np.ndarray, *, bf16: bool = False) -> Any:
    """Return a capsule over an array; ``bf16``: its 16-bit integers are bfloat16."""
    capsule = array.__dlpack__()
    if bf16:
        _DLTensor.from_address(_pointer(capsule, b"dltensor")).code = _BFLOAT
    return capsule


def array_of(source: Any) -> tuple[np.ndarray, int, Any]:
    """Return (array, datatype number, what keeps its memory) of a capsule or an object with ``__dlpack__``.

    Raises TritonModelException for GPU memory, types Triton does not have, and arrays not in C order.
    """
    if hasattr(source, "__dlpack__") and hasattr(source, "__dlpack_device__"):
        if int(source.__dlpack_device__()[0]) not in (_CPU, _CUDA_HOST):
            raise TritonModelException(
                "DLPack capsule passed pointer to memory allocated on GPU device, when GPU is not available"
            )
        source = source.__dlpack__()
    if not _is_valid(source, b"dltensor"):
        raise TritonModelException(
            "Provided tensor is not supported. Tensor must be a DLPack capsule or have `__dlpack__` and "
            "`__dlpack_device__` attributes"
        )
    tensor = _DLTensor.from_address(_pointer(source, b"dltensor"))
    if tensor.device_type not in (_CPU, _CUDA_HOST):
        raise TritonModelException(f"DLDevice type {tensor.device_type} is not support by Python backend.")
    known = _TYPES.get((tensor.code, tensor.bits)) if tensor.lanes == 1 else None
    if known is None:
        raise TritonModelException("DLDataType is not supported.")
    number, dtype = known
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    if tensor.strides:
        expected = 1
        for i in range(tensor.ndim - 1, -1, -1):
            if shape[i] != 1 and tensor.strides[i] != expected and 0 not in shape:
                raise TritonModelException(
                    "DLPack tensor is not contiguous. Only contiguous DLPack tensors that are stored in C-Order are "
                    "supported."
                )
            expected *= shape[i]
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if size == 0:
        return np.empty(shape, dtype), number, source
    memory = (ctypes.c_char * size).from_address(tensor.data + tensor.byte_offset)
    # The capsule frees the memory when it goes: the array's owner keeps it.
    memory.capsule = source  # type: ignore[attr-defined]
    return np.frombuffer(memory, dtype).reshape(shape), number, source
