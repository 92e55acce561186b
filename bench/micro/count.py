"""Count instructions with callgrind. It knows nothing of the cases but their names."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VALGRIND = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")
COLLECTED = re.compile(r"Collected\s*:\s*(\d+)")


def environment() -> str:
    """Name of what decides about counts: interpreter, compiler and processor family, e.g. cp311-gcc12-x86_64."""
    compiler = sysconfig.get_config_var("CC").split()[0]
    version = subprocess.run([compiler, "-dumpversion"], check=True, capture_output=True, text=True).stdout
    clang = "clang" in subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout
    kind = "clang" if clang else "gcc"
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return f"{python}-{kind}{version.split('.')[0].strip()}-{platform.machine()}"


def clean_env() -> dict[str, str]:
    """A small fixed environment: its size moves the stack, hashing must not differ from run to run, and threads of
    numpy's library would spin for as long as the machine lets them."""
    paths = [str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]
    return {"PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": ":".join(paths), "LC_ALL": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1"}


def collected(log: str) -> int:
    """Instructions from valgrind's closing lines."""
    found = COLLECTED.search(log)
    if found is None:
        raise RuntimeError(f"callgrind gave no count:\n{log[-2000:]}")
    return int(found[1])


def instructions(arguments: Sequence[str]) -> int:
    """Instructions of one run of this interpreter with the arguments; -S keeps site's work out of it."""
    with tempfile.NamedTemporaryFile("r", prefix="callgrind-", suffix=".log") as log:
        argv = [*VALGRIND, f"--log-file={log.name}", sys.executable, "-S", *arguments]
        done = subprocess.run(argv, cwd=ROOT, env=clean_env(), check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
        return collected(log.read())


def per_call(name: str, calls: int) -> float:
    """(I(2n) - I(n)) / n: what one further call costs, without start-up and set-up."""
    once, twice = (instructions(["-m", "bench.micro.cases", name, str(n)]) for n in (calls, 2 * calls))
    return (twice - once) / calls
