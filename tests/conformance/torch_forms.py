"""The forms of PyTorch for the matrix of backends: TorchScript, exported programs, compiled packages, classes.

Needs PyTorch. Knows no server.
"""

from __future__ import annotations

import io
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.conformance.backend_forms import (
    DOUBLED,
    NO_COMPILER,
    PLAIN_ROWS,
    Array,
    Arrays,
    Form,
    given_name,
    made_name,
)  # fmt: skip
from tests.helpers.torch_models import KINDS, to_array

SOURCE = """import torch


class Turn(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(1))

    def forward(self, {arguments}):
        return {{{results}}}
"""


def class_source(kinds: list[str]) -> str:
    """Each argument turned around, and doubled with a weight, by the names of the outputs."""
    results = []
    for kind in kinds:
        name = given_name(kind)
        twice = f"({name} + {name}) * self.one.to({name}.dtype)" if kind in DOUBLED else name
        results.append(f'"{made_name(kinds, kind)}": ({twice}).transpose(1, 2).contiguous()')
    arguments = ", ".join(map(given_name, kinds))
    return SOURCE.format(arguments=arguments, results=",\n            ".join(results))


def class_of(kinds: list[str]) -> torch.nn.Module:
    names: dict[str, Any] = {}
    exec(compile(class_source(kinds), "model.py", "exec"), names)  # noqa: S102
    module: torch.nn.Module = names["Turn"]().eval()
    return module


def tensor(array: Array) -> Any:
    """A tensor of an array's bytes; a list of str of texts."""
    if array.dtype == object:
        return [text.decode() for text in array.flat]
    kind = next(name for name, dtype in KINDS.items() if to_array(torch.empty(0, dtype=dtype)).dtype == array.dtype)
    return torch.frombuffer(bytearray(array.tobytes()), dtype=KINDS[kind]).reshape(array.shape)


def array_of(value: Any, batched: bool) -> Array:
    if isinstance(value, torch.Tensor):
        return to_array(value.contiguous())
    made = np.empty(len(value), object)
    made[:] = [text.encode() for text in value]
    return made.reshape(-1, 1) if batched else made


def named(result: Any, given: Arrays, batched: bool) -> Arrays:
    kinds = [name.removeprefix("in_").upper() for name in given]
    if isinstance(result, dict):
        return {name: array_of(one, batched) for name, one in result.items()}
    return {made_name(kinds, kind): array_of(one, batched) for kind, one in zip(kinds, result, strict=True)}


# ---- TorchScript


def write_script(folder: Path, kinds: list[str], batched: bool) -> None:
    del batched
    (folder / "model.pt").write_bytes(script(tuple(kinds)))


@cache
def script(kinds: tuple[str, ...]) -> bytes:
    """One for all: torch keeps what it has compiled by its name."""
    arguments, lines, results = [], [], []
    for kind in kinds:
        name = given_name(kind)
        if kind == "STRING":
            arguments.append(f"{name}: List[str]")
            lines += ["texts: List[str] = []", f"for text in {name}:", "  texts.append(text + '!')"]
            results.append("texts")
        else:
            arguments.append(f"{name}: Tensor")
            twice = f"({name} + {name})" if kind in DOUBLED else name
            results.append(f"{twice}.transpose(1, 2)")
    source = f"def forward(self, {', '.join(arguments)}):\n  " + "\n  ".join([*lines, f"return {', '.join(results)}"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = type("TurnScript", (torch.jit.ScriptModule,), {})()
        made.define(source + "\n")
        file = io.BytesIO()
        torch.jit.save(made, file)
        return file.getvalue()


def direct_script(folder: Path, given: Arrays, batched: bool) -> Arrays:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.load(str(folder / "model.pt")).eval()
    with torch.inference_mode():
        return named(module(*map(tensor, given.values())), given, batched)


# ---- programs and packages


def program(kinds: list[str], batched: bool) -> Any:
    samples = tuple(torch.zeros(PLAIN_ROWS, 2, 3, dtype=KINDS[kind]) for kind in kinds)
    rows = {0: torch.export.Dim("rows", min=1, max=64)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(
            class_of(kinds), samples, dynamic_shapes=tuple(rows for _ in kinds) if batched else None
        )


def write_exported(folder: Path, kinds: list[str], batched: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program(kinds, batched), str(folder / "model.pt2"))


def direct_exported(folder: Path, given: Arrays, batched: bool) -> Arrays:
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        module = torch.export.load(str(folder / "model.pt2")).module()
        return named(module(*map(tensor, given.values())), given, batched)


@cache
def package(kinds: tuple[str, ...]) -> bytes:
    """One for all, since compiling takes long."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.pt2"
        torch._inductor.aoti_compile_and_package(program(list(kinds), True), package_path=str(path))
        return path.read_bytes()


def write_compiled(folder: Path, kinds: list[str], batched: bool) -> None:
    del batched
    (folder / "model.pt2").write_bytes(package(tuple(kinds)))


def direct_compiled(folder: Path, given: Arrays, batched: bool) -> Arrays:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch._inductor.aoti_load_package(str(folder / "model.pt2"))
        return named(module(*map(tensor, given.values())), given, batched)


# ---- classes


def write_class(folder: Path, kinds: list[str], batched: bool) -> None:
    del batched
    (folder / "model.py").write_text(class_source(kinds))
    torch.save({"one": torch.ones(1)}, folder / "model.pt")


def direct_class(folder: Path, given: Arrays, batched: bool) -> Arrays:
    module = class_of([name.removeprefix("in_").upper() for name in given])
    module.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    with torch.inference_mode():
        return named(module(*map(tensor, given.values())), given, batched)


FORMS = [
    Form("torchscript", "pytorch", write_script, direct_script, alone="nothing"),
    Form("exported", "pytorch", write_exported, direct_exported),
    Form("compiled", "pytorch", write_compiled, direct_compiled, alone="nothing", missing=NO_COMPILER),
    Form("class", "pytorch", write_class, direct_class, alone="nothing"),
]
