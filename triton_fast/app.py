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
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import uvloop

from triton_fast import backends
from triton_fast._native.core import memory
from triton_fast._native.sched.limiter import Limiter
from triton_fast._native.sched.model import Epoch
from triton_fast._version import TRITON_COMPAT
from triton_fast.backends import host_policy
from triton_fast.backends.host import Host
from triton_fast.backends.host_policy import HostPolicy
from triton_fast.cli import Options
from triton_fast.dataplane import EXTENSIONS, Dataplane
from triton_fast.endpoints import Endpoints, Threads
from triton_fast.errors import STATUS, Code, ServerError
from triton_fast.observability import gpu, log, tables
from triton_fast.observability.custom import CustomMetrics
from triton_fast.observability.host import HostSampler, usable_memory
from triton_fast.observability.metrics import Metrics
from triton_fast.observability.metrics_config import MetricsConfig
from triton_fast.observability.snapshot import ModelSnapshot
from triton_fast.repository import ControlMode, LocalSource, ModelRepositoryManager, NestedControl, Preparer
from triton_fast.scheduling.caches import ResponseCache, make_cache
from triton_fast.scheduling.ensemble import EnsembleRuntime
from triton_fast.scheduling.instances import Limits
from triton_fast.scheduling.runtime import ModelRuntime, ServedVersion
from triton_fast.scheduling.snapshots import snapshot
from triton_fast.scheduling.threads import usable_cores

# A thread that holds the GIL gives it back to the loop within this time.
SWITCH_INTERVAL_S = 0.0005
TRIM_INTERVAL_S = 10.0
# Load and unload requests that may wait at the same time; the loading itself has --model-load-thread-count threads.
MAX_LOADS = 32
MAX_CHECKS = 32
# What the backend of a model that nobody uses keeps of its free memory, for each instance.
KEEP_IDLE_BYTES = 1 << 20
EXIT_FAILURE = 1
# --overload-status: with what a request is refused for which there is no place.
FULL_CODES = {"503": Code.UNAVAILABLE, "429": Code.RESOURCE_EXHAUSTED}


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
    try:
        policies = host_policy.parse(options.host_policy)
    except ServerError as error:
        print(f"error: creating server: {STATUS[error.code].label} - {error}", file=sys.stderr)
        return EXIT_FAILURE
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        server = Server(options, policies)
    except ServerError as error:
        return Server.failed_to_start(error)
    return uvloop.run(server.run())


class Server:
    """One server in this process. Two may live side by side: only the log and the C allocator's settings are global."""

    def __init__(self, options: Options, policies: Mapping[str, HostPolicy] | None = None) -> None:
        self.options = options
        self.limits = Limits(
            Limiter(options.rate_limit_resource) if options.rate_limit == "execution_count" else None,
            host_policy.parse(options.host_policy) if policies is None else policies,
            FULL_CODES[options.overload_status],
        )
        memory.return_large_memory()
        memory.set_body_limit(options.request_memory_limit or usable_memory() * 3 // 4)
        self.cache: ResponseCache | None = make_cache(options.cache_config, options.cache_directory)
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
        counted = options.metrics_config if options.allow_metrics else MetricsConfig()
        self.repository: ModelRepositoryManager[ServedVersion] = ModelRepositoryManager(
            [LocalSource(Path(path)) for path in options.model_repository], preparer,
            partial(ModelRuntime.start, limits=self.limits, cache=self.cache, metrics=counted),
            partial(EnsembleRuntime.start, cache=self.cache, metrics=counted),
            mode=ControlMode(options.model_control_mode), load_threads=options.model_load_thread_count,
            load_retries=options.model_load_retry_count, strict_readiness=options.strict_readiness,
            allow_code_upload=options.allow_code_upload, epoch=self.epoch,
        )  # fmt: skip
        self.plane = Dataplane(self.repository, server_id=options.server_id)
        self.endpoints = Endpoints(
            options, self.plane, self.epoch, Threads(self.work, self.loads, self.checks), self._metrics()
        )
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
            return self.failed_to_start(error)
        self._print_tables()
        if failed and self.options.exit_on_error:
            for name, reason in failed:
                log.error(f"failed to load '{name}': {reason}")
            print("error: creating server: Internal - failed to load all models", file=sys.stderr)
            await loop.run_in_executor(self.work, self.repository.shutdown, float(self.options.exit_timeout_secs))
            return EXIT_FAILURE
        try:
            await self.endpoints.open()
        except (OSError, ServerError) as error:
            return self.failed_to_start(error)
        self.plane.started = True
        gc.collect()
        gc.freeze()
        log.info(f"ready in {(time.monotonic() - began) * 1000:.0f} ms")
        trimmer = loop.create_task(self._trim_when_idle())
        await self._stop.wait()
        trimmer.cancel()
        return await self._drain()

    @staticmethod
    def failed_to_start(error: Exception) -> int:
        """Say why there is no server; return the exit code."""
        label = STATUS[error.code].label if isinstance(error, ServerError) else "Internal"
        log.error(str(error))
        print(f"error: creating server: {label} - {error}", file=sys.stderr)
        return EXIT_FAILURE

    # ---- run

    def snapshots(self) -> Iterator[ModelSnapshot]:
        """Give the counters of every served version, for the metrics, one after the other."""
        took = self.repository.load_seconds()
        quantiles = [quantile for quantile, _ in self.options.metrics_config.summary_quantiles]
        for runtime in self.repository.all_ready():
            yield snapshot(runtime, took.get((runtime.name, runtime.version), 0.0), quantiles)

    def _metrics(self) -> Metrics | None:
        options = self.options
        if not options.allow_metrics:
            return None
        interval_ns = int(options.metrics_interval_ms * 1_000_000)
        return Metrics(
            self.snapshots, options.metrics_config,
            HostSampler(interval_ns) if options.allow_cpu_metrics else None,
            gpu=gpu.find(interval_ns) if options.allow_gpu_metrics and not options.cpu_only else None,
            cache=None if self.cache is None else self.cache.native.stats,
            custom=self.custom_metrics,
        )  # fmt: skip

    def _backend_settings(self, name: str) -> dict[str, str]:
        """Return ``--backend-config`` of one backend, laid over the global settings."""
        given = self.options.backend_config
        return {**given.get("", {}), **given.get(name, {})}

    async def _trim_when_idle(self) -> None:
        while True:
            await asyncio.sleep(TRIM_INTERVAL_S)
            served = self.endpoints.requests
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
        self.endpoints.begin_drain()
        while self.endpoints.busy and time.monotonic() < until:
            await asyncio.sleep(0.01)
        left = max(0.0, until - time.monotonic())
        unfinished = await loop.run_in_executor(None, self.repository.shutdown, left)
        if unfinished:
            log.error("still in use: " + ", ".join(unfinished))
        if unfinished or self.endpoints.busy:
            log.error("Exit timeout expired. Exiting immediately.")
            os._exit(EXIT_FAILURE)
        self.endpoints.end()
        if self.cache is not None:
            await loop.run_in_executor(None, self.cache.close)
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
            ("cache_enabled", str(int(self.cache is not None))),
        ]
        log.table(tables.options(rows))
