"""The temporary directory that goes with its process: killed, ended, forked; and what it survives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.helpers.server import ROOT, until
from triton_fast.repository.sweeper import Sweeper

PROGRAM = """
import sys
from triton_fast.repository.sweeper import shared
folder = shared.folder()
assert shared.folder() == folder
(folder / "a" / "b").mkdir(parents=True)
(folder / "a" / "b" / "c").write_text("x")
print(folder, shared._process.pid, flush=True)
sys.stdin.read()
"""


def start(tmp_path: Path) -> tuple[subprocess.Popen[str], Path, int]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    folder, pid = process.stdout.readline().split()
    return process, Path(folder), int(pid)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def test_killed(tmp_path: Path) -> None:
    with start(tmp_path)[0] as process:
        assert len(list(tmp_path.iterdir())) == 1
        process.kill()
    assert until(lambda: not list(tmp_path.iterdir()))


def test_ended(tmp_path: Path) -> None:
    process, folder, pid = start(tmp_path)
    with process:
        assert (folder / "a" / "b" / "c").read_text() == "x"
        assert folder.stat().st_mode & 0o077 == 0
    assert process.returncode == 0
    assert until(lambda: not folder.exists() and not runs(pid))


def test_signals_to_the_sweeper(tmp_path: Path) -> None:
    """A signal to everybody must not end it before the one that it waits for."""
    process, folder, pid = start(tmp_path)
    with process:
        # It ignores them once it runs; until then it has not read that it must.
        assert until(lambda: ignored(pid) & 0x4003 == 0x4003)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(pid, number)
        assert os.getsid(pid) != os.getsid(process.pid)
        assert folder.is_dir()
        process.kill()
    assert until(lambda: not folder.exists())


def ignored(pid: int) -> int:
    """The signals that a process ignores, as bits."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("SigIgn")).split()[1], 16)


def test_one_that_is_gone_is_replaced() -> None:
    sweeper = Sweeper()
    first = sweeper.folder()
    assert sweeper._process is not None
    sweeper._process.kill()
    sweeper._process.wait()
    second = sweeper.folder()
    assert second != first
    assert sweeper._process is not None
    assert sweeper._process.stdin is not None
    sweeper._process.stdin.close()
    sweeper._process.wait()
    assert not second.exists()
    first.rmdir()
