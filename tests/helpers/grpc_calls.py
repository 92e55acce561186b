"""gRPC calls without a connection: what the native side does for the Python half of the front end, done by hand.

``Front`` is the real front end over a real repository; ``FakeCall`` records what is answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from triton_fast import cli
from triton_fast.app import Server
from triton_fast.frontends.grpc.server import GrpcApp

TIMEOUT_S = 30.0
SERVICE = "/inference.GRPCInferenceService/"


class FakeCall:
    """One call. ``status`` is None until it is finished; ``buffered`` is what a test says it is."""

    def __init__(self, path: str, metadata: Mapping[str, str] | None = None) -> None:
        self.path = path
        self.metadata = dict(metadata or {})
        self.buffered = 0
        self.sent: list[bytes] = []
        self.status: int | None = None
        self.text = ""
        self.changed: Callable[[], None] = lambda: None

    def send(self, data: bytes) -> None:
        assert self.status is None, "a message after the end of the call"
        assert isinstance(data, bytes)
        self.sent.append(data)
        self.changed()

    def finish(self, status: int, text: str = "") -> None:
        if self.status is None:
            self.status, self.text = status, text
            self.changed()

    @property
    def outcome(self) -> tuple[int | None, str]:
        return self.status, self.text

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that comes with a message or the end."""
        event = asyncio.Event()
        self.changed = event.set
        while not condition():
            event.clear()
            await asyncio.wait_for(event.wait(), TIMEOUT_S)


class Front:
    """``GrpcApp`` over the models of ``root``; ``flags`` as on the command line."""

    def __init__(self, root: Path, *flags: str) -> None:
        self.server = Server(cli.parse([f"--model-repository={root}", *flags]))
        self.plane = self.server.plane
        self.app = GrpcApp(
            self.plane, self.server.work, self.server.loads, self.server.options.grpc_restricted_protocol
        )

    def __enter__(self) -> Front:
        self.server.repository.start(self.server.options.load_model)
        self.plane.started = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.server.repository.shutdown(10.0)
        self.server.work.shutdown()
        self.server.loads.shutdown()

    def ask(self, path: str, *messages: bytes, metadata: Mapping[str, str] | None = None) -> FakeCall:
        """Make a whole call and return it finished."""
        call = FakeCall(path, metadata)

        async def run() -> None:
            handler = self.app.start(call)
            if handler is None:
                assert call.status is not None, "refused, but not finished"
                return
            for message in messages:
                handler.message(message)
            handler.end()
            await call.until(lambda: call.status is not None)

        asyncio.run(run())
        return call

    def verb(self, name: str, request: Any, **metadata: str) -> FakeCall:
        return self.ask(SERVICE + name, request.SerializeToString(), metadata=metadata)
