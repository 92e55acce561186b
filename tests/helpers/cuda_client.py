"""A client's memory of a GPU: allocated in this process with the stand-in for CUDA, given to a server by its IPC handle.

Knows no server. The driver of this process must be the stand-in (standin_cuda.opened).
"""

from __future__ import annotations

import base64
from types import TracebackType

from tests.helpers.standin_cuda import StandIn
from triton_fast._native.cuda import ipc
from triton_fast._native.cuda.device_pool import DeviceMemory


class Memory:
    """``size`` bytes of device memory, at least those asked for, all of them 0xEE at first."""

    def __init__(self, fake: StandIn, nbytes: int, device: int = 0) -> None:
        self._fake = fake
        self._memory: DeviceMemory | None = DeviceMemory(device, nbytes)
        self._address = self._memory.address
        self.size = self._memory.size
        self.device = device
        self.handle = ipc.export(device, self._address)
        self.write(b"\xee" * self.size)

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._memory = None

    @property
    def raw_handle(self) -> bytes:
        """The handle as tritonclient takes it: in base64."""
        return base64.b64encode(self.handle)

    def write(self, data: bytes, offset: int = 0) -> None:
        assert offset + len(data) <= self.size
        if data:
            self._fake.poke(self._address + offset, data)

    def read(self, size: int, offset: int = 0) -> bytes:
        return self._fake.peek(self._address + offset, size)
