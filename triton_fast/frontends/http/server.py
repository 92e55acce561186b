"""The HTTP listener: binds the native connections to the routes and the dataplane, on one event loop."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from typing import TypeVar, cast

from triton_fast._native.http.connection import HttpServer
from triton_fast._native.sched.model import NativeModel
from triton_fast.dataplane import Dataplane
from triton_fast.frontends.http import compression, routes
from triton_fast.frontends.http.messages import Answer, Verb, code_status, error_answer
from triton_fast.frontends.http.routes import Where
from triton_fast.frontends.metrics import Handler
from triton_fast.observability import log

T = TypeVar("T")


class InferApp:
    """What the native connection asks of the v2 front end."""

    inflate = staticmethod(compression.inflate)
    deflate = staticmethod(compression.deflate)
    choose_encoding = staticmethod(compression.choose_encoding)

    def __init__(
        self,
        plane: Dataplane,
        work: Executor,
        loads: Executor,
        restricted: Mapping[str, tuple[str, str]] | None = None,
    ) -> None:
        self.plane = plane
        # What waits for models to load must not hold up anything else.
        self.executors = {Where.WORK: work, Where.LOAD: loads}
        # Category -> (header, value); inference itself is checked by the native connection (restrict_infer).
        self.restricted = dict(restricted or {})

    def resolve(self, name: str, version: int) -> NativeModel:
        return self.plane.native_model(name, version)

    def control(
        self, method: str, path: str, query: str, headers: list[tuple[str, str]], body: bytes
    ) -> Answer | Awaitable[Answer]:
        """Answer any request but infer; what may take long is answered later, from another thread."""
        route, params, allowed = routes.find(method, path)
        if route is None:
            return error_answer(404, "Not Found")
        values = {name.lower(): value for name, value in headers}
        if route.category in self.restricted:
            header, key = self.restricted[route.category]
            if not hmac.compare_digest(values.get(header.lower(), "").encode("latin-1"), key.encode()):
                return self.denied(header)
        if not allowed:
            return error_answer(405, "Method Not Allowed", ("Allow", ", ".join(route.methods)))
        verb = Verb(method, path, query, values, body, params)
        if route.where is not Where.LOOP:
            return self.run_later(routes.run, route, self.plane, verb, where=route.where)
        return routes.run(route, self.plane, verb)

    async def run_later(self, function: Callable[..., T], *arguments: object, where: Where = Where.WORK) -> T:
        """Call a function off the loop's thread."""
        return await asyncio.get_running_loop().run_in_executor(self.executors[where], function, *arguments)

    @staticmethod
    def denied(header: str) -> Answer:
        """Answer a request to a restricted API that lacks its header."""
        return error_answer(403, f"This API is restricted, expecting header '{header}'")

    @staticmethod
    def error_reply(code: int, text: bytes) -> Answer:
        """Answer with an error of the engine."""
        message = text.decode("utf-8", "replace")
        if message == "Unsupported compression type":
            return error_answer(code_status(code), message, ("Accept-Encoding", "gzip, deflate"))
        return error_answer(code_status(code), message)

    @staticmethod
    def refusal(status: int, text: bytes) -> Answer:
        """Answer a message that HTTP itself refuses."""
        return error_answer(status, text.decode("utf-8", "replace"))

    @staticmethod
    def failed(error: BaseException) -> None:
        log.error(f"a connection failed: {type(error).__name__}: {error}")


class MetricsApp(InferApp):
    """The metrics port: one handler, no infer, no routes."""

    def __init__(self, handle: Handler, work: Executor) -> None:
        self.handle = handle
        self.executors = {Where.WORK: work}

    def control(
        self, method: str, path: str, query: str, headers: list[tuple[str, str]], body: bytes
    ) -> Answer | Awaitable[Answer]:
        return self.run_later(self.handle, method, path)


class Listener:
    """One bound address with its connections; closes gracefully."""

    def __init__(self, native: HttpServer, name: str) -> None:
        self.native = native
        self.name = name
        self.address = ""
        self.port = 0
        self._server: asyncio.Server | None = None
        self._ticker: asyncio.TimerHandle | None = None

    async def start(self, address: str, port: int, *, reuse_port: bool = False) -> None:
        """Bind and accept.

        Raises
        ------
        OSError
            The address can not be bound.
        """
        loop = asyncio.get_running_loop()
        # uvloop calls the factory and takes a buffered protocol; asyncio's stub knows plain ones only.
        factory = cast("Callable[[], asyncio.BaseProtocol]", self.native)
        self._server = await loop.create_server(
            factory, address, port, reuse_port=reuse_port or None, backlog=1024, start_serving=False
        )
        bound = self._server.sockets[0].getsockname()
        self.address, self.port = address, bound[1]
        self.native.attach()
        self._tick()

    async def serve(self) -> None:
        assert self._server is not None
        await self._server.start_serving()
        log.info(f"Started {self.name} at {self.address}:{self.port}")

    def _tick(self) -> None:
        try:
            self.native.tick()
        finally:
            self._ticker = asyncio.get_running_loop().call_later(1.0, self._tick)

    def stop_accepting(self) -> None:
        if self._server is not None:
            self._server.close()

    def begin_drain(self, grace_s: float = 0.5) -> None:
        """Stop accepting; answer what is in hand, then close each connection.

        A request that has not come whole after ``grace_s`` is refused: a client that stopped in the middle must not
        hold up the end.
        """
        self.stop_accepting()
        self.native.begin_drain()
        asyncio.get_running_loop().call_later(grace_s, self.native.end_incomplete)

    @property
    def open_connections(self) -> int:
        return len(self.native.connections)

    def close(self) -> None:
        """End what is left."""
        self.native.abort_all()
        if self._ticker is not None:
            self._ticker.cancel()
        self.native.detach()
