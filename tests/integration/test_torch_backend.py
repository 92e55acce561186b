"""Models of PyTorch opened by the backend, in exact batches: results equal torch's own; names, datatypes, errors."""

from __future__ import annotations

import gc
import importlib.util
import io as io_
import shutil
import struct
import subprocess
import threading
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("torch") is None:
    pytest.skip("PyTorch is not installed: pip install 'triton_fast[pytorch]'", allow_module_level=True)

import torch

from tests.helpers import torch_models
from tests.helpers.models import counters_at_base
from tests.helpers.torch_models import KINDS, Linear, exporting, io, open_model, same, saving, script, to_array, write
from triton_fast._native.arrays.pyarrays import drop
from triton_fast.backends.base import InstanceSpec
from triton_fast.backends.pytorch import probe
from triton_fast.errors import Internal, InvalidArg, ServerError, Unavailable, Unsupported
from triton_fast.types import DataType

__all__ = ["counters_at_base"]

# torch.jit is old to torch, and for those who still have its files.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
Tensor = torch.Tensor
HEAD = 'backend: "pytorch"\n'
BATCHED = HEAD + "max_batch_size: 8\n"
XY = io("input", x="FP32 4", y="FP32 3")
TWO = io("output", OUTPUT__0="FP32 3", OUTPUT__1="FP32 4")


def parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'


def pairs(*rows: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(sum(rows))
    return [(torch.randn(n, 4, generator=generator), torch.randn(n, 3, generator=generator)) for n in rows]


class Twice(torch.nn.Module):
    """Sums and concatenates by what each datatype can do, so that every byte of the result depends on the input."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.stack([x, y], 1), x


# ---- forms


def test_torchscript_and_its_batch(tmp_path: Path) -> None:
    opened = open_model(tmp_path, saving(Linear()), BATCHED + XY + TWO)
    given = pairs(1, 3, 2)
    answers = opened.run(*({"x": x, "y": y} for x, y in given))
    whole = Linear()(torch.cat([x for x, _ in given]), torch.cat([y for _, y in given]))
    at = 0
    for (x, _), answer in zip(given, answers, strict=True):
        for name, expected in zip(("OUTPUT__0", "OUTPUT__1"), whole, strict=True):
            assert same(answer[name], expected[at : at + len(x)])
        at += len(x)
    assert opened.instance.counters()["calls"] == 1


def test_an_exported_program_needs_no_config(tmp_path: Path) -> None:
    samples = pairs(2)[0]
    opened = open_model(tmp_path, exporting(Linear(), *samples), None, "model.pt2")
    assert opened.config.max_batch_size == 4
    assert opened.config.platform == "torch_aoti"
    assert [(one.name, list(one.dims)) for one in opened.config.input] == [("x", [4]), ("y", [3])]
    assert [(one.name, list(one.dims)) for one in opened.config.output] == [("OUTPUT__0", [3]), ("OUTPUT__1", [4])]
    x, y = pairs(3)[0]
    (answer,) = opened.run({"x": x, "y": y})
    for name, expected in zip(("OUTPUT__0", "OUTPUT__1"), Linear()(x, y), strict=True):
        assert same(answer[name], expected)


def test_an_exported_program_without_a_batch_dimension(tmp_path: Path) -> None:
    x, y = pairs(2)[0]
    opened = open_model(tmp_path, exporting(Linear(), x, y, dynamic=False), None, "model.pt2")
    assert opened.config.max_batch_size == 0
    assert [list(one.dims) for one in opened.config.input] == [[2, 4], [2, 3]]
    (answer,) = opened.run({"x": x, "y": y})
    assert same(answer["OUTPUT__0"], Linear()(x, y)[0])


def test_without_a_config_torchscript_tells_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InvalidArg, match=r"write input and output into config.pbtxt; its inputs are 'x', 'y'"):
        open_model(tmp_path, saving(Linear()), None)


# ---- datatypes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "plain"])
@pytest.mark.parametrize("form", ["script", "exported", "exported without config"])
def test_every_datatype(tmp_path: Path, kind: str, batched: bool, form: str) -> None:
    def make(seed: int, rows: int) -> Tensor:
        size = rows * 3 * torch.empty(0, dtype=KINDS[kind]).element_size()
        data = bytearray((seed * 31 + i * 7) % (2 if kind == "BOOL" else 251) for i in range(size))
        return torch.frombuffer(data, dtype=KINDS[kind]).reshape(rows, 3)

    dims = "3" if batched else "-1,3"
    config: str | None = (BATCHED if batched else HEAD) + io("input", x=f"{kind} {dims}", y=f"{kind} {dims}")
    config += io("output", OUTPUT__0=f"{kind} {'2,3' if batched else '-1,2,3'}", OUTPUT__1=f"{kind} {dims}")
    save, filename = saving(Twice()), "model.pt"
    if form != "script":
        save, filename = exporting(Twice(), make(1, 2), make(2, 2), dynamic=True), "model.pt2"
        if form == "exported without config":
            config = None if batched else HEAD + "max_batch_size: 0\n"
    opened = open_model(tmp_path, save, config, filename)
    assert (opened.config.max_batch_size > 0) == batched
    given = [(make(n, n), make(n + 9, n)) for n in ((1, 2) if batched else (2,))]
    answers = opened.run(*({"x": x, "y": y} for x, y in given))
    for (x, y), answer in zip(given, answers, strict=True):
        assert same(answer["OUTPUT__0"], torch.stack([x, y], 1))
        assert same(answer["OUTPUT__1"], x)


def test_bytes_of_bool_that_are_no_truth_values(tmp_path: Path) -> None:
    class Count(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nonzero(x).flatten()

    opened = open_model(tmp_path, saving(Count()), HEAD + io("input", x="BOOL -1") + io("output", y="INT64 -1"))
    (answer,) = opened.run({"x": np.array([0, 255, 2, 0, 1], np.uint8).view(np.bool_)})
    assert answer["y"].tolist() == [1, 2, 4]


def test_empty_tensors(tmp_path: Path) -> None:
    class Same(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    opened = open_model(tmp_path, saving(Same()), HEAD + io("input", x="FP32 -1,3") + io("output", y="FP32 -1,3"))
    (answer,) = opened.run({"x": np.zeros((0, 3), np.float32)})
    assert answer["y"].shape == (0, 3)


# ---- strings


class Upper(torch.nn.Module):
    def forward(self, texts: list[str], x: Tensor) -> tuple[list[str], Tensor]:
        made: list[str] = []
        for text in texts:
            made.append(text.upper() + "!")
        return made, x + len(texts)


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "plain"])
def test_strings_are_lists(tmp_path: Path, batched: bool) -> None:
    if batched:
        config = BATCHED + io("input", texts="STRING []", x="FP32 1") + io("output", a__0="STRING []", b__1="FP32 1")
    else:
        config = HEAD + io("input", texts="STRING -1", x="FP32 -1") + io("output", a__0="STRING -1", b__1="FP32 -1")
    opened = open_model(tmp_path, saving(Upper()), config)
    one = torch.ones(1)
    shape = (2, 1) if batched else (2,)
    made = np.array([b"a", "h\u00e9".encode()], object).reshape(shape)
    (answer,) = opened.run({"texts": made, "x": np.ones(shape, np.float32)})
    assert answer["a__0"].shape == shape
    # TorchScript's upper() knows ASCII alone.
    assert answer["a__0"].reshape(-1).tolist() == [text.encode() for text in script(Upper())(["a", "h\u00e9"], one)[0]]
    assert (answer["b__1"] == 3).all()


def test_strings_have_one_dimension(tmp_path: Path) -> None:
    config = BATCHED + io("input", texts="STRING 2", x="FP32 1") + io("output", a__0="STRING []", b__1="FP32 1")
    with pytest.raises(Internal, match="Triton only supports 1 dimensional List of String as input for 'texts' for "):
        open_model(tmp_path, saving(Upper()), config)


def test_ragged_inputs_are_refused(tmp_path: Path) -> None:
    ragged = 'input [{ name: "x" data_type: TYPE_FP32 dims: [-1] allow_ragged_batch: true }]\n'
    with pytest.raises(InvalidArg, match="its backend takes no ragged input 'x'"):
        open_model(tmp_path, saving(Linear()), BATCHED + ragged + io("input", y="FP32 3") + io("output", a__0="FP32 3"))


def test_strings_for_a_tensor(tmp_path: Path) -> None:
    config = HEAD + io("input", x="STRING -1", y="FP32 3") + io("output", a__0="FP32 3", b__1="FP32 4")
    with pytest.raises(InvalidArg, match="expects datatype TYPE_STRING for input 'x', model provides Tensor"):
        open_model(tmp_path, saving(Linear()), config)


# ---- names


@pytest.mark.parametrize(("x", "y"), [("INPUT__0", "INPUT__1"), ("x", "y"), ("first", "second"), ("other__0", "x__1")])
@pytest.mark.parametrize("form", ["script", "exported"])
def test_names_of_inputs(tmp_path: Path, form: str, x: str, y: str) -> None:
    save = saving(Linear()) if form == "script" else exporting(Linear(), *pairs(2)[0])
    config = BATCHED + io("input", **{x: "FP32 4", y: "FP32 3"}) + TWO
    opened = open_model(tmp_path, save, config, "model.pt" if form == "script" else "model.pt2")
    given = pairs(2)[0]
    (answer,) = opened.run({x: given[0], y: given[1]})
    assert same(answer["OUTPUT__0"], Linear()(*given)[0])


def test_names_count_and_not_the_order(tmp_path: Path) -> None:
    config = BATCHED + io("input", y="FP32 3", x="FP32 4") + io("output", a__1="FP32 4", b__0="FP32 3")
    opened = open_model(tmp_path, saving(Linear()), config)
    x, y = pairs(2)[0]
    (answer,) = opened.run({"x": x, "y": y})
    assert same(answer["a__1"], Linear()(x, y)[1])
    assert same(answer["b__0"], Linear()(x, y)[0])


def test_one_name_that_is_no_argument_makes_the_order_count(tmp_path: Path) -> None:
    """'y' is an argument and 'z' is not: then neither name counts."""
    config = BATCHED + io("input", y="FP32 4", z="FP32 3") + TWO
    opened = open_model(tmp_path, saving(Linear()), config)
    x, y = pairs(2)[0]
    (answer,) = opened.run({"y": x, "z": y})
    assert same(answer["OUTPUT__0"], Linear()(x, y)[0])


class Nested(torch.nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
        return x + 1, [x + 2, x + 3], {"k": x + 4}


class Keys(torch.nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"sum": x + 1, "other": x + 2}


@pytest.mark.parametrize("form", ["script", "exported"])
def test_nested_outputs(tmp_path: Path, form: str) -> None:
    sample = torch.ones(2, 3)
    save = saving(Nested()) if form == "script" else exporting(Nested(), sample)
    names = {f"OUTPUT__{n}": "FP32 3" for n in range(4)}
    filename = "model.pt" if form == "script" else "model.pt2"
    opened = open_model(tmp_path, save, BATCHED + io("input", x="FP32 3") + io("output", **names), filename)
    (answer,) = opened.run({"x": sample})
    assert [float(answer[f"OUTPUT__{n}"][0, 0]) for n in range(4)] == [2, 3, 4, 5]
    names = {"RESULT[2][k]": "FP32 3", "RESULT[1][1]": "FP32 3", "RESULT[0]": "FP32 3"}
    opened = open_model(tmp_path, None, BATCHED + io("input", x="FP32 3") + io("output", **names), filename)
    (answer,) = opened.run({"x": sample})
    assert [float(answer[name][0, 0]) for name in names] == [5, 4, 2]


@pytest.mark.parametrize("form", ["script", "exported"])
def test_outputs_by_key(tmp_path: Path, form: str) -> None:
    sample = torch.ones(2, 3)
    save = saving(Keys()) if form == "script" else exporting(Keys(), sample)
    config = BATCHED + io("input", x="FP32 3") + io("output", other="FP32 3", sum="FP32 3")
    opened = open_model(tmp_path, save, config, "model.pt" if form == "script" else "model.pt2")
    (answer,) = opened.run({"x": sample}, wanted=[["sum"]])
    assert set(answer) == {"sum"}
    (answer,) = opened.run({"x": sample})
    assert (float(answer["sum"][0, 0]), float(answer["other"][0, 0])) == (2, 3)


def test_an_input_that_is_a_dict(tmp_path: Path) -> None:
    class Dict(torch.nn.Module):
        def forward(self, given: dict[str, Tensor]) -> Tensor:
            return given["a"] - given["b"]

    config = BATCHED + io("input", b="FP32 3", a="FP32 3") + io("output", y="FP32 3")
    opened = open_model(tmp_path, saving(Dict()), config)
    (answer,) = opened.run({"a": torch.full((2, 3), 5.0), "b": torch.ones(2, 3)})
    assert (answer["y"] == 4).all()


def test_arguments_of_an_exported_program_that_are_nested(tmp_path: Path) -> None:
    class Options(torch.nn.Module):
        def forward(self, x: Tensor, options: dict[str, Tensor], *, scale: Tensor) -> dict[str, Tensor]:
            return {"r": (x + options["low"] - options["high"]) * scale}

    one = torch.ones(2, 3)
    # A tensor that is given twice is one input to torch.export.
    save = exporting(Options(), one, {"low": one + 1, "high": one + 2}, scale=one + 3)
    names = {"KWARGS[scale]": 10.0, "ARGS[1][high]": 2.0, "ARGS[0]": 5.0, "ARGS[1][low]": 1.0}
    config = BATCHED + io("input", **dict.fromkeys(names, "FP32 3")) + io("output", r="FP32 3")
    opened = open_model(tmp_path, save, config, "model.pt2")
    (answer,) = opened.run({name: one * value for name, value in names.items()})
    assert (answer["r"] == 40).all()


# ---- memory


class Counter(torch.nn.Module):
    """Changes a buffer and returns it: what was returned before must not change with it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1, size))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(x.sum())
        return self.count


@pytest.mark.parametrize("size", [3, 50_000])
def test_state_is_not_lent(tmp_path: Path, size: int) -> None:
    config = BATCHED + io("input", x="FP32 1") + io("output", y=f"FP32 {size}")
    opened = open_model(tmp_path, saving(Counter(size)), config)
    held: list[Any] = []
    for n in (1, 2, 3):
        (answer,) = opened.run({"x": torch.ones(1, 1)}, held=held)
        assert (answer["y"] == n).all()
    from triton_fast._native.ort import drive

    kept = [np.frombuffer(data, np.float32) for data in drive.read_held(held)]
    assert [float(array[0]) for array in kept] == [1, 2, 3]
    drive.release_held(held)
    del kept
    gc.collect()
    drop()


class Overwrite(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2).relu_()


SHARED: dict[str, tuple[Callable[[], torch.nn.Module], bool]] = {
    "linear": (Linear, True), "twice": (Twice, True), "nested": (Nested, True), "state": (lambda: Counter(3), False),
    "inputs overwritten": (Overwrite, True),
}  # fmt: skip


@pytest.mark.parametrize("name", SHARED)
def test_what_is_known_to_have_no_state_is_shared(tmp_path: Path, name: str) -> None:
    module, shared = SHARED[name]
    inputs = XY if name in ("linear", "twice") else io("input", x="FP32 3")
    save = saving(module())
    outputs = io("output", OUTPUT__0="FP32 3")
    more = parameter("ENABLE_WEIGHT_SHARING", "true")
    for config, expected in ((BATCHED, shared), (BATCHED + more, True)):
        opened = open_model(tmp_path, save, config + inputs + outputs)
        first = opened.model._opened.get("cpu")
        assert (first is not None) == expected


def test_inputs_come_and_large_outputs_go_without_a_copy(tmp_path: Path) -> None:
    class Add(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    size = 100_000
    config = BATCHED + io("input", x=f"FP32 {size}") + io("output", y=f"FP32 {size}")
    opened = open_model(tmp_path, saving(Add()), config)
    x = torch.arange(size, dtype=torch.float32).reshape(1, size)
    (answer,) = opened.run({"x": x})
    assert same(answer["y"], x + 1)
    gc.collect()
    drop()
    counted = opened.instance.counters()
    assert (counted["lent"], counted["calls"]) == (1, 1)


class Relu(torch.nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return input.relu()


@pytest.mark.parametrize(("module", "copied"), [(Relu(), False), (torch.nn.ReLU(inplace=True), True)])
def test_inputs_are_copied_for_those_who_write_to_them(tmp_path: Path, module: torch.nn.Module, copied: bool) -> None:
    config = BATCHED + io("input", input="FP32 -1") + io("output", y="FP32 -1")
    opened = open_model(tmp_path, saving(module), config)
    call = opened.model.call(InstanceSpec("m_1", "KIND_CPU"))
    seen: list[int] = []
    run = call.opened.run
    call.opened.run = lambda x: (seen.append(x.data_ptr()), run(x))[1]
    memory = bytearray(np.array([[-1, 2]], np.float32).tobytes())
    ((_, shape, _, nbytes, owner),) = call([(int(DataType.FP32), (1, 2), memory)], (True,))
    assert (shape, nbytes, owner.tolist()) == ((1, 2), 8, [[0, 2]])
    assert np.frombuffer(memory, np.float32).tolist() == [-1, 2]
    assert (seen != [np.frombuffer(memory, np.uint8).ctypes.data]) == copied


def test_outputs_that_are_not_dense(tmp_path: Path) -> None:
    class Turn(torch.nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return x.transpose(1, 2), x[:, :, 1:], x[:, :1].expand(-1, 3, -1)

    config = BATCHED + io("input", x="FP32 2,4")
    config += io("output", a__0="FP32 4,2", b__1="FP32 2,3", c__2="FP32 3,4")
    opened = open_model(tmp_path, saving(Turn()), config)
    x = torch.arange(16, dtype=torch.float32).reshape(2, 2, 4)
    (answer,) = opened.run({"x": x})
    for found, expected in zip(answer.values(), Turn()(x), strict=True):
        assert same(found, expected.contiguous())


def test_scalars_without_a_batch_dimension(tmp_path: Path) -> None:
    class Sum(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum()

    opened = open_model(tmp_path, saving(Sum()), HEAD + io("input", x="FP32 -1") + io("output", y="FP32 1"))
    (answer,) = opened.run({"x": np.array([1, 2, 3], np.float32)})
    assert answer["y"].tolist() == [6.0]


# ---- settings


def test_threads_modes_and_switches_are_set_on_the_instance_thread(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}
    config = BATCHED + XY + TWO + parameter("DISABLE_OPTIMIZED_EXECUTION", "true")
    write(tmp_path, saving(Linear()), None)
    x, y = pairs(2)[0]

    def run(opened: Any) -> None:
        opened.run({"x": x, "y": y})

    for settings, expected in (("true", (True, False)), ("false", (False, False))):
        opened = open_model(
            tmp_path, None, config + parameter("INTRA_OP_THREAD_COUNT", "2") + parameter("INFERENCE_MODE", settings)
        )
        call_of(opened).run = lambda x, y: (seen.update(
            inference=torch.is_inference_mode_enabled(), grad=torch.is_grad_enabled(),
            threads=torch.get_num_threads(), optimized=torch._C._get_graph_executor_optimize(),
        ), y, x)[1:]  # fmt: skip
        thread = threading.Thread(target=run, args=(opened,))
        thread.start()
        thread.join()
        assert (seen["inference"], seen["grad"]) == expected
        assert (seen["threads"], seen["optimized"]) == (2, False)


def call_of(opened: Any) -> Any:
    return opened.model._opened["cpu"]


@pytest.mark.parametrize("key", ["ENABLE_JIT_PROFILING", "ENABLE_JIT_EXECUTOR", "ENABLE_TENSOR_FUSER", "ENABLE_NVFUSER",
                                 "ENABLE_CACHE_CLEANING", "DISABLE_CUDNN", "INFERENCE_MODE"])  # fmt: skip
def test_switches_are_accepted(tmp_path: Path, key: str) -> None:
    opened = open_model(tmp_path, saving(Linear()), BATCHED + XY + TWO + parameter(key, "true"))
    x, y = pairs(2)[0]
    (answer,) = opened.run({"x": x, "y": y})
    assert same(answer["OUTPUT__0"], Linear()(x, y)[0])


# ---- placement


def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    opened = open_model(tmp_path, saving(Linear()), BATCHED + XY + TWO)
    with pytest.raises(Unsupported, match="unable to load model 'm', an instance group asks for KIND_GPU and "):
        opened.model.create_instance(InstanceSpec("m_1", "KIND_GPU"))


def test_kind_model(tmp_path: Path) -> None:
    config = BATCHED + XY + TWO + "instance_group { kind: KIND_MODEL }\n"
    opened = torch_models.open_written(write(tmp_path, saving(Linear()), config), kind="KIND_MODEL")
    x, y = pairs(2)[0]
    (answer,) = opened.run({"x": x, "y": y})
    assert same(answer["OUTPUT__0"], Linear()(x, y)[0])


# ---- faults


def damaged(data: bytes, name: str) -> bytes:
    """The archive with zeros in the middle of one of its files."""
    with zipfile.ZipFile(io_.BytesIO(data)) as archive:
        info = next(info for info in archive.infolist() if info.filename.endswith(name))
    start = info.header_offset + 30 + sum(struct.unpack_from("<HH", data, info.header_offset + 26))
    size = info.compress_size
    return data[: start + size // 3] + bytes(size // 3) + data[start + 2 * (size // 3) :]


FAULTS: dict[str, tuple[Any, str, type[ServerError], str]] = {
    "missing": (None, "model.pt", Unavailable, "unable to find 'm/1/model.pt' for model instance 'm'"),
    "empty": (b"", "model.pt", InvalidArg, "unable to load model 'm', 'm/1/model.pt' is empty"),
    "text": (b"hello", "model.pt", InvalidArg, "'m/1/model.pt' is not a model of PyTorch"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\n", "model.pt", InvalidArg, "is a Git LFS pointer"),
    "truncated": (lambda data: data[:900], "model.pt", InvalidArg, "is truncated or corrupt"),
    "corrupt": (lambda data: damaged(data, "/data.pkl"), "model.pt", InvalidArg, "'m/1/model.pt': "),
    "weights": ("weights", "model.pt", InvalidArg, "has weights or a pickled module"),
    "script as package": (lambda data: data[:700], "model.pt2", InvalidArg, "is truncated or corrupt"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_files_that_are_no_models(tmp_path: Path, name: str) -> None:
    made, filename, kind, text = FAULTS[name]
    if callable(made):
        saving(Linear())(str(tmp_path / "x.pt"))
        made = made((tmp_path / "x.pt").read_bytes())
    elif made == "weights":
        made = lambda path: torch.save(Linear().state_dict(), path)  # noqa: E731
    with pytest.raises(kind, match=text) as caught:
        open_model(tmp_path, made, BATCHED + XY + TWO, filename)
    assert str(tmp_path) not in caught.value.message
    assert "\n" not in caught.value.message


def test_an_onnx_file_by_the_wrong_name(tmp_path: Path) -> None:
    from tests.helpers import onnx_models

    data = onnx_models.identity("FP32", (None, 4))
    with pytest.raises(InvalidArg, match="it looks like an ONNX file"):
        open_model(tmp_path, data, BATCHED + XY + TWO)


@pytest.mark.parametrize("filename", ["model.pt2"])
def test_a_package_cut_anywhere(tmp_path: Path, filename: str) -> None:
    exporting(Linear(), *pairs(2)[0])(str(tmp_path / "whole.pt2"))
    data = (tmp_path / "whole.pt2").read_bytes()
    for part in (70, len(data) // 2, len(data) - 10):
        with pytest.raises(InvalidArg, match=r"'m/1/model\.pt2'"):
            open_model(tmp_path, data[:part], BATCHED + XY + TWO, filename)


WRONG = {
    "count": (io("input", x="FP32 4") + TWO, "configuration expects 1 inputs, model provides 2"),
    "position": (io("input", a__0="FP32 4", b__2="FP32 3") + TWO, "input 'b__2' refers to argument 2"),
    "twice": (io("input", a__0="FP32 4", b__0="FP32 3") + TWO, "inputs 'a__0' and 'b__0' are the same argument"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("form", ["script", "exported"])
def test_configs_that_do_not_fit(tmp_path: Path, form: str, name: str) -> None:
    config, text = WRONG[name]
    save = saving(Linear()) if form == "script" else exporting(Linear(), *pairs(2)[0])
    with pytest.raises(ServerError, match=text):
        open_model(tmp_path, save, BATCHED + config, "model.pt" if form == "script" else "model.pt2")


WRONG_EXPORTED = {
    "datatype": (io("input", x="FP16 4", y="FP32 3") + TWO, "expects datatype TYPE_FP16 for input 'x'"),
    "shape": (io("input", x="FP32 5", y="FP32 3") + TWO, r"the model expects 2 dimensions \(shape \[-1,4\]\)"),
    "output": (XY + io("output", a__0="FP32 3", b__7="FP32 4"), "The output b__7 in the model configuration refers to"),
    "output's datatype": (XY + io("output", a__0="FP64 3"), "expects datatype TYPE_FP64 for output 'a__0'"),
}


@pytest.mark.parametrize("name", WRONG_EXPORTED)
def test_what_an_exported_program_tells_is_checked(tmp_path: Path, name: str) -> None:
    config, text = WRONG_EXPORTED[name]
    with pytest.raises(InvalidArg, match=text):
        open_model(tmp_path, exporting(Linear(), *pairs(2)[0]), BATCHED + config, "model.pt2")


def test_run_time_errors(tmp_path: Path) -> None:
    config = BATCHED + io("input", x="FP32 -1", y="FP32 3") + TWO
    opened = open_model(tmp_path, saving(Linear()), config)
    x, y = pairs(2)[0]
    (answer,) = opened.run({"x": torch.ones(2, 5), "y": y})
    assert isinstance(answer, Internal)
    assert answer.message == "PyTorch execute failure: mat1 and mat2 shapes cannot be multiplied (2x5 and 4x3)"
    (answer,) = opened.run({"x": x, "y": y})
    assert same(answer["OUTPUT__0"], Linear()(x, y)[0])


def test_memory_that_can_not_be_had(tmp_path: Path) -> None:
    class Large(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(int(x[0, 0]), dtype=torch.float32)[:1].reshape(1, 1)

    opened = open_model(tmp_path, saving(Large()), BATCHED + io("input", x="FP64 1") + io("output", y="FP32 1"))
    (answer,) = opened.run({"x": np.array([[2.0**50]])})
    assert isinstance(answer, Internal)
    assert answer.message.startswith("PyTorch execute failure: ")
    assert "memory" in answer.message
    assert "/" not in answer.message
    (answer,) = opened.run({"x": np.array([[3.0]])})
    assert answer["y"].tolist() == [[1.0]]


def test_a_model_that_raises(tmp_path: Path) -> None:
    class Picky(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if bool((x < 0).any()):
                raise ValueError("no negative numbers")
            return x

    opened = open_model(tmp_path, saving(Picky()), BATCHED + io("input", x="FP32 1") + io("output", y="FP32 1"))
    (answer,) = opened.run({"x": np.array([[-1]], np.float32)})
    assert answer.message == "PyTorch execute failure: no negative numbers"


OUTPUTS = {
    "index": (XY + io("output", a__0="FP32 3", b__7="FP32 4"), "The output b__7 in the model configuration refers to "
              "an output index which doesn't exist. This model has 2 outputs"),
    "datatype": (XY + io("output", a__0="FP64 3"), "configuration expects datatype TYPE_FP64 for output 'a__0', model "
                 "provides TYPE_FP32"),
    "strings": (XY + io("output", a__0="STRING []"), "configuration expects datatype TYPE_STRING for output 'a__0', "
                "model provides TYPE_FP32"),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_that_do_not_fit_torchscript(tmp_path: Path, name: str) -> None:
    config, text = OUTPUTS[name]
    opened = open_model(tmp_path, saving(Linear()), BATCHED + config)
    x, y = pairs(2)[0]
    (answer,) = opened.run({"x": x, "y": y})
    assert isinstance(answer, InvalidArg)
    assert answer.message == text


# ---- compiled packages


@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler: install g++")
@pytest.mark.timeout(600)
def test_a_compiled_package(tmp_path: Path) -> None:
    """Names, results and errors of one package, since compiling takes long."""
    x, y = pairs(2)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save: Any = exporting(Keys2(), x, y)
        folder = write(tmp_path, None, None) / "1"
        torch._inductor.aoti_compile_and_package(save.program, package_path=str(folder / "model.pt2"))
    assert Path(folder / "model.pt2").is_file()
    for a, b, c, d in (("INPUT__0", "INPUT__1", "OUTPUT__0", "OUTPUT__1"),
                       ("ARGS[0]", "ARGS[1]", "RESULT[sum]", "RESULT[less]"), ("ARGS[0]", "ARGS[1]", "sum", "less"),
                       ("one", "two", "three", "four")):  # fmt: skip
        config = BATCHED + io("input", **{a: "FP32 -1", b: "FP32 3"}) + io("output", **{c: "FP32 3", d: "FP32 4"})
        opened = open_model(tmp_path, None, config, "model.pt2")
        answers = opened.run({a: x, b: y}, {a: x + 1, b: y})
        expected = Keys2()(torch.cat([x, x + 1]), torch.cat([y, y]))
        np.testing.assert_allclose(np.concatenate([one[c] for one in answers]), to_array(expected["sum"]), rtol=1e-5)
        np.testing.assert_array_equal(np.concatenate([one[d] for one in answers]), to_array(expected["less"]))
    (answer,) = opened.run({"one": torch.ones(2, 5), "two": y})
    assert isinstance(answer, Internal)
    assert answer.message.startswith("PyTorch execute failure: input_handles[0]: unmatched dim value at 1, expected: 4")
    (folder.parent / "config.pbtxt").unlink()
    with pytest.raises(InvalidArg, match=r"its inputs are 'ARGS\[0\]', 'ARGS\[1\]', its outputs 'sum', 'less'"):
        open_model(tmp_path, None, None, "model.pt2")
    with pytest.raises(InvalidArg, match="configuration expects 1 inputs, model provides 2"):
        open_model(tmp_path, None, BATCHED + io("input", a__0="FP32 4") + TWO, "model.pt2")
    data = (folder / "model.pt2").read_bytes()
    with pytest.raises(InvalidArg, match="is truncated or corrupt"):
        open_model(tmp_path, data[:20_000], config, "model.pt2")
    with pytest.raises(InvalidArg, match="its code ended the process that opened it on trial with SIGABRT: compile it"):
        open_model(tmp_path, with_library(data, tmp_path, CRASHES), config, "model.pt2")
    check = probe.check

    def exchanging(*arguments: Any) -> None:
        """By one that would end this process; what is opened is what was tried."""
        check(*arguments)
        (folder / "new").write_bytes(with_library(data, tmp_path, CRASHES))
        (folder / "new").rename(folder / "model.pt2")

    with pytest.MonkeyPatch.context() as patched, pytest.raises(InvalidArg, match="the file was changed while it was"):
        patched.setattr(probe, "check", exchanging)
        open_model(tmp_path, data, config, "model.pt2")


CRASHES = "#include <stdlib.h>\n__attribute__((constructor)) static void begin(void) { abort(); }\n"


def with_library(package: bytes, folder: Path, source: str) -> bytes:
    """Return a package with another library in place of its own."""
    (folder / "other.c").write_text(source)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "other.so", folder / "other.c"], check=True)
    made = io_.BytesIO()
    with zipfile.ZipFile(io_.BytesIO(package)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, (folder / "other.so").read_bytes() if name.endswith(".so") else old.read(name))
    return made.getvalue()


class Keys2(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.two = Linear()

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        made, less = self.two(x, y)
        return {"sum": made, "less": less}
