"""Tests that need a real GPU; without one they are skipped with the reason. Their figures go to a table:
``GPU-TABLE: name | value`` lines at the end of the run, and in the file of ``--gpu-table``, each as it is made."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
Table = Callable[[str, object], None]
_rows = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu-table", default="", help="append the figures of GPU tests to this file")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_rows] = []


def missing() -> str:
    """Return why there is no GPU to test on; empty when there is one. Leaves the server's own driver alone."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no GPU: there is no libcuda.so.1"
    count = ctypes.c_int()
    if status := library.cuInit(0):
        return f"no GPU: cuInit answers {status}"
    if library.cuDeviceGetCount(ctypes.byref(count)) or count.value < 1:
        return "no GPU: the driver finds none"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if item.path.is_relative_to(HERE)]
    # See test_gpu_pytorch: the tests themselves can be tried on a CPU.
    reason = missing() if mine and os.environ.get("TF_GPU_TESTS_ON") != "cpu" else ""
    if reason:
        for item in mine:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def gpu_table(request: pytest.FixtureRequest) -> Table:
    """Return ``add(name, value)``: a row of the table that is printed when all tests are over."""
    target = request.config.getoption("--gpu-table", "")
    rows = request.config.stash[_rows]

    def add(name: str, value: object) -> None:
        line = f"GPU-TABLE: {name} | {value}"
        rows.append(line)
        if target:
            with Path(target).open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    return add


@pytest.fixture(scope="module")
def cuda() -> Iterator[None]:
    """Have the driver open in this process; closed again with nothing of ours left in it."""
    from triton_fast._native.cuda import copies, device_pool, driver, pinned

    driver.open_driver()
    yield
    pinned.stop()
    device_pool.trim()
    copies.trim()
    assert pinned.stats()["pinned"] == 0
    assert copies.stats() == {"live_streams": 0, "live_events": 0, "kept_events": 0}
    assert device_pool.stats(0)["live"] == device_pool.stats(0)["kept"] == 0
    driver._close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(_rows, []):
        terminalreporter.write_line(line)
