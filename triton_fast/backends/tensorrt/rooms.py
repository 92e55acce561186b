"""Outputs whose shapes depend on data: TensorRT asks for their memory during a run and tells the shape before its end.

Knows TensorRT's ``IOutputAllocator`` and instances; no config.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from triton_fast._native.tensorrt.instance import TrtInstance
from triton_fast.backends.tensorrt import library


def make_room(instance: TrtInstance, output: int) -> Any:
    """Return the ``IOutputAllocator`` of an output."""
    return _room_class()(partial(instance.output_room, output))


@cache
def _room_class() -> type:
    trt = library.module()

    class Room(trt.IOutputAllocator):  # type: ignore[misc, name-defined]
        """Called by TensorRT while it queues a run; must never raise. An address of 0 refuses."""

        def __init__(self, give: Callable[[int], int]) -> None:
            super().__init__()
            self._give = give
            self._shape: tuple[int, ...] | None = None

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            try:
                return self._give(size)
            except Exception:  # an exception would end the process
                return 0

        def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            return self.reallocate_output(tensor_name, memory, size, alignment)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self._shape = tuple(shape)

        def take(self) -> tuple[int, ...] | None:
            shape, self._shape = self._shape, None
            return shape

    return Room
