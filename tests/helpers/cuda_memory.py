"""A client's memory on a real GPU, by the CUDA runtime: allocated, written, read, exported. And tritonclient's helpers
for it, which ask for parts of cuda-python and setuptools that new releases have elsewhere. Knows no server.

What it makes needs cuda-bindings and a GPU.
"""

from __future__ import annotations

import base64
import ctypes
import importlib
import importlib.util
import sys
from types import ModuleType, TracebackType
from typing import Any

import numpy as np

# A client in a process of its own, ``python -c CLIENT <size>``: says its handle in base64 and keeps the memory until
# the end of its input; after a line "free" it gives the memory back and says so.
CLIENT = """
import sys
from tests.helpers.cuda_memory import DeviceBytes
memory = DeviceBytes(int(sys.argv[1]))
print(memory.raw_handle.decode(), flush=True)
for line in sys.stdin:
    memory.free()
    print("freed", flush=True)
"""


def bindings(name: str) -> Any:
    """Return ``runtime`` or ``driver`` of cuda-bindings, whatever release of it there is."""
    old = {"runtime": "cudart", "driver": "cuda"}[name]
    for module in (f"cuda.bindings.{name}", f"cuda.{old}"):
        try:
            return importlib.import_module(module)
        except ImportError:
            continue
    raise ImportError("there is no cuda-bindings")


def call(function: Any, *arguments: Any) -> Any:
    """Call the runtime and return what it gives besides its status."""
    status, *given = function(*arguments)
    assert int(status) == 0, f"{function.__name__}: {status}"
    return given[0] if len(given) == 1 else tuple(given)


class DeviceBytes:
    """``size`` bytes from cudaMalloc."""

    def __init__(self, size: int) -> None:
        self._runtime = bindings("runtime")
        self.size = size
        self.address = int(call(self._runtime.cudaMalloc, size))
        self.write(b"\xee" * size)

    def __enter__(self) -> DeviceBytes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.free()

    @property
    def raw_handle(self) -> bytes:
        return raw_handle(self.address)

    def write(self, data: bytes, offset: int = 0) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        if data:
            origin = np.frombuffer(data, np.uint8).ctypes.data
            call(self._runtime.cudaMemcpy, self.address + offset, origin, len(data), kind)
        call(self._runtime.cudaDeviceSynchronize)

    def read(self, size: int, offset: int = 0) -> bytes:
        into = (ctypes.c_char * max(size, 1))()
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        call(self._runtime.cudaMemcpy, ctypes.addressof(into), self.address + offset, size, kind)
        return bytes(into)[:size]

    def free(self) -> None:
        if self.address:
            call(self._runtime.cudaFree, self.address)
        self.address = 0


def raw_handle(address: int) -> bytes:
    """Return the IPC handle of the allocation that an address lies in, in base64. It names the allocation's begin."""
    return base64.b64encode(bytes(call(bindings("runtime").cudaIpcGetMemHandle, address).reserved))


def allocation(address: int) -> tuple[int, int]:
    """Return where the allocation begins that an address lies in, and its size."""
    driver = bindings("driver")
    base, size = call(driver.cuMemGetAddressRange, driver.CUdeviceptr(address))
    return int(base), int(size)


def client_helpers() -> Any:
    """Return tritonclient.utils.cuda_shared_memory."""
    cuda = importlib.import_module("cuda")
    for old, new in (("cudart", "runtime"), ("cuda", "driver")):
        if importlib.util.find_spec(f"cuda.{old}") is None:
            sys.modules[f"cuda.{old}"] = bindings(new)
            setattr(cuda, old, sys.modules[f"cuda.{old}"])
    if importlib.util.find_spec("pkg_resources") is None:
        sys.modules.setdefault("pkg_resources", ModuleType("pkg_resources"))
    return importlib.import_module("tritonclient.utils.cuda_shared_memory")
