"""What the PyTorch backend does on a GPU, with the CPU in its place: order of copies, device inputs, faults, health."""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
import json
import weakref
import zipfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

if importlib.util.find_spec("torch") is None:
    pytest.skip("PyTorch is not installed: pip install 'triton_fast[pytorch]'", allow_module_level=True)

import numpy as np
import torch

from tests.helpers.models import counters_at_base
from tests.helpers.torch_gpu import StandIn
from tests.helpers.torch_models import KINDS, Linear, Opened, exporting, io, open_model, same, saving, write
from triton_fast._native.arrays.pyarrays import ArrayInstance
from triton_fast.backends.base import InstanceSpec
from triton_fast.backends.pytorch import backend, device, library
from triton_fast.backends.pytorch.exported import compiled_for
from triton_fast.errors import Internal, InvalidArg, Unavailable, Unsupported

__all__ = ["counters_at_base"]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
Tensor = torch.Tensor
HEAD = 'backend: "pytorch"\n'
BATCHED = HEAD + "max_batch_size: 8\n"
XY = io("input", x="FP32 4", y="FP32 3")
TWO = io("output", OUTPUT__0="FP32 3", OUTPUT__1="FP32 4")
X, Y = torch.arange(8, dtype=torch.float32).reshape(2, 4), torch.ones(2, 3)
MEMORY = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.19 GiB of which 10.00 GiB is "
    "free. Process 12 has 69.00 GiB memory in use."
)
ASSERT = "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"


def on(opened: Opened, gpu: StandIn, lost: list[str] | None = None) -> Opened:
    """Give a model that was opened for the CPU an instance on a GPU."""
    call = opened.model.call(InstanceSpec("m_1", "KIND_CPU"))
    call._gpu = gpu
    call._on_lost = lambda: None if lost is None else lost.append("changed")
    opened.instance = ArrayInstance(
        call, call.n_inputs, call.n_outputs, opened.config.max_batch_size, "m_1", gpu=0 if call.on_gpu else -1
    )
    return opened


@pytest.fixture
def gpu() -> StandIn:
    return StandIn()


def test_copies_are_queued_and_waited_for_once(tmp_path: Path, gpu: StandIn) -> None:
    opened = on(open_model(tmp_path, saving(Linear()), BATCHED + XY + TWO), gpu)
    answers = opened.run({"x": X, "y": Y}, {"x": X + 1, "y": Y})
    whole = Linear()(torch.cat([X, X + 1]), torch.cat([Y, Y]))
    for at, answer in enumerate(answers):
        for name, expected in zip(("OUTPUT__0", "OUTPUT__1"), whole, strict=True):
            assert same(answer[name], expected[2 * at : 2 * at + 2])
    assert gpu.did == ["enter", "upload", "upload", "download", "download", "wait", "leave"]


@pytest.mark.parametrize("size", [3, 50_000])
def test_outputs_go_out_from_where_they_were_copied_to(tmp_path: Path, gpu: StandIn, size: int) -> None:
    class Add(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    config = BATCHED + io("input", x=f"FP32 {size}") + io("output", y=f"FP32 {size}")
    opened = on(open_model(tmp_path, saving(Add()), config), gpu)
    x = torch.arange(2 * size, dtype=torch.float32).reshape(2, size)
    for _ in range(3):
        (answer,) = opened.run({"x": x})
        assert same(answer["y"], x + 1)


class Twice(torch.nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.stack([x, y], 1), x


@pytest.mark.parametrize("kind", KINDS)
def test_every_datatype_from_host_and_device(tmp_path: Path, kind: str) -> None:
    def make(seed: int) -> Tensor:
        size = 6 * torch.empty(0, dtype=KINDS[kind]).element_size()
        data = bytearray((seed * 31 + i * 7) % (2 if kind == "BOOL" else 251) for i in range(size))
        return torch.frombuffer(data, dtype=KINDS[kind]).reshape(2, 3)

    config = BATCHED + io("input", x=f"{kind} 3", y=f"{kind} 3")
    config += io("output", OUTPUT__0=f"{kind} 2,3", OUTPUT__1=f"{kind} 3")
    gpu = StandIn()
    opened = on(open_model(tmp_path, saving(Twice()), config), gpu)
    given = [{"x": make(n), "y": make(n + 9)} for n in range(2)]
    for away in ([[], []], [["x", "y"], ["x", "y"]], [["x"], []], [[], ["x", "y"]]):
        gpu.did.clear()
        answers = opened.run(*given, away=away)
        for one, answer in zip(given, answers, strict=True):
            assert same(answer["OUTPUT__0"], torch.stack([one["x"], one["y"]], 1))
            assert same(answer["OUTPUT__1"], one["x"])
        assert gpu.did.count("wrap") == sum(map(len, away))


class Address(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("module", "misalign", "copied"),
    [(Address(), 0, False), (Address(), 2, True), (torch.nn.ReLU(inplace=True), 0, True)],
    ids=["as it is", "misaligned", "written to"],
)
def test_one_device_input_is_not_copied_unless_it_must(
    tmp_path: Path, module: torch.nn.Module, misalign: int, copied: bool
) -> None:
    config = BATCHED + io("input", x__0="FP32 -1") + io("output", y="FP32 -1")
    gpu = StandIn()
    opened = on(open_model(tmp_path, saving(module), config), gpu)
    seen, wrapped = [], []
    wrap = gpu.wrap
    gpu.wrap = lambda array: wrapped.append(array.address) or wrap(array)  # type: ignore[method-assign]
    call = opened.model._calls[-1]
    inner = call.opened.run
    call.opened.run = lambda x: (seen.append(x.data_ptr()), inner(x))[1]
    (answer,) = opened.run({"x__0": torch.tensor([[1.0, 2.0]])}, away=[["x__0"]], misalign=misalign)
    assert answer["y"].tolist() == [[1, 2]]
    assert (seen != wrapped) == copied


def test_a_backend_that_can_not_take_them_refuses_device_inputs(tmp_path: Path) -> None:
    opened = open_model(tmp_path, saving(Linear()), BATCHED + XY + TWO)
    (answer,) = opened.run({"x": X, "y": Y}, away=[["y"]])
    assert isinstance(answer, Unsupported)
    assert answer.message == "input 'y' must be in CPU memory"


def test_empty_tensors_and_strings(tmp_path: Path, gpu: StandIn) -> None:
    class Count(torch.nn.Module):
        def forward(self, texts: list[str], x: Tensor) -> tuple[list[str], Tensor]:
            return texts, x * 2

    config = HEAD + io("input", texts="STRING -1", x="FP32 -1,3") + io("output", a__0="STRING -1", b__1="FP32 -1,3")
    opened = on(open_model(tmp_path, saving(Count()), config), gpu)
    for rows in (0, 2):
        x = np.ones((rows, 3), np.float32)
        (answer,) = opened.run({"texts": np.array([b"a", b"bc"], object), "x": x})
        assert answer["a__0"].tolist() == [b"a", b"bc"]
        assert (answer["b__1"].shape, answer["b__1"].tolist()) == ((rows, 3), (x * 2).tolist())


# ---- faults


class Raise(torch.nn.Module):
    """Stands for a model; ``text`` is what its next call raises."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def __call__(self, x: Tensor, y: Tensor) -> Any:
        text, self.text = self.text, ""
        if text == "memory":
            raise torch.cuda.OutOfMemoryError(MEMORY)
        if text:
            raise RuntimeError(text)
        return y, x


def raising(tmp_path: Path, gpu: StandIn, lost: list[str] | None = None) -> tuple[Opened, Raise]:
    opened = on(open_model(tmp_path, saving(Linear()), BATCHED + XY + TWO), gpu, lost)
    model = Raise()
    opened.model._calls[-1].opened.run = model
    return opened, model


SCRIPT = "The following operation failed in the TorchScript interpreter.\nTraceback of TorchScript:\nRuntimeError: "


@pytest.mark.parametrize("text", ["memory", SCRIPT + MEMORY + "\n"], ids=["type", "TorchScript"])
def test_out_of_memory_ends_one_batch_and_empties_the_cache(tmp_path: Path, text: str) -> None:
    gpu = StandIn()
    opened, model = raising(tmp_path, gpu)
    model.text = text
    answers = opened.run({"x": X, "y": Y}, {"x": X, "y": Y})
    for answer in answers:
        assert isinstance(answer, Internal)
        assert answer.message == ("PyTorch execute failure: CUDA out of memory. Tried to allocate 20.00 GiB")
    assert gpu.did.count("clean") == 1
    (answer,) = opened.run({"x": X, "y": Y})
    assert same(answer["OUTPUT__1"], X)
    assert gpu.did.count("clean") == 1
    assert opened.model.is_ready()


def test_a_device_that_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes when the stream is waited for, as kernels are; nothing runs after it, and the model says so."""
    gpu, lost = StandIn(), []
    opened, _ = raising(tmp_path, gpu, lost)
    monkeypatch.setattr(device, "_health", {0: gpu.health})
    opened.model._gpus["cuda:0"] = SimpleNamespace(index=0, type="cuda")
    gpu.fault, gpu.dead = RuntimeError(ASSERT), True
    (answer,) = opened.run({"x": X, "y": Y})
    assert answer.message == "PyTorch execute failure: CUDA error: device-side assert triggered"
    assert (lost, opened.model.is_ready()) == (["changed"], False)
    before = len(gpu.did)
    (answer,) = opened.run({"x": X, "y": Y})
    assert isinstance(answer, Unavailable)
    assert answer.message.startswith(
        "model 'm' can not run: after the error 'CUDA error: device-side assert triggered'"
    )
    assert (len(gpu.did), lost) == (before, ["changed"])
    with pytest.raises(Unavailable, match="the server can not use cuda:0 until it is started again"):
        opened.model._new(torch.device("cuda", 0))


def test_an_error_of_cuda_that_the_device_outlives(tmp_path: Path) -> None:
    gpu, lost = StandIn(), []
    opened, model = raising(tmp_path, gpu, lost)
    model.text = "CUDA error: invalid configuration argument"
    (answer,) = opened.run({"x": X, "y": Y})
    assert answer.message == "PyTorch execute failure: CUDA error: invalid configuration argument"
    (answer,) = opened.run({"x": X, "y": Y})
    assert same(answer["OUTPUT__0"], Y)
    assert lost == []


def test_what_is_queued_has_ended_before_a_batch_fails(tmp_path: Path, gpu: StandIn) -> None:
    """The second output can not be sent; the copy of the first is under way then."""
    config = BATCHED + XY + io("output", OUTPUT__0="FP32 3", OUTPUT__1="FP64 4")
    opened = on(open_model(tmp_path, saving(Linear()), config), gpu)
    (answer,) = opened.run({"x": X, "y": Y})
    assert isinstance(answer, InvalidArg)
    assert gpu.did[-2:] == ["download", "wait"]


def test_cache_cleaning(tmp_path: Path) -> None:
    gpu = StandIn()
    more = 'parameters { key: "ENABLE_CACHE_CLEANING" value { string_value: "true" } }\n'
    opened = on(open_model(tmp_path, saving(Linear()), BATCHED + XY + TWO + more), gpu)
    opened.run({"x": X, "y": Y})
    assert gpu.did[-2:] == ["clean", "leave"]


@pytest.mark.parametrize("form", ["script", "exported"])
def test_an_end_gives_everything_back(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(backend, "give_back", lambda torch, devices, modules: asked.append([*modules]))
    save, name = (saving(Linear()), "model.pt") if form == "script" else (exporting(Linear(), X, Y), "model.pt2")
    opened = on(open_model(tmp_path, save, BATCHED + XY + TWO, name), StandIn())
    opened.run({"x": X, "y": Y})
    module = weakref.ref(next(iter(opened.model._opened.values())).module)
    opened.model._gpus["cuda:0"] = torch.device("cuda", 0)
    opened.model._modules.append(module)
    opened.model.close()
    assert asked == [[module]]
    device.give_back(torch, [], [module])
    gc.collect()
    assert module() is None


# ---- torch's own words for it


class Handle(SimpleNamespace):
    cuda_stream = 77


STREAM = Handle()


class Recorded:
    """torch.cuda as far as ``Gpu`` knows it; ``calls`` has what was called with what."""

    def __init__(self, *, devices: int = 2) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.cuda = SimpleNamespace(
            Stream=lambda device: self._note("Stream", device, STREAM),
            Event=lambda **named: self._note(
                "Event", named, SimpleNamespace(
                    record=lambda stream: self._note("record", stream, None),
                    synchronize=lambda: self._note("synchronize", None, None),
                ),
            ),
            stream=lambda stream: self._note("stream", stream, nullcontext()),
            device=lambda device: self._note("device", device, nullcontext()),
            empty_cache=lambda: self._note("empty_cache", None, None),
            synchronize=lambda device: self._note("synchronize", device, None),
            is_available=lambda: devices > 0,
            device_count=lambda: devices,
        )  # fmt: skip
        self.version = SimpleNamespace(cuda="13.0")
        self.device = torch.device

    def _note(self, name: str, value: Any, result: Any) -> Any:
        self.calls.append((name, value))
        return result


@pytest.mark.parametrize("fails", [False, True])
def test_a_stream_of_its_own_and_a_wait_that_sleeps(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """torch is asked what went wrong where the wait fails: its texts are what users look for."""
    made = Recorded()

    def wait(number: int, handle: int) -> None:
        made.calls.append(("wait", (number, handle)))
        if fails:
            raise Internal("failed in a stream")

    monkeypatch.setattr(device, "wait_stream", wait)
    where = torch.device("cuda", 1)
    gpu = device.Gpu(made, where)
    assert made.calls == [("Stream", where), ("Event", {"blocking": True})]
    made.calls.clear()
    with gpu.entered():
        gpu.wait()
    gpu.clean()
    assert gpu.is_alive()
    told = [("record", STREAM), ("synchronize", None)] if fails else []
    assert made.calls == [
        ("stream", STREAM), ("wait", (1, 77)), *told, ("device", where), ("empty_cache", None),
        ("synchronize", where),
    ]  # fmt: skip


def test_a_lost_device_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_health", {1: device.Health("gone")})
    made = Recorded()
    device.give_back(made, [torch.device("cuda", 0), torch.device("cuda", 1)], [])
    assert made.calls == [("device", torch.device("cuda", 0)), ("empty_cache", None)]


def test_which_device_an_instance_gets() -> None:
    assert library.device(Recorded(), "KIND_GPU", 1, "m") == torch.device("cuda", 1)
    assert library.device(Recorded(), "KIND_CPU", 0, "m") == torch.device("cpu")
    assert library.device(Recorded(), "KIND_MODEL", 0, "m") is None
    with pytest.raises(Unsupported, match="asks for GPU 2, PyTorch finds 2"):
        library.device(Recorded(), "KIND_GPU", 2, "m")
    with pytest.raises(Unsupported, match="asks for KIND_GPU and PyTorch finds no CUDA GPU"):
        library.device(Recorded(devices=0), "KIND_GPU", 0, "m")


# ---- compiled packages


@pytest.mark.parametrize(("entries", "expected"), [
    ({"m/data/aotinductor/model/a.wrapper_metadata.json": '{"AOTI_DEVICE_KEY": "cuda"}'}, "cuda"),
    ({"m/data/aotinductor/model/a_metadata.json": "{", "m/data/aotinductor/model/b_metadata.json":
      '{"AOTI_DEVICE_KEY": "xpu"}'}, "xpu"),
    ({"m/data/aotinductor/model/a_metadata.json": "[1]", "m/x_metadata.json": '{"AOTI_DEVICE_KEY": "cuda"}'}, "cpu"),
])  # fmt: skip
def test_what_a_package_is_compiled_for(tmp_path: Path, entries: dict[str, str], expected: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt2", "w") as archive:
        for name, text in entries.items():
            archive.writestr(name, text)
    assert compiled_for(tmp_path / "a.pt2") == expected


@pytest.mark.parametrize(("kind", "wanted", "text"), [
    ("cuda", "cpu", "is compiled for 'cuda', and its instance group has KIND_CPU: compile it for 'cpu', or give it "
     "KIND_GPU"),
    ("cpu", "cuda", "is compiled for 'cpu', and its instance group has KIND_GPU: compile it for 'cuda', or give it "
     "KIND_CPU"),
    ("xpu", None, "is compiled for 'xpu', and PyTorch finds no such device"),
])  # fmt: skip
def test_a_package_for_another_device(tmp_path: Path, kind: str, wanted: str | None, text: str) -> None:
    from triton_fast.backends.pytorch.exported import open_compiled

    folder = write(tmp_path, None, None) / "1"
    with zipfile.ZipFile(folder / "model.pt2", "w") as archive:
        archive.writestr("m/data/aotinductor/model/a_metadata.json", json.dumps({"AOTI_DEVICE_KEY": kind}))
    made = Recorded(devices=0 if wanted is None else 1)
    with pytest.raises(InvalidArg, match=text):
        open_compiled(made, folder / "model.pt2", wanted and torch.device(wanted, 0), 1, "it")


def test_the_server_is_told_before_a_gpu_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_model(tmp_path, saving(Linear()), BATCHED + XY + TWO)
    asked: list[int] = []
    host = dataclasses.replace(opened.model._context.host, use_gpu=asked.append)
    monkeypatch.setattr(opened.model, "_context", dataclasses.replace(opened.model._context, host=host))
    monkeypatch.setattr(opened.model, "_torch", Recorded())
    assert opened.model._device("KIND_GPU", 1) == torch.device("cuda", 1)
    assert asked == [1]
    opened.model._device("KIND_CPU", 0)
    opened.model._device("KIND_MODEL", 0)
    assert asked == [1]
