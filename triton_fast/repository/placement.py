"""Which of the server's GPUs a model's backend can use, as it is installed; asked where there are GPUs only.

Knows backends by name, no config.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from triton_fast.backends.base import Backend
from triton_fast.errors import ServerError


class Placement(NamedTuple):
    """``usable``: ids of the GPUs for the model's instances. ``no_gpu``: why there are none, where that can be said."""

    usable: tuple[int, ...] = ()
    no_gpu: str = ""

    @property
    def on_gpu(self) -> bool:
        return bool(self.usable)


def of_backend(backend: Backend, gpus: Sequence[int]) -> Placement:
    """Return what a backend can use of those GPUs."""
    if not gpus:
        return Placement()
    return Placement(tuple(gpus)) if backend.gpu else Placement((), backend.no_gpu)


def of_name(name: str, find: Callable[[str], Backend | None], gpus: Sequence[int]) -> Placement:
    """Return what the backend of this name can use; nothing of one that can not be had, which others tell."""
    try:
        backend = find(name) if gpus and name else None
    except (ServerError, ImportError, OSError):
        return Placement()
    return Placement() if backend is None else of_backend(backend, gpus)
