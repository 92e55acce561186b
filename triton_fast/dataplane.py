"""Every verb of the server, once. Front ends decode into these calls and encode what they return; nothing else.

Verbs raise ``ServerError``; only front ends know protocols. Infer is not here: its data path is native
(``_native/http``, ``_native/grpc``), and asks ``native_model`` for the version to submit to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from triton_fast._native.sched.model import NativeModel
from triton_fast._version import TRITON_COMPAT
from triton_fast.config import ModelConfig
from triton_fast.errors import InvalidArg, ServerError, Unavailable
from triton_fast.memory import Gpus
from triton_fast.observability import log
from triton_fast.observability.tracing import Tracing
from triton_fast.observability.tracing.settings import Changes
from triton_fast.repository import IndexRow, ModelRepositoryManager, State
from triton_fast.scheduling.runtime import ServedVersion
from triton_fast.shared_memory import SharedMemory
from triton_fast.types import TYPES, DataType

EXTENSIONS = (
    "classification", "sequence", "model_repository", "model_repository(unload_dependents)", "schedule_policy",
    "model_configuration", "system_shared_memory", "cuda_shared_memory", "binary_tensor_data", "parameters",
    "statistics", "trace", "logging",
)  # fmt: skip
MAX_VERSION_DIGITS = 18
LOG_SWITCHES = ("log_info", "log_warning", "log_error")
LOG_FILE_FIXED = "log file location can not be updated through network protocol"
_LOG_FIELDS = {
    "log_info": "info", "log_warning": "warning", "log_error": "error", "log_verbose_level": "verbose",
    "log_format": "format",
}  # fmt: skip


def parse_version(text: str) -> int:
    """Return the version number of a URL or message field; empty means -1, the version policy's choice."""
    if not text:
        return -1
    digits = text.removeprefix("-")
    if not digits.isascii() or not digits.isdigit():
        raise InvalidArg(
            f"failed to get model version from specified version string '{text}' (details: stol), "
            "version should be an integral value > 0"
        )
    significant = digits.lstrip("0")
    if text != digits or len(significant) > MAX_VERSION_DIGITS:
        raise InvalidArg(f"invalid model version specified '{text}' , version should be an integral value > 0")
    return int(significant or 0)


class UnknownModel(InvalidArg):
    """No repository has it."""


class Dataplane:
    """The verbs, over one repository.

    Parameters
    ----------
    repository
        Where names resolve to served versions.
    server_id
        ``--id``.
    shared_memory
        Where clients register regions; by default they may not.
    gpus
        Those that the server uses: when one of them is lost, the server is not ready.
    tracing
        The server's trace settings; None where it has none.
    """

    def __init__(
        self,
        repository: ModelRepositoryManager[ServedVersion],
        *,
        server_id: str = "triton",
        shared_memory: SharedMemory | None = None,
        gpus: Gpus | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.tracing = tracing
        self.repository = repository
        self.shared_memory = shared_memory or SharedMemory()
        self._gpus = gpus or Gpus([])
        self._lost: set[int] = set()
        self.server_id = server_id
        self._started = False
        self._exiting = False
        self._watchers: tuple[Callable[[], None], ...] = ()
        repository.watch(self._changed)

    # ---- state

    @property
    def started(self) -> bool:
        return self._started

    @started.setter
    def started(self, value: bool) -> None:
        self._started = value
        self._changed()

    @property
    def exiting(self) -> bool:
        return self._exiting

    @exiting.setter
    def exiting(self, value: bool) -> None:
        self._exiting = value
        self._changed()

    def watch(self, changed: Callable[[], None]) -> None:
        """Have ``changed`` called after everything that readiness may depend on.

        It is called on any thread, some with locks of the repository held: it must only pass the word on.
        """
        self._watchers = (*self._watchers, changed)

    def unwatch(self, changed: Callable[[], None]) -> None:
        self._watchers = tuple(watcher for watcher in self._watchers if watcher != changed)

    def changed(self) -> None:
        """Pass the word on that a model's readiness may be another; from any thread."""
        self._changed()

    def _changed(self) -> None:
        for changed in self._watchers:
            changed()

    # ---- server

    def server_live(self) -> bool:
        self._refuse_exiting()
        return True

    @property
    def ready_may_block(self) -> bool:
        """Whether ``server_ready`` and ``model_ready`` may wait for a model's own check: not for the loop's thread."""
        return self.repository.ready_may_block

    def server_ready(self) -> bool:
        self._refuse_exiting()
        return self.started and self.repository.ready_state() and self.gpus_are_well()

    def gpus_are_well(self) -> bool:
        """Whether all GPUs in use answer; the first time that one does not, the log says so."""
        lost = self._gpus.lost()
        for device, why in lost:
            if device not in self._lost:
                self._lost.add(device)
                log.error(f"GPU {device} is lost until the server is started anew: {why}; the server is not ready")
                self._changed()
        return not lost

    def server_metadata(self) -> dict[str, Any]:
        return {"name": self.server_id, "version": TRITON_COMPAT, "extensions": list(EXTENSIONS)}

    def _refuse_exiting(self) -> None:
        if self.exiting:
            raise Unavailable("Server exiting")

    # ---- models

    def native_model(self, name: str, version: int) -> NativeModel:
        """Return the version that an infer request goes to. The hot path caches the answer by the epoch."""
        return self._runtime(name, version).native

    def _runtime(self, name: str, version: int) -> ServedVersion:
        if self.exiting:
            raise Unavailable("Server exiting")
        return self.repository.resolve(name, version)

    def model_ready(self, name: str, version: int) -> bool:
        self._refuse_exiting()
        return self.repository.is_ready(name, version)

    def model_metadata(self, name: str, version: int) -> dict[str, Any]:
        runtime = self._runtime(name, version)
        config = runtime.config
        versions = [version] if version >= 0 else self.repository.versions(name)
        return {
            "name": runtime.name,
            "versions": [str(number) for number in versions],
            "platform": config.platform or config.backend,
            "inputs": [_tensor_metadata(tensor, config.max_batch_size) for tensor in config.input],
            "outputs": [_tensor_metadata(tensor, config.max_batch_size) for tensor in config.output],
        }

    def model_config(self, name: str, version: int) -> ModelConfig:
        """Return the completed config, the message itself: not to be changed."""
        return self._runtime(name, version).config

    def model_statistics(self, name: str = "", version: int = -1) -> dict[str, Any]:
        """Return the statistics of one version, of every version of one model, or of all (no name)."""
        if not name:
            runtimes = self.repository.all_ready()
        else:
            known = self.repository.ready_of(name)
            if not known:
                raise InvalidArg(f"requested model '{name}' is not available")
            runtimes = [runtime for runtime in known if version in (-1, runtime.version)]
            if not runtimes:
                raise InvalidArg(f"requested model version is not available for model '{name}'")
        return {"model_stats": [_statistics(runtime) for runtime in runtimes]}

    # ---- repository

    def repository_index(self, ready_only: bool = False) -> list[dict[str, str]]:
        return [_index_row(row) for row in self.repository.index(ready_only)]

    def load_model(self, name: str, parameters: Mapping[str, str | bytes]) -> None:
        """Load or reload; blocks until the model is ready or failed. ``parameters``: config, file:<path> -> bytes."""
        self._refuse_exiting()
        config = parameters.get("config")
        files = {key: value for key, value in parameters.items() if isinstance(value, bytes)}
        self.repository.load(name, config_json=config if isinstance(config, str) else None, files=files or None)

    def unload_model(self, name: str, *, unload_dependents: bool = False) -> None:
        self._refuse_exiting()
        self.repository.unload(name, unload_dependents=unload_dependents)

    # ---- tracing

    def trace_settings(self, name: str = "", changes: Changes | None = None) -> dict[str, list[str]]:
        """Change the trace settings of a model, of all with "", and return what holds then.

        Raises
        ------
        UnknownModel
            No repository has the model.
        InvalidArg
            It is not ready, or nothing could be traced as the settings would be.
        """
        if self.tracing is None:
            raise Unavailable("the server does not support tracing")
        if name:
            try:
                self.repository.resolve(name, -1)
            except ServerError:
                known = any(model == name for model, *_ in self.repository.summary())
                raise (InvalidArg if known else UnknownModel)(f"Request for unknown model : {name}") from None
        if changes:
            self.tracing.update(name, changes)
        return self.tracing.shown(name)

    # ---- log

    def log_settings(self) -> dict[str, Any]:
        """Return the settings of the log under Triton's names and in its order."""
        now = log.settings()
        return {
            "log_file": now.file, "log_info": now.info, "log_warning": now.warning, "log_error": now.error,
            "log_verbose_level": now.verbose, "log_format": now.format,
        }  # fmt: skip

    def change_log_settings(self, changes: Mapping[str, Any]) -> None:
        """Change all of these, or none. ``changes``: as ``log_settings`` names them, of the right types, no file."""
        wanted = {_LOG_FIELDS[name]: value for name, value in changes.items()}
        if "verbose" in wanted:
            # Triton's level is an int32, and what is no level of it is none.
            level = wanted["verbose"] & 0xFFFFFFFF
            wanted["verbose"] = level if level < 1 << 31 else 0
        if wanted:
            log.update(**wanted)

    def model_gone(self, name: str) -> bool:
        """Whether no version of a model is served, loads or still ends."""
        states = [status for model, _, status in self.repository.summary() if model == name]
        return all(state.partition(":")[0] == State.UNAVAILABLE.value for state in states)

    def register_repository(self, path: str, mapping: Mapping[str, str] | None = None) -> None:
        """Add a repository, whose models are then there to be loaded. ``mapping``: sub-directory -> name served under.

        Raises
        ------
        Unsupported, InvalidArg, AlreadyExists
            With Triton's texts; mode explicit only.
        """
        self._refuse_exiting()
        self.repository.register_repository(path, mapping)

    def unregister_repository(self, path: str) -> None:
        """Forget a repository; what was loaded from it is served still. Raises Unsupported, InvalidArg."""
        self._refuse_exiting()
        self.repository.unregister_repository(path)

    def registered_repositories(self) -> dict[str, dict[str, str]]:
        """Return every repository's location with its mapping, those given at start included."""
        return self.repository.registered_repositories()


def _index_row(row: IndexRow) -> dict[str, str]:
    """A model that was never loaded has only its name."""
    if row.state is State.UNKNOWN:
        return {"name": row.name}
    shown = {"name": row.name, "version": str(row.version), "state": row.state.value}
    if row.reason:
        shown["reason"] = row.reason
    return shown


def _tensor_metadata(tensor: Any, max_batch_size: int) -> dict[str, Any]:
    shape = list(tensor.dims)
    return {
        "name": tensor.name,
        "datatype": TYPES[DataType(tensor.data_type)].wire,
        "shape": [-1, *shape] if max_batch_size > 0 else shape,
    }


def _statistics(runtime: ServedVersion) -> dict[str, Any]:
    taken = runtime.native.snapshot()
    success, failed = taken["success"], sum(taken["failures"].values())
    hits, hit_ns, misses, miss_ns = taken["cache"]
    computed = success - hits

    def duration(count: int, ns: int) -> dict[str, int]:
        return {"count": count, "ns": ns}

    return {
        "name": runtime.name,
        "version": str(runtime.version),
        "last_inference": taken["last_inference_ms"],
        "inference_count": taken["inference_count"],
        "execution_count": taken["execution_count"],
        "inference_stats": {
            "success": duration(success, taken["ns"]["request"]),
            "fail": duration(failed, taken["fail_ns"]),
            "queue": duration(success, taken["ns"]["queue"]),
            "compute_input": duration(computed, taken["ns"]["compute_input"]),
            "compute_infer": duration(computed, taken["ns"]["compute_infer"]),
            "compute_output": duration(computed, taken["ns"]["compute_output"]),
            "cache_hit": duration(hits, hit_ns),
            "cache_miss": duration(misses, miss_ns),
        },
        "response_stats": {
            str(index): {field: duration(*spent) for field, spent in response.items()}
            for index, response in taken["responses"].items()
        },
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": duration(count, input_ns),
                "compute_infer": duration(count, infer_ns),
                "compute_output": duration(count, output_ns),
            }
            for size, count, input_ns, infer_ns, output_ns in taken["batches"]
        ],
        "memory_usage": [],
    }
