"""gRPC on HTTP/2 connections: ModelInfer and ModelStreamInfer natively, every other method through Python.

Source of the behaviour: gRPC over HTTP/2, RFC 9113, and Triton's gRPC front end.
"""

import re
from asyncio import AbstractEventLoop
from typing import Any

from triton_fast._native.core.regions import SharedRegions
from triton_fast._native.core.ring import CompletionRing
from triton_fast._native.grpc.upkeep import H2Connection
from triton_fast._native.net.gate import KeyGate
from triton_fast._native.sched.model import Epoch

class GrpcServer:
    """What the connections of a listener share; also their factory for ``loop.create_server``.

    Parameters
    ----------
    app
        The Python side: ``resolve(name, version_text) -> NativeModel``; ``start(call)``, which returns the handler of a
        ``GrpcCall`` (``message(data)``, ``end()``; ``cancel()`` when the call ends and it was not the handler that
        finished it; ``limit``, bytes of a message, if there is one) or None when it has finished it; ``inflate(data,
        encoding, limit)``, ``deflate(data, encoding, level)``, ``run_later(function, *arguments)``;
        ``denied(header) -> (status, text)``; ``failed(exception)`` for what should not happen.
    loop
        The event loop, on whose thread all methods are called.
    epoch
        Changes when a resolution may have changed; resolved models are kept until then.

    Attributes
    ----------
    max_message, max_inflated, max_metadata
        Bytes of one message as it comes; after inflation, and what typed contents may decode to; of the fields of one
        call, as HTTP/2 counts them (32 for each besides name and value).
    max_streams, max_connections
        Calls of one connection, connections (0 = no limit).
    max_responses
        Responses of one decoupled request that wait for a slow reader before its model must wait; 0 = no limit.
    compression_level
        Of infer responses, as zlib counts it: 0 none, 1 low (prefers gzip), above that prefers deflate.
    stall_ns
        A call whose client neither takes what is there for it nor sends the rest of a message it began is reset.
    keepalive_ns, keepalive_timeout_ns, keepalive_idle, max_pings
        A ping goes out after so long without a byte (0 = never); without an answer the connection is closed; without
        calls only if keepalive_idle; so many without data between them.
    min_ping_interval_ns, max_ping_strikes
        A peer that pings faster without data gets a strike; with more than this (0 = any) it is sent away.
    max_age_ns, age_grace_ns
        A connection is asked to go after so long (0 = never), and cut after the grace (0 = never).
    forward
        Compiled pattern: metadata whose keys it finds become string parameters of infer requests. None: none.
    poll_ns, requests, in_flight
        See ``HttpServer``.
    """

    ring: CompletionRing
    epoch: Epoch
    connections: set[GrpcConnection]
    draining: bool
    max_message: int
    max_inflated: int
    max_metadata: int
    max_streams: int
    max_connections: int
    max_responses: int
    compression_level: int
    stall_ns: int
    keepalive_ns: int
    keepalive_timeout_ns: int
    keepalive_idle: bool
    max_pings: int
    min_ping_interval_ns: int
    max_ping_strikes: int
    max_age_ns: int
    age_grace_ns: int
    forward: re.Pattern[str] | None
    poll_ns: int
    requests: int
    in_flight: int

    def __init__(self, app: Any, loop: AbstractEventLoop, epoch: Epoch) -> None: ...
    def __call__(self) -> GrpcConnection: ...
    def restrict_infer(self, name: str, value: str) -> None:
        """Refuse infer calls (UNAVAILABLE) that do not carry metadata ``name`` with exactly ``value``."""

    def require_keys(self, gate: KeyGate) -> None:
        """Refuse infer requests without a key that lets infer; headers that may hold one are not forwarded."""

    def use_regions(self, regions: SharedRegions) -> None:
        """Let infer requests use the shared memory that is registered there."""

    def attach(self) -> None:
        """Begin to deliver responses on the loop."""

    def detach(self) -> None: ...
    def on_completions(self) -> None: ...
    def on_due(self) -> None:
        """End the calls whose deadline has come. The server plans it itself."""

    def wake(self) -> None: ...
    def tick(self) -> None:
        """Pings, age, stalled calls. Call about once a second, more often when those times are short."""

    def begin_drain(self) -> None:
        """Tell every peer to go (GOAWAY); new calls are refused, those in hand go on."""

    def end_incomplete(self) -> None:
        """Refuse the calls that have not come whole; for a while after ``begin_drain``."""

    def abort_all(self) -> None: ...

class CallRef:
    """A call that Python code holds on to."""

class GrpcCall(CallRef):
    """A call of a method that the Python side answers.

    Attributes
    ----------
    path
        As sent, such as ``/inference.GRPCInferenceService/ServerLive``.
    metadata
        Lower-case keys; the first value of a key that came several times.
    buffered
        Bytes given to ``send`` that the peer has not taken yet.
    """

    path: str
    metadata: dict[str, str]

    @property
    def buffered(self) -> int: ...
    def send(self, data: bytes) -> None:
        """Queue one response message. Nothing happens once the call is finished or its client gone."""

    def finish(self, status: int, text: str = "") -> None:
        """End the call. What was sent before still goes out; nothing that comes after has an effect."""

class GrpcConnection(H2Connection):
    """One client connection, an ``asyncio.BufferedProtocol``."""

    def __init__(self, server: GrpcServer) -> None: ...
