"""What leads a backend to a file: the table of such places is whole, and load requests name nothing outside the model.

Source: spec/security.md SEC-01, SEC-02.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from triton_fast import backends, protos
from triton_fast.backends import paths
from triton_fast.backends.base import Backend, BackendModel, LoadContext
from triton_fast.backends.foreign import Guarded
from triton_fast.backends.paths import Place, Takes
from triton_fast.errors import InvalidArg
from triton_fast.repository.check import Checker
from triton_fast.repository.prepare import Preparer

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "triton_fast" / "backends"
LIKE_A_PATH = re.compile(
    r"(?i)path|file(?!r)|_dir|^dir_|librar|folder|plugin|interpreter|extension|cache|_table|stream"
)
# Constants of the backends' sources that look like such a parameter and are none, with what they are.
OTHERS = {
    "default_model_filename": "a field that config.paths checks",
    "model_path": "a key of the worker's messages", "model_dir": "as before", "version_dir": "as before",
    "file": "as before", "files": "as before",
    "LD_LIBRARY_PATH": "a variable of the environment", "PYTHONPATH": "as before", "PATH": "as before",
    "TRITON_FAST_CACHE": "as before", "XDG_CACHE_HOME": "as before", ".cache": "a directory that the server chooses",
    "KV_CACHE_PRECISION": "a datatype", "CACHE_MODE": "OPTIMIZE_SIZE or OPTIMIZE_SPEED",
    "ENABLE_CACHE_CLEANING": "true or false", "cache_cleaning": "true or false",
    "int8_use_native_calibration_table": "true or false", "trt_int8_use_native_calibration_table": "true or false",
    "do_copy_in_default_stream": "true or false", "use_ep_level_unified_stream": "true or false",
    "ON_PROFILE_CHANGE": "a member of an enumeration of TensorRT's",
    "NUM_STREAMS": "a number", "CPU_THROUGHPUT_STREAMS": "a number",
}  # fmt: skip


def model(root: Path, text: str) -> Path:
    (root / "m" / "1").mkdir(parents=True)
    (root / "m" / "config.pbtxt").write_text(text)
    return root / "m"


def constants() -> set[str]:
    """Every text of the backends' sources that could be a parameter's name."""
    found = set()
    for path in sorted(SOURCES.rglob("*.py")):
        # The worker runs model code; the table itself is not a reader.
        if "worker" in path.relative_to(SOURCES).parts or path.name == "paths.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            if re.fullmatch(r"[A-Za-z0-9_.]{3,60}", text) and LIKE_A_PATH.search(text):
                found.add(text)
    return found


def is_in_table(name: str) -> bool:
    rows = [row for backend in backends.NAMES for row in backends.path_parameters(backend)]
    return any(fnmatchcase(name, pattern) for row in rows for pattern in row.names if row.takes is not Takes.WORDS)


def test_each_that_a_backend_reads_is_in_the_table() -> None:
    unknown = {name for name in constants() if name not in OTHERS and not is_in_table(name)}
    assert unknown == set()


@pytest.mark.skipif(not importlib.util.find_spec("onnxruntime"), reason="needs onnxruntime")
def test_session_entries_of_the_installed_onnxruntime() -> None:
    """What the library's own texts name as a session entry for a file is caught by the patterns."""
    spec = importlib.util.find_spec("onnxruntime")
    assert spec is not None and spec.origin is not None
    found: set[str] = set()
    for library in (Path(spec.origin).parent / "capi").glob("libonnxruntime.so*"):
        texts = re.findall(rb"(?<![a-z_.])(?:session|ep|optimization|mlas)\.[a-z_0-9.]+", library.read_bytes())
        found |= {text.decode() for text in texts}
    files = {name for name in found if re.search(r"(?<!pro)file|path|folder|_dir|root", name)}
    assert "session.optimized_model_filepath" in files
    assert {name for name in files if not is_in_table(name)} == set()


def example(row: paths.PathParameter, value: str) -> dict[str, Any]:
    """A config that has the value at the place."""
    name = row.names[0].replace("*", "x")
    if row.place is Place.PARAMETER:
        return {"parameters": {name: {"string_value": value}}}
    if row.place is Place.OPERATIONS:
        return {"model_operations": {"op_library_filename": [value]}}
    accelerator = {"name": "tensorrt", "parameters": {name: value}}
    return {"optimization": {"execution_accelerators": {"gpu_execution_accelerator": [accelerator]}}}


ROWS = [(name, at) for name in backends.NAMES for at in range(len(backends.path_parameters(name)))]
OUTSIDE = ("/etc/passwd", "../other/x", "$$TRITON_MODEL_DIRECTORY/../other/x", "$$TRITON_MODEL_DIRECTORYx/y", "1/out",
           "$$TRITON_MODEL_DIRECTORY/labels.txt", "$$TRITON_MODEL_DIRECTORY/1/env", "1/away/x", " 1/in", "libm.so.6/x",
           "a/" * 2000 + "x", '{"options": {"cpp.cxx": "/tmp/x"}}')  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A model with a file of its own, a link to one elsewhere and one to a directory elsewhere."""
    made = model(tmp_path / "repo", "")
    (tmp_path / "repo" / "other").mkdir()
    (tmp_path / "repo" / "other" / "x").touch()
    (made / "1" / "in").touch()
    (made / "labels.txt").touch()
    (made / "1" / "env").symlink_to("../labels.txt")
    (made / "1" / "out").symlink_to("../../other/x")
    (made / "1" / "away").symlink_to("../../other")
    return made


@pytest.mark.parametrize(("name", "at"), ROWS)
def test_every_row_refuses_what_is_outside(place: Path, name: str, at: int) -> None:
    row = backends.path_parameters(name)[at]
    preparer = Preparer(lambda _: None)
    for value in OUTSIDE:
        if row.takes is Takes.KEYS and not value.startswith("{"):
            continue
        given = json.dumps({"backend": name, **example(row, value)})
        with pytest.raises(InvalidArg, match=r"Invalid config override: .*--allow-code-upload=true") as caught:
            preparer.read("m", place, given)
        assert str(place) not in str(caught.value)


def test_what_a_backend_from_elsewhere_may_be_given(place: Path) -> None:
    """One that names no places may take any parameter for one."""

    class Other(Backend):
        name, default_filename = "other", "model.other"

        def load(self, context: LoadContext) -> BackendModel:
            raise NotImplementedError

    preparer = Preparer(lambda _: Guarded("other", Other()))
    given = {"backend": "other", "parameters": {"weights": {"string_value": "/etc/passwd"}}}
    with pytest.raises(InvalidArg, match="Invalid config override: "):
        preparer.read("m", place, json.dumps(given))
    given["parameters"] = {"weights": {"string_value": "large"}}
    preparer.read("m", place, json.dumps(given))


def test_what_is_inside_may_be_named(place: Path) -> None:
    preparer = Preparer(lambda _: None)
    variable = "$$TRITON_MODEL_DIRECTORY"
    for backend, body in (
        ("onnxruntime", {"model_operations": {"op_library_filename": ["1/in"]}}),
        ("openvino", {"parameters": {"CPU_EXTENSION_PATH": {"string_value": "1/in"}}}),
        ("python", {"parameters": {"EXECUTION_ENV_PATH": {"string_value": f"{variable}/1/in"}}}),
        ("python", {"parameters": {"EXECUTION_ENV_PATH": {"string_value": ""}}}),
        ("python", {"parameters": {"weights_path": {"string_value": "/mnt/weights"}}}),
        ("pytorch", {"parameters": {"TORCH_COMPILE_OPTIONAL_PARAMETERS": {"string_value": '{"dynamic": true}'}}}),
        ("onnxruntime", {"parameters": {"session.intra_op.allow_spinning": {"string_value": "1"}}}),
    ):
        preparer.read("m", place, json.dumps({"backend": backend, **body}))


def test_what_the_models_own_config_says_may_be_sent_back(tmp_path: Path) -> None:
    text = 'backend: "python"\nparameters { key: "EXECUTION_ENV_PATH" value { string_value: "/opt/env" } }\n'
    place = model(tmp_path, text)
    preparer = Preparer(lambda _: None)
    same = {"backend": "python", "parameters": {"EXECUTION_ENV_PATH": {"string_value": "/opt/env"}}}
    preparer.read("m", place, json.dumps(same))
    same["parameters"] = {"EXECUTION_ENV_PATH": {"string_value": "/opt/other"}}
    with pytest.raises(InvalidArg):
        preparer.read("m", place, json.dumps(same))
    # On disk and with the flag anything goes.
    preparer.read("m", place)
    Preparer(lambda _: None, any_path=True).read("m", place, json.dumps(same))


def test_check_tells_what_is_not_there(tmp_path: Path) -> None:
    io = "".join(f'{side} [ {{ name: "X" data_type: TYPE_FP32 dims: [ 4 ] }} ]\n' for side in ("input", "output"))
    text = 'backend: "python"\n' + io + "parameters {\n"
    text += '  key: "EXECUTION_ENV_PATH" value { string_value: "$$TRITON_MODEL_DIRECTORY/env" }\n}\n'
    place = model(tmp_path, text)
    (place / "1" / "model.py").write_text("class TritonPythonModel:\n    def execute(self, r):\n        return []\n")
    (finding,) = Checker([tmp_path]).run()
    assert finding.warning
    assert (finding.line, finding.text) == (
        5, "parameter 'EXECUTION_ENV_PATH': '$$TRITON_MODEL_DIRECTORY/env' does not exist",
    )  # fmt: skip
    (place / "env").mkdir()
    assert not [finding for finding in Checker([tmp_path]).run() if "ENV_PATH" in finding.text]


def test_the_page_has_the_table() -> None:
    assert (
        paths.markdown({name: backends.path_parameters(name) for name in backends.NAMES})
        in (ROOT / "docs" / "security.md").read_text()
    ), "make it with paths.markdown"


def test_protos_have_no_other_place() -> None:
    """Text fields of the config that sound like files are those that config.paths or the table knows."""
    known = {"default_model_filename", "cc_model_filenames", "label_filename", "input_data_file", "data_file",
             "op_library_filename", "profile"}  # fmt: skip
    found, seen, todo = set(), set(), [protos.ModelConfig.DESCRIPTOR]
    while todo:
        message = todo.pop()
        if message.full_name in seen:
            continue
        seen.add(message.full_name)
        for field in message.fields:
            if field.message_type is not None:
                todo.append(field.message_type)
            is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
            if LIKE_A_PATH.search(field.name) and (field.type == field.TYPE_STRING or is_map):
                found.add(field.name)
    assert found == known
