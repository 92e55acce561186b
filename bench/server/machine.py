"""What the figures were taken on, and where they go."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from scripts.server_process import ROOT

OUT = ROOT / "bench" / "out"


def machine() -> dict[str, object]:
    cpu = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
           if line.startswith("model name")]
    return {"cpu": cpu[0] if cpu else platform.machine(), "cores": len(os.sched_getaffinity(0)),
            "kernel": platform.release(), "python": platform.python_version()}
