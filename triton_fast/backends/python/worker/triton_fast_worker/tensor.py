"""Tensor: a name, a datatype and numpy memory; where it lies is the core's business."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import dlpack
from .byte_tensors import decode_bytes
from .cores import TensorCore
from .dtypes import BYTES, STORAGE, number_of
from .errors import BINDING, TritonModelException, incompatible

NO_NAME = "Tensor name cannot be an empty string."


class Tensor(TensorCore):
    __module__ = BINDING
    __slots__ = ("__weakref__",)

    def _construct(self, *args: Any) -> None:
        if len(args) != 2 or not isinstance(args[0], str) or not isinstance(args[1], np.ndarray):
            raise incompatible("__init__", f"{BINDING}.Tensor(arg0: str, arg1: numpy.ndarray)", *args)
        name, array = args
        if not name:
            raise TritonModelException(NO_NAME)
        dtype = number_of(array.dtype)
        self._set(name, dtype, array if array.flags.c_contiguous else np.ascontiguousarray(array))

    def _no_numpy(self) -> Any:
        raise TritonModelException(
            "Tensor dtype is BF16 and cannot be converted to NumPy. Use to_dlpack() and from_dlpack() instead."
        )

    @staticmethod
    def _bad_strings(raw: Any, count: int) -> Any:
        return decode_bytes(raw, count)

    def to_dlpack(self) -> Any:
        dtype = self.triton_dtype()
        if dtype == BYTES:
            raise TritonModelException("DLPack does not have support for string tensors.")
        return dlpack.export(self._raw(), dtype)

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
        made = Tensor.__new__(Tensor)
        made._set(name, dtype, np.ndarray(dims, STORAGE[dtype], owner))
        return made
