"""Figures of NVIDIA GPUs, through NVML. Its Python package is imported only where the driver's library is.

Knows nothing of metrics.
"""

from __future__ import annotations

import ctypes
import importlib
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from triton_fast.observability import log

LIBRARY = "libnvidia-ml.so.1"
# Errors in a row after which a figure of a GPU is not asked for any more, as in Triton.
MAX_ERRORS = 3


class GpuFigures(NamedTuple):
    """Each figure None where the GPU does not tell: rates 0..1, bytes, watts, joules since the sampler was made."""

    uuid: str
    utilization: float | None
    memory_total: int | None
    memory_used: int | None
    power_usage: float | None
    power_limit: float | None
    energy: float | None


class GpuSampler:
    """Takes figures when asked, at most once each ``interval_ns``. Safe from any thread.

    ``nvml`` is the module ``pynvml``, initialised; ``clock`` gives monotonic ns. A GPU whose driver does not know a
    figure has no series for it, and a figure that fails ``MAX_ERRORS`` times in a row is given up with a warning.
    """

    def __init__(
        self, nvml: Any, interval_ns: int = 2_000_000_000, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._nvml = nvml
        self._interval_ns = interval_ns
        self._clock = clock
        self._lock = threading.Lock()
        self._errors: dict[tuple[str, str], int] = {}
        self._gpus: list[tuple[str, Any]] = []
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                uuid = nvml.nvmlDeviceGetUUID(handle)
            except nvml.NVMLError as error:
                log.warning(f"GPU {index} has no metrics: {error}")
                continue
            self._gpus.append((uuid.decode() if isinstance(uuid, bytes) else uuid, handle))
        self._start_mj = {
            uuid: self._ask(uuid, "energy", partial(nvml.nvmlDeviceGetTotalEnergyConsumption, handle))
            for uuid, handle in self._gpus
        }
        self._taken_ns = clock()
        self._last = self._take()

    def sample(self) -> list[GpuFigures]:
        """Return the figures of the current interval, one entry a GPU."""
        with self._lock:
            now = self._clock()
            if now - self._taken_ns >= self._interval_ns:
                self._taken_ns = now
                self._last = self._take()
            return self._last

    def _take(self) -> list[GpuFigures]:
        nvml, figures = self._nvml, []
        for uuid, handle in self._gpus:
            rates = self._ask(uuid, "utilization", partial(nvml.nvmlDeviceGetUtilizationRates, handle))
            memory = self._ask(uuid, "memory", partial(nvml.nvmlDeviceGetMemoryInfo, handle))
            usage = self._ask(uuid, "power usage", partial(nvml.nvmlDeviceGetPowerUsage, handle))
            limit = self._ask(uuid, "power limit", partial(nvml.nvmlDeviceGetPowerManagementLimit, handle))
            energy = self._ask(uuid, "energy", partial(nvml.nvmlDeviceGetTotalEnergyConsumption, handle))
            start = self._start_mj[uuid]
            figures.append(
                GpuFigures(
                    uuid,
                    None if rates is None else rates.gpu / 100,
                    None if memory is None else int(memory.total),
                    None if memory is None else int(memory.used),
                    None if usage is None else usage / 1000,
                    None if limit is None else limit / 1000,
                    None if energy is None or start is None else (energy - start) / 1000,
                )
            )
        return figures

    def _ask(self, uuid: str, what: str, query: Callable[[], Any]) -> Any:
        """Return what ``query`` does, or None where it fails or has failed too often."""
        key = uuid, what
        if self._errors.get(key, 0) >= MAX_ERRORS:
            return None
        try:
            answer = query()
        except self._nvml.NVMLError as error:
            if getattr(error, "value", None) == self._nvml.NVML_ERROR_NOT_SUPPORTED:
                self._errors[key] = MAX_ERRORS  # it never will be: nothing to warn of
                return None
            self._errors[key] = self._errors.get(key, 0) + 1
            if self._errors[key] == MAX_ERRORS:
                log.warning(f"{what} of GPU {uuid} is not asked for any more after {MAX_ERRORS} errors: {error}")
            return None
        self._errors.pop(key, None)
        return answer


def find(
    interval_ns: int = 2_000_000_000,
    library: Callable[[str], object] = ctypes.CDLL,
    load: Callable[[str], Any] = importlib.import_module,
) -> GpuSampler | None:
    """Return the sampler of this machine's GPUs; None where there is no NVIDIA driver or it cannot be asked."""
    try:
        library(LIBRARY)
    except OSError:
        return None
    try:
        nvml = load("pynvml")
    except ImportError:
        log.warning("there are no GPU metrics: the package nvidia-ml-py is not installed (extra 'gpu' of triton_fast)")
        return None
    try:
        nvml.nvmlInit()
        return GpuSampler(nvml, interval_ns)
    except nvml.NVMLError as error:
        log.warning(f"there are no GPU metrics: {error}")
        return None
