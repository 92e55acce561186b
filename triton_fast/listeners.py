"""From options to listening front ends: limits, time-outs, restrictions and TLS of each port. Serves nothing itself."""

from __future__ import annotations

import asyncio
import re
import ssl

from triton_fast._native.grpc.connection import GrpcServer
from triton_fast._native.http.connection import HttpServer
from triton_fast._native.sched.model import Epoch
from triton_fast.cli import Options
from triton_fast.frontends.grpc.server import GrpcApp
from triton_fast.frontends.http.cloud import CloudApp
from triton_fast.frontends.http.server import InferApp, MetricsApp
from triton_fast.frontends.keys import KeyRing
from triton_fast.frontends.listener import Listener
from triton_fast.frontends.tls import server_context
from triton_fast.scheduling.threads import usable_cores

# How long the loop waits in place for the answer of a lone request, while that has been paying.
POLL_NS = 50_000
# A scrape has no body to speak of.
METRICS_MAX_INPUT = 65536
NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000
# As zlib counts them.
LEVELS = {"none": 0, "low": 1, "medium": 6, "high": 9}
# A time-out of a connection is met within a quarter of it, but the clock is not looked at more often than this.
LEAST_TICK_S = 0.02


def http_listener(options: Options, app: InferApp, epoch: Epoch, keys: KeyRing | None) -> Listener[HttpServer]:
    """Return the listener of the HTTP port, not yet bound. Raises ServerError when its TLS files can not be used."""
    native = HttpServer(app, asyncio.get_running_loop(), epoch)
    _limit(native, options, options.http_max_input_size)
    _infer(native, options.http_header_forward_pattern, options.http_restricted_api.get("inference"), keys)
    native.use_regions(app.plane.shared_memory.regions)
    tls = None
    if options.http_use_ssl:
        tls = server_context(
            options.http_server_cert, options.http_server_key, options.http_root_cert, options.http_use_ssl_mutual,
            ["http/1.1"], protocol="http",
        )  # fmt: skip
    return Listener(native, "HTTPService", tls=tls, handshake_s=options.http_header_timeout_secs)


def cloud_listener(options: Options, app: CloudApp, epoch: Epoch, keys: KeyRing | None) -> Listener[HttpServer]:
    """Return the listener of a cloud's front end, not yet bound: limits and keys are those of the HTTP port."""
    native = HttpServer(app, asyncio.get_running_loop(), epoch)
    _limit(native, options, options.http_max_input_size)
    _infer(native, "", options.http_restricted_api.get("inference"), keys)
    native.allow_infer = False
    native.binary_type = app.binary_type
    native.route_header = app.route_header
    return Listener(native, app.service)


def metrics_listener(options: Options, app: MetricsApp, epoch: Epoch) -> Listener[HttpServer]:
    """Return the listener of the metrics port, not yet bound."""
    native = HttpServer(app, asyncio.get_running_loop(), epoch)
    _limit(native, options, METRICS_MAX_INPUT)
    native.allow_infer = False
    return Listener(native, "Metrics Service")


def grpc_listener(options: Options, app: GrpcApp, epoch: Epoch, keys: KeyRing | None) -> Listener[GrpcServer]:
    """Return the listener of the gRPC port, not yet bound. Raises ServerError when its TLS files can not be used."""
    native = GrpcServer(app, asyncio.get_running_loop(), epoch)
    _infer(native, options.grpc_header_forward_pattern, options.grpc_restricted_protocol.get("inference"), keys)
    native.use_regions(app.plane.shared_memory.regions)
    native.max_message = options.grpc_max_message_size
    native.max_inflated = options.grpc_max_inflated_size
    native.max_metadata = options.grpc_max_metadata_size
    native.max_streams = options.grpc_max_concurrent_streams
    native.max_connections = options.grpc_max_connections
    native.max_responses = options.grpc_max_response_pool_size
    native.compression_level = LEVELS[options.grpc_infer_response_compression_level]
    native.stall_ns = options.grpc_stall_timeout_secs * NS_PER_S
    native.keepalive_ns = max(0, options.grpc_keepalive_time) * NS_PER_MS
    native.keepalive_timeout_ns = max(0, options.grpc_keepalive_timeout) * NS_PER_MS
    native.keepalive_idle = options.grpc_keepalive_permit_without_calls
    native.max_pings = max(0, options.grpc_http2_max_pings_without_data)
    native.min_ping_interval_ns = max(0, options.grpc_http2_min_recv_ping_interval_without_data) * NS_PER_MS
    native.max_ping_strikes = max(0, options.grpc_http2_max_ping_strikes)
    native.max_age_ns = max(0, options.grpc_max_connection_age or 0) * NS_PER_MS
    native.age_grace_ns = max(0, options.grpc_max_connection_age_grace or 0) * NS_PER_MS
    tls: ssl.SSLContext | None = None
    if options.grpc_use_ssl or options.grpc_use_ssl_mutual:
        tls = server_context(
            options.grpc_server_cert, options.grpc_server_key, options.grpc_root_cert, options.grpc_use_ssl_mutual,
            ["h2"], protocol="grpc",
        )  # fmt: skip
    periods = (native.stall_ns, native.keepalive_ns, native.keepalive_timeout_ns, native.max_age_ns,
               native.age_grace_ns)  # fmt: skip
    shortest = min((period for period in periods if period), default=NS_PER_S * 4) / NS_PER_S
    tick_s = min(1.0, max(LEAST_TICK_S, shortest / 4))
    return Listener(native, "GRPCInferenceService", tls=tls, tick_s=tick_s)


def _infer(
    native: HttpServer | GrpcServer, forward: str, secret: tuple[str, str] | None, keys: KeyRing | None
) -> None:
    if forward:
        native.forward = re.compile(forward, re.IGNORECASE)
    if secret is not None:
        native.restrict_infer(*secret)
    if keys is not None and "inference" not in keys.exempt:
        native.require_keys(keys.gate)
    native.poll_ns = POLL_NS if usable_cores() > 1 else 0


def _limit(native: HttpServer, options: Options, max_input: int) -> None:
    native.set_limits(max_head=options.http_max_head_size, max_input=max_input)
    native.max_connections = options.http_max_connections
    native.head_timeout_ns = options.http_header_timeout_secs * NS_PER_S
    native.body_timeout_ns = options.http_body_timeout_secs * NS_PER_S
    native.idle_timeout_ns = options.http_idle_timeout_secs * NS_PER_S
