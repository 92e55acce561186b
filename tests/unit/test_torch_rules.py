"""The PyTorch backend without PyTorch: naming rules, parameters, what a file is, which line of a message is shown."""

from __future__ import annotations

import importlib
import sys
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from triton_fast import config as configs
from triton_fast.backends import get
from triton_fast.backends.base import LoadContext
from triton_fast.backends.pytorch import files, library, names
from triton_fast.backends.pytorch.backend import PyTorchBackend
from triton_fast.backends.pytorch.files import Form
from triton_fast.backends.pytorch.opened import Argument, flatten, tables
from triton_fast.backends.pytorch.settings import Settings, for_class, read
from triton_fast.backends.pytorch.texts import short
from triton_fast.config import ConfigError
from triton_fast.errors import InvalidArg, ServerError, Unavailable
from triton_fast.repository import Preparer
from triton_fast.repository.check import Checker

ARGUMENTS = tables([Argument(("x", "ARGS[0]")), Argument(("y", "ARGS[1]")), Argument(("z__7", "KWARGS[z]"))])
CONFIG = 'name: "m" backend: "pytorch" '


def context(folder: Path, text: str = "", **settings: str) -> LoadContext:
    parsed = configs.parse_text((CONFIG + text).encode(), "config.pbtxt")
    return LoadContext("m", 1, folder / "m", folder / "m" / "1", parsed.config, settings, threads_per_instance=3)


@pytest.mark.parametrize(
    ("given", "positions"),
    [
        (("x", "y", "z__7"), [0, 1, 2]),
        (("z__7", "x", "y"), [2, 0, 1]),
        (("KWARGS[z]", "ARGS[0]", "ARGS[1]"), [2, 0, 1]),
        (("INPUT__2", "INPUT__0", "INPUT__1"), [2, 0, 1]),
        (("x", "y", "other"), [0, 1, 2]),
        (("y", "x", "other"), [0, 1, 2]),
        (("y", "a__1", "b__2"), [0, 1, 2]),
        (("a__1", "a__2", "x__0"), [1, 2, 0]),
        (("a__1b", "a__2", "a__0"), [0, 1, 2]),
    ],
)
def test_positions_of_inputs(given: tuple[str, ...], positions: list[int]) -> None:
    assert names.inputs("m", given, ARGUMENTS, count=3) == positions


@pytest.mark.parametrize("given", [("a__0", "a__1", "a__3"), ("a__0", "b__1", "c__0")])
def test_positions_that_are_none(given: tuple[str, ...]) -> None:
    with pytest.raises(ServerError, match="unable to load model 'm', input"):
        names.inputs("m", given, ARGUMENTS, count=3)


def test_states_are_named_by_index() -> None:
    assert names.inputs("m", ("a__1", "s__0"), ARGUMENTS, count=2, states=["s__0"]) == [1, 0]
    with pytest.raises(InvalidArg, match="is using sequence batching with state but not all inputs and outputs follow"):
        names.inputs("m", ("x", "y"), ARGUMENTS, count=2, states=["y"])


@pytest.mark.parametrize(
    ("name", "index"),
    [("OUTPUT__0", 0), ("a__12", 12), ("a", None), ("a__", None), ("a__x", None), ("a__1__2", None), ("__3", 3),
     ("a__\u0663", None), ("a__99999999", None)],
)  # fmt: skip
def test_index_of_a_name(name: str, index: int | None) -> None:
    assert names.index_of(name) == index


def test_flatten() -> None:
    assert flatten(1) == [("RESULT", "", 1)]
    assert flatten((1, [2, 3])) == [("RESULT[0]", "", 1), ("RESULT[1][0]", "", 2), ("RESULT[1][1]", "", 3)]
    assert flatten({"a": 1, "b": (2, 3), "c": {"d": 4}}) == [
        ("RESULT[a]", "a", 1), ("RESULT[b][0]", "", 2), ("RESULT[b][1]", "", 3), ("RESULT[c][d]", "d", 4),
    ]  # fmt: skip
    assert flatten((["s", "t"], [])) == [("RESULT[0]", "", ["s", "t"]), ("RESULT[1]", "", [])]


def parameters(**given: str) -> str:
    return " ".join(f'parameters {{ key: "{k}" value {{ string_value: "{v}" }} }}' for k, v in given.items())


def test_settings(tmp_path: Path) -> None:
    assert read(context(tmp_path)) == Settings(intra=3)
    text = parameters(
        DISABLE_OPTIMIZED_EXECUTION="true", INFERENCE_MODE="false", DISABLE_CUDNN="true", ENABLE_WEIGHT_SHARING="true",
        ENABLE_CACHE_CLEANING="true", ENABLE_JIT_PROFILING="false", ENABLE_JIT_EXECUTOR="true",
        ENABLE_TENSOR_FUSER="false", INTRA_OP_THREAD_COUNT="2", INTER_OP_THREAD_COUNT="5",
        TORCH_COMPILE_OPTIONAL_PARAMETERS="{\\\"disable\\\": true}",
    )  # fmt: skip
    assert read(context(tmp_path, text)) == Settings(
        optimized=False, inference_mode=False, cudnn=False, sharing=True, cache_cleaning=True, jit_profiling=False,
        jit_executor=True, tensor_fuser=False, intra=2, inter=5, compile={"disable": True},
    )  # fmt: skip
    assert read(context(tmp_path, parameters(NUM_THREADS="4", NUM_INTEROP_THREADS="6"))) == Settings(intra=4, inter=6)
    assert read(context(tmp_path, INTRA_OP_THREAD_COUNT="7")).intra == 7
    fused = read(context(tmp_path, parameters(ENABLE_NVFUSER="true", ENABLE_TENSOR_FUSER="false")))
    assert (fused.nvfuser, fused.tensor_fuser) == (True, None)


@pytest.mark.parametrize(
    ("key", "value"),
    [("INFERENCE_MODE", "maybe"), ("INTRA_OP_THREAD_COUNT", "-1"), ("INTER_OP_THREAD_COUNT", "99999999999"),
     ("TORCH_COMPILE_OPTIONAL_PARAMETERS", "[1]"), ("TORCH_COMPILE_OPTIONAL_PARAMETERS", "{"),
     ("TORCH_COMPILE_OPTIONAL_PARAMETERS", "{\\\"model\\\": 1}")],
)  # fmt: skip
def test_settings_that_can_not_be_used(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(InvalidArg):
        read(context(tmp_path, parameters(**{key: value})))


@pytest.mark.parametrize(
    ("own", "flags", "threads"),
    [
        ({}, {}, ("", "")),
        ({}, {"INTRA_OP_THREAD_COUNT": "3", "INTER_OP_THREAD_COUNT": "2"}, ("3", "2")),
        ({}, {"NUM_THREADS": "4"}, ("4", "")),
        ({"INTRA_OP_THREAD_COUNT": "5"}, {"NUM_THREADS": "4", "NUM_INTEROP_THREADS": "6"}, ("5", "6")),
        ({"NUM_THREADS": "0"}, {"INTRA_OP_THREAD_COUNT": "3"}, ("3", "")),
        ({"NUM_THREADS": "2", "INTRA_OP_THREAD_COUNT": "5"}, {}, ("2", "")),
    ],
)
def test_a_class_gets_the_threads_of_the_flags(
    tmp_path: Path, own: dict[str, str], flags: dict[str, str], threads: tuple[str, str]
) -> None:
    given = context(tmp_path, parameters(**own), **flags)
    before = given.config.SerializeToString(deterministic=True)
    made = for_class(given).config.parameters
    assert tuple(made[key].string_value for key in ("NUM_THREADS", "NUM_INTEROP_THREADS")) == threads
    assert given.config.SerializeToString(deterministic=True) == before  # clients see their own


ARCHIVES: dict[str, tuple[tuple[str, ...], Any]] = {
    "script": (("m/data.pkl", "m/constants.pkl", "m/code/x.py"), Form.SCRIPT),
    "exported": (("m/archive_format", "m/models/model.json"), Form.EXPORTED),
    "older exported": (("serialized_exported_program.json", "version"), Form.EXPORTED),
    "compiled": (("m/archive_format", "m/data/aotinductor/model/a.so"), Form.COMPILED),
    "no model": (("m/archive_format", "m/version"), "is a package of PyTorch without a model"),
    "weights": (("m/data.pkl", "m/data/0"), "has weights or a pickled module"),
    "other": (("word/document.xml",), "is an archive, but none of PyTorch"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_form_of_an_archive(tmp_path: Path, name: str) -> None:
    entries, expected = ARCHIVES[name]
    (tmp_path / "m" / "1").mkdir(parents=True)
    path = tmp_path / "m" / "1" / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for entry in entries:
            archive.writestr(entry, "x")
    if isinstance(expected, Form):
        assert files.form(context(tmp_path), path) is expected
    else:
        with pytest.raises(InvalidArg, match=expected):
            files.form(context(tmp_path), path)


def test_which_file_is_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    assert files.model_path(context(tmp_path)) == folder / "model.pt"
    (folder / "model.pt2").touch()
    assert files.model_path(context(tmp_path)) == folder / "model.pt2"
    assert files.model_path(context(tmp_path, 'default_model_filename: "a.pt"')) == folder / "a.pt"


def test_when_a_model_is_a_class(tmp_path: Path) -> None:
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    assert not files.is_class(context(tmp_path))
    assert files.is_class(context(tmp_path, 'runtime: "model.py"'))
    assert files.is_class(context(tmp_path, 'default_model_filename: "net.py"'))
    (folder / "model.py").touch()
    assert files.is_class(context(tmp_path))
    with zipfile.ZipFile(folder / "model.pt", "w") as archive:
        archive.writestr("m/data.pkl", "")
    assert files.is_class(context(tmp_path))
    with zipfile.ZipFile(folder / "model.pt", "a") as archive:
        archive.writestr("m/constants.pkl", "")
    assert not files.is_class(context(tmp_path))


SCRIPT = """The following operation failed in the TorchScript interpreter.
Traceback of TorchScript, serialized code (most recent call last):
  File "code/__torch__.py", line 12, in forward
    h = torch.relu_((l).forward(x, ))
         ~~~~~~~~~~ <--- HERE
RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x5 and 4x3)
"""
TEXTS = {
    "first line": ("shapes differ\nException raised from meta at L.cpp:194\nframe #0: c10::Error", "shapes differ"),
    "interpreter": (SCRIPT, "mat1 and mat2 shapes cannot be multiplied (2x5 and 4x3)"),
    "own exception": (SCRIPT.replace("RuntimeError", "builtins.ValueError"), "mat1 and mat2 shapes cannot be "
                      "multiplied (2x5 and 4x3)"),
    "place": ("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
              "allocate 8 bytes. Error code 12 (Cannot allocate memory)", "err == 0. DefaultCPUAllocator: can't "
              "allocate memory: you tried to allocate 8 bytes. Error code 12 (Cannot allocate memory)"),
    "paths": ("can not open '/a/b/model.pt': no such file (/c/d.cpp:3)", "can not open 'model.pt': no such file "
              "(d.cpp:3)"),
    "no path": ("1/2 of m/1/model.pt and https://a/b", "1/2 of m/1/model.pt and https://a/b"),
    "advice": ("not a ZIP archive. This is an internal miniz error. If you are seeing this error, there is more",
               "not a ZIP archive"),
    "nothing": ("", "RuntimeError"),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_shown_of_a_message(name: str) -> None:
    text, expected = TEXTS[name]
    assert short(RuntimeError(text)) == expected


def test_torch_is_imported_by_the_first_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert get("pytorch") is not None
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(Unavailable, match=r"PyTorch is not installed: pip install 'triton_fast\[pytorch\]'"):
        library.torch()
    importlib.reload(library)


def installed(cuda: str | None, is_available: bool) -> ModuleType:
    made: Any = ModuleType("torch")
    made.version, made.cuda = SimpleNamespace(cuda=cuda), SimpleNamespace(is_available=lambda: is_available)
    return made  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("torch", "why"),
    [
        (None, "PyTorch is not installed: pip install 'triton_fast[pytorch]' (or pip install torch)"),
        (installed(None, is_available=False), "this build of PyTorch is for CPUs only"),
        (installed("13.0", is_available=False), "PyTorch finds no CUDA GPU: the driver may be too old for it"),
        (installed("13.0", is_available=True), ""),
    ],
    ids=["none", "for CPUs", "old driver", "with a GPU"],
)
def test_why_a_gpu_is_not_used(
    torch: ModuleType | None, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch)
    preparer = Preparer({"pytorch": PyTorchBackend()}.get, gpus=(0,))
    (tmp_path / "1").mkdir()

    def kinds(text: str) -> list[tuple[int, list[int]]]:
        (tmp_path / "config.pbtxt").write_text(CONFIG + text)
        groups = preparer.read("m", tmp_path).config.instance_group
        return [(group.kind, list(group.gpus)) for group in groups]

    group = configs.parse_text(b"instance_group { kind: KIND_CPU }", "").config.instance_group.add()
    expected = (group.KIND_CPU, []) if why else (group.KIND_GPU, [0])
    assert kinds("") == kinds("instance_group { kind: KIND_AUTO }") == [expected]
    if not why:
        assert kinds("instance_group { kind: KIND_GPU }") == [expected]
        return
    with pytest.raises(ConfigError) as error:
        kinds("instance_group { kind: KIND_GPU }")
    text = f"backend 'pytorch' as installed runs on the CPU only: {why} (use KIND_CPU or KIND_AUTO)"
    assert error.value.message.endswith(text)


def test_check_takes_a_class_of_pytorch_for_no_python_model(tmp_path: Path) -> None:
    io = "input [{ name: 'x' data_type: TYPE_FP32 dims: [1] }] output [{ name: 'y' data_type: TYPE_FP32 dims: [1] }]"
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "config.pbtxt").write_text(CONFIG + io)
    assert [one.text for one in Checker([tmp_path]).run()] == ["there is no 'model.pt'"]
    (tmp_path / "m" / "1" / "model.py").write_text("import torch\n\n\nclass Net(torch.nn.Module):\n    pass\n")
    assert Checker([tmp_path]).run() == []
