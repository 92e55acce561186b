"""CPU utilisation and memory of the machine, from /proc. Knows nothing of metrics."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

_MEMORY = re.compile(r"^(MemTotal|MemAvailable):\s+(\d+) kB$", re.MULTILINE)


# cgroup v2, then v1; a limit that is none is "max" or a number near 2^63.
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def usable_memory(read: Callable[[str], str] | None = None) -> int:
    """Return the bytes this process may use: the machine's memory, cut by the cgroup's limit; 0 if unknown."""
    read = read or _read
    found = []
    with contextlib.suppress(OSError):
        total = dict(_MEMORY.findall(read("/proc/meminfo"))).get("MemTotal")
        found += [int(total) * 1024] if total is not None else []
    for path in _CGROUP_LIMITS:
        try:
            text = read(path).strip()
        except OSError:
            continue
        if text.isdigit():
            found.append(int(text))
    return min(found, default=0)


class HostFigures(NamedTuple):
    """Each None where the machine does not tell: ``utilization`` 0..1 over all cores, memory in bytes."""

    utilization: float | None
    memory_total: int | None
    memory_used: int | None


def _read(path: str) -> str:
    return Path(path).read_text(encoding="ascii", errors="replace")


class HostSampler:
    """Takes figures when asked, at most once each ``interval_ns``; utilisation covers the time since the last taking.

    ``read`` returns the text of a file, ``clock`` monotonic ns. Safe from any thread.
    """

    def __init__(
        self,
        interval_ns: int = 2_000_000_000,
        read: Callable[[str], str] = _read,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._interval_ns = interval_ns
        self._read = read
        self._clock = clock
        self._lock = threading.Lock()
        self._taken_ns = clock()
        self._times = self._cpu_times()
        self._last = HostFigures(None if self._times is None else 0.0, *self._memory())

    def sample(self) -> HostFigures:
        """Return the figures of the current interval."""
        with self._lock:
            now = self._clock()
            if now - self._taken_ns >= self._interval_ns:
                self._taken_ns = now
                self._last = HostFigures(self._utilization(), *self._memory())
            return self._last

    def _utilization(self) -> float | None:
        new, old = self._cpu_times(), self._times
        self._times = new
        if new is None or old is None:
            return None
        # A counter that runs backwards (a core went offline) counts as no time.
        busy, idle = max(0, new[0] - old[0]), max(0, new[1] - old[1])
        return busy / (busy + idle) if busy + idle else 0.0

    def _cpu_times(self) -> tuple[int, int] | None:
        """Return busy and idle ticks since boot."""
        try:
            words = self._read("/proc/stat").partition("\n")[0].split()
            user, nice, system, idle, iowait, irq, softirq, steal = (int(word) for word in words[1:9])
        except (OSError, ValueError):
            return None
        if words[0] != "cpu":
            return None
        return user + nice + system + irq + softirq + steal, idle + iowait

    def _memory(self) -> tuple[int | None, int | None]:
        try:
            found = dict(_MEMORY.findall(self._read("/proc/meminfo")))
        except OSError:
            return None, None
        total, free = found.get("MemTotal"), found.get("MemAvailable")
        if total is None or free is None:
            return None, None
        return int(total) * 1024, (int(total) - int(free)) * 1024
