"""The HTTP/1.1 connection: inference natively from socket to queue and back, every other verb through Python."""

import re
from asyncio import AbstractEventLoop
from typing import Any

from triton_fast._native.core.regions import SharedRegions
from triton_fast._native.core.ring import CompletionRing
from triton_fast._native.net.gate import KeyGate
from triton_fast._native.sched.model import Epoch

class HttpServer:
    """What the connections of one listener share; also their factory for ``loop.create_server``.

    Parameters
    ----------
    app
        Answers what is not native: ``resolve(name, version) -> NativeModel``; ``control(method, path, query, headers,
        body)``, which returns ``(status, headers, body)`` or an awaitable of it; ``error_reply(code, text)``,
        ``refusal(status, text)``, ``denied(header)``, which return such a tuple; ``inflate``, ``deflate``,
        ``choose_encoding``; ``endpoint_load(format)``, the value of a header or None; ``failed(exception)`` for what
        should not happen.
        For a cloud's front end also ``native(path, header)``: None, or (number of the native route, model, version,
        whether the same head always means this).
    loop
        The event loop, on whose thread all methods are called.
    epoch
        Changes when a resolution may have changed; connections keep theirs until then.

    Attributes
    ----------
    head_timeout_ns, body_timeout_ns, idle_timeout_ns
        For a head to be whole, a body to be whole (longer for one that keeps up 1 KiB/s), an idle connection.
    max_connections
        More are closed at once; 0 = no limit.
    allow_infer
        Match the v2 routes of inference.
    binary_type, route_header
        Of a cloud's front end, else None: the content type of JSON with binary tensors, up to the JSON's length; a
        header (lower case) whose value ``native`` is given.
    forward
        Compiled pattern: request headers whose names it finds become string parameters of infer requests. None: none.
    max_responses
        Responses of one decoupled request that may wait for a slow reader; then its model waits. 0 = any number.
    poll_ns
        How long the answer of a lone infer request may be waited for in place; 0 = never. It adapts: where answers do
        not come in time it is hardly tried.
    requests, in_flight
        Requests begun; infer requests submitted and not yet answered.
    """

    ring: CompletionRing
    epoch: Epoch
    connections: set[HttpConnection]
    draining: bool
    allow_infer: bool
    binary_type: bytes | None
    route_header: bytes | None
    head_timeout_ns: int
    body_timeout_ns: int
    idle_timeout_ns: int
    max_connections: int
    forward: re.Pattern[str] | None
    max_responses: int
    poll_ns: int
    requests: int
    in_flight: int

    def __init__(self, app: Any, loop: AbstractEventLoop, epoch: Epoch) -> None: ...
    def __call__(self) -> HttpConnection: ...
    def set_limits(self, *, max_head: int, max_input: int, max_body: int = ...) -> None:
        """Limit request heads; JSON, raw and inflated bodies; any body (64 GiB). Bytes."""

    def restrict_infer(self, name: str, value: str) -> None:
        """Refuse infer requests (403) that do not carry header ``name`` with exactly ``value``."""

    def require_keys(self, gate: KeyGate) -> None:
        """Refuse infer requests without a key that lets infer; headers that may hold one are not forwarded."""

    def use_regions(self, regions: SharedRegions) -> None:
        """Let infer requests use the shared memory that is registered there."""

    def attach(self) -> None:
        """Begin to deliver responses on the loop."""

    def detach(self) -> None: ...
    def on_completions(self) -> None: ...
    def wake(self) -> None: ...
    def tick(self) -> None:
        """Close what has waited too long. Call about once a second."""

    def begin_drain(self) -> None:
        """Close idle connections now and the others after their answer."""

    def end_incomplete(self) -> None:
        """Refuse (503) the requests that have not come whole; for a while after ``begin_drain``."""

    def abort_all(self) -> None: ...

class HttpConnection:
    """One client connection, an ``asyncio.BufferedProtocol``."""

    def __init__(self, server: HttpServer) -> None: ...
    def connection_made(self, transport: Any) -> None: ...
    def connection_lost(self, error: Exception | None) -> None: ...
    def eof_received(self) -> bool: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def get_buffer(self, sizehint: int) -> HttpConnection | memoryview: ...
    def buffer_updated(self, n: int) -> None: ...
    def reply(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None: ...
