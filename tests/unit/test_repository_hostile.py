"""Hostile names through every way into the repository: nothing outside of it is touched, and the answer is an error.

Source: spec/security.md SEC-01, SEC-18.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, os.path.dirname(__file__))
from test_repository_support import FakeEngine, FakeRuntime, manager_for, rows, settle, write_model

from triton_fast.errors import Code, NotFound, ServerError, Unavailable
from triton_fast.repository import ModelRepositoryManager, check_name

OVERRIDE = '{"backend": "fake", "input": [{"name": "I", "data_type": "TYPE_FP32", "dims": [1]}]}'

# Anything that could mean a place: refused by its spelling.
TRAVERSAL = [
    ".", "..", "../", "../secret", "../../etc/passwd", "..\\secret", "..\\..\\windows\\win.ini", "a/..", "a/../..",
    "a/../../secret", "./m", "m/", "m/.", "m/..", "m/1", "m/config.pbtxt", "/", "//", "/etc", "/etc/passwd",
    "//etc//passwd",
    "\\", "\\\\server\\share", "C:\\secret", "C:/secret", "c:..\\x", "m\\1", "....//", "....//....//secret",
    "..;/secret", "..%00/secret", "m\0", "\0", "m\0/../../secret", "../secret\0.onnx", "..\0", "~/secret",
    "file:///etc/passwd",
    "\\..\\", "/proc/self/environ", "/dev/null/x", "m/../../../../../../../../etc/shadow", "../" * 500 + "etc/passwd",
    "..\udc2f", "\udcff", "m\ud800", "\udcc0\udcae\udcc0\udcae",
]  # fmt: skip
# Spelled like places once decoded or folded by somebody else: to us only names that nobody has.
STRANGE = [
    "%2e%2e", "%2e%2e%2fsecret", "%252e%252e%252fsecret", "..%2fsecret", "..%5csecret", "%c0%ae%c0%ae", "...", "....",
    ". .", ".. ", " ..", "..\n", "\n", "\r\n", "\t", " ", "m\n", "\u2024\u2024", "\uff0e\uff0e", "\u2025",
    "\uff0e\uff0e\uff0fsecret",
    "\u2215etc\u2215passwd", "\u29f5", "\u202em", "m\u200b", "\ufeffm", "\x1b[2Jm", "*", "?", "[a-z]", "~", "~root",
    "$HOME",
    "${HOME}", "$(id)", "`id`", ";id", "|id", "&", "m;rm -rf .", "'", '"', "-rf", "--help", "CON", "NUL", "aux.txt",
    ".git", ".hidden", ".ssh", "M", "m ", " m", "x" * 255, "x" * 256, "x" * 4096, "\u00e9" * 200, "C:", "file:",
    "secret",
    "outside", "1", "-1", "__class__", "None", "\u2400",
]  # fmt: skip
CORPUS = TRAVERSAL + STRANGE

_watching: list[tuple[list[str], list[str]]] = []


def _path_of(arg: object) -> str | None:
    if isinstance(arg, (str, bytes, os.PathLike)):
        return os.fsdecode(arg)
    return None


EVENTS = {
    "open", "os.listdir", "os.scandir", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link",
    "os.truncate", "os.chmod", "os.utime", "shutil.rmtree", "subprocess.Popen", "os.system",
}  # fmt: skip


def _audit(event: str, args: tuple[object, ...]) -> None:
    if not _watching or event not in EVENTS:
        return
    roots, seen = _watching[-1]
    # The first of a symlink is only text.
    path = _path_of(args[event == "os.symlink"]) if args else None
    # A plain name beside a directory descriptor: that directory was looked at when it was opened.
    is_relative = path is not None and "/" not in path and isinstance(args[-1], int) and args[-1] >= 0
    if path is not None and not is_relative and not _is_below(path, roots):
        seen.append(f"{event} {path}")


def _is_below(path: str, roots: list[str]) -> bool:
    # Source files that a traceback or a late import reads are not the repository's doing.
    if path.endswith((".py", ".pyc")) or "__pycache__" in path:
        return True
    real = os.path.normpath(os.path.abspath(path)) if "\0" not in path else path
    return any(real == root or real.startswith(root + "/") for root in roots)


sys.addaudithook(_audit)


@contextmanager
def only_below(monkeypatch: pytest.MonkeyPatch, *roots: Path) -> Iterator[None]:
    """Fail when anything outside of ``roots`` is opened, listed, looked at, made or removed."""
    seen: list[str] = []
    allowed = [str(root) for root in roots]
    with monkeypatch.context() as patch:
        for name in ("stat", "lstat", "access", "readlink"):
            patch.setattr(os, name, _watched(getattr(os, name), name, allowed, seen))
        _watching.append((allowed, seen))
        try:
            yield
        finally:
            _watching.pop()
    assert seen == []


def _watched(real: object, name: str, allowed: list[str], seen: list[str]) -> object:
    def call(path: object, *args: object, **named: object) -> object:
        text = _path_of(path)
        if text is not None and not _is_below(text, allowed):
            seen.append(f"os.{name} {text}")
        return real(path, *args, **named)  # type: ignore[operator]

    return call


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository with one model, and beside it what must not be reached."""
    write_model(tmp_path / "repo", "m")
    write_model(tmp_path, "secret")
    write_model(tmp_path / "outside", "x")
    return tmp_path / "repo"


@pytest.fixture
def manager(repo: Path, tmp_path: Path) -> ModelRepositoryManager[FakeRuntime]:
    (tmp_path / "work").mkdir()
    made = manager_for(repo, engine=FakeEngine(), allow_code_upload=True, work_dir=tmp_path / "work")
    made.start(["m"])
    return made


def test_the_watch_sees_what_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    for touch in (
        lambda: os.listdir(tmp_path),
        (tmp_path / "b").exists,
        (tmp_path / "b").mkdir,
        lambda: os.close(os.open(tmp_path / "b", os.O_RDONLY)),
        lambda: os.scandir(tmp_path / "a" / "..").close(),
    ):
        with pytest.raises(AssertionError), only_below(monkeypatch, tmp_path / "a"):
            touch()
    with only_below(monkeypatch, tmp_path / "a"):
        os.listdir(tmp_path / "a")
        (tmp_path / "a" / "x").write_text("")


def test_the_corpus_is_large() -> None:
    assert len(set(CORPUS)) >= 100


@pytest.mark.parametrize("name", TRAVERSAL)
def test_names_that_mean_places_are_refused(name: str) -> None:
    with pytest.raises(ServerError) as caught:
        check_name(name)
    assert caught.value.code is Code.INVALID_ARG
    text = str(caught.value)
    text.encode()
    assert text.startswith("invalid model name '")
    assert text.endswith("', model name must not contain path traversal characters")
    assert len(text) < 1000


def test_empty_name(manager: ModelRepositoryManager[FakeRuntime]) -> None:
    for call in (check_name, manager.load, manager.unload):
        with pytest.raises(ServerError) as caught:
            call("")
        assert str(caught.value) == "Model name cannot be empty. Please enter a valid name to deploy."
        assert caught.value.code is Code.INVALID_ARG


def test_every_name_through_load_and_unload(
    manager: ModelRepositoryManager[FakeRuntime], repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows(manager)
    for name in CORPUS:
        with only_below(monkeypatch, repo):
            with pytest.raises(ServerError) as caught:
                manager.load(name)
            str(caught.value).encode()
            assert len(str(caught.value)) < 1000
            with pytest.raises(ServerError):
                manager.load(name, config_json=OVERRIDE)
            # A name that spells no place and is not loaded: nothing to do.
            if name in TRAVERSAL:
                with pytest.raises(ServerError):
                    manager.unload(name)
            else:
                manager.unload(name)
    assert rows(manager) == before
    assert manager.is_ready("m")


def test_every_name_through_the_lookup(
    manager: ModelRepositoryManager[FakeRuntime], repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in CORPUS:
        with only_below(monkeypatch):
            for call in (manager.resolve, manager.is_ready, manager.versions):
                with pytest.raises(NotFound) as caught:
                    call(name)
                str(caught.value).encode()
                assert len(str(caught.value)) < 1000
    for version in (-(2**63), -2, 0, 2, 2**63 - 1, 2**64, 10**400):
        with only_below(monkeypatch):
            if version < 0:
                assert manager.resolve("m", version).version == 1
            else:
                with pytest.raises(NotFound):
                    manager.resolve("m", version)


def test_every_name_at_start(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = manager_for(repo, engine=FakeEngine())
    names = [name for name in CORPUS if name != "*"]
    with only_below(monkeypatch, repo):
        failures = manager.start([*names, "m"])
    assert len(failures) == len(set(names))
    for _, reason in failures:
        reason.encode()
    assert manager.is_ready("m")
    for name, _, _ in manager.summary():
        name.encode()


def test_every_name_as_an_uploaded_file(
    manager: ModelRepositoryManager[FakeRuntime], repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    for name in CORPUS:
        for parameter in (f"file:{name}", f"file:1/{name}", f"file:1/../{name}", f"file:/{name}"):
            with only_below(monkeypatch, work), pytest.raises(ServerError):
                manager.load("up", config_json=OVERRIDE, files={parameter: b"x"})
    settle(manager)
    assert list(work.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "repo", "secret", "work"]


def test_every_name_as_the_name_of_an_uploaded_model(
    manager: ModelRepositoryManager[FakeRuntime], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    for name in TRAVERSAL:
        with only_below(monkeypatch, work), pytest.raises(ServerError):
            manager.load(name, config_json=OVERRIDE, files={"file:1/model.fake": b"ok"})
    assert list(work.iterdir()) == []


def test_directories_with_strange_names_are_served_or_ignored(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    repo.mkdir()
    os.makedirs(os.fsencode(repo) + b"/\xff\xfe/1")
    made = []
    for name in STRANGE:
        if len(name.encode()) <= 255 and not name.startswith("."):
            write_model(repo, name, config="backend: 'fake'\n" + 'input { name: "I" data_type: TYPE_FP32 dims: [1] }\n'
                        'output { name: "O" data_type: TYPE_FP32 dims: [1] }')  # fmt: skip
            made.append(name)
    manager = manager_for(repo, engine=FakeEngine())
    assert manager.start(["*"]) == []
    assert sorted(made) == [name for name, *_ in rows(manager)]
    assert all(manager.is_ready(name) for name in made)
    assert manager.shutdown(30) == []


def test_broken_and_hostile_models_leave_the_others_served(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    write_model(repo, "good")
    blobs = [
        b"", b"\0" * 100, b"\xff\xfe\xfd", b"{" * 100_000, b"a: " * 10_000, b'name: "', b"\x08\x01", b"input [" * 5000,
        b"max_batch_size: 99999999999999999999", b"max_batch_size: -1", b'input { name: "I" dims: [0] }',
        b'backend: "../../x"', b'name: "other"', b'default_model_filename: "../../secret"', b"#" * 1_000_000,
    ]  # fmt: skip
    for number, blob in enumerate(blobs):
        write_model(repo, f"bad{number}", {"1": "broken"})
        (repo / f"bad{number}" / "config.pbtxt").write_bytes(blob)
    for name, text in (("exits", "exit"), ("raises", "foreign")):
        write_model(repo, name, {"1": text})
    (repo / "bad_dir" / "config.pbtxt").mkdir(parents=True)
    (repo / "bad_link").mkdir()
    (repo / "bad_link" / "config.pbtxt").symlink_to("/nonexistent/config.pbtxt")
    (repo / "bad_fifo" / "1").mkdir(parents=True)
    os.mkfifo(repo / "bad_fifo" / "config.pbtxt")
    manager = manager_for(repo, engine=FakeEngine())
    failures = manager.start(["*"])
    assert {failure.name for failure in failures} == {path.name for path in repo.iterdir()} - {"good"}
    assert all(failure.reason for failure in failures)
    assert manager.is_ready("good")
    assert manager.load("good") is None
    with pytest.raises((NotFound, Unavailable)):
        manager.resolve("raises", 1)
