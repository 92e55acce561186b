"""grpc.health.v1: Check, and Watch, which tells of each change of readiness. ``service`` is ignored, as in Triton.

Knows when to look again from the dataplane; does not poll.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from google.protobuf.message import DecodeError

from triton_fast import protos
from triton_fast.dataplane import Dataplane
from triton_fast.errors import ServerError
from triton_fast.frontends.grpc.calls import BROKEN, INTERNAL, RESOURCE_EXHAUSTED, Call, OneRequest, failure
from triton_fast.frontends.v2 import V2App
from triton_fast.frontends.work import Where

CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
# Each change is told to all watchers in one go.
MAX_WATCHERS = 4096

_STATUS = protos.HealthCheckResponse.ServingStatus
SERVING, NOT_SERVING = int(_STATUS.Value("SERVING")), int(_STATUS.Value("NOT_SERVING"))


def state(plane: Dataplane) -> int:
    """Return SERVING or NOT_SERVING. Raises Unavailable while the server exits."""
    return SERVING if plane.server_ready() else NOT_SERVING


def check(plane: Dataplane, message: Any) -> Any:
    return protos.HealthCheckResponse(status=state(plane))


class Watchers:
    """The open watches of one server. All but ``_changed`` belongs to the loop's thread."""

    def __init__(self, plane: Dataplane, work: V2App) -> None:
        self.plane = plane
        self.work = work
        self.watches: set[Watch] = set()
        self._waiting: set[Watch] = set()
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_due = False

    def add(self, watch: Watch) -> None:
        if len(self.watches) >= MAX_WATCHERS:
            watch.finish(RESOURCE_EXHAUSTED, f"more than {MAX_WATCHERS} watches are open")
            return
        if not self.watches:
            self._loop = asyncio.get_running_loop()
            self.plane.watch(self._changed)
        # Before the first look, so that no change falls between.
        self.watches.add(watch)
        self._tell((watch,))

    def remove(self, watch: Watch) -> None:
        if watch in self.watches:
            self.watches.remove(watch)
            if not self.watches:
                self.plane.unwatch(self._changed)

    def _changed(self) -> None:
        """On any thread, with locks held: have the loop look, once for all changes until it does."""
        if not self._is_due and self._loop is not None:
            self._is_due = True
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        # Before the look: what changes from now on is due again.
        self._is_due = False
        self._tell(tuple(self.watches))

    def _tell(self, watches: tuple[Watch, ...]) -> None:
        if self.work.place(Where.READY) is Where.LOOP and self._task is None:
            try:
                self._told(watches, state(self.plane))
            except ServerError as error:
                self._told(watches, error)
            return
        # One look at a time, so that the last word is the newest.
        self._waiting.update(watches)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._tell_later())

    async def _tell_later(self) -> None:
        while self._waiting:
            watches, self._waiting = tuple(self._waiting), set()
            try:
                now: int | ServerError = await self.work.run_later(state, self.plane, where=Where.READY)
            except ServerError as error:
                now = error
            self._told(watches, now)
        self._task = None

    @staticmethod
    def _told(watches: tuple[Watch, ...], now: int | ServerError) -> None:
        for watch in watches:
            if isinstance(now, ServerError):
                watch.finish(*failure(now))
            else:
                watch.tell(now)


class Watch(OneRequest):
    """One Watch call: a message with the state at once, and one after each change."""

    def __init__(self, call: Call, watchers: Watchers) -> None:
        super().__init__(call)
        self.watchers = watchers
        self._told: int | None = None

    def begin(self, data: bytes) -> None:
        try:
            protos.HealthCheckRequest.FromString(data)
        except DecodeError:
            self.finish(INTERNAL, BROKEN)
            return
        self.watchers.add(self)

    def tell(self, now: int) -> None:
        if self.is_open and now != self._told:
            self._told = now
            self.send(protos.HealthCheckResponse(status=now).SerializeToString())

    def closed(self) -> None:
        super().closed()
        self.watchers.remove(self)
