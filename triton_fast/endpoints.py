"""The server's ports: which there are, bound together, drained together. What each one answers is its front end's."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypeVar

from triton_fast._native.grpc.connection import GrpcServer
from triton_fast._native.http.connection import HttpServer
from triton_fast._native.sched.model import Epoch
from triton_fast.cli import Options
from triton_fast.dataplane import Dataplane
from triton_fast.frontends.authorizer import Authorizer
from triton_fast.frontends.grpc.server import GrpcApp
from triton_fast.frontends.http.cloud import CloudApp
from triton_fast.frontends.http.sagemaker import SageMakerApp, Settings
from triton_fast.frontends.http.server import InferApp, MetricsApp
from triton_fast.frontends.http.vertex import VertexApp
from triton_fast.frontends.keys import KeyRing
from triton_fast.frontends.listener import Listener
from triton_fast.frontends.metrics import handler
from triton_fast.listeners import cloud_listener, grpc_listener, http_listener, metrics_listener
from triton_fast.observability.metrics import Metrics

A = TypeVar("A", InferApp, SageMakerApp, VertexApp, GrpcApp)


@dataclass(frozen=True)
class Threads:
    """Where front ends leave what the loop's thread must not wait for; see ``frontends.work.Offload``."""

    work: Executor
    loads: Executor
    checks: Executor


class Endpoints:
    """``metrics``: None where the server keeps none. ``keys``: None where no API key is asked for."""

    def __init__(
        self, options: Options, plane: Dataplane, epoch: Epoch, threads: Threads, metrics: Metrics | None,
        *, keys: KeyRing | None = None,
    ) -> None:  # fmt: skip
        self._options = options
        self._plane = plane
        self._epoch = epoch
        self._threads = threads
        self._metrics = metrics
        self._keys = keys
        self._watch: asyncio.Task[None] | None = None
        self.grpc: Listener[GrpcServer] | None = None
        self.http: Listener[HttpServer] | None = None
        self.sagemaker: Listener[HttpServer] | None = None
        self.vertex: Listener[HttpServer] | None = None
        self.metrics: Listener[HttpServer] | None = None
        # What answers on the ports of clouds.
        self.apps: list[CloudApp] = []

    async def open(self) -> None:
        """Bind every port, then accept on all. Raises OSError or ServerError with nothing left open."""
        try:
            for listener in await self._bind_all():
                await listener.serve()
            if self._keys is not None:
                self._watch = asyncio.get_running_loop().create_task(self._keys.watch(self._threads.work))
        except BaseException:
            self.close()
            await asyncio.sleep(0)  # the loop closes sockets in its next round
            raise

    @property
    def all(self) -> list[Listener[Any]]:
        """Those there are, in the order in which they end."""
        there = (self.grpc, self.http, self.sagemaker, self.vertex, self.metrics)
        return [listener for listener in there if listener is not None]

    @property
    def serving(self) -> list[Listener[Any]]:
        """Those whose requests the server's end waits for: a scrape may come until all others have ended."""
        return [listener for listener in self.all if listener is not self.metrics]

    @property
    def requests(self) -> int:
        """Inference requests so far."""
        return sum(listener.native.requests for listener in self.serving)

    @property
    def busy(self) -> bool:
        return any(listener.open_connections for listener in self.serving)

    def begin_drain(self) -> None:
        for listener in self.serving:
            listener.begin_drain()

    def end(self) -> None:
        """End after a drain."""
        if self.metrics is not None:
            self.metrics.begin_drain()
        self.close()

    def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        for listener in self.all:
            listener.close()

    async def _bind_all(self) -> list[Listener[Any]]:
        options = self._options
        listeners: list[Listener[Any]] = []
        if options.allow_grpc:
            self.grpc = grpc_listener(options, self._app(GrpcApp, options.grpc_restricted_protocol), self._epoch,
                                      self._keys)
            listeners.append(await _bind(self.grpc, options.grpc_address, options.grpc_port, options.reuse_grpc_port))
        if options.allow_http:
            self.http = http_listener(options, self._http_app(InferApp), self._epoch, self._keys)
            listeners.append(await _bind(self.http, options.http_address, options.http_port, options.reuse_http_port))
        if options.allow_sagemaker:
            sagemaker = self._http_app(SageMakerApp)
            sagemaker.serve(Settings(
                options.sagemaker_ping_mode, options.sagemaker_default_model, options.sagemaker_inference_type,
            ))  # fmt: skip
            self.sagemaker = self._cloud(sagemaker)
            listeners.append(await _bind(self.sagemaker, options.sagemaker_address, options.sagemaker_port, False))
        if options.allow_vertex_ai:
            vertex = self._http_app(VertexApp)
            scrape = handler(self._metrics.render) if self._metrics is not None else None
            routes = options.vertex_ai_predict_route, options.vertex_ai_health_route
            vertex.serve(*routes, options.vertex_ai_default_model, scrape)
            self.vertex = self._cloud(vertex)
            listeners.append(await _bind(self.vertex, options.vertex_ai_address, options.vertex_ai_port, False))
        if self._metrics is not None:
            metrics = MetricsApp(handler(self._metrics.render), self._threads.work, Authorizer(keys=self._keys))
            self.metrics = metrics_listener(options, metrics, self._epoch)
            address = options.metrics_address or options.http_address
            listeners.append(await _bind(self.metrics, address, options.metrics_port, options.reuse_http_port))
        return listeners

    def _cloud(self, app: CloudApp) -> Listener[HttpServer]:
        self.apps.append(app)
        return cloud_listener(self._options, app, self._epoch, self._keys)

    def _http_app(self, kind: type[A]) -> A:
        app = self._app(kind, self._options.http_restricted_api)
        if isinstance(app, InferApp) and self._metrics is not None:
            app.custom_metrics = self._metrics.custom
        return app

    def _app(self, kind: type[A], restricted: Mapping[str, tuple[str, str]]) -> A:
        threads = self._threads
        return kind(self._plane, threads.work, threads.loads, restricted, threads.checks, keys=self._keys)


async def _bind(listener: Listener[Any], address: str, port: int, reuse_port: bool) -> Listener[Any]:
    try:
        await listener.start(address, port, reuse_port=reuse_port)
    except OSError as error:
        raise OSError(f"Socket '{address}:{port}' already in use ({error.strerror or error})") from None
    return listener
