"""DLPack in both directions over ctypes: numpy makes capsules, their dtype is put right where numpy has none."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from .dtypes import BF16, BOOL, BYTES, FP16, FP32, FP64, INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64
from .errors import TritonModelException

CPU, CUDA, CUDA_HOST = 1, 2, 3
_NAME = b"dltensor"
# The capsule keeps the pointer to its name.
_USED = b"used_dltensor"
_KINDS = {
    (0, 8): INT8, (0, 16): INT16, (0, 32): INT32, (0, 64): INT64, (1, 8): UINT8, (1, 16): UINT16, (1, 32): UINT32,
    (1, 64): UINT64, (2, 16): FP16, (2, 32): FP32, (2, 64): FP64, (4, 16): BF16, (6, 8): BOOL,
}  # fmt: skip
_BFLOAT, _BOOLEAN = 4, 6
NOT_CONTIGUOUS = (
    "DLPack tensor is not contiguous. Only contiguous DLPack tensors that are stored in C-Order are supported."
)


class _Tensor(ctypes.Structure):
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


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype = ctypes.c_void_p
_pointer_of.argtypes = (ctypes.py_object, ctypes.c_char_p)
_rename = ctypes.pythonapi.PyCapsule_SetName
_rename.restype = ctypes.c_int
_rename.argtypes = (ctypes.py_object, ctypes.c_char_p)
_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _managed(capsule: Any) -> _Managed:
    return _Managed.from_address(_pointer_of(capsule, _NAME))


def export(array: Any, dtype: int) -> Any:
    """A capsule over the memory of ``array``, which it keeps; BF16 comes as uint16."""
    if dtype not in (BF16, BOOL):
        return array.__dlpack__()
    # numpy has no BF16, and not every numpy exports booleans: export the bits and say what they are.
    capsule = (array.view(np.uint8) if dtype == BOOL else array).__dlpack__()
    _managed(capsule).tensor.code = _BFLOAT if dtype == BF16 else _BOOLEAN
    return capsule


class _Borrowed:
    """Owns a consumed DLManagedTensor; numpy sees the memory through the interface and keeps this object."""

    __slots__ = ("__array_interface__", "_address")

    def __init__(self, address: int, data: int, nbytes: int) -> None:
        self._address = address
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (nbytes,), "data": (data, False)}

    def __del__(self) -> None:
        deleter = _Managed.from_address(self._address).deleter
        if deleter:
            _Deleter(deleter)(self._address)


def _capsule_of(source: Any) -> Any:
    if type(source).__name__ == "PyCapsule":
        return source
    if not hasattr(source, "__dlpack__") or not hasattr(source, "__dlpack_device__"):
        raise TritonModelException(
            "Provided tensor is not supported. Tensor must be a DLPack capsule         or have `__dlpack__` and "
            "`__dlpack_device__` attributes"
        )
    device = int(source.__dlpack_device__()[0])
    if device == CUDA:
        raise TritonModelException(
            "DLPack capsule passed pointer to memory allocated on GPU device,           when GPU is not available"
        )
    if device not in (CPU, CUDA_HOST):
        raise TritonModelException(f"DLDevice type {device} is not support by Python backend.")
    return source.__dlpack__(stream=None)


def borrow(source: Any) -> tuple[int, list[int], Any]:
    """Datatype, shape and the bytes (a uint8 array that owns them) of a capsule or an object that makes one."""
    capsule = _capsule_of(source)
    managed = _managed(capsule)
    tensor = managed.tensor
    shape = [int(tensor.shape[i]) for i in range(tensor.ndim)]
    if tensor.strides and 0 not in shape:
        expected = 1
        # As in Triton the outermost stride is not looked at: it does not matter to a dense tensor.
        for i in range(tensor.ndim - 1, 0, -1):
            if shape[i] != 1:
                if tensor.strides[i] != expected:
                    raise TritonModelException(NOT_CONTIGUOUS)
                expected *= shape[i]
    if tensor.device_type == CUDA:
        raise TritonModelException("Python backend does not support GPU tensors.")
    if tensor.device_type not in (CPU, CUDA_HOST):
        raise TritonModelException(f"DLDevice type {tensor.device_type} is not support by Python backend.")
    dtype = _KINDS.get((tensor.code, tensor.bits)) if tensor.lanes == 1 else None
    if dtype is None or dtype == BYTES:
        raise TritonModelException("Dtype is invalid.")
    nbytes = tensor.bits // 8
    for extent in shape:
        nbytes *= extent
    data = (tensor.data or 0) + tensor.byte_offset
    _rename(capsule, _USED)
    owner = _Borrowed(ctypes.addressof(managed), data, nbytes)
    return dtype, shape, np.asarray(owner) if nbytes else np.empty(0, np.uint8)
