"""GPU figures from a stand-in for NVML, as tests run where no GPU is; and that nothing is loaded without a driver."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from triton_fast.observability import gpu
from triton_fast.observability.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"error {value}")
        self.value = value


class Nvml:
    """What the sampler uses of pynvml, for two GPUs. ``broken``: (function, index) -> error."""

    NVML_ERROR_NOT_SUPPORTED = 3
    NVMLError = NVMLError

    def __init__(self) -> None:
        self.broken: dict[tuple[str, int], int] = {}
        self.asked: list[tuple[str, int]] = []
        self.energy_mj = 5_000

    def _answer(self, name: str, index: int, value: object) -> object:
        self.asked.append((name, index))
        if (name, index) in self.broken:
            raise NVMLError(self.broken[name, index])
        return value

    def nvmlInit(self) -> None:
        self._answer("init", 0, None)

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> object:
        return self._answer("uuid", handle, [b"GPU-old-bytes", "GPU-text"][handle])

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> object:
        return self._answer("utilization", handle, SimpleNamespace(gpu=25 + handle, memory=7))

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> object:
        return self._answer("memory", handle, SimpleNamespace(total=1000, used=10, free=990))

    def nvmlDeviceGetPowerUsage(self, handle: int) -> object:
        return self._answer("usage", handle, 70_500)

    def nvmlDeviceGetPowerManagementLimit(self, handle: int) -> object:
        return self._answer("limit", handle, 300_000)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> object:
        return self._answer("energy", handle, self.energy_mj)


class Clock:
    now = 0

    def __call__(self) -> int:
        return self.now


def test_what_a_scrape_shows() -> None:
    nvml, clock = Nvml(), Clock()
    sampler = gpu.GpuSampler(nvml, 100, clock)
    nvml.energy_mj, clock.now = 7_250, 100
    text = Metrics(list, gpu=sampler).render().decode()
    for name, kind, words, value in (
        ("nv_gpu_utilization", "gauge", "GPU utilization rate [0.0 - 1.0)", "0.25"),
        ("nv_gpu_memory_total_bytes", "gauge", "GPU total memory, in bytes", "1000"),
        ("nv_gpu_memory_used_bytes", "gauge", "GPU used memory, in bytes", "10"),
        ("nv_gpu_power_usage", "gauge", "GPU power usage in watts", "70.5"),
        ("nv_gpu_power_limit", "gauge", "GPU power management limit in watts", "300.0"),
        ("nv_energy_consumption", "counter", "GPU energy consumption in joules since the Triton Server started",
         "2.25"),
    ):  # fmt: skip
        assert f'# HELP {name} {words}\n# TYPE {name} {kind}\n{name}{{gpu_uuid="GPU-old-bytes"}} {value}\n' in text
        assert f'\n{name}{{gpu_uuid="GPU-text"}} ' in text


def test_figures_are_taken_once_an_interval() -> None:
    nvml, clock = Nvml(), Clock()
    sampler = gpu.GpuSampler(nvml, 100, clock)
    nvml.asked.clear()
    clock.now = 99
    assert sampler.sample()[1].utilization == 0.26
    assert nvml.asked == []
    clock.now = 100
    assert sampler.sample() is sampler.sample()
    assert len(nvml.asked) == 2 * 5


def test_a_figure_that_fails_repeatedly_is_given_up(capsys: pytest.CaptureFixture[str]) -> None:
    nvml, clock = Nvml(), Clock()
    nvml.broken = {("usage", 1): 999, ("limit", 0): Nvml.NVML_ERROR_NOT_SUPPORTED}
    sampler = gpu.GpuSampler(nvml, 1, clock)

    def after(ticks: int) -> list[gpu.GpuFigures]:
        clock.now += ticks
        return sampler.sample()

    assert after(1)[1].power_usage is None
    # One that comes back in time is forgiven.
    del nvml.broken["usage", 1]
    assert after(1)[1].power_usage == 70.5
    nvml.broken["usage", 1] = 999
    for _ in range(10):
        figures = after(1)
    assert figures[1].power_usage is None
    assert figures[0].power_usage == 70.5
    assert figures[0].power_limit is None
    assert figures[1].power_limit == 300.0
    assert nvml.asked.count(("usage", 1)) == 2 + 1 + gpu.MAX_ERRORS
    assert nvml.asked.count(("limit", 0)) == 1
    said = capsys.readouterr().err
    assert said.count("power usage of GPU GPU-text is not asked for any more after 3 errors: error 999") == 1
    assert "power limit" not in said
    text = Metrics(list, gpu=sampler).render().decode()
    assert 'nv_gpu_power_usage{gpu_uuid="GPU-text"}' not in text
    assert 'nv_gpu_power_usage{gpu_uuid="GPU-old-bytes"}' in text


def test_a_gpu_without_a_uuid_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    nvml = Nvml()
    nvml.broken = {("uuid", 0): 999}
    assert [figures.uuid for figures in gpu.GpuSampler(nvml).sample()] == ["GPU-text"]
    assert "GPU 0 has no metrics: error 999" in capsys.readouterr().err


def test_finding(capsys: pytest.CaptureFixture[str]) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    def unloadable(name: str) -> None:
        raise ImportError(name)

    def never(name: str) -> None:
        raise AssertionError(f"{name} was loaded without a driver")

    assert gpu.find(library=missing, load=never) is None
    assert capsys.readouterr().err == ""
    assert gpu.find(library=str, load=unloadable) is None
    assert "the package nvidia-ml-py is not installed" in capsys.readouterr().err
    nvml = Nvml()
    found = gpu.find(library=str, load={"pynvml": nvml}.__getitem__)
    assert found is not None
    assert len(found.sample()) == 2
    nvml.broken["init", 0] = 9
    assert gpu.find(library=str, load={"pynvml": nvml}.__getitem__) is None
    assert "there are no GPU metrics: error 9" in capsys.readouterr().err


def test_the_server_imports_nothing_for_gpus_by_itself() -> None:
    code = "import sys, triton_fast.app; print('pynvml' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_without_gpus_there_are_no_families() -> None:
    assert "nv_gpu_" not in Metrics(list).render().decode()
