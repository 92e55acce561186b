"""One listening socket for a native server of any protocol, plain or TLS: bind, serve, drain, end.

Knows nothing of protocols.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Collection
from typing import Any, Generic, Protocol, TypeVar, cast

from triton_fast.observability import log

# How long a closed TLS connection waits for the peer to take the last bytes and to say goodbye, too.
SHUTDOWN_S = 20.0


class NativeServer(Protocol):
    """What a listener asks of the native side; calling it makes one connection, an asyncio protocol."""

    @property
    def connections(self) -> Collection[object]: ...
    def __call__(self) -> object: ...
    def attach(self) -> None: ...
    def detach(self) -> None: ...
    def tick(self) -> None: ...
    def begin_drain(self) -> None: ...
    def end_incomplete(self) -> None: ...
    def abort_all(self) -> None: ...


N = TypeVar("N", bound=NativeServer)


class Listener(Generic[N]):
    """One bound address with its connections; closes gracefully.

    Parameters
    ----------
    native
        Makes and keeps the connections.
    name
        What the log calls it.
    tls
        Encrypt with this context.
    tick_s
        Period of the native server's ``tick``; its time-outs are no finer.
    handshake_s
        A TLS handshake must have ended within this time.
    """

    def __init__(
        self, native: N, name: str, *, tls: ssl.SSLContext | None = None, tick_s: float = 1.0,
        handshake_s: float = 20.0,
    ) -> None:  # fmt: skip
        self.native = native
        self.name = name
        self.tls = tls
        self.tick_s = tick_s
        self.handshake_s = handshake_s
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
            factory, address, port, reuse_port=reuse_port or None, backlog=1024, start_serving=False, **self._tls()
        )
        bound = self._server.sockets[0].getsockname()
        self.address, self.port = address, bound[1]
        self.native.attach()
        self._tick()

    def _tls(self) -> dict[str, Any]:
        if self.tls is None:
            return {}
        return {
            "ssl": self.tls, "ssl_handshake_timeout": self.handshake_s, "ssl_shutdown_timeout": SHUTDOWN_S,
        }  # fmt: skip

    async def serve(self) -> None:
        assert self._server is not None
        await self._server.start_serving()
        log.info(f"Started {self.name} at {self.address}:{self.port}")

    def _tick(self) -> None:
        try:
            self.native.tick()
        finally:
            self._ticker = asyncio.get_running_loop().call_later(self.tick_s, self._tick)

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
        """End what is left; also of one that was never bound."""
        self.stop_accepting()
        self.native.abort_all()
        if self._ticker is not None:
            self._ticker.cancel()
        self.native.detach()
