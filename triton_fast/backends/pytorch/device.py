"""A GPU as an instance uses it: one stream, on which copies and the model are queued in order and waited for once.

All that is asked of CUDA stands in ``Gpu`` and ``give_back``, in torch's words; a test puts the CPU in their place.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from triton_fast._native.arrays.pyarrays import room
from triton_fast._native.cuda.copies import wait_stream
from triton_fast.errors import ServerError

if TYPE_CHECKING:
    from triton_fast._native.core.view import BlockView


@dataclass
class Health:
    """Of one GPU in this process. ``lost``: the error after which CUDA refuses everything, until the process ends."""

    lost: str = ""


_lock = threading.Lock()
_health: dict[int, Health] = {}


def health(number: int) -> Health:
    """Return what all models of PyTorch know of a GPU."""
    with _lock:
        return _health.setdefault(number, Health())


class Gpu:
    """One instance's stream on a device. Used by one thread at a time."""

    def __init__(self, torch: Any, device: Any) -> None:
        self._torch = torch
        self.device = device
        self.health = health(device.index)
        self._stream = torch.cuda.Stream(device)
        self._done = torch.cuda.Event(blocking=True)

    def entered(self) -> AbstractContextManager[Any]:
        """Return a context in which this thread's work goes to the stream."""
        stream: AbstractContextManager[Any] = self._torch.cuda.stream(self._stream)
        return stream

    def has(self, tensor: Any) -> bool:
        return bool(tensor.device.type != "cpu")

    def upload(self, tensor: Any) -> Any:
        """Queue a copy to the device; the source may be let go of after ``wait``."""
        return tensor.to(self.device, non_blocking=True)

    def wrap(self, array: Any) -> Any:
        """Return a tensor of bytes over device memory, a copy if that is another device's."""
        return self._torch.as_tensor(array, device=self.device)

    def download(self, tensor: Any) -> tuple[Any, BlockView]:
        """Queue a copy to the host: (the copy, complete after ``wait``; its memory, of the server's pool).

        Memory of the pool is pinned while there is a budget for it; a copy to other memory is waited for at once. None
        comes from torch's own pinned pool: letting go of that ends the process when the GPU is lost.
        """
        view = room(tensor.nbytes)
        if not tensor.nbytes:
            return self._torch.empty(tensor.shape, dtype=tensor.dtype), view
        made = self._torch.frombuffer(view, dtype=tensor.dtype).view(tensor.shape)
        self.copy(made, tensor)
        return made, view

    def copy(self, into: Any, tensor: Any) -> None:
        into.copy_(tensor, non_blocking=True)

    def wait(self) -> None:
        """Return when all that was queued is done; raises what went wrong on the device meanwhile, in torch's words."""
        try:
            # Looks for a moment before it sleeps: waking up takes longer than a small model.
            wait_stream(self.device.index, self._stream.cuda_stream)
        except ServerError:
            self._done.record(self._stream)
            self._done.synchronize()

    def is_alive(self) -> bool:
        """Whether the device still takes work from this process."""
        try:
            self._torch.cuda.synchronize(self.device)
        except Exception:
            return False
        return True

    def clean(self) -> None:
        """Give memory that torch keeps for the next allocation back to the device."""
        with self._torch.cuda.device(self.device):
            self._torch.cuda.empty_cache()


def settle(torch: Any, device: Any) -> None:
    """Wait for what loading has queued: instances use other streams."""
    torch.cuda.synchronize(device)


def give_back(torch: Any, devices: Iterable[Any], modules: Iterable[weakref.ref[Any]]) -> None:
    """Give the memory of models that nobody refers to any more back to their devices."""
    # Graphs of exported programs refer to themselves.
    if any(module() is not None for module in modules):
        gc.collect()
    for device in devices:
        if not health(device.index).lost:
            with torch.cuda.device(device):
                torch.cuda.empty_cache()
