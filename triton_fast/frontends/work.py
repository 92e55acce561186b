"""Where the parts of a request run: on the loop's thread, or on threads for what takes long or waits.

Knows nothing of protocols.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from enum import Enum
from typing import Any, TypeVar

from triton_fast.repository.operations import asked_by

T = TypeVar("T")


class Where(Enum):
    """``READY``: what asks for readiness, on the loop's thread unless some model's own check may wait."""

    LOOP = "loop"
    READY = "ready"
    WORK = "work"
    LOAD = "load"


class Offload:
    """A front end's way off the loop's thread.

    Parameters
    ----------
    work
        For what takes long.
    loads
        For what waits for models to load: it must not hold up anything else.
    checks
        For what waits for models' own checks of readiness, likewise.
    """

    def __init__(self, work: Executor, loads: Executor | None = None, checks: Executor | None = None) -> None:
        # Tasks that wait for a thread -> whether their clients are still there.
        self._waiting: dict[asyncio.Task[Any] | None, bool] = {}
        self.executors = {Where.WORK: work, Where.LOAD: loads or work, Where.READY: checks or loads or work}

    async def run_later(self, function: Callable[..., T], *arguments: object, where: Where = Where.WORK) -> T:
        """Call a function off the loop's thread. What it has not begun when the client leaves is given up."""
        task = asyncio.current_task()

        def call() -> T:
            with asked_by(lambda: self._waiting.get(task, False)):
                return function(*arguments)

        self._waiting[task] = True
        try:
            return await asyncio.get_running_loop().run_in_executor(self.executors[where], call)
        finally:
            # A task that was cancelled has no client either.
            del self._waiting[task]

    def left(self, task: asyncio.Task[Any] | None) -> None:
        """The client of a task, that may hear the answer or not, sends nothing any more."""
        if task in self._waiting:
            self._waiting[task] = False
