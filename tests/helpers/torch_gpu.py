"""A GPU that is the CPU: copies to the host are done when somebody waits for them, and not before; faults on demand.

Knows what the backend asks of a GPU (backends/pytorch/device.py), no model.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import torch

from triton_fast.backends.pytorch.device import Gpu, Health


class StandIn(Gpu):
    """``did``: what was asked of it, in order. ``fault``: raised by the next wait; ``dead``: it takes no more work."""

    def __init__(self) -> None:
        self._torch = torch
        self.device = torch.device("cpu")
        self.health = Health()
        self.did: list[str] = []
        self.fault: Exception | None = None
        self.dead = False
        self._queued: list[Callable[[], object]] = []

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        self.did.append("enter")
        yield
        self.did.append("leave")

    def has(self, tensor: Any) -> bool:
        return True

    def upload(self, tensor: Any) -> Any:
        self.did.append("upload")
        return tensor.clone()

    def wrap(self, array: Any) -> Any:
        self.did.append("wrap")
        start, _ = array.__cuda_array_interface__["data"]
        assert array.__cuda_array_interface__["shape"] == (len(array),)
        return torch.frombuffer((ctypes.c_uint8 * len(array)).from_address(start), dtype=torch.uint8)

    def copy(self, into: Any, tensor: Any) -> None:
        self.did.append("download")
        into.view(torch.uint8).fill_(0xA5)
        self._queued.append(lambda: into.copy_(tensor))

    def wait(self) -> None:
        self.did.append("wait")
        queued, self._queued = self._queued, []
        fault, self.fault = self.fault, None
        if fault is not None:
            raise fault
        for copy in queued:
            copy()

    def is_alive(self) -> bool:
        return not self.dead

    def clean(self) -> None:
        self.did.append("clean")
