"""PyTorch on a real GPU, through server processes: every form and datatype, batches, memory, faults, device inputs.

``TF_GPU_TESTS_ON=cpu`` runs on the CPU what does not need the other, to try the tests themselves.
"""

from __future__ import annotations

import base64
import ctypes
import functools
import importlib.util
import os
import subprocess
import sys
import threading
import warnings
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("torch") is None:
    pytest.skip("PyTorch is not installed: pip install 'triton_fast[pytorch]'", allow_module_level=True)

# What another release of it, or of what it imports, warns of is no fault of the server.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch

    HAS_GPU = torch.cuda.is_available()

from tests.helpers.server import ROOT, ServerProcess
from tests.helpers.torch_models import Linear, exporting, io, saving, write
from tests.helpers.torch_wire import KINDS, NAMES, Refused, Wire, data_of

ON_CPU = os.environ.get("TF_GPU_TESTS_ON") == "cpu"
if not ON_CPU and not HAS_GPU:
    pytest.skip("PyTorch finds no CUDA GPU on this machine", allow_module_level=True)

needs_gpu = pytest.mark.skipif(ON_CPU, reason="it needs a GPU")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(240)]
Tensor = torch.Tensor
HERE = "cpu" if ON_CPU else "cuda:0"
FOUND = Path(torch.__file__).resolve().parents[1]
ENV = {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH", "")]), str(FOUND)])}
GROUP = "kind: KIND_CPU" if ON_CPU else "kind: KIND_GPU gpus: [ 0 ]"
PLAIN = 'backend: "pytorch"\n' + f"instance_group {{ count: 1 {GROUP} }}\n"
BATCHED = PLAIN + "max_batch_size: 16\ndynamic_batching { }\n"
TWO = BATCHED.replace("count: 1", "count: 2")
XY = io("input", x="FP32 4", y="FP32 3") + io("output", OUTPUT__0="FP32 3", OUTPUT__1="FP32 4")
# Operators on a GPU know little of them; a copy they do.
FEW = (torch.uint16, torch.uint32, torch.uint64)
BIG = 128 << 20


def can_be_exported(kind: str) -> bool:
    """Whether this release of torch writes the datatype into files."""
    try:
        torch.export.save(exporting(Pairs(), [make(kind, 2, 0)]).program, BytesIO())
    except Exception:
        return False
    return True


@functools.cache
def every_kind() -> list[str]:
    return [kind for kind in KINDS if can_be_exported(kind)]


class Pairs(torch.nn.Module):
    def forward(self, tensors: list[Tensor]) -> list[Tensor]:
        return [one.unsqueeze(1).clone() if one.dtype in FEW else torch.stack([one, one], 1) for one in tensors]


class Shift(torch.nn.Module):
    """Its result shows where it ran."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, torch.full((x.size(0), 1), 1 if x.is_cuda else 0, dtype=torch.int64)


class Large(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(int(x[0, 0]), dtype=torch.float32, device=x.device)[:1].reshape(1, 1)


class Heavy(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(BIG, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight[:1]


class Pick(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(10, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return self.table[x]


CLASS = """import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x, y):
        if bool((x > 1e6).any()):
            torch.ones(1 << 50, device=x.device)
        return self.layer(x) + y, torch.full((x.shape[0], 1), float(x.is_cuda), device=x.device)
"""
PACKAGE = """import sys

import torch

sys.path.insert(0, sys.argv[1])
from tests.helpers.torch_models import Linear

torch.set_grad_enabled(False)
where = sys.argv[3]
model = Linear().eval().to(where)
given = (torch.ones(2, 4, device=where), torch.ones(2, 3, device=where))
rows = {0: torch.export.Dim("rows", min=1, max=64)}
program = torch.export.export(model, given, dynamic_shapes=(rows, rows))
torch._inductor.aoti_compile_and_package(program, package_path=sys.argv[2])
"""


def make(kind: str, rows: int, seed: int) -> Tensor:
    size = rows * 3 * torch.empty(0, dtype=KINDS[kind]).element_size()
    data = bytearray((seed * 31 + i * 7) % (2 if kind == "BOOL" else 120) for i in range(size))
    return torch.frombuffer(data, dtype=KINDS[kind]).reshape(rows, 3)


def pair(rows: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed * 100 + rows)
    return {"x": torch.randn(rows, 4, generator=generator), "y": torch.randn(rows, 3, generator=generator)}


def direct(given: dict[str, Tensor]) -> Any:
    with torch.inference_mode():
        return [one.cpu() for one in Linear().eval().to(HERE)(given["x"].to(HERE), given["y"].to(HERE))]


def close(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def compiling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    """A package that is compiled while other tests run: (process, file)."""
    folder = tmp_path_factory.mktemp("package")
    argv = [sys.executable, "-c", PACKAGE, str(ROOT), str(folder / "model.pt2"), HERE.partition(":")[0]]
    with subprocess.Popen(argv, env={**os.environ, **ENV}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as made:
        yield made, folder / "model.pt2"
        made.kill()


def write_all(root: Path) -> None:
    write(root, saving(Linear()), TWO + XY, "script")
    write(root, exporting(Linear(), torch.ones(2, 4), torch.ones(2, 3)), PLAIN, "exported", "model.pt2")
    tensors = "".join(
        io("input", **{f"I__{at}": f"{kind} 3"})
        + io("output", **{f"O__{at}": f"{kind} {1 if KINDS[kind] in FEW else 2},3"})
        for at, kind in enumerate(every_kind())
    )
    every = exporting(Pairs(), [make(kind, 2, at) for at, kind in enumerate(every_kind())])
    write(root, every, BATCHED + tensors, "every", "model.pt2")
    shift = io("input", x="FP32 -1") + io("output", y__0="FP32 -1", on__1="INT64 1")
    write(root, saving(Shift()), BATCHED + shift, "shift")
    write(root, saving(Shift()), BATCHED.replace(GROUP, "kind: KIND_CPU") + shift, "cpu")
    write(root, saving(Large()), BATCHED + io("input", x="FP64 1") + io("output", y="FP32 1"), "large")
    write(root, saving(Pick()), PLAIN + io("input", x="INT64 -1") + io("output", y="FP32 -1"), "pick")
    classes = io("input", x="FP32 4", y="FP32 3") + io("output", OUTPUT__0="FP32 3", on="FP32 1")
    folder = write(root, lambda path: torch.save(Linear().state_dict(), path), BATCHED + classes, "classes") / "1"
    (folder / "model.py").write_text(CLASS)
    with zipfile.ZipFile(write(root, None, PLAIN + XY, "foreign") / "1" / "model.pt2", "w") as archive:
        archive.writestr("m/archive_format", "pt2")
        kind = "cuda" if ON_CPU else "cpu"
        archive.writestr("m/data/aotinductor/model/a_metadata.json", f'{{"AOTI_DEVICE_KEY": "{kind}"}}')


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, compiling: tuple[Any, Path]
) -> Iterator[tuple[ServerProcess, Path]]:
    root = tmp_path_factory.mktemp("torch_gpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_all(root)
    # Models are loaded by who needs them: a first import of torch may take longer than a start.
    with ServerProcess(root, "--model-control-mode=explicit", "--allow-client-shm=true", env=ENV) as process:
        yield process, root


@pytest.fixture
def wire(server: tuple[ServerProcess, Path]) -> Iterator[Wire]:
    with Wire(server[0].http) as made:
        yield made


def load(wire: Wire, model: str) -> None:
    if wire.status(f"/v2/models/{model}/ready") != 200:
        wire.ask(f"/v2/repository/models/{model}/load", {})


@pytest.mark.parametrize("model", ["script", "exported"])
@pytest.mark.parametrize("rows", [1, 4])
def test_results_are_torchs(wire: Wire, model: str, rows: int) -> None:
    load(wire, model)
    given = pair(rows)
    found, expected = wire.infer(model, given), direct(given)
    assert close(found["OUTPUT__0"], expected[0])
    assert torch.equal(found["OUTPUT__1"], expected[1])


def test_where_instances_run(wire: Wire) -> None:
    for model, expected in (("shift", 0 if ON_CPU else 1), ("cpu", 0)):
        load(wire, model)
        x = torch.arange(6.0).reshape(2, 3)
        found = wire.infer(model, {"x": x})
        assert torch.equal(found["y__0"], x + 1)
        assert found["on__1"].tolist() == [[expected]] * 2


@pytest.mark.parametrize("size", [1, 5000, 300_000])
def test_sizes_below_and_above_what_is_pinned(wire: Wire, size: int) -> None:
    load(wire, "shift")
    for seed in range(5):
        x = torch.randn(2, size, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(wire.infer("shift", {"x": x})["y__0"], x + 1)


def test_every_datatype(wire: Wire) -> None:
    load(wire, "every")
    # Older releases can not export unsigned numbers of more than 8 bits; files with all others are the least.
    assert {kind for kind in KINDS if KINDS[kind] not in FEW} <= set(every_kind())
    for rows in (1, 3):
        given = {f"I__{at}": make(kind, rows, at) for at, kind in enumerate(every_kind())}
        found = wire.infer("every", given)
        for at, kind in enumerate(every_kind()):
            assert NAMES[found[f"O__{at}"].dtype] == kind
            assert data_of(found[f"O__{at}"]) == data_of(Pairs()([given[f"I__{at}"]])[0]), kind


def test_many_clients_share_batches_on_two_instances(server: tuple[ServerProcess, Path], wire: Wire) -> None:
    load(wire, "script")
    cases = [(pair(rows, seed), direct(pair(rows, seed))) for rows in range(1, 5) for seed in range(4)]
    faults: list[BaseException] = []

    def client(seed: int) -> None:
        try:
            with Wire(server[0].http) as mine:
                for turn in range(30):
                    given, expected = cases[(seed * 7 + turn) % len(cases)]
                    found = mine.infer("script", given)
                    assert close(found["OUTPUT__0"], expected[0])
                    assert torch.equal(found["OUTPUT__1"], expected[1])
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    [row] = wire.ask("/v2/models/script/stats", method="GET")["model_stats"]
    assert row["execution_count"] < row["inference_count"]


def test_memory_that_a_gpu_lacks_ends_one_request(wire: Wire) -> None:
    load(wire, "large")
    with pytest.raises(Refused) as caught:
        wire.infer("large", {"x": torch.tensor([[2.0**45]], dtype=torch.float64)})
    assert "PyTorch execute failure: " in str(caught.value)
    assert "memory" in str(caught.value)
    if not ON_CPU:
        assert "PyTorch execute failure: CUDA out of memory. Tried to allocate " in str(caught.value)
        assert "Process" not in str(caught.value)
    found = wire.infer("large", {"x": torch.tensor([[3.0]], dtype=torch.float64)})
    assert found["y"].tolist() == [[1.0]]
    assert wire.status("/v2/models/large/ready") == 200


def test_a_class_in_its_own_process(wire: Wire) -> None:
    load(wire, "classes")
    given = pair(3)
    found = wire.infer("classes", given)
    assert close(found["OUTPUT__0"], direct(given)[0])
    assert found["on"].tolist() == [[0.0 if ON_CPU else 1.0]] * 3
    with pytest.raises(Refused, match=r"PyTorch execute failure: .*memory"):
        wire.infer("classes", {"x": given["x"] + 1e7, "y": given["y"]})
    assert close(wire.infer("classes", given)["OUTPUT__0"], direct(given)[0])


def test_a_package_for_another_device_is_refused(wire: Wire) -> None:
    reason = "PyTorch finds no such device" if ON_CPU else "is compiled for 'cpu', and its instance group has KIND_GPU"
    with pytest.raises(Refused, match=reason):
        load(wire, "foreign")


@needs_gpu
def test_unloading_gives_memory_back(server: tuple[ServerProcess, Path], wire: Wire) -> None:
    # What does not belong to the model: the process's context, kernels, streams.
    load(wire, "shift")
    wire.infer("shift", {"x": torch.ones(1, 3)})
    for save, name in (
        (saving(Heavy()), "model.pt"), (exporting(Heavy(), torch.ones(2, 1), dynamic=False), "model.pt2"),
    ):  # fmt: skip
        model = "heavy_" + name.partition(".")[2]
        write(server[1], save, PLAIN + io("input", x="FP32 2,1") + io("output", y="FP32 2,1"), model, name)
        before, _ = torch.cuda.mem_get_info(0)
        load(wire, model)
        wire.infer(model, {"x": torch.ones(2, 1)})
        used, _ = torch.cuda.mem_get_info(0)
        assert before - used >= BIG * 4
        wire.ask(f"/v2/repository/models/{model}/unload", {})
        # The last part of an unload is done in the background.
        for _ in range(20_000):
            left, _ = torch.cuda.mem_get_info(0)
            if left >= before - BIG:
                break
            wire.status("/v2/health/live")
        assert left >= before - BIG


class Lent:
    """Device memory that another process may map: the driver's own allocation, not one of torch's pool."""

    def __init__(self, tensor: Tensor) -> None:
        torch.cuda.init()
        torch.cuda.set_device(0)
        torch.ones(1, device="cuda:0")
        self._cuda = ctypes.CDLL("libcuda.so.1")
        data = data_of(tensor)
        self.size = len(data)
        self._at = ctypes.c_uint64()
        handle = (ctypes.c_ubyte * 64)()
        self._do("cuMemAlloc_v2", ctypes.byref(self._at), ctypes.c_size_t(self.size))
        self._do("cuMemcpyHtoD_v2", self._at, data, ctypes.c_size_t(self.size))
        self._do("cuIpcGetMemHandle", handle, self._at)
        self.handle = base64.b64encode(bytes(handle)).decode()

    def _do(self, name: str, *given: Any) -> None:
        status = getattr(self._cuda, name)(*given)
        assert status == 0, f"{name}: {status}"

    def close(self) -> None:
        self._do("cuMemFree_v2", self._at)


@needs_gpu
@pytest.mark.parametrize("offset", [0, 2], ids=["aligned", "misaligned"])
def test_inputs_in_cuda_shared_memory(wire: Wire, offset: int) -> None:
    load(wire, "shift")
    x = torch.arange(2000, dtype=torch.float32).reshape(2, 1000)
    lent = Lent(torch.frombuffer(bytearray(bytes(offset) + data_of(x)), dtype=torch.uint8))
    region = f"/v2/cudasharedmemory/region/lent{offset}"
    wire.ask(f"{region}/register", {"raw_handle": {"b64": lent.handle}, "device_id": 0, "byte_size": lent.size})
    try:
        place = {"shared_memory_region": f"lent{offset}", "shared_memory_byte_size": 8000}
        if offset:
            place["shared_memory_offset"] = offset
        entry = {"datatype": "FP32", "shape": [2, 1000], "parameters": place}
        for _ in range(3):
            assert torch.equal(wire.infer("shift", {"x": entry})["y__0"], x + 1)
    finally:
        wire.ask(f"{region}/unregister", {})
        lent.close()


def test_a_package_compiled_here(wire: Wire, server: tuple[ServerProcess, Path], compiling: tuple[Any, Path]) -> None:
    process, path = compiling
    said, _ = process.communicate(timeout=120)
    if process.returncode != 0:
        pytest.skip(f"this machine can not compile packages: {said.decode(errors='replace')[-500:]}")
    write(server[1], path.read_bytes(), BATCHED + XY, "package", "model.pt2")
    load(wire, "package")
    for rows in (2, 3, 5):
        given = pair(rows)
        found, expected = wire.infer("package", given), direct(given)
        assert close(found["OUTPUT__0"], expected[0])
        assert torch.equal(found["OUTPUT__1"], expected[1])


@needs_gpu
def test_a_gpu_that_is_lost_leaves_the_rest(server: tuple[ServerProcess, Path]) -> None:
    """A server of its own: nothing runs on the GPU in that process afterwards."""
    other = ServerProcess(server[1], "--model-control-mode=explicit", env=ENV, exit_code=None)
    with other as process, Wire(process.http) as wire:
        for model in ("pick", "shift", "cpu", "classes"):
            load(wire, model)
        assert wire.infer("pick", {"x": torch.tensor([3])})["y"].tolist() == [3.0]
        with pytest.raises(Refused, match=r"PyTorch execute failure: .*device-side assert"):
            wire.infer("pick", {"x": torch.tensor([1000])})
        with pytest.raises(Refused, match="the server can not use cuda:0 until it is started again"):
            wire.infer("pick", {"x": torch.tensor([3])})
        assert [wire.status(f"/v2/models/{model}/ready") == 200 for model in ("pick", "shift", "cpu")] == [
            False, False, True,
        ]  # fmt: skip
        assert wire.status("/v2/health/live") == 200
        assert wire.infer("cpu", {"x": torch.ones(1, 2)})["y__0"].tolist() == [[2.0, 2.0]]
        # Its worker has a context of its own.
        assert close(wire.infer("classes", pair(1))["OUTPUT__0"], Linear()(**pair(1))[0])
