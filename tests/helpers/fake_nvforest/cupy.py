"""A stand-in for the little of ``cupy`` that nvforest and the server use, on the stand-in for libcuda.

Arrays lie in device memory that the CPU can not follow; what does not lie where it should is refused.
"""

from __future__ import annotations

import ctypes
import math
import os
from types import SimpleNamespace
from typing import Any

import numpy as np

from triton_fast._native.cuda import driver

# Where the driver is; tests set it, other processes find it by name.
cuda_path = os.environ.get("FAKE_CUDA_PATH", "libcuda.so.1")
counts = {"cleaned": 0, "synchronized": 0, "allocated": 0}


def library() -> ctypes.CDLL:
    made = ctypes.CDLL(cuda_path)
    made.fake_data.argtypes, made.fake_data.restype = [ctypes.c_uint64], ctypes.c_void_p
    made.cuMemAlloc_v2.argtypes = [ctypes.POINTER(ctypes.c_uint64), ctypes.c_size_t]
    made.cuMemFree_v2.argtypes = [ctypes.c_uint64]
    made.cuPointerGetAttribute.argtypes = [ctypes.POINTER(ctypes.c_int), ctypes.c_int, ctypes.c_uint64]
    return made


def current() -> int:
    """The device of this thread's context, as the runtime has it: 0 where there is none yet."""
    context = ctypes.POINTER(ctypes.c_int)()
    library().cuCtxGetCurrent(ctypes.byref(context))
    return context[0] if context else 0


class OutOfMemoryError(MemoryError):
    """``cupy.cuda.memory.OutOfMemoryError``."""


class Device:
    def __init__(self, device: int) -> None:
        self.id = device
        self._before: list[int] = []

    def use(self) -> None:
        driver.enter(self.id)

    def synchronize(self) -> None:
        counts["synchronized"] += 1
        with self:
            library().cuCtxSynchronize()

    def __enter__(self) -> Device:
        self._before.append(current())
        self.use()
        return self

    def __exit__(self, *_: Any) -> None:
        Device(self._before.pop()).use()


class Memory:
    def __init__(self, n: int) -> None:
        self.address = ctypes.c_uint64()
        self._library = library()
        driver.enter(current())
        if status := self._library.cuMemAlloc_v2(ctypes.byref(self.address), n):
            raise OutOfMemoryError(f"Out of memory allocating {n} bytes (allocated so far: 0 bytes). ({status})")
        counts["allocated"] += 1

    def __del__(self) -> None:
        if self.address.value:
            self._library.cuMemFree_v2(self.address.value)


class ndarray:
    """Contiguous, over memory of its own or of whoever is given."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, address: int, owner: Any) -> None:
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize
        self.flags = SimpleNamespace(c_contiguous=True)
        self._address, self._owner = address, owner

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self._address, False), "strides": None,
                "version": 3}  # fmt: skip

    def host(self) -> Any:
        """What lies in the memory now, as an array that can be written to. Of the stand-in."""
        data = library().fake_data(self._address)
        assert data, f"{self._address:#x} is no device memory"
        buffer = (ctypes.c_uint8 * self.nbytes).from_address(data)
        return np.frombuffer(buffer, self.dtype).reshape(self.shape)


def empty(shape: tuple[int, ...], dtype: Any, order: str = "C") -> ndarray:
    made = np.dtype(dtype)
    memory = Memory(math.prod(shape) * made.itemsize)
    return ndarray(shape, made, memory.address.value, memory)


def asarray(a: Any, dtype: Any = None, order: str | None = None, *, blocking: bool = False) -> ndarray:
    """Of arrays on the device only; another datatype makes a copy."""
    told = a.__cuda_array_interface__
    found = ndarray(told["shape"], np.dtype(told["typestr"]), told["data"][0], a)
    where = ctypes.c_int(-1)
    assert not library().cuPointerGetAttribute(ctypes.byref(where), 9, found._address)
    assert where.value == current(), f"an array of GPU {where.value} is used on GPU {current()}"
    assert found._address % found.dtype.itemsize == 0, "elements lie apart from their alignment"
    if dtype is None or found.dtype == dtype:
        return found
    copy = empty(found.shape, dtype)
    copy.host()[...] = found.host()
    return copy


class _Pool:
    def free_all_blocks(self) -> None:
        counts["cleaned"] += 1


def get_default_memory_pool() -> _Pool:
    return _Pool()


cuda = SimpleNamespace(Device=Device, memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError))
