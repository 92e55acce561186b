"""Version directories, version policies, change detection, name hints, `file:` overrides and worker threads."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, os.path.dirname(__file__))
from test_repository_support import fail

from triton_fast import protos
from triton_fast.config import version_dirs
from triton_fast.errors import InvalidArg, NotFound
from triton_fast.repository.fingerprint import fingerprint
from triton_fast.repository.overrides import write_override
from triton_fast.repository.repositories import Repositories
from triton_fast.repository.sources import LocalSource, MaterializedDir, name_hint, odd_names
from triton_fast.repository.versions import discover, parse_version, select
from triton_fast.repository.workers import Workers


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("0", 0), ("1", 1), ("10", 10), ("1_x", 1), ("20240101-a", 20240101), ("9223372036854775807", 2**63 - 1),
        ("01", None), ("007", None), ("00", None), ("0x1", None), ("abc", None), ("", None), ("-1", None), ("+1", None),
        (" 1", None), ("9223372036854775808", None), ("9" * 5000, None), ("\u0661", None), ("\u00b2", None),
        ("v1", None),
    ],
)  # fmt: skip
def test_version_number_of_a_directory_name(name: str, number: int | None) -> None:
    assert parse_version(name) == number


def test_discover_ignores_and_warns(tmp_path: Path) -> None:
    for name in (
        "1",
        "3",
        "12",
        "01",
        "abc",
        "-2",
        "warmup",
        "initial_state",
        "configs",
        ".git",
        "3_old",
        "7_a",
        "7_b",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / "5").write_text("a file")
    warnings: list[str] = []
    assert discover(tmp_path, "m", warnings.append) == {1: "1", 3: "3", 7: "7_a", 12: "12"}
    assert [w for w in warnings if "'01'" in w and "starts with 0" in w]
    assert {w.split("'")[1] for w in warnings} == {"01", "abc", "-2", "3_old", "7_b"}
    assert discover(tmp_path / "none", "m") == {}


def _config(text: str) -> object:
    from google.protobuf import text_format

    return text_format.Parse(text, protos.ModelConfig())


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        ("", [9]),
        ("version_policy { latest { num_versions: 1 } }", [9]),
        ("version_policy { latest { num_versions: 2 } }", [4, 9]),
        ("version_policy { latest { num_versions: 4000000000 } }", [0, 2, 4, 9]),
        ("version_policy { all {} }", [0, 2, 4, 9]),
        ("version_policy { specific { versions: [4, 0, 4] } }", [0, 4]),
        ("version_policy { specific { versions: [2, 77] } }", [2]),
    ],
)
def test_version_policy(policy: str, chosen: list[int]) -> None:
    warnings: list[str] = []
    assert select(_config(policy), [9, 0, 4, 2], "m", warnings.append) == chosen
    assert warnings == (
        ["version 77 is specified for model 'm', but the version directory is not present"] if "77" in policy else []
    )


@pytest.mark.parametrize(
    ("policy", "available"),
    [
        ("", []),
        ("version_policy { all {} }", []),
        ("version_policy { specific { versions: [7] } }", [1]),
        ("version_policy { specific { versions: [-1] } }", [1]),
        ("version_policy { latest { num_versions: 0 } }", [1]),
    ],
)
def test_no_version_left(policy: str, available: list[int]) -> None:
    with pytest.raises(InvalidArg) as caught:
        select(_config(policy), available, "m")
    assert str(caught.value) == "at least one version must be available under the version policy of model 'm'"


def _model(root: Path) -> Path:
    model = root / "m"
    for version in ("1", "2"):
        (model / version).mkdir(parents=True)
        (model / version / "model.onnx").write_text("x")
    (model / "config.pbtxt").write_text("")
    (model / "labels.txt").write_text("a\n")
    return model


def test_fingerprint_tells_what_changed(tmp_path: Path) -> None:
    model = _model(tmp_path)
    before = fingerprint(model)
    assert fingerprint(model) == before
    assert set(before.versions) == {"1", "2"}

    # The same size and an older time: still a change, and only of that version.
    os.utime(model / "2" / "model.onnx", ns=(1, 1))
    after = fingerprint(model)
    assert after != before
    assert after.same_version(before, "1")
    assert not after.same_version(before, "2")

    before = after
    (model / "config.pbtxt").write_text("max_batch_size: 1")
    after = fingerprint(model)
    assert (after.config, after.common, after.versions) != (before.config, before.common, before.versions)
    assert after.versions == before.versions
    assert not after.same_version(before, "1")

    for change in (
        lambda: (model / "labels.txt").write_text("b\nc\n"),
        (model / "configs").mkdir,
        lambda: (model / "configs" / "h100.pbtxt").write_text("x"),
        (model / "warmup").mkdir,
        (model / "3").mkdir,
        (model / "1" / "deep").mkdir,
        lambda: (model / "1" / "deep" / "w.bin").write_text("w"),
        lambda: (model / "1" / "deep" / "w.bin").rename(model / "1" / "deep" / "v.bin"),
        (model / "1" / "deep" / "v.bin").unlink,
    ):
        before = fingerprint(model)
        change()
        assert fingerprint(model) != before


def test_fingerprint_ignores_byte_code_and_survives_links(tmp_path: Path) -> None:
    model = _model(tmp_path)
    before = fingerprint(model)
    (model / "1" / "__pycache__").mkdir()
    (model / "1" / "__pycache__" / "model.pyc").write_text("x")
    assert fingerprint(model) == before
    (model / "1" / "loop").symlink_to(model / "1")
    (model / "1" / "self").symlink_to("self")
    (model / "1" / "dangling").symlink_to("/nonexistent/file")
    looped = fingerprint(model)
    assert looped == fingerprint(model)
    with pytest.raises(FileNotFoundError):
        fingerprint(tmp_path / "none")


def test_a_link_that_leads_to_itself_is_no_version_and_hides_none(tmp_path: Path) -> None:
    model = _model(tmp_path)
    (model / "9").symlink_to("9")
    assert discover(model, "m") == {1: "1", 2: "2"}
    assert version_dirs(model) == ["1", "2"]
    assert set(fingerprint(model).versions) == {"1", "2"}


@pytest.mark.parametrize(
    ("name", "models", "files", "hint"),
    [
        ("resnet", ["resnet "], [], "the directory is named 'resnet ', with a space at an end: rename it to 'resnet'"),
        ("resnet ", ["resnet"], [], "the name has a space at an end: did you mean 'resnet'?"),
        ("ResNet", ["resnet"], [], "did you mean 'resnet'?"),
        ("res-net", ["res_net"], [], "did you mean 'res_net'?"),
        ("resent50", ["resnet50", "bert"], [], "did you mean 'resnet50'?"),
        ("model.onnx", ["other"], ["model.onnx"], "'model.onnx' is a file, a model is a directory"),
        ("zzz", ["resnet"], [], ""),
        ("x" * 100_000, ["resnet"], [], ""),
    ],
)
def test_name_hint(name: str, models: list[str], files: list[str], hint: str) -> None:
    assert name_hint(name, models, files) == hint


def test_local_source_lists_directories(tmp_path: Path) -> None:
    for name in ("b", "a", "spaced "):
        (tmp_path / name).mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    os.mkdir(os.fsencode(tmp_path) + b"/bad\xff")
    source = LocalSource(tmp_path)
    assert source.list_models() == ["a", "b", "linked", "spaced "]
    assert odd_names(source.list_models()) == ["spaced "]
    assert source.materialize("a").path == tmp_path / "a"
    for name in ("..", ".", "", "file", "c", ".git", "a/../b", "bad\udcff", "/etc"):
        with pytest.raises(NotFound):
            source.materialize(name)


def test_missing_repository_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArg, match="does not exist"):
        LocalSource(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArg, match="is not a directory"):
        LocalSource(tmp_path / "file")
    with pytest.raises(InvalidArg, match="is empty"):
        LocalSource("")


def test_a_repository_that_vanishes_does_not_hide_the_others(tmp_path: Path) -> None:
    for repo in ("r1", "r2"):
        (tmp_path / repo / repo).mkdir(parents=True)
    both = Repositories([LocalSource(tmp_path / "r1"), LocalSource(tmp_path / "r2")])
    assert list(both.listing().owners) == ["r1", "r2"]
    (tmp_path / "r1" / "r1").rmdir()
    (tmp_path / "r1").rmdir()
    assert list(both.listing().owners) == ["r2"]


def test_override_is_written_privately_and_removed(tmp_path: Path) -> None:
    made = write_override("m", {"file:1/model.py": b"code", "file:1/./sub/w.bin": b"\0", "file:x": b""}, tmp_path)
    assert made.path.parent == tmp_path
    assert (made.path / "1" / "model.py").read_bytes() == b"code"
    assert (made.path / "1" / "sub" / "w.bin").read_bytes() == b"\0"
    assert made.path.stat().st_mode & 0o777 == 0o700
    assert (made.path / "1" / "model.py").stat().st_mode & 0o777 == 0o600
    made.hold()
    made.release()
    assert made.path.exists()
    made.release()
    assert list(tmp_path.iterdir()) == []


def test_override_file_that_is_a_directory(tmp_path: Path) -> None:
    with pytest.raises(InvalidArg) as caught:
        write_override("m", {"file:1": b"", "file:1/model.py": b""}, tmp_path)
    assert str(caught.value) == "Invalid file parameter 'file:1', directory has been created as a file"
    with pytest.raises(InvalidArg, match="given twice"):
        write_override("m", {"file:1/a": b"", "file:1//a": b""}, tmp_path)
    with pytest.raises(InvalidArg, match="the limit is"):
        write_override("m", {f"file:1/{number}": b"" for number in range(4097)}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_override_text(tmp_path: Path) -> None:
    with pytest.raises(InvalidArg) as caught:
        write_override("m", {"file:1/../../x": b""}, tmp_path)
    assert str(caught.value) == (
        "Invalid file parameter 'file:1/../../x' with normalized path '../x' must stay within model directory."
    )


def test_materialized_dir_is_released_once() -> None:
    released: list[int] = []
    held = MaterializedDir(Path("x"), lambda: released.append(1))
    for _ in range(3):
        held.hold()
    for _ in range(4):
        assert released == []
        held.release()
    assert released == [1]


def test_workers_run_in_parallel_up_to_the_limit() -> None:
    workers = Workers(2, "test")
    both = threading.Barrier(2)
    first = [workers.submit(lambda: both.wait(timeout=30)) for _ in range(2)]
    assert sorted(job.result(30) for job in first) == [0, 1]
    many = [workers.submit(lambda: threading.current_thread().name) for _ in range(50)]
    assert {job.result(30) for job in many} <= {"test-1", "test-2"}
    assert isinstance(workers.submit(lambda: fail(SystemExit(3))).exception(30), SystemExit)
    assert workers.submit(lambda: 7).result(30) == 7
    workers.close()
    with pytest.raises(RuntimeError):
        workers.submit(lambda: 1)
