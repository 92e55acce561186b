"""PyTorch: torch.compile, AOTInductor and classes with every datatype, states of sequences, inputs left as they are."""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("torch") is None:
    pytest.skip("PyTorch is not installed: pip install 'triton_fast[pytorch]'", allow_module_level=True)

import torch

from tests.helpers import raw
from tests.helpers.models import counters_at_base
from tests.helpers.server import ROOT, ServerProcess
from tests.helpers.torch_models import KINDS, Linear, exporting, io, open_model, same, saving, to_array, write
from tests.integration.onnx_files import arrays, config, infer, request
from triton_fast.backends.base import InstanceSpec
from triton_fast.backends.pytorch.effects import effects
from triton_fast.errors import InvalidArg
from triton_fast.types import DataType

__all__ = ["counters_at_base"]

# Importing torch in several processes takes long on a busy machine.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.timeout(300)]
Tensor = torch.Tensor
FOUND = Path(torch.__file__).resolve().parents[1]
ENV = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(FOUND)])}
HEAD = 'backend: "pytorch"\n'
BATCHED = HEAD + "max_batch_size: 8\ndynamic_batching { }\n"
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="it needs a C++ compiler: install g++")


def parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'


COMPILE = "TORCH_COMPILE_OPTIONAL_PARAMETERS"
EAGER = parameter(COMPILE, '{\\"backend\\": \\"eager\\"}')


def make(kind: str, rows: int, seed: int) -> Tensor:
    size = rows * 3 * torch.empty(0, dtype=KINDS[kind]).element_size()
    data = bytearray((seed * 31 + i * 7) % (2 if kind == "BOOL" else 251) for i in range(size))
    return torch.frombuffer(data, dtype=KINDS[kind]).reshape(rows, 3)


# ---- torch.compile


@pytest.mark.parametrize(
    "options", ['{\\"backend\\": \\"eager\\"}', '{\\"backend\\": \\"eager\\", \\"dynamic\\": true}']
)
def test_a_compiled_exported_program(tmp_path: Path, options: str) -> None:
    x, y = torch.randn(2, 4), torch.randn(2, 3)
    opened = open_model(tmp_path, exporting(Linear(), x, y), HEAD + parameter(COMPILE, options), "model.pt2")
    for rows in (1, 2, 4):
        given = {"x": torch.randn(rows, 4), "y": torch.randn(rows, 3)}
        (answer,) = opened.run(given)
        for name, expected in zip(("OUTPUT__0", "OUTPUT__1"), Linear()(**given), strict=True):
            assert same(answer[name], expected)


class WithConstants(torch.nn.Module):
    def forward(self, x: Tensor) -> tuple[Any, ...]:
        return 3, x * 2, None, {"more": x + 1, "sure": True}, 2.5


def test_an_exported_program_that_returns_constants_too(tmp_path: Path) -> None:
    save = exporting(WithConstants(), torch.randn(2, 4))
    opened = open_model(tmp_path, save, HEAD, "model.pt2")
    x = torch.randn(3, 4)
    (answer,) = opened.run({"x": x})
    assert sorted(answer) == ["OUTPUT__1", "more"]
    assert same(answer["OUTPUT__1"], x * 2) and same(answer["more"], x + 1)
    tensors = HEAD + io("input", x="FP32 4") + "max_batch_size: 4\n"
    text = "unable to load model 'm', the model returns {} as output '{}', which is no tensor"
    for name, constant in (("OUTPUT__0", "3"), ("OUTPUT__2", "None"), ("sure", "True"), ("RESULT[4]", "2.5")):
        with pytest.raises(InvalidArg) as raised:
            open_model(tmp_path, save, tensors + io("output", **{name: "FP32 4"}), "model.pt2")
        assert text.format(constant, name) in str(raised.value)


@needs_compiler
@pytest.mark.timeout(600)
def test_an_exported_program_through_inductor(tmp_path: Path) -> None:
    save = exporting(Linear(), torch.randn(2, 4), torch.randn(2, 3))
    opened = open_model(tmp_path, save, HEAD + parameter(COMPILE, '{\\"dynamic\\": true}'), "model.pt2")
    for rows in (2, 3):
        x, y = torch.randn(rows, 4), torch.randn(rows, 3)
        (answer,) = opened.run({"x": x, "y": y})
        np.testing.assert_allclose(answer["OUTPUT__0"], to_array(Linear()(x, y)[0]), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(answer["OUTPUT__1"], to_array(x - 1))


# ---- AOTInductor


class Pairs(torch.nn.Module):
    def forward(self, *tensors: Tensor) -> list[Tensor]:
        return [torch.stack([tensor, tensor], 1) for tensor in tensors]


def package(path: Path, module: torch.nn.Module, *samples: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = {0: torch.export.Dim("rows", min=1, max=64)}
        shapes = (tuple(rows for _ in samples),) if isinstance(module, Pairs) else tuple(rows for _ in samples)
        program = torch.export.export(module.eval(), samples, dynamic_shapes=shapes)
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))


@needs_compiler
@pytest.mark.timeout(600)
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "plain"])
def test_a_package_with_every_datatype(tmp_path: Path, batched: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    compiled = tmp_path_factory.getbasetemp() / "every_datatype.pt2"
    if not compiled.exists():
        package(compiled, Pairs(), *(make(kind, 2, 1) for kind in KINDS))
    folder = write(tmp_path, None, None) / "1"
    shutil.copy(compiled, folder / "model.pt2")
    lead = "" if batched else "-1,"
    text = (BATCHED if batched else HEAD) + "".join(
        io("input", **{f"I__{at}": f"{kind} {lead}3"}) + io("output", **{f"O__{at}": f"{kind} {lead}2,3"})
        for at, kind in enumerate(KINDS)
    )
    opened = open_model(tmp_path, None, text, "model.pt2")
    rows = (1, 3) if batched else (3,)
    given = [{f"I__{at}": make(kind, n, at) for at, kind in enumerate(KINDS)} for n in rows]
    for tensors, answer in zip(given, opened.run(*given), strict=True):
        for at, kind in enumerate(KINDS):
            x = tensors[f"I__{at}"]
            assert same(answer[f"O__{at}"], torch.stack([x, x], 1)), kind


# ---- inputs stay as they are


class Overwrite(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2).add_(1)


@pytest.mark.parametrize(
    "form", ["script", "exported", "torch.compile", pytest.param("package", marks=[needs_compiler])]
)
@pytest.mark.timeout(600)
def test_a_model_that_writes_to_its_input(tmp_path: Path, form: str) -> None:
    sample, text = torch.randn(2, 3), HEAD
    if form == "script":
        save, filename = saving(Overwrite()), "model.pt"
    elif form == "package":
        save, filename = (lambda path: package(Path(path), Overwrite(), sample)), "model.pt2"
    else:
        save, filename = exporting(Overwrite(), sample), "model.pt2"
        text += EAGER if form == "torch.compile" else ""
    text += io("input", a__0="FP32 -1,3") + io("output", b__0="FP32 -1,3")
    call = open_model(tmp_path, save, text, filename).model.call(InstanceSpec("m_1", "KIND_CPU"))
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    memory = bytearray(x.tobytes())
    for _ in range(2):
        ((_, _, _, _, owner),) = call([(int(DataType.FP32), (2, 3), memory)], (True,))
        assert owner.tolist() == (x * 2 + 1).tolist()
        assert bytes(memory) == x.tobytes()


class Counter(torch.nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1, size))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(x.sum())
        return self.count + x


class Normal(torch.nn.Module):
    """Updates its statistics, or not."""

    def __init__(self, training: bool) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3)
        self.learns = training

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        return torch.nn.functional.batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, self.learns
        )


class Views(torch.nn.Module):
    """Writes to a view of what it made itself."""

    def forward(self, x: Tensor) -> Tensor:
        made = x * 2
        made.view(-1).add_(1)
        return made


class Through(torch.nn.Module):
    """Writes to its input through a view of a part of it."""

    def forward(self, x: Tensor) -> Tensor:
        first, _ = x.split([1, 2], dim=1)
        first.unsqueeze(0).zero_()
        return x + 1


EFFECTS = {
    "linear": (torch.nn.Linear(3, 3), False, False), "own": (Views(), False, False), "state": (Counter(3), True, False),
    "input": (Overwrite(), False, True), "part of input": (Through(), False, True),
    "evaluates": (Normal(False), False, False), "learns": (Normal(True), True, False),
}  # fmt: skip


@pytest.mark.parametrize("name", EFFECTS)
def test_what_an_exported_program_changes(name: str) -> None:
    module, state, inputs = EFFECTS[name]
    save: Any = exporting(module, torch.randn(2, 3))
    assert effects(save.program) == (state, inputs)


def test_an_exported_program_with_state_is_not_shared(tmp_path: Path) -> None:
    text = HEAD + io("input", a__0="FP32 -1,3") + io("output", b__0="FP32 -1,3")
    opened = open_model(tmp_path, exporting(Counter(3), torch.zeros(2, 3)), text, "model.pt2")
    for n in (1, 2, 3):
        (answer,) = opened.run({"a__0": np.ones((1, 3), np.float32)})
        assert answer["b__0"].tolist() == [[3 * n + 1] * 3]
    second = opened.model.create_instance(InstanceSpec("m_1", "KIND_CPU"))
    opened.instance = second
    (answer,) = opened.run({"a__0": np.ones((1, 3), np.float32)})
    assert answer["b__0"].tolist() == [[4.0] * 3]


# ---- through a server: classes and sequences


EVERY = """import torch


class Net(torch.nn.Module):
    def forward(self, *tensors):
        return [torch.stack([tensor, tensor], 1) for tensor in tensors]
"""
WRITES = """import torch


class Net(torch.nn.Module):
    def forward(self, x):
        return x.mul_(2)
"""
NESTED = """import torch


class Net(torch.nn.Module):
    def forward(self, x, more=None, factor=None):
        y = x if more is None else x + more
        y = y if factor is None else y * factor
        return {"first": y + 1, "rest": [y + 2, (y + 3, {"last": y + 4})]}
"""
POOLS = """import torch


class Net(torch.nn.Module):
    def forward(self, x):
        return x.sum(0, keepdim=True)
"""
# A worker whose GPU is lost after an error, as torch would tell it.
LOST = """import torch


def gone(*_):
    raise RuntimeError("CUDA error: device-side assert triggered")


class Net(torch.nn.Module):
    def forward(self, x):
        if bool((x == 7).any()):
            torch.cuda.is_initialized = lambda: True
            torch.cuda.empty_cache = lambda: None
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 1 GiB.")
        if bool((x > 8).any()):
            torch.cuda.is_initialized = lambda: True
            torch.cuda.synchronize = gone
            gone()
        return x + 1
"""


class Sum(torch.nn.Module):
    """(x, total) -> (total + x, total + x)."""

    def forward(self, x: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        total = total + x
        return total, total


def states(kind: str, how: str) -> str:
    return (
        HEAD + f"max_batch_size: 4\nsequence_batching {{ {how} state [ {{ input_name: 'STATE__1' "
        f"output_name: 'STATE__1' data_type: TYPE_{kind} dims: [ 2 ] initial_state: {{ name: 'zero' data_type: "
        f"TYPE_{kind} dims: [ 2 ] zero_data: true }} }} ] }}\n"
        + io("input", IN__0=f"{kind} 2") + io("output", OUT__0=f"{kind} 2")
    )  # fmt: skip


SEQUENCES = {
    "script": ("FP32", "direct { }"), "exported": ("INT64", "oldest { }"), "bf16": ("BF16", "oldest { }"),
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("torch_forms")

    def of_class(name: str, code: str, text: str, head: str = BATCHED) -> None:
        (write(root, None, head + 'runtime: "model.py"\n' + text, name) / "1" / "model.py").write_text(code)

    tensors = "".join(
        io("input", **{f"I__{at}": f"{kind} 3"}) + io("output", **{f"O__{at}": f"{kind} 2,3"})
        for at, kind in enumerate(KINDS)
    )
    of_class("every", EVERY, tensors)
    of_class("compiled", EVERY, EAGER + io("input", x="FP32 3") + io("output", y="FP32 2,3"))
    of_class("writes", WRITES, io("input", x="FP32 3") + io("output", y="FP32 3"))
    optional = "".join(
        f'input [{{ name: "{name}" data_type: TYPE_FP32 dims: [3] optional: true }}]\n' for name in ("more", "factor")
    )
    made = io("output", a="FP32 3", b="FP32 3", c="FP32 3", d="FP32 3")
    of_class("nested", NESTED, io("input", x="FP32 3") + optional + made)
    two = "dynamic_batching { preferred_batch_size: [2] max_queue_delay_microseconds: 20000000 }"
    text = BATCHED.replace("dynamic_batching { }", two)
    of_class("pools", POOLS, io("input", x="FP32 3") + io("output", y="FP32 3"), text)
    ragged = 'input [{ name: "x" data_type: TYPE_FP32 dims: [-1] allow_ragged_batch: true }]\n'
    of_class("ragged", WRITES, ragged + io("output", y="FP32 -1"), text)
    of_class("lost", LOST, io("input", x="FP32 1") + io("output", y="FP32 1"))
    for name, (kind, how) in SEQUENCES.items():
        text, sample = states(kind, how), torch.zeros(2, 2, dtype=KINDS[kind])
        if name == "script":
            write(root, saving(Sum()), text, name)
        else:
            # A tensor that is given twice is one input to torch.export.
            write(root, exporting(Sum(), sample, sample.clone()), text, name, "model.pt2")
    with ServerProcess(root, env=ENV, start_s=110) as process:
        yield process


def test_a_class_with_every_datatype(server: ServerProcess) -> None:
    for rows in (1, 3):
        given = {f"I__{at}": make(kind, rows, at) for at, kind in enumerate(KINDS)}
        found = infer(server.http, "every", {name: to_array(tensor) for name, tensor in given.items()})
        for at, kind in enumerate(KINDS):
            x = given[f"I__{at}"]
            assert same(found[f"O__{at}"], torch.stack([x, x], 1)), kind


def test_a_class_gets_truth_values(server: ServerProcess) -> None:
    given = {f"I__{at}": to_array(make(kind, 1, at)) for at, kind in enumerate(KINDS)}
    name = f"I__{list(KINDS).index('BOOL')}"
    given[name] = np.array([[0, 255, 2]], np.uint8).view(np.bool_)
    found = infer(server.http, "every", given)[name.replace("I", "O")]
    assert found.view(np.uint8).tolist() == [[[0, 1, 1], [0, 1, 1]]]


def test_a_class_that_is_compiled(server: ServerProcess) -> None:
    for rows in (1, 2, 4):
        x = np.random.default_rng(rows).standard_normal((rows, 3)).astype(np.float32)
        assert infer(server.http, "compiled", {"x": x})["y"].tolist() == np.stack([x, x], 1).tolist()


def test_a_class_with_nested_outputs_and_optional_inputs(server: ServerProcess) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for more, factor in ((None, None), (x * 10, None), (None, x * 100), (x * 10, x * 100)):
        given = {"x": x, **({} if more is None else {"more": more}), **({} if factor is None else {"factor": factor})}
        y = (x if more is None else x + more) * (1 if factor is None else factor)
        found = infer(server.http, "nested", given)
        assert {name: array.tolist() for name, array in found.items()} == {
            name: (y + at).tolist() for at, name in enumerate("abcd", 1)
        }


def test_a_class_whose_outputs_have_no_row_for_each_input(server: ServerProcess) -> None:
    """Requests that would share a batch get what each would get alone."""
    given = [np.full((1, 3), at, np.float32) for at in (3, 5)]
    for _ in range(2):
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda x: infer(server.http, "pools", {"x": x})["y"].tolist(), given))
        assert found == [x.tolist() for x in given]
    server.wait_for_log("makes outputs without a row for each input", 10)


def test_a_class_with_a_ragged_input(server: ServerProcess) -> None:
    given = [np.arange(size, dtype=np.float32).reshape(1, size) for size in (2, 3)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda x: infer(server.http, "ragged", {"x": x})["y"].tolist(), given))
    assert found == [(2 * x).tolist() for x in given]


def test_a_class_that_writes_to_its_input(server: ServerProcess) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for _ in range(3):
        assert infer(server.http, "writes", {"x": x})["y"].tolist() == (x * 2).tolist()


def test_a_class_whose_gpu_is_lost_starts_again(server: ServerProcess) -> None:
    """Requests are told the cause; then another worker takes its place. No GPU is needed to lose it."""
    for value, text in ((7, "CUDA out of memory. Tried to allocate 20.00 GiB"),
                        (9, "CUDA error: device-side assert triggered")):  # fmt: skip
        answer = raw.ask(server.http, request("lost", {"x": np.array([[value]], np.float32)}))
        assert (answer.status, answer.error) == (500, f"PyTorch execute failure: {text}")
    server.wait_for_log("starts again, its GPU takes no more work from it", 30)
    answer = raw.ask(server.http, request("lost", {"x": np.array([[1]], np.float32)}))
    while answer.status != 200:
        answer = raw.ask(server.http, request("lost", {"x": np.array([[1]], np.float32)}))
    assert raw.ask(server.http, raw.get("/v2/health/ready")).status == 200


@pytest.mark.parametrize("name", SEQUENCES)
def test_states_of_sequences(server: ServerProcess, name: str) -> None:
    """Two sequences in turn; each has its own sum."""
    kind = SEQUENCES[name][0]
    sums = {1: torch.zeros(1, 2, dtype=KINDS[kind]), 2: torch.zeros(1, 2, dtype=KINDS[kind])}
    for turn in range(3):
        for sequence in (1, 2):
            x = torch.full((1, 2), 10 * sequence + turn).to(KINDS[kind])
            sums[sequence] = sums[sequence] + x
            more = {"sequence_id": sequence, "sequence_start": turn == 0, "sequence_end": turn == 2}
            parameters = {"binary_data_output": True, **more}
            body = request(name, {"IN__0": to_array(x)}, parameters=parameters)
            found = arrays(raw.ask(server.http, body))
            assert same(found["OUT__0"], sums[sequence])
    assert config(server.http, name)["sequence_batching"]["state"][0]["input_name"] == "STATE__1"
