"""How many threads a model may use: the cores this process really has, shared among its instances."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1 = Path("/sys/fs/cgroup/cpu")


def usable_cores() -> int:
    """Return the cores this process may use: its affinity, cut by the cgroup quota; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return max(1, min(cores, quota) if quota else cores)


def threads_per_instance(instances: int, cores: int | None = None) -> int:
    """Return how many threads each of ``instances`` may use so that together they stay within the cores."""
    return max(1, (cores or usable_cores()) // max(1, instances))


def _quota() -> int:
    """Whole cores of the cgroup's quota, rounded up; 0 when there is none or it can not be read."""
    try:
        if _CGROUP_V2.exists():
            quota, period = _CGROUP_V2.read_text().split()[:2]
        else:
            quota = (_CGROUP_V1 / "cpu.cfs_quota_us").read_text().strip()
            period = (_CGROUP_V1 / "cpu.cfs_period_us").read_text().strip()
        if quota == "max" or int(quota) <= 0:
            return 0
        return -(-int(quota) // int(period))
    except (OSError, ValueError):
        return 0
