"""Files that are tried in a process of their own first: what it says, and every other way that it can end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from triton_fast.backends import trial
from triton_fast.backends.fil import probe as fil_probe
from triton_fast.backends.pytorch import probe as torch_probe
from triton_fast.errors import InvalidArg, Unavailable

ROOT = Path(__file__).resolve().parents[2]
LIMIT = "TRITON_FAST_TRIAL_SECONDS"
Check = Callable[..., None]
HEAD = """
import os, resource, signal, sys
from triton_fast.backends import trial
"""


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Try the file ``model`` by a module of this code."""
    (tmp_path / "modules").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    (tmp_path / "model").touch()

    def made(code: str, *arguments: str, timeout: float = 60) -> None:
        (tmp_path / "modules" / "tried.py").write_text(HEAD + code)
        with trial.Held(str(tmp_path / "model")) as file:
            trial.check("tried", file, arguments, timeout=timeout, crashed="it ended with {}, alas")

    return made


def refusal(check: Check, code: str, *arguments: str) -> str:
    with pytest.raises(InvalidArg) as error:
        check(code, *arguments)
    return error.value.message


@pytest.mark.parametrize(
    "before",
    [
        "", "print('loaded')", "print('half a line', end='')", "os.write(1, b'half a line')", "print('{')",
        "os.write(1, b'\\xff{\\n')", "os.write(2, b'loaded')",
    ],
)  # fmt: skip
def test_what_a_library_prints_first_is_no_part_of_the_cause(check: Check, before: str) -> None:
    cause = 'the leaf "\u2665" is\none too many'
    assert refusal(check, f"{before}\ntrial.end({cause!r})") == cause


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("os._exit(3)", "the file is corrupt: the process that checked it ended with 3"),
        ("os.write(1, b'3 {'); os._exit(3)", "the file is corrupt: the process that checked it ended with 3"),
        ("os._exit(7)", "the file is corrupt: the process that checked it ended with 7"),
        ("raise MemoryError", "the file is corrupt: the process that checked it ended with 1"),
        ("os.abort()", "it ended with SIGABRT, alas"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "it ended with SIGSEGV, alas"),
        # A signal without a name.
        ("os.kill(os.getpid(), signal.SIGRTMIN + 6)", f"it ended with signal {signal.SIGRTMIN + 6}, alas"),
    ],
)
def test_ways_to_end(check: Check, code: str, text: str) -> None:
    assert refusal(check, code) == text


def test_who_does_not_end_is_ended(check: Check) -> None:
    with pytest.raises(InvalidArg, match=r"the file is corrupt, or reading it takes more than 0\.5 s"):
        check("signal.pause()", timeout=0.5)


def test_there_is_no_process_to_be_had(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(Unavailable, match="can not start the process that checks the file: No such file or directory"):
        check("trial.end(None)")


def test_a_file_that_passed_is_tried_again_when_it_has_changed(check: Check, tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = f"with open({str(log)!r}, 'a') as log: log.write('x')\n"
    check(code + "trial.end(None)")
    check(code + "trial.end(None)")
    assert log.read_text() == "x"
    check(code + "trial.end(None)", "another argument")
    assert log.read_text() == "xx"
    (tmp_path / "model").write_text("more")
    assert refusal(check, code + "trial.end('no')") == refusal(check, code + "trial.end('no')") == "no"
    assert log.read_text() == "xxxx", "what does not pass is tried each time"


def test_a_file_that_changes_meanwhile_has_not_passed(check: Check, tmp_path: Path) -> None:
    told = refusal(check, f"open({str(tmp_path / 'model')!r}, 'w').write('more')\ntrial.end(None)")
    assert told == "the file was changed while it was opened: load the model again once it is whole"
    assert refusal(check, "trial.end('no')") == "no"


def test_nothing_is_imported_from_where_the_server_was_started(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "json.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path / "here")
    assert refusal(check, "trial.end(os.getcwd())") == "/"


def test_the_process_ends_by_itself(check: Check) -> None:
    """A server that was killed ends nobody. A little later than the server would, which has a text for it."""
    code = """
trial.begin()
left = signal.alarm(0)
assert 1 <= left <= 62
trial.end(f"{os.environ['TRITON_FAST_TRIAL_SECONDS']} {resource.getrlimit(resource.RLIMIT_CORE)}")
"""
    with pytest.raises(InvalidArg) as error:
        check(code, timeout=60.5)
    assert error.value.message == "62 (0, 0)"


def test_an_alarm_that_was_ignored_ends_it_too(check: Check, tmp_path: Path) -> None:
    code = f"{HEAD}\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\ntrial.begin()\nsignal.pause()"
    environment = {**os.environ, LIMIT: "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=False)
    assert ended.returncode == -signal.SIGALRM


def test_paths_that_are_relative_to_where_the_server_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr(trial, "check", lambda module, file, arguments, **named: given.append([file.name, *arguments]))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f").touch()
    for there in (True, False):
        monkeypatch.setattr(os.path, "exists", lambda name, there=there: there)  # without /proc it is the path
        with trial.Held("f") as file:
            fil_probe.check("/lib", file, "xgboost_json", unknown_fields=False, timeout=1)
            torch_probe.check(file, -1)
            name = f"/proc/self/fd/{file.fd}" if there else str(tmp_path / "f")
            assert given == [[name, "/lib", "xgboost_json", "0"], [name, "-1"]]
        given.clear()


def test_a_copy_is_what_was_tried_whatever_is_written_into_the_file(check: Check, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"good" * 1_000_000)
    (tmp_path / "modules" / "tried.py").write_text(HEAD + READS)

    def tried(file: trial.Held) -> None:
        trial.check("tried", file, (), timeout=60, crashed="{}")

    changed = "the file was changed while it was opened"
    with pytest.raises(InvalidArg, match=changed), trial.Held(str(path), copied=True) as file:
        tried(file)
        path.write_bytes(b"evil" * 1_000_000)
        assert Path(file.name).read_bytes() == b"good" * 1_000_000
        with pytest.raises(PermissionError):
            Path(file.name).write_bytes(b"evil")
        with pytest.raises(PermissionError):
            os.pwrite(file.fd, b"evil", 0)
        tried(file)
        file.unchanged()
    with pytest.raises(InvalidArg, match="b'evil'"), trial.Held(str(path), copied=True) as file:
        tried(file)


READS = """
trial.begin()
head = open(sys.argv[1], "rb").read(4)
trial.end(None if head == b"good" else repr(head))
"""
