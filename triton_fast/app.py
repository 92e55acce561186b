"""Assembles the server, starts it, drains it, stops it. The one module that knows every layer."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import uvloop

from triton_fast import backends, startup
from triton_fast import memory as gpu_memory
from triton_fast._native.core import memory
from triton_fast._native.sched.limiter import Limiter
from triton_fast._native.sched.model import Epoch
from triton_fast.backends import host_policy
from triton_fast.backends.host import Host
from triton_fast.backends.host_policy import HostPolicy
from triton_fast.backends.python import deadlock
from triton_fast.cli import Options
from triton_fast.cli.doors import doors
from triton_fast.dataplane import Dataplane
from triton_fast.endpoints import Endpoints, Threads
from triton_fast.errors import STATUS, Code, ServerError
from triton_fast.frontends.keys import KeyRing
from triton_fast.memory import Gpus
from triton_fast.observability import gpu, log
from triton_fast.observability.access import AccessWriter
from triton_fast.observability.custom import CustomMetrics
from triton_fast.observability.host import HostSampler, usable_memory
from triton_fast.observability.metrics import Metrics
from triton_fast.observability.metrics_config import MetricsConfig
from triton_fast.observability.snapshot import ModelSnapshot
from triton_fast.observability.tracing import Tracing
from triton_fast.repository import (
    Agents,
    ControlMode,
    ModelRepositoryManager,
    NestedControl,
    Poller,
    Preparer,
    cloud,
)
from triton_fast.scheduling import slices
from triton_fast.scheduling.caches import ResponseCache, make_cache
from triton_fast.scheduling.ensemble import EnsembleRuntime
from triton_fast.scheduling.instances import Limits
from triton_fast.scheduling.runtime import ModelRuntime, ServedVersion
from triton_fast.scheduling.snapshots import snapshot
from triton_fast.scheduling.threads import usable_cores
from triton_fast.shared_memory import SharedMemory

# A thread that holds the GIL gives it back to the loop within this time.
SWITCH_INTERVAL_S = 0.0005
TRIM_INTERVAL_S = 10.0
# Load and unload requests that may wait at the same time; the loading itself has --model-load-thread-count threads. Who
# asks again and again for a model that takes an hour must not keep others from theirs: a waiting thread costs little.
MAX_LOADS = 512
MAX_CHECKS = 32
# What the backend of a model that nobody uses keeps of its free memory, for each instance.
KEEP_IDLE_BYTES = 1 << 20
EXIT_FAILURE = 1
# What threads get to end in, however little is left of --exit-timeout-secs.
LEAST_S = 1.0
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
    slices.shorten()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    # Whoever starts a server may ignore it, which is inherited; then no child's end could be told.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # A handler and not SIG_IGN, which workers would inherit: a terminal that goes away does not end a server.
    signal.signal(signal.SIGHUP, lambda *_: None)
    try:
        server = Server(options, policies)
    except ServerError as error:
        return Server.failed_to_start(error)
    return uvloop.run(server.run())


def find_gpus(options: Options) -> Gpus:
    """Return the GPUs that a server may use, and log what there is to say of them: nothing where there is none."""
    devices, fault = gpu_memory.find()
    gpus = Gpus(
        devices, least=options.min_supported_compute_capability, pinned_bytes=options.pinned_memory_pool_byte_size,
        pool_bytes=options.cuda_memory_pool_byte_size, peers=options.enable_peer_access,
        load_limit=options.model_load_gpu_limit,
    )  # fmt: skip
    for device in gpus.devices:
        log.info(f"GPU {device.id}: {device.name}, {device.total_bytes >> 20} MiB", uuid=device.uuid,
                 capability=gpu_memory.capability(device))  # fmt: skip
    for line in (*([fault] if fault else []), *gpus.notes, *(() if gpus.ids else options.gpu_notes)):
        log.warning(line)
    return gpus


class Server:
    """One server in this process. Two may live side by side: only the log and the C allocator's settings are global."""

    def __init__(self, options: Options, policies: Mapping[str, HostPolicy] | None = None) -> None:
        self.options = options
        self.gpus = find_gpus(options)
        self.limits = Limits(
            Limiter(options.rate_limit_resource) if options.rate_limit == "execution_count" else None,
            host_policy.parse(options.host_policy) if policies is None else policies,
            FULL_CODES[options.overload_status],
            self.gpus.admit,
        )
        if self.limits.limiter is not None:
            deadlock.shared().limited_by(self.limits.limiter)
        memory.return_large_memory()
        memory.set_body_limit(options.request_memory_limit or usable_memory() * 3 // 4)
        self.cache: ResponseCache | None = make_cache(options.cache_config, options.cache_directory)
        self.tracing = Tracing(options.trace)
        self.epoch = Epoch()
        self.work = ThreadPoolExecutor(max_workers=4, thread_name_prefix="work")
        self.loads = ThreadPoolExecutor(max_workers=MAX_LOADS, thread_name_prefix="load")
        # Waits for models' own checks, 5 s each at most; others share those that are under way.
        self.checks = ThreadPoolExecutor(max_workers=MAX_CHECKS, thread_name_prefix="ready")
        self.custom_metrics = CustomMetrics()
        backend_directory = Path(options.backend_directory)
        host = Host(
            control=NestedControl(lambda: self.repository),
            # Not the front ends' way: what is in hand when the server ends may still ask other models.
            resolve=lambda name, version: self.repository.resolve(name, version).native,
            epoch=self.epoch,
            metrics=self.custom_metrics,
            changed=lambda: self.plane.changed(),  # noqa: PLW0108 - made later
            explicit_control=options.model_control_mode == ControlMode.EXPLICIT.value,
            backend_directory=backend_directory,
            gpus=self.gpus.ids,
            use_gpu=self.gpus.use,
        )
        self.agents = Agents(Path(options.repoagent_directory))
        preparer = Preparer(
            lambda name: backends.find(name, backend_directory), host=host, agents=self.agents,
            settings=self._backend_settings, strict=options.strict_model_config,
            config_name=options.model_config_name, cpu_count=usable_cores(),
            gpus=self.gpus.ids, any_path=options.allow_code_upload,
            backend_names=lambda: backends.names(backend_directory),
        )  # fmt: skip
        counted = options.metrics_config if options.allow_metrics else MetricsConfig()
        self.opened = cloud.OpenedSources(options.model_repository, options.repository_cache_size)
        self.repository: ModelRepositoryManager[ServedVersion] = ModelRepositoryManager(
            self.opened.sources, preparer,
            self._traced(partial(ModelRuntime.start, limits=self.limits, cache=self.cache, metrics=counted)),
            self._traced(partial(EnsembleRuntime.start, cache=self.cache, metrics=counted)),
            mode=ControlMode(options.model_control_mode), load_threads=options.model_load_thread_count,
            load_retries=options.model_load_retry_count, strict_readiness=options.strict_readiness,
            allow_code_upload=options.allow_code_upload, epoch=self.epoch, namespacing=options.model_namespacing,
            open_source=self.opened.open, location_of=cloud.location_of,
        )  # fmt: skip
        self.poller: Poller | None = None
        if options.model_control_mode == ControlMode.POLL.value:
            self.poller = Poller(self.repository, float(options.repository_poll_secs))
        self.plane = Dataplane(
            self.repository, server_id=options.server_id,
            shared_memory=SharedMemory(options.allow_client_shm, self.gpus), gpus=self.gpus, tracing=self.tracing,
        )  # fmt: skip
        self.access = AccessWriter(options.access_log)
        self.endpoints = Endpoints(
            options, self.plane, self.epoch, Threads(self.work, self.loads, self.checks), self._metrics(),
            access=self.access.native,
            keys=KeyRing(Path(options.api_keys), options.api_keys_open) if options.api_keys else None,
        )  # fmt: skip
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
        if self.options.log_file:
            loop.add_signal_handler(signal.SIGHUP, self._reopen_log)
        self.access.start()
        self.tracing.start()
        starting = loop.run_in_executor(self.work, self.repository.start, self.options.load_model)
        listing = loop.run_in_executor(self.work, backends.listed, Path(self.options.backend_directory))
        stopped = loop.create_task(self._stop.wait())
        await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
        if stopped.done():
            # What has not begun to load is given up; what has is waited for as requests are.
            return await self._drain(starting)
        try:
            failed = starting.result()
        except (OSError, ServerError) as error:
            return await self._give_up(error)
        try:
            listed, notes = await listing
        except OSError as error:
            listed, notes = [], [f"the backends that there are can not be listed: {error}"]
        for note in notes:
            log.warning(note)
        startup.print_tables(
            self.options, agents=self.agents.rows(), listed=listed, settings=self._backend_settings,
            models=self.repository.summary(), cache_enabled=self.cache is not None,
        )  # fmt: skip
        log.info(doors(self.options))
        lines = []
        if failed:
            lines = await loop.run_in_executor(
                self.work, startup.failure_lines, self.options, failed, self.gpus.ids, self.opened.fetch
            )
        if failed and self.options.exit_on_error:
            is_over = await self._end(time.monotonic() + self.options.exit_timeout_secs)
            # The last that is said: who looks for the cause need not read the whole log.
            print(*lines, "error: creating server: Internal - failed to load all models", sep="\n", file=sys.stderr)
            return EXIT_FAILURE if is_over else self._leave()
        for line in lines:
            log.error(line)
        try:
            await self.endpoints.open()
        except (OSError, ServerError) as error:
            return await self._give_up(error)
        self.plane.started = True
        gc.collect()
        gc.freeze()
        log.info(f"ready in {(time.monotonic() - began) * 1000:.0f} ms")
        if self.poller is not None:
            self.poller.start()
        trimmer = loop.create_task(self._trim_when_idle())
        await stopped
        trimmer.cancel()
        return await self._drain()

    async def _give_up(self, error: Exception) -> int:
        """Say why there is no server and end the models there are; return the exit code."""
        code = self.failed_to_start(error)
        return code if await self._end(time.monotonic() + self.options.exit_timeout_secs) else self._leave()

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
        quantiles = [quantile for quantile, _ in self.options.metrics_config.summary_quantiles]
        for runtime, seconds in self.repository.served():
            yield snapshot(runtime, seconds, quantiles)

    def _traced(self, start: Callable[..., ServedVersion]) -> Callable[..., ServedVersion]:
        """Have the versions that ``start`` makes follow the trace settings."""

        def started(*args: Any) -> ServedVersion:
            runtime = start(*args)
            self.tracing.attach(runtime.name, runtime.native)
            return runtime

        return started

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
            custom=self.custom_metrics, lost=self.access.all_lost, pinned=self.gpus.pinned_usage,
        )  # fmt: skip

    def _backend_settings(self, name: str) -> dict[str, str]:
        """Return ``--backend-config`` of one backend, laid over the global settings."""
        given = self.options.backend_config
        return {**given.get("", {}), **given.get(name, {})}

    async def _trim_when_idle(self) -> None:
        while True:
            await asyncio.sleep(TRIM_INTERVAL_S)
            self.plane.gpus_are_well()
            served = self.endpoints.requests
            if served == self._trimmed_at:
                memory.trim()
                # A worker that does not listen may make its instance wait.
                await asyncio.get_running_loop().run_in_executor(self.work, self._trim_models)
            self._trimmed_at = served

    def _trim_models(self) -> None:
        for runtime in self.repository.all_ready():
            runtime.trim(KEEP_IDLE_BYTES)
        self.gpus.trim()

    def _on_signal(self, number: int) -> None:
        # Whoever has read that the signal came must find the server not ready.
        self.plane.exiting = True
        if self.options.log_format == "json":
            log.info(f"Signal ({number}) received.")
        else:
            self._say(f"Signal ({number}) received.")
        assert self._stop is not None
        if self._stop.is_set():
            log.error("second signal, exiting immediately")
            os._exit(EXIT_FAILURE)
        self._stop.set()

    @staticmethod
    def _say(text: str) -> None:
        """Print a line; that its reader has gone must not keep the server from ending, nor change its exit code."""
        try:
            print(text, flush=True)
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)

    @staticmethod
    def _reopen_log() -> None:
        try:
            log.reopen()
        except ServerError as error:
            log.error(str(error))

    # ---- stop

    async def _drain(self, starting: asyncio.Future[Any] | None = None) -> int:
        """End the server: requests in hand finish, models unload. ``starting``: they are still being loaded."""
        until = time.monotonic() + self.options.exit_timeout_secs
        self.plane.exiting = True
        if self.poller is not None:
            self.poller.stop()
        self.endpoints.begin_drain()
        self.repository.give_up_loads()  # whoever asks for one is in hand until it ends
        while self.endpoints.busy and time.monotonic() < until:
            await asyncio.sleep(0.01)
        if not await self._end(until):
            log.error("Exit timeout expired. Exiting immediately.")
            self._leave()
        if starting is not None:
            with contextlib.suppress(OSError, ServerError):
                await starting
        self.access.close()
        await asyncio.get_running_loop().run_in_executor(None, self.tracing.close)
        log.close()
        return 0

    async def _end(self, until: float) -> bool:
        """Unload every model and end the threads; whether that was done by ``until``."""
        loop = asyncio.get_running_loop()
        unfinished = await loop.run_in_executor(None, self.repository.shutdown, max(0.0, until - time.monotonic()))
        if unfinished:
            log.error("still in use: " + ", ".join(unfinished))
        if unfinished or self.endpoints.busy:
            return False
        self.endpoints.end()
        ending = loop.run_in_executor(None, self._end_threads)
        done, _ = await asyncio.wait((ending,), timeout=max(LEAST_S, until - time.monotonic()))
        return bool(done)

    @staticmethod
    def _leave() -> NoReturn:
        """End the process at once: a thread waits for what may never come, and the interpreter would wait for it."""
        sys.stderr.flush()
        os._exit(EXIT_FAILURE)

    def _end_threads(self) -> None:
        self.opened.close()
        if self.cache is not None:
            self.cache.close()
        self.work.shutdown(wait=True)
        # A load that still waits for its turn is answered by the repository, which is closed.
        self.loads.shutdown(wait=True, cancel_futures=True)
        self.checks.shutdown(wait=True, cancel_futures=True)
        self.plane.shared_memory.close()
        self.gpus.close()
