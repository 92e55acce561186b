"""Assembles the server, starts it, drains it, stops it. The one module that knows every layer."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from triton_fast import backends
from triton_fast._native.core import memory
from triton_fast._native.core.stats import HISTOGRAM_BOUNDS_US
from triton_fast._native.grpc.connection import GrpcServer
from triton_fast._native.http.connection import HttpServer
from triton_fast._native.sched.model import Epoch
from triton_fast._version import TRITON_COMPAT
from triton_fast.backends.host import Host
from triton_fast.cli import Options
from triton_fast.dataplane import EXTENSIONS, Dataplane
from triton_fast.errors import ServerError
from triton_fast.frontends.grpc.server import GrpcApp
from triton_fast.frontends.http.server import InferApp, MetricsApp
from triton_fast.frontends.listener import Listener
from triton_fast.frontends.metrics import handler
from triton_fast.listeners import grpc_listener, http_listener, metrics_listener
from triton_fast.observability import log, tables
from triton_fast.observability.custom import CustomMetrics
from triton_fast.observability.host import HostSampler, usable_memory
from triton_fast.observability.metrics import Histogram, Metrics, ModelSnapshot
from triton_fast.repository import ControlMode, LocalSource, ModelRepositoryManager, NestedControl, Preparer
from triton_fast.scheduling.ensemble import EnsembleRuntime
from triton_fast.scheduling.runtime import ModelRuntime, ServedVersion
from triton_fast.scheduling.threads import usable_cores

A = TypeVar("A", InferApp, GrpcApp)

# A thread that holds the GIL gives it back to the loop within this time.
SWITCH_INTERVAL_S = 0.0005
TRIM_INTERVAL_S = 10.0
# Load and unload requests that may wait at the same time; the loading itself has --model-load-thread-count threads.
MAX_LOADS = 32
MAX_CHECKS = 32
# What the backend of a model that nobody uses keeps of its free memory, for each instance.
KEEP_IDLE_BYTES = 1 << 20
EXIT_FAILURE = 1


def run(options: Options) -> int:
    """Serve until SIGINT or SIGTERM; return the exit code."""
    log.configure(
        log.LogSettings(
            info=options.log_info, warning=options.log_warning, error=options.log_error,
            verbose=options.log_verbose, format=options.log_format, file=options.log_file, escape=options.log_escape,
        )
    )  # fmt: skip
    for note in options.notes:
        log.warning(note)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    return uvloop.run(Server(options).run())


class Server:
    """One server in this process. Two may live side by side: only the log and the C allocator's settings are global."""

    def __init__(self, options: Options) -> None:
        self.options = options
        memory.return_large_memory()
        memory.set_body_limit(options.request_memory_limit or usable_memory() * 3 // 4)
        self.epoch = Epoch()
        self.work = ThreadPoolExecutor(max_workers=4, thread_name_prefix="work")
        self.loads = ThreadPoolExecutor(max_workers=MAX_LOADS, thread_name_prefix="load")
        # Waits for models' own checks, 5 s each at most; others share those that are under way.
        self.checks = ThreadPoolExecutor(max_workers=MAX_CHECKS, thread_name_prefix="ready")
        self.custom_metrics = CustomMetrics()
        backend_directory = Path(options.backend_directory)
        host = Host(
            control=NestedControl(lambda: self.repository),
            resolve=lambda name, version: self.plane.native_model(name, version),  # noqa: PLW0108 - made later
            epoch=self.epoch,
            metrics=self.custom_metrics,
            changed=lambda: self.plane.changed(),  # noqa: PLW0108 - made later
            explicit_control=options.model_control_mode == ControlMode.EXPLICIT.value,
            backend_directory=backend_directory,
        )
        preparer = Preparer(
            lambda name: backends.find(name, backend_directory), host=host, settings=self._backend_settings,
            strict=options.strict_model_config,
            config_name=options.model_config_name, cpu_count=usable_cores(),
        )  # fmt: skip
        self.repository: ModelRepositoryManager[ServedVersion] = ModelRepositoryManager(
            [LocalSource(Path(path)) for path in options.model_repository], preparer, ModelRuntime.start,
            EnsembleRuntime.start,
            mode=ControlMode(options.model_control_mode), load_threads=options.model_load_thread_count,
            load_retries=options.model_load_retry_count, strict_readiness=options.strict_readiness,
            allow_code_upload=options.allow_code_upload, epoch=self.epoch,
        )  # fmt: skip
        self.plane = Dataplane(self.repository, server_id=options.server_id)
        self.grpc: Listener[GrpcServer] | None = None
        self.http: Listener[HttpServer] | None = None
        self.metrics: Listener[HttpServer] | None = None
        self._stop: asyncio.Event | None = None
        self._trimmed_at = -1

    # ---- start

    async def run(self) -> int:
        """Load, listen, wait for a signal, drain. Returns the exit code."""
        began = time.monotonic()
        loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            failed = await loop.run_in_executor(self.work, self.repository.start, self.options.load_model)
        except (OSError, ServerError) as error:
            return self._failed_to_start(error)
        self._print_tables()
        if failed and self.options.exit_on_error:
            for name, reason in failed:
                log.error(f"failed to load '{name}': {reason}")
            print("error: creating server: Internal - failed to load all models", file=sys.stderr)
            await loop.run_in_executor(self.work, self.repository.shutdown, float(self.options.exit_timeout_secs))
            return EXIT_FAILURE
        try:
            await self._listen()
        except (OSError, ServerError) as error:
            return self._failed_to_start(error)
        self.plane.started = True
        gc.collect()
        gc.freeze()
        log.info(f"ready in {(time.monotonic() - began) * 1000:.0f} ms")
        trimmer = loop.create_task(self._trim_when_idle())
        await self._stop.wait()
        trimmer.cancel()
        return await self._drain()

    @staticmethod
    def _failed_to_start(error: Exception) -> int:
        log.error(str(error))
        print(f"error: creating server: Internal - {error}", file=sys.stderr)
        return EXIT_FAILURE

    async def _listen(self) -> None:
        """Bind every port, then accept on all. Raises OSError or ServerError with nothing left open."""
        try:
            for listener in await self._bind_all():
                await listener.serve()
        except BaseException:
            for listener in self._listeners():
                listener.close()
            await asyncio.sleep(0)  # the loop closes sockets in its next round
            raise

    async def _bind_all(self) -> list[Listener[Any]]:
        options = self.options
        listeners: list[Listener[Any]] = []
        if options.allow_grpc:
            self.grpc = grpc_listener(options, self._app(GrpcApp, options.grpc_restricted_protocol), self.epoch)
            listeners.append(
                await self._bind(self.grpc, options.grpc_address, options.grpc_port, options.reuse_grpc_port)
            )
        if options.allow_http:
            self.http = http_listener(options, self._app(InferApp, options.http_restricted_api), self.epoch)
            listeners.append(
                await self._bind(self.http, options.http_address, options.http_port, options.reuse_http_port)
            )
        if options.allow_metrics:
            metrics = Metrics(
                self.snapshots, options.metrics_config,
                HostSampler(options.metrics_interval_ms * 1_000_000) if options.allow_cpu_metrics else None,
            )  # fmt: skip
            metrics.registry.register(self.custom_metrics)
            self.metrics = metrics_listener(options, MetricsApp(handler(metrics.render), self.work), self.epoch)
            listeners.append(
                await self._bind(
                    self.metrics,
                    options.metrics_address or options.http_address,
                    options.metrics_port,
                    options.reuse_http_port,
                )
            )
        return listeners

    def _listeners(self) -> list[Listener[Any]]:
        """Those there are, in the order in which they end."""
        return [listener for listener in (self.grpc, self.http, self.metrics) if listener is not None]

    def _app(self, kind: type[A], restricted: Mapping[str, tuple[str, str]]) -> A:
        return kind(self.plane, self.work, self.loads, restricted, self.checks)

    @staticmethod
    async def _bind(listener: Listener[Any], address: str, port: int, reuse_port: bool) -> Listener[Any]:
        try:
            await listener.start(address, port, reuse_port=reuse_port)
        except OSError as error:
            raise OSError(f"Socket '{address}:{port}' already in use ({error.strerror or error})") from None
        return listener

    # ---- run

    def snapshots(self) -> Iterable[ModelSnapshot]:
        """Return the counters of every served version, for the metrics."""
        took = self.repository.load_seconds()
        return [_snapshot(r, took.get((r.name, r.version), 0.0)) for r in self.repository.all_ready()]

    def _backend_settings(self, name: str) -> dict[str, str]:
        """Return ``--backend-config`` of one backend, laid over the global settings."""
        given = self.options.backend_config
        return {**given.get("", {}), **given.get(name, {})}

    async def _trim_when_idle(self) -> None:
        while True:
            await asyncio.sleep(TRIM_INTERVAL_S)
            served = sum(listener.native.requests for listener in (self.grpc, self.http) if listener)
            if served == self._trimmed_at:
                memory.trim()
                # A worker that does not listen may make its instance wait.
                await asyncio.get_running_loop().run_in_executor(self.work, self._trim_models)
            self._trimmed_at = served

    def _trim_models(self) -> None:
        for runtime in self.repository.all_ready():
            runtime.trim(KEEP_IDLE_BYTES)

    def _on_signal(self, number: int) -> None:
        if self.options.log_format == "json":
            log.info(f"Signal ({number}) received.")
        else:
            print(f"Signal ({number}) received.", flush=True)
        assert self._stop is not None
        if self._stop.is_set():
            log.error("second signal, exiting immediately")
            os._exit(EXIT_FAILURE)
        self._stop.set()

    # ---- stop

    async def _drain(self) -> int:
        loop = asyncio.get_running_loop()
        timeout = float(self.options.exit_timeout_secs)
        until = time.monotonic() + timeout
        self.plane.exiting = True
        serving = [listener for listener in self._listeners() if listener is not self.metrics]
        for listener in serving:
            listener.begin_drain()
        while any(listener.open_connections for listener in serving) and time.monotonic() < until:
            await asyncio.sleep(0.01)
        left = max(0.0, until - time.monotonic())
        unfinished = await loop.run_in_executor(None, self.repository.shutdown, left)
        if unfinished:
            log.error("still in use: " + ", ".join(unfinished))
        if unfinished or any(listener.open_connections for listener in serving):
            log.error("Exit timeout expired. Exiting immediately.")
            os._exit(EXIT_FAILURE)
        if self.metrics is not None:
            self.metrics.begin_drain()
        for listener in self._listeners():
            listener.close()
        with contextlib.suppress(RuntimeError):
            self.work.shutdown(wait=True)
            # A load that still waits for its turn is answered by the repository, which is closed.
            self.loads.shutdown(wait=True, cancel_futures=True)
            self.checks.shutdown(wait=True, cancel_futures=True)
        log.close()
        return 0

    # ---- tables

    def _print_tables(self) -> None:
        options = self.options
        settings = {name: json.dumps(self._backend_settings(name)) for name in backends.NAMES}
        log.table(tables.backends((name, "built in", text) for name, text in settings.items()))
        log.table(tables.models(tables.ModelRow(*row) for row in self.repository.summary()))
        rows = [
            ("server_id", options.server_id),
            ("server_version", TRITON_COMPAT),
            ("server_extensions", " ".join(EXTENSIONS)),
            *((f"model_repository_path[{i}]", path) for i, path in enumerate(options.model_repository)),
            ("model_control_mode", f"MODE_{options.model_control_mode.upper()}"),
            *((f"startup_models_{i}", name) for i, name in enumerate(options.load_model)),
            ("strict_model_config", str(int(options.strict_model_config))),
            ("model_config_name", options.model_config_name),
            ("rate_limit", options.rate_limit.upper()),
            ("strict_readiness", str(int(options.strict_readiness))),
            ("exit_timeout", str(options.exit_timeout_secs)),
            ("cache_enabled", "0"),
        ]
        log.table(tables.options(rows))


def _snapshot(runtime: ServedVersion, load_seconds: float) -> ModelSnapshot:
    taken = runtime.native.snapshot()
    ns = taken["ns"]
    return ModelSnapshot(
        model=runtime.name,
        version=str(runtime.version),
        tags=dict(runtime.config.metric_tags),
        success=taken["success"],
        failures=taken["failures"],
        inference_count=taken["inference_count"],
        exec_count=taken["execution_count"],
        request_ns=ns["request"],
        queue_ns=ns["queue"],
        compute_input_ns=ns["compute_input"],
        compute_infer_ns=ns["compute_infer"],
        compute_output_ns=ns["compute_output"],
        pending=taken["pending"],
        load_seconds=load_seconds,
        histograms={
            phase: Histogram(HISTOGRAM_BOUNDS_US, counts, total)
            for phase, (counts, total) in taken["histograms"].items()
        },
    )
