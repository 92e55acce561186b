"""`triton_fast check` on files that are no texts or no files at all, and on what only several models together show."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.broken_repositories import HEAD, IO, ONNX, STEP
from triton_fast.cli import check
from triton_fast.config import read_written
from triton_fast.config.errors import ConfigError
from triton_fast.config.files import read_regular
from triton_fast.config.parse import MAX_BYTES, parse_text
from triton_fast.repository.check import Checker
from triton_fast.scheduling.sequence import read_states


def model(root: Path, name: str, config: bytes | None = None) -> Path:
    (root / name / "1").mkdir(parents=True)
    (root / name / "1" / "model.onnx").write_bytes(ONNX.encode("latin-1"))
    if config is not None:
        (root / name / "config.pbtxt").write_bytes(config)
    return root / name


def said(root: Path) -> list[str]:
    return [str(finding) for finding in Checker([root]).run()]


def places(root: Path) -> list[str]:
    return [line.partition(": error: ")[0].partition(": warning: ")[0] for line in said(root)]


# ---- the config


@pytest.mark.parametrize("kind", ["directory", "fifo", "device", "loop"])
def test_a_config_that_is_no_file(tmp_path: Path, kind: str) -> None:
    path = model(tmp_path, "m") / "config.pbtxt"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "config.pbtxt")
    before = len(os.listdir("/proc/self/fd"))
    assert "m/config.pbtxt" in places(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_config_that_is_too_large_is_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model(tmp_path, "m", b"#" + b"x" * MAX_BYTES)
    monkeypatch.setattr("triton_fast.repository.check.locate", lambda text, *_: pytest.fail(f"{len(text)} characters"))
    assert places(tmp_path) == ["m/config.pbtxt"]


def test_columns_do_not_count_a_byte_order_mark(tmp_path: Path) -> None:
    model(tmp_path, "m", b"\xef\xbb\xbf" + ("max_batch_size: -8 backend: 'onnxruntime'\r\n" + IO).encode())
    assert places(tmp_path) == ["m/config.pbtxt:1:1"]


@pytest.mark.parametrize(("line", "column"), [('name: "ä\u6a21" \0', 12), ("#\u00e9\udcff", 3)])
def test_columns_are_characters(line: str, column: int) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_text(b"\n" + line.encode("utf-8", "surrogateescape"), "m/config.pbtxt")
    assert (caught.value.line, caught.value.column) == (2, column)


def test_names_are_printed_so_that_a_terminal_obeys_none(tmp_path: Path) -> None:
    model(tmp_path, "\x1b[31m\n", b"foo: 1")
    assert all(line.isprintable() for text in said(tmp_path) for line in text.split("\n    "))


def test_a_name_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    os.makedirs(os.fsencode(tmp_path) + b"/m\xff/1")
    assert said(tmp_path) == [
        "m\\xff: error: the directory's name is not UTF-8: no request can name the model\n    rename it"
    ]


# ---- other files


@pytest.mark.parametrize(
    ("source", "place"),
    [
        (b"# -*- coding: foo -*-\n", "m/1/model.py:1:1"),
        (b"x = " + b"-" * 50000 + b"1\n", "m/1/model.py"),
        (b"x = a" + b".b" * 20000 + b"\n", "m/1/model.py"),
    ],
)
def test_sources_that_pythons_parser_can_not_read(tmp_path: Path, source: bytes, place: str) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.py").write_bytes(source)
    assert place in places(tmp_path)


@pytest.mark.parametrize("filename", ["model.py", "model.onnx"])
def test_a_model_file_that_is_a_fifo(tmp_path: Path, filename: str) -> None:
    backend = "python" if filename == "model.py" else "onnxruntime"
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "config.pbtxt").write_text(f'backend: "{backend}"\n{IO}')
    os.mkfifo(tmp_path / "m" / "1" / filename)
    assert f"m/1/{filename}: error: not a regular file" in said(tmp_path)[0]


def test_a_path_that_can_not_be_looked_at_hides_no_other_model(tmp_path: Path) -> None:
    model(tmp_path, "a", f'{HEAD}default_model_filename: "{"x" * 300}"\n{IO}'.encode())
    model(tmp_path, "b", b"foo: 1")
    assert [place.partition(":")[0] for place in places(tmp_path)] == [f"a/1/{'x' * 300}", "b/config.pbtxt"]


@pytest.mark.parametrize("name", ["labels.txt", "../labels.txt", "/etc/passwd"])
def test_a_label_file_is_told_once_where_it_is_named(tmp_path: Path, name: str) -> None:
    labelled = IO.replace('"Y" ', f'"Y"\n label_filename: "{name}" ')
    model(tmp_path, "m", (HEAD + labelled).encode())
    assert places(tmp_path) == ["m/config.pbtxt:5:18"]


@pytest.mark.parametrize("content", [None, b"123"])
def test_what_a_warmup_sample_is_made_of(
    tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = model(
        tmp_path,
        "m",
        (HEAD + IO).encode()
        + b"""model_warmup { name: "w" batch_size: 1 inputs { key: "X"
        value { data_type: TYPE_FP32 dims: [ 4 ] input_data_file: "x" } } }""",
    )
    if content is not None:
        (folder / "warmup").mkdir()
        (folder / "warmup" / "x").write_bytes(content)
    assert check.main([str(tmp_path)]) == 1
    assert ("only has 3 bytes" if content else "No such file or directory") in capsys.readouterr().out


STATE = """sequence_batching { state [ { input_name: "S" output_name: "T" data_type: TYPE_FP32 dims: [ 1 ]
    initial_state { name: "s" data_type: TYPE_FP32 dims: [ 1 ] data_file: "x" } } ] }"""


@pytest.mark.parametrize("kind", ["nothing", "directory"])
def test_what_a_state_begins_with(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model(tmp_path, "m", (HEAD + IO + STATE).encode())
    if kind == "directory":
        (folder / "initial_state" / "x").mkdir(parents=True)
    with pytest.raises(ConfigError, match="'initial_state/x' can not be read"):
        read_states(read_written(folder), folder)
    assert check.main([str(tmp_path)]) == 1
    assert "'initial_state/x' can not be read" in capsys.readouterr().out


def test_reading_leaves_nothing_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    before = len(os.listdir("/proc/self/fd"))
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(OSError, match="not a regular file"):
            read_regular(path, 1)
    (tmp_path / "x").write_bytes(b"abc")
    assert read_regular(tmp_path / "x", 2) == b"ab"
    assert len(os.listdir("/proc/self/fd")) == before


# ---- ensembles


def ensemble(root: Path, name: str, *members: str, more: str = "") -> None:
    steps = ", ".join(STEP.format("X", "Y").replace('"a"', f'"{member}"') for member in members)
    config = f'platform: "ensemble"\n{IO}ensemble_scheduling {{ step [\n{steps} ] }}\n{more}'
    model(root, name, config.encode())


def test_an_ensemble_that_depends_on_itself(tmp_path: Path) -> None:
    ensemble(tmp_path, "one", "two")
    ensemble(tmp_path, "two", "one")
    assert said(tmp_path) == [
        "one/config.pbtxt:5:15: error: circular dependency between ensembles: one -> ... -> two -> one",
        "two/config.pbtxt:5:15: error: circular dependency between ensembles: two -> ... -> one -> two",
    ]


def test_a_step_that_asks_for_a_version_that_is_not_there(tmp_path: Path) -> None:
    model(tmp_path, "a", (HEAD + IO).encode())
    ensemble(tmp_path, "e", "a")
    path = tmp_path / "e" / "config.pbtxt"
    path.write_text(path.read_text().replace("model_version: -1", "model_version: 7"))
    assert said(tmp_path) == [
        "e/config.pbtxt:5:15: error: ensemble 'e' depends on 'a' whose required version 7 is not loaded."
    ]


def test_an_ensemble_without_the_version_of_its_policy(tmp_path: Path) -> None:
    model(tmp_path, "a", (HEAD + IO).replace('"X"', '"I"').replace('"Y"', '"O"').encode())
    ensemble(tmp_path, "e", "a", more="max_batch_size: 8\nversion_policy { specific { versions: [ 3 ] } }")
    assert said(tmp_path) == [
        "e/config.pbtxt:7:1: error: at least one version must be available under the version policy of model 'e'"
    ]
