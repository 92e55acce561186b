"""Where a backend's name leads: built in, --backend-directory, entry points; nothing is taken over silently."""

from __future__ import annotations

import errno
import os
import sys
import threading
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.helpers.foreign_backends import ADDER, TRITON_MODEL, directory, package
from triton_fast import backends
from triton_fast import config as configs
from triton_fast._version import __version__
from triton_fast.backends.base import LoadContext
from triton_fast.backends.foreign import Guarded
from triton_fast.backends.identity import IdentityBackend
from triton_fast.backends.python import PythonBackend
from triton_fast.config import ConfigError, parse
from triton_fast.errors import Internal, Unsupported


def inner(name: str, where: Path | None = None) -> object:
    found = backends.find(name, where)
    assert isinstance(found, Guarded)
    return found.inner


def test_built_in_names_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = directory(tmp_path / "b", identity=ADDER)
    site = package(tmp_path / "s", "thief", {"identity": "thief_one:Adder"}, {"thief_one": ADDER})
    monkeypatch.syspath_prepend(str(site))
    assert isinstance(backends.find("identity", where), IdentityBackend)
    assert "thief_one" not in sys.modules
    rows, notes = backends.listed(where)
    assert [row for row in rows if row.name == "identity"] == [("identity", "built in", __version__)]
    assert f"'{where}/identity/backend.py' is not used: backend 'identity' is built in" in notes
    assert "backend 'identity' of package thief is not used: the name is that of a built-in one" in notes


def test_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = package(tmp_path, "adders", {"add-er": "adders_one:Adder"}, {"adders_one": ADDER}, "2.5")
    monkeypatch.syspath_prepend(str(site))
    found = backends.find("add-er", None)
    assert type(inner("add-er")).__name__ == "Adder"
    assert found is backends.find("add-er", None), "it is imported once"
    assert (found.name, found.default_filename, found.version) == ("add-er", "model.add", "3.1")
    assert ("add-er", "package adders", "2.5") in backends.listed(None)[0]
    assert "add-er" in backends.names(None)
    assert backends.find("adder", None) is None


def test_a_package_that_is_there_twice_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(2):
        site = package(tmp_path / str(n), "twofold", {"twofold": "twofold_one:Adder"}, {"twofold_one": ADDER})
        monkeypatch.syspath_prepend(str(site))
    assert type(inner("twofold")).__name__ == "Adder"


def test_two_packages_with_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in ("one", "two"):
        package(tmp_path, f"double-{n}", {"double": f"double_{n}:Adder"}, {f"double_{n}": ADDER})
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(Internal, match="package double-one and package double-two both have it, uninstall one"):
        backends.find("double", None)
    notes = backends.listed(None)[1]
    assert "backend 'double' can not be used: package double-one and package double-two both have it" in notes


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("import no_such_framework_anywhere", "ModuleNotFoundError: No module named 'no_such_framework_anywhere'"),
        ("raise SystemExit(3)", "SystemExit: 3 (broken_one.py, line 1)"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines (broken_one.py, line 1)"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("", "AttributeError: module 'broken_one' has no attribute 'Adder'"),
        ("Adder = dict", "it is a dict, not a subclass of triton_fast.backends.base.Backend"),
        ("class Adder:\n    def __init__(self): raise KeyError('k')", "KeyError: 'k' (broken_one.py, line 2)"),
        ("from triton_fast.backends.arrays import ArrayBackend as Adder", "TypeError: Can't instantiate abstract"),
    ],
)
def test_a_broken_entry_point_is_told_when_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, text: str
) -> None:
    package(tmp_path, "broken", {"broken": "broken_one:Adder"}, {"broken_one": source})
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "broken_one", raising=False)
    # Nobody has asked for it yet.
    assert ("broken", "package broken", "1.0") in backends.listed(None)[0]
    assert isinstance(backends.find("identity", None), IdentityBackend)
    with pytest.raises(Internal) as raised:
        backends.find("broken", None)
    assert str(raised.value).startswith("unable to load backend 'broken' of package broken: ")
    assert text in str(raised.value)
    assert str(tmp_path) not in str(raised.value)
    sys.modules.pop("broken_one", None)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[triton_fast.backends]\n= x\nhalf", b"[", b"= 1\n[[]]\n"])
def test_a_package_with_broken_files_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    package(tmp_path / "good", "sound", {"sound": "sound_one:Adder"}, {"sound_one": ADDER})
    folder = package(tmp_path / "bad", "damaged", {}) / "damaged-1.0.dist-info"
    (folder / "METADATA").unlink()
    (folder / "entry_points.txt").write_bytes(content)
    monkeypatch.syspath_prepend(str(tmp_path / "good"))
    monkeypatch.syspath_prepend(str(tmp_path / "bad"))
    rows, _ = backends.listed(None)
    assert {row.name for row in rows} >= set(backends.NAMES)
    assert isinstance(backends.find("identity", None), IdentityBackend)
    assert backends.find("half", None) is None


def test_a_package_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "nameless", {"nameless": "nameless_one:Adder"}, {"nameless_one": ADDER})
    (tmp_path / "nameless-1.0.dist-info" / "METADATA").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert backends.find("nameless", None) is not None
    assert "nameless" in {row.name for row in backends.listed(None)[0]}


def test_a_file_of_the_backend_directory(tmp_path: Path) -> None:
    where = directory(tmp_path, summer=ADDER)
    assert type(inner("summer", where)).__name__ == "Adder"
    assert backends.find("summer", where) is backends.find("summer", where)
    assert backends.find("summer", None) is None
    assert ("summer", f"{tmp_path}/summer/backend.py", "") in backends.listed(where)[0]
    assert "summer" in backends.names(where)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("x = 1", "'odd/backend.py' must define one subclass of Backend, it has none"),
        (ADDER + "\nclass Other(Adder):\n    pass\n", "it has Adder, Other"),
        ("import sys; sys.exit(1)", "SystemExit: 1"),
        ("1 / 0", "ZeroDivisionError: division by zero (backend.py, line 1)"),
    ],
)
def test_a_file_that_is_no_backend(tmp_path: Path, source: str, text: str) -> None:
    where = directory(tmp_path, odd=source)
    with pytest.raises(Internal) as raised:
        backends.find("odd", where)
    assert text in str(raised.value)
    assert str(tmp_path) not in str(raised.value)
    assert "triton_fast_backend_odd" not in sys.modules
    # It is mended in place, and found then.
    (where / "odd" / "backend.py").write_text(ADDER)
    assert type(inner("odd", where)).__name__ == "Adder"


def test_classes_that_a_file_imports_or_hides_do_not_count(tmp_path: Path) -> None:
    hidden = ADDER + "\nclass _Base(Adder):\n    pass\nfrom triton_fast.backends.identity import IdentityBackend\n"
    assert type(inner("plus", directory(tmp_path, plus=hidden))).__name__ == "Adder"


def test_triton_s_python_based_backend_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = directory(tmp_path / "b", own=ADDER, other=ADDER)
    (where / "own" / "model.py").write_text(TRITON_MODEL)
    site = package(tmp_path / "s", "others", {"other": "others_one:Adder"}, {"others_one": ADDER})
    monkeypatch.syspath_prepend(str(site))
    assert isinstance(backends.find("own", where), PythonBackend)
    assert ("own", f"{where}/own/model.py", "") in backends.listed(where)[0]
    # A directory that was named goes before what happens to be installed, and that is said.
    assert type(inner("other", where)).__module__ == "triton_fast_backend_other"
    note = f"backend 'other' of package others is not used: '{where}/other/backend.py' goes before it"
    assert note in backends.listed(where)[1]


def test_a_compiled_backend_is_named(tmp_path: Path) -> None:
    (tmp_path / "fast").mkdir()
    (tmp_path / "fast" / "libtriton_fast.so").write_bytes(b"\x7fELF")
    with pytest.raises(Unsupported, match=r"backend 'fast' is the compiled library 'libtriton_fast\.so'"):
        backends.find("fast", tmp_path)


def test_a_folder_that_can_not_be_read_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = directory(tmp_path / "b", closed=ADDER, summer=ADDER)
    (where / "closed" / "libtriton_closed.so").touch()
    site = package(tmp_path / "s", "closers", {"closed": "closed_one:Adder"}, {"closed_one": ADDER})
    seen: list[str] = []
    stat = os.stat

    def refused(path: Any, *arguments: Any, **named: Any) -> Any:
        if isinstance(path, str | os.PathLike) and str(path).startswith(f"{where}/closed/"):
            seen.append(str(path))
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, *arguments, **named)

    monkeypatch.setattr(os, "stat", refused)
    rows, notes = backends.listed(where)
    assert [row.name for row in rows if row.path.startswith(str(where))] == ["summer"]
    assert not any("closed" in note for note in notes)
    assert "summer" in backends.names(where) and "closed" not in backends.names(where)
    assert type(inner("summer", where)).__name__ == "Adder"
    assert backends.find("closed", where) is None
    assert len(set(seen)) == 3, "each file that makes a backend was looked for"
    monkeypatch.syspath_prepend(str(site))
    assert type(inner("closed", where)).__module__ == "closed_one", "what is installed is found"


@pytest.mark.parametrize("name", ["", ".", "..", "../summer", "a/b", "/etc", "a\0b", "x" * 300])
def test_names_that_lead_nowhere(tmp_path: Path, name: str) -> None:
    where = directory(tmp_path / "in", x="1 / 0")
    directory(tmp_path, summer="1 / 0")
    assert backends.find(name, where) is None


def test_a_file_that_hangs_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = ModuleType("gate_of_a_test")
    gate.reached, gate.go = threading.Event(), threading.Event()
    monkeypatch.setitem(sys.modules, gate.__name__, gate)
    wait = "import gate_of_a_test as gate\ngate.reached.set()\nassert gate.go.wait(30)\n"
    where = directory(tmp_path, stuck=wait + ADDER, quick=ADDER)
    asker = threading.Thread(target=backends.find, args=("stuck", where))
    asker.start()
    try:
        assert gate.reached.wait(30)
        assert type(inner("quick", where)).__name__ == "Adder"
    finally:
        gate.go.set()
        asker.join(30)
    assert type(inner("stuck", where)).__name__ == "Adder"


def test_versions_of_frameworks() -> None:
    rows = {row.name: row for row in backends.listed(None)[0]}
    assert set(backends.NAMES) <= set(rows)
    assert rows["onnxruntime"].version == metadata.version("onnxruntime")
    assert rows["python"].version == __version__


def test_a_framework_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    rows = {row.name: row.version for row in backends.listed(None)[0]}
    assert (rows["fil"], rows["identity"]) == ("not installed", __version__)


# --- whose a model is -------------------------------------------------------------------------------------------------


def filled(folder: Path, text: str = "") -> object:
    (folder / "config.pbtxt").write_text(text)
    return configs.read_model_config(folder, strict=False, backend_names=lambda: ["linear", "tree.v2", "onnx"]).config


@pytest.mark.parametrize(
    ("model", "files", "text", "expected"),
    [
        ("m", ["model.linear"], "", ("linear", "", "model.linear")),
        ("m", ["model.tree.v2", "notes.txt"], "", ("tree.v2", "", "model.tree.v2")),
        ("m.linear", ["weights.npz"], "", ("linear", "", "model.linear")),
        ("m.any", ["model.linear"], "", ("any", "", "model.any")),
        ("m", ["model.onnx", "model.linear"], "", ("onnxruntime", "onnxruntime_onnx", "model.onnx")),
        ("m", [], 'backend: "linear"', ("linear", "", "")),
        ("m", ["model.onnx"], 'backend: "linear"', ("linear", "", "")),
        ("m", ["x.npz"], 'backend: "linear" default_model_filename: "x.npz"', ("linear", "", "x.npz")),
        ("m", [], 'platform: "onnxruntime_onnx"', ("onnxruntime", "onnxruntime_onnx", "model.onnx")),
        ("m", [], 'platform: "pytorch_libtorch"', ("pytorch", "pytorch_libtorch", "model.pt")),
        ("m", ["net.pt2"], 'backend: "pytorch" default_model_filename: "net.pt2"',
         ("pytorch", "pytorch_libtorch", "net.pt2")),
    ],
)  # fmt: skip
def test_fields_names_and_files_tell_the_backend(
    tmp_path: Path, model: str, files: list[str], text: str, expected: tuple[str, str, str]
) -> None:
    (tmp_path / model / "1").mkdir(parents=True)
    for name in files:
        (tmp_path / model / "1" / name).write_bytes(b"x")
    config = filled(tmp_path / model, text)
    assert (config.backend, config.platform, config.default_model_filename) == expected


@pytest.mark.parametrize("files", [["model.unknown"], ["model.linear", "model.tree.v2"], ["linear"], []])
def test_files_that_tell_none(tmp_path: Path, files: list[str]) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    for name in files:
        (tmp_path / "m" / "1" / name).write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"Could not determine backend for model 'm' with no backend"):
        filled(tmp_path / "m")


# --- what others' classes do wrong ------------------------------------------------------------------------------------

RAW = """
from triton_fast.backends.base import Backend, BackendModel
from triton_fast.errors import Unavailable

class Model(BackendModel):
    def create_instance(self, spec):
        {create}
    def is_ready(self):
        raise SystemExit(1)
    def trim(self, keep):
        raise SystemExit(1)
    def close(self):
        raise SystemExit(1)

class Raw(Backend):
    name = "raw"
    default_filename = ""
    def complete_config(self, context):
        {complete}
    def load(self, context):
        {load}
"""


def raw(
    tmp_path: Path, load: str = "return Model()", complete: str = "return context.config", create: str = ""
) -> Guarded:
    source = RAW.format(load=load, complete=complete, create=create or "return None")
    found = backends.find("raw", directory(tmp_path, raw=source))
    assert isinstance(found, Guarded)
    return found


def context(tmp_path: Path) -> LoadContext:
    return LoadContext("m", 1, tmp_path / "m", tmp_path / "m" / "1", parse.parse_text(b'name: "m"', "f").config)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("raise SystemExit(2)", "backend 'raw' failed: SystemExit: 2"),
        ("return 7", "returned int, not a BackendModel"),
        ("raise Unavailable('no licence')", "no licence"),
    ],
)
def test_a_load_that_fails(tmp_path: Path, code: str, text: str) -> None:
    with pytest.raises(Exception, match=text) as raised:
        raw(tmp_path, load=code).load(context(tmp_path))
    assert "Unavailable" in code or raised.type is Internal


@pytest.mark.parametrize(
    ("code", "text"),
    [("return None", "complete_config returned NoneType, not a ModelConfig"), ("1 / 0", "ZeroDivisionError")],
)
def test_a_completion_that_fails(tmp_path: Path, code: str, text: str) -> None:
    with pytest.raises(Internal, match=text):
        raw(tmp_path, complete=code).complete_config(context(tmp_path))


def test_the_rest_of_a_model_that_fails(tmp_path: Path) -> None:
    model = raw(tmp_path).load(context(tmp_path))
    assert model.is_ready() is False
    model.trim(0)
    with pytest.raises(Internal, match="create_instance returned NoneType, not a NativeInstance"):
        model.create_instance(None)
    with pytest.raises(Internal, match="SystemExit: 1"):
        model.close()
