"""An example of examples/ in a folder of its own, its scripts run as a user runs them. Knows none of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.helpers.server import ROOT, ServerProcess

# One thread: what is trained must be the same however many cores there are.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def copied(name: str, target: Path) -> Path:
    """Copy what is written of an example, without what its scripts make; return its folder."""
    made = shutil.ignore_patterns("*.onnx", "*.npz", "*.tl", "tokens.json", "__pycache__", "*.egg-info", "build")
    shutil.copytree(ROOT / "examples" / name, target / name, ignore=made)
    return target / name


def run(script: Path, *arguments: str) -> str:
    """Run a script and return what it printed; it must end with code 0."""
    env = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script), *arguments], check=False, capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, f"{script.name} ended with code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def addresses(server: ServerProcess) -> list[str]:
    """The flags that tell a client where the server is."""
    return ["--http", f"{server.http[0]}:{server.http[1]}", "--grpc", f"{server.grpc[0]}:{server.grpc[1]}"]
