"""The native gRPC connection without sockets: bytes go in by hand, in any cut, and come out as one string.

What the event loop does is done here on demand, as in helpers/wire.py for HTTP.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.helpers.wire import Transport
from triton_fast import cli
from triton_fast._native.grpc.connection import GrpcServer
from triton_fast.app import Server
from triton_fast.frontends.grpc.server import GrpcApp

TIMEOUT_S = 30.0


class _Timer:
    def cancel(self) -> None:
        """Deadlines are not met here: nothing waits for them."""


class _Loop:
    """Keeps callbacks and coroutines until they are asked for."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], object]] = []
        self.waiting: list[Coroutine[Any, Any, None]] = []

    def create_task(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self.waiting.append(coroutine)

    def call_soon(self, callback: Callable[[], object]) -> None:
        self.soon.append(callback)

    def call_later(self, delay: float, callback: Callable[[], object]) -> _Timer:
        return _Timer()

    def run(self) -> None:
        soon, self.soon = self.soon, []
        for callback in soon:
            callback()
        waiting, self.waiting = self.waiting, []
        for coroutine in waiting:
            asyncio.run(coroutine)


class _App(GrpcApp):
    """The real front end; what fails inside is kept."""

    errors: list[BaseException]

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.errors = []

    def failed(self, error: BaseException) -> None:  # type: ignore[override]
        self.errors.append(error)


class GrpcWire:
    """A front end over a repository; ``exchange`` is one connection to it."""

    def __init__(self, root: Path, *flags: str) -> None:
        self.server = Server(cli.parse([f"--model-repository={root}", *flags]))
        self.server.repository.start(self.server.options.load_model)
        self.server.plane.started = True
        self.loop = _Loop()
        self.app = _App(self.server.plane, self.server.work, self.server.loads)
        self.native = GrpcServer(self.app, self.loop, self.server.epoch)  # type: ignore[arg-type]

    def __enter__(self) -> GrpcWire:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.server.repository.shutdown(10.0)
        self.server.work.shutdown()
        self.server.loads.shutdown()

    def pump(self) -> None:
        """Deliver every answer that is due, until nothing is in hand."""
        while self.native.in_flight or self.loop.waiting or self.loop.soon:
            self.loop.run()
            if self.native.in_flight:
                ready, _, _ = select.select([self.native.ring.fileno()], [], [], TIMEOUT_S)
                assert ready, "a request was never completed"
                self.native.on_completions()

    def exchange(self, parts: Iterable[bytes]) -> bytes:
        """Deliver each part as an event loop would, end the connection, and return all that was answered."""
        connection = self.native()
        transport = Transport()
        transport.connection = connection  # type: ignore[assignment]
        connection.connection_made(transport)
        for part in parts:
            rest = memoryview(part)
            while rest and not transport.closed:
                with memoryview(connection.get_buffer(-1)) as room:
                    n = min(len(room), len(rest))
                    room[:n] = rest[:n]
                connection.buffer_updated(n)
                rest = rest[n:]
            self.pump()
        connection.connection_lost(None)
        self.pump()
        return bytes(transport.out)
