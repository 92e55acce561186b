"""The native HTTP connection without sockets: bytes go in by hand, in any cut, and come out as one string.

What the event loop does is done here on demand, so every delivery is deterministic.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from triton_fast import cli
from triton_fast._native.http.connection import HttpConnection, HttpServer
from triton_fast.app import Server
from triton_fast.frontends.http.server import InferApp

MAX_INPUT = 1 << 20


class _Loop:
    """Keeps coroutines until they are asked for."""

    def __init__(self) -> None:
        self.waiting: list[Coroutine[Any, Any, None]] = []
        self.soon: list[Callable[[], object]] = []

    def call_soon(self, function: Callable[[], object]) -> None:
        """Run it when the bytes in hand are used."""
        self.soon.append(function)

    def run_soon(self) -> None:
        while self.soon:
            self.soon.pop(0)()

    def create_task(self, coroutine: Coroutine[Any, Any, None]) -> _Loop:
        self.waiting.append(coroutine)
        return self

    def cancel(self) -> None:
        """Of the task that ``create_task`` stands for."""
        for coroutine in self.waiting:
            coroutine.close()
        self.waiting.clear()

    def run(self) -> None:
        for coroutine in [self.waiting.pop(0) for _ in range(len(self.waiting))]:
            asyncio.run(coroutine)


class _App(InferApp):
    """The real front end; what fails inside is kept."""

    errors: list[BaseException]

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.errors = []

    def failed(self, error: BaseException) -> None:  # type: ignore[override]
        self.errors.append(error)


class Transport:
    """Takes what is written. ``room``: bytes that the "socket" takes before it blocks; None is endless."""

    def __init__(self) -> None:
        self.out = bytearray()
        self.closed = self.aborted = self.eof = self.paused = False
        self.room: int | None = None
        self.held: list[Any] = []
        self.connection: HttpConnection | None = None

    def is_closing(self) -> bool:
        return self.closed

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        # Of a TLS transport: see the connection.
        assert (high, low) == (1, 0)

    def get_extra_info(self, name: str) -> object:
        # As over TLS: the connection writes through the transport, never to a descriptor.
        return object() if name == "sslcontext" else None

    def write(self, data: Any) -> None:
        assert not self.closed
        if self.room is not None:
            taken = bytes(data)[: self.room] if not self.held else b""
            self.out += taken
            self.room -= len(taken)
            if len(taken) < len(data):
                if not self.held:
                    assert self.connection is not None
                    self.connection.pause_writing()
                self.held.append(memoryview(data)[len(taken) :])
            return
        self.out += bytes(data)

    def get_write_buffer_size(self) -> int:
        return sum(len(data) for data in self.held)

    def release(self) -> None:
        """The peer reads: everything held goes out."""
        self.room = None
        held, self.held = self.held, []
        for data in held:
            self.out += bytes(data)
        if held:
            assert self.connection is not None
            self.connection.resume_writing()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True


class Wire:
    """A front end over a repository; ``connect`` makes connections to it."""

    def __init__(self, root: Path, *flags: str) -> None:
        self.server = Server(cli.parse([f"--model-repository={root}", *flags]))
        self.server.repository.start(self.server.options.load_model)
        self.server.plane.started = True
        self.loop = _Loop()
        self.app = _App(self.server.plane, self.server.work, self.server.loads)
        self.native = HttpServer(self.app, self.loop, self.server.epoch)  # type: ignore[arg-type]
        self.native.set_limits(max_head=4096, max_input=MAX_INPUT)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.server.repository.shutdown(10.0)
        self.server.work.shutdown()
        self.server.loads.shutdown()

    def connect(self) -> Connection:
        return Connection(self)

    def pump(self) -> None:
        """Deliver every answer that is due, until nothing is in hand."""
        while self.native.in_flight or self.loop.waiting:
            self.loop.run()
            self.loop.run_soon()
            if self.native.in_flight:
                ready, _, _ = select.select([self.native.ring.fileno()], [], [], 30.0)
                assert ready, "a request was never completed"
                self.native.on_completions()


class Connection:
    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.transport = Transport()
        self.native = HttpConnection(wire.native)
        self.transport.connection = self.native
        self.native.connection_made(self.transport)

    def feed(self, data: bytes) -> None:
        """Deliver ``data`` as the event loop would: as much as each window of the connection takes."""
        rest = memoryview(data)
        while rest and not self.transport.closed:
            assert not self.transport.paused, "delivered to a connection that does not read"
            with memoryview(self.native.get_buffer(-1)) as window:
                n = min(len(window), len(rest))
                assert n > 0
                window[:n] = rest[:n]
            self.native.buffer_updated(n)
            rest = rest[n:]
            self.wire.loop.run_soon()

    def exchange(self, parts: Iterable[bytes], *, pump_between: bool = True) -> bytes:
        """Deliver each part, end the connection, and return all that was answered."""
        for part in parts:
            self.feed(part)
            if pump_between:
                self.wire.pump()
        self.wire.pump()
        self.lose()
        return bytes(self.transport.out)

    def lose(self) -> None:
        self.native.connection_lost(None)
