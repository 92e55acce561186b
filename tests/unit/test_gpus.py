"""The GPUs that a server may use: which, when they are set up, what flags do, which models run on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import standin_cuda
from tests.helpers.standin_cuda import OUT_OF_MEMORY, StandIn
from triton_fast import backends, memory
from triton_fast._native.cuda import device_pool, driver, pinned
from triton_fast._native.cuda.device_pool import DeviceMemory
from triton_fast._native.cuda.driver import Device
from triton_fast.backends.base import Backend, BackendModel, InstanceSpec, LoadContext
from triton_fast.backends.host import Host
from triton_fast.config.errors import ConfigError
from triton_fast.errors import Unavailable
from triton_fast.memory import Gpus
from triton_fast.repository.prepare import Preparer
from triton_fast.scheduling.runtime import instance_specs

MIB = 1 << 20


@pytest.fixture
def fake() -> Iterator[StandIn]:
    with standin_cuda.opened() as stand_in:
        yield stand_in
        for device in (0, 1):
            device_pool.set_budget(device, 64 * MIB)


def device(number: int, *capability: int) -> Device:
    return Device(number, f"G{number}", "GPU-x", (capability[0], capability[1]), 1 << 30)


# --- which -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("least", "expected"), [(6.0, (0, 1, 2)), (7.5, (1, 2)), (8.6, (1, 2)), (9.0, (2,)), (12.1, ()), (8.7, (2,))]
)
def test_devices_by_their_compute_capability(least: float, expected: tuple[int, ...]) -> None:
    gpus = Gpus([device(0, 6, 1), device(1, 8, 6), device(2, 12, 0)], least=least)
    assert gpus.ids == expected
    assert len(gpus.notes) == 3 - len(expected)
    if expected == (1, 2):
        assert gpus.notes == [
            "GPU 0 (G0) is not used: its compute capability is 6.1, "
            f"--min-supported-compute-capability asks for {least}"
        ]


def test_flags_that_name_other_gpus_say_so() -> None:
    gpus = Gpus([device(0, 9, 0)], pool_bytes={0: 1, 3: 1}, load_limit={1: 0.5})
    assert gpus.notes == [
        "--cuda-memory-pool-byte-size names GPU 3, which is not used",
        "--model-load-gpu-limit names GPU 1, which is not used",
    ]
    assert Gpus([], pool_bytes={3: 1}).notes == [], "there the command line's own note says it"


def test_without_a_driver_there_is_nothing_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "LIBRARY", "nowhere/libcuda.so.1")
    assert memory.find() == ([], "")
    gpus = Gpus([], pinned_bytes=MIB)
    assert gpus.pinned_usage() == (0, 0)
    gpus.trim()
    gpus.close()
    with pytest.raises(Unavailable, match="GPU 0 can not be used: the server uses no GPU"):
        gpus.use(0)
    with pytest.raises(Unavailable, match="the server uses no GPU"):
        Host().use_gpu(0)


def test_a_driver_that_does_not_work_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise Unavailable("the NVIDIA driver can not be started: X")

    monkeypatch.setattr(memory.driver, "open_driver", refuse)
    assert memory.find() == ([], "no GPU is used: the NVIDIA driver can not be started: X")


# --- use -------------------------------------------------------------------------------------------------------


def test_nothing_is_set_up_before_it_is_used(fake: StandIn) -> None:
    gpus = Gpus(driver.devices(), pinned_bytes=8 * MIB, pool_bytes={1: MIB}, peers=True)
    enabled = fake.calls("cuCtxEnablePeerAccess")
    assert fake.held()["contexts"] == 0 and pinned.stats()["budget"] == 0
    assert gpus.pinned_usage() == (8 * MIB, 0)
    gpus.use(1)
    gpus.use(1)
    assert fake.held()["contexts"] == 1 and pinned.stats()["budget"] == 8 * MIB
    assert (device_pool.stats(0)["budget"], device_pool.stats(1)["budget"]) == (64 * MIB, MIB)
    assert fake.calls("cuCtxEnablePeerAccess") == enabled
    gpus.use(0)
    assert fake.calls("cuCtxEnablePeerAccess") == enabled + 2
    block = pinned.HostBlock(MIB)
    assert gpus.pinned_usage() == (8 * MIB, MIB)
    del block
    DeviceMemory(1, MIB)
    gpus.trim()
    assert pinned.stats()["free"] == MIB
    gpus.close()
    assert fake.held()["pinned"] == fake.held()["device"] == 0


def test_peers_only_where_they_are_wanted(fake: StandIn) -> None:
    gpus, before = Gpus(driver.devices()), fake.calls("cuCtxEnablePeerAccess")
    gpus.use(0)
    gpus.use(1)
    assert fake.calls("cuCtxEnablePeerAccess") == before
    assert pinned.stats()["budget"] == 0, "0 bytes of pinned memory: none"
    gpus.close()


def test_a_gpu_that_can_not_be_used(fake: StandIn) -> None:
    gpus = Gpus(driver.devices()[:1])
    with pytest.raises(Unavailable, match="GPU 1 can not be used: the server uses 0"):
        gpus.use(1)
    fake.fail("cuDevicePrimaryCtxRetain", OUT_OF_MEMORY)
    with pytest.raises(Unavailable, match="failed to make the CUDA context on GPU 0: CUDA_ERROR_OUT_OF_MEMORY"):
        gpus.use(0)
    gpus.use(0)
    gpus.close()


def test_a_full_gpu_takes_no_more_models(fake: StandIn) -> None:
    fake.limit(memory=100 * MIB)
    gpus = Gpus(driver.devices(), load_limit={0: 0.5})
    gpus.admit("m", 0)
    held = DeviceMemory(0, 64 * MIB)
    with pytest.raises(Unavailable) as caught:
        gpus.admit("m", 0)
    assert str(caught.value) == (
        "can not create model 'm': memory limit set for GPU 0 has exceeded, model loading is rejected."
    )
    gpus.admit("m", 1)
    del held
    gpus.close()


# --- placement -------------------------------------------------------------------------------------------------


class Either(Backend):
    """A backend that can use GPUs if it is told so."""

    name = "either"
    default_filename = ""

    def __init__(self, gpu: bool) -> None:
        self._gpu = gpu

    @property
    def gpu(self) -> bool:
        return self._gpu

    def load(self, context: LoadContext) -> BackendModel:
        raise NotImplementedError


def placed(tmp_path: Path, groups: str, gpus: tuple[int, ...], on_gpu: bool) -> list[InstanceSpec]:
    folder = tmp_path / "m"
    (folder / "1").mkdir(parents=True)
    io = " ".join(f'{side} {{ name: "{side}" data_type: TYPE_FP32 dims: [ 1 ] }}' for side in ("input", "output"))
    (folder / "config.pbtxt").write_text(f'backend: "either" {io} {groups}')
    backend = Either(on_gpu)
    preparer = Preparer({"either": backend}.get, gpus=gpus, cpu_count=4)
    parsed = preparer.read("m", folder)
    context, found = preparer.version("m", 1, folder, folder / "1", parsed)
    assert found is backend
    assert [list(g.gpus) for g in context.config.instance_group] == [list(g.gpus) for g in parsed.config.instance_group]
    return instance_specs(context.config)


@pytest.mark.parametrize(
    ("groups", "gpus", "on_gpu", "expected"),
    [
        ("", (), True, ["m_0 KIND_CPU 0"]),
        ("", (0, 1), False, ["m_0 KIND_CPU 0"]),
        ("", (0, 2), True, ["m_0 KIND_GPU 0", "m_1 KIND_GPU 2"]),
        ("instance_group { count: 2 }", (1, 3), True,
         ["m_0_0 KIND_GPU 1", "m_0_1 KIND_GPU 1", "m_0_2 KIND_GPU 3", "m_0_3 KIND_GPU 3"]),
        ("instance_group { count: 2 gpus: [ 3 ] }", (1, 3), True, ["m_0_0 KIND_GPU 3", "m_0_1 KIND_GPU 3"]),
        ("instance_group { kind: KIND_CPU } instance_group { kind: KIND_GPU gpus: 0 } "
         "instance_group { kind: KIND_MODEL }",
         (0, 1), True, ["m_0_0 KIND_CPU 0", "m_1_0 KIND_GPU 0", "m_2_0 KIND_MODEL 0"]),
    ],
)  # fmt: skip
def test_instances_go_where_the_backend_can_run(
    groups: str, gpus: tuple[int, ...], on_gpu: bool, expected: list[str], tmp_path: Path
) -> None:
    assert [f"{one.name} {one.kind} {one.device}" for one in placed(tmp_path, groups, gpus, on_gpu)] == expected


@pytest.mark.parametrize(
    ("groups", "gpus", "on_gpu", "text"),
    [
        ("kind: KIND_GPU", (), True, "instance group m_0 of model m has kind KIND_GPU but no GPUs are available"),
        (
            "kind: KIND_GPU",
            (0,),
            False,
            "m_0 of model m has kind KIND_GPU but backend 'either' as installed runs",
        ),
        ("kind: KIND_GPU gpus: 5", (0, 1), True, "specifies invalid or unsupported gpu id 5. Usable GPUs are: 0, 1"),
        (
            "gpus: [ 0, 5 ]",
            (0, 1),
            True,
            "group m_0 of model m has kind KIND_CPU but specifies one or more GPUs",
        ),
        ("kind: KIND_MODEL gpus: 0", (0,), True, "has kind KIND_MODEL but specifies one or more GPUs"),
    ],
)
def test_groups_that_can_not_be(groups: str, gpus: tuple[int, ...], on_gpu: bool, text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        placed(tmp_path, f"instance_group {{ {groups} }}", gpus, on_gpu)
    assert text in str(caught.value)


def test_devices_beside_the_gpu_reach_the_instance(tmp_path: Path) -> None:
    (one,) = placed(
        tmp_path, "instance_group { secondary_devices { kind: KIND_NVDLA device_id: 1 } }", gpus=(0,), on_gpu=True
    )
    assert one.secondary_devices == (("KIND_NVDLA", 1),)


def test_what_the_built_in_backends_can() -> None:
    found = {name: backends.get(name) for name in ("identity", "python", "repeat")}
    assert {name for name, backend in found.items() if backend is not None and backend.gpu} == {"python"}


@pytest.mark.parametrize("name, framework", [("fil", "treelite"), ("openvino", "openvino")])
def test_backends_of_cpus_alone(name: str, framework: str) -> None:
    pytest.importorskip(framework)
    backend = backends.get(name)
    assert backend is not None and not backend.gpu
