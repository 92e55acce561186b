"""Files that are opened in a process of their own first: what changes on the way has not been tried."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from triton_fast.backends import trial
from triton_fast.errors import InvalidArg, Unavailable

CHANGED = "the file was changed while it was opened: load the model again once it is whole"
# Passes what says "tried"; with a path, puts another file there first.
PROBE = """
import os, sys
from triton_fast.backends import trial
trial.begin()
if sys.argv[2]:
    with open(sys.argv[2] + ".new", "w") as file:
        file.write("other")
    os.replace(sys.argv[2] + ".new", sys.argv[2])
with open(sys.argv[1]) as file:
    trial.end(None if file.read() == "tried" else "it is another")
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "trial_probe.py").write_text(PROBE)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "model").write_text("tried")
    return str(tmp_path / "model")


def check(file: trial.Held, replace: str = "") -> None:
    trial.check("trial_probe", file, [replace], timeout=60.0, crashed="{}")


def put(file: str, text: str = "other") -> None:
    """Put another file in its place."""
    Path(file + ".new").write_text(text)
    os.replace(file + ".new", file)


def test_a_file_that_stays(file: str) -> None:
    with trial.Held(file) as held:
        check(held)
        held.unchanged()
        os.link(file, file + ".link")  # what a cache of downloads does for another version
        held.unchanged()
        check(held)
        held.unchanged()


def test_a_file_that_is_replaced_while_it_is_tried(file: str) -> None:
    with trial.Held(file) as held, pytest.raises(InvalidArg, match=CHANGED):
        check(held, file)
    with trial.Held(file) as held, pytest.raises(InvalidArg, match="it is another"):
        check(held, file)  # nor is it known as good afterwards


def test_what_is_opened_is_what_was_tried(file: str) -> None:
    """Another one could end the server as it is opened."""
    for at in ("before its trial", "after it"):
        with trial.Held(file) as held:
            if at == "before its trial":
                put(file)
                with pytest.raises(InvalidArg, match=CHANGED):
                    check(held)
            else:
                check(held)
                put(file)
            assert Path(held.name).read_text() == "tried"
            with pytest.raises(InvalidArg, match=CHANGED):
                held.unchanged()
        put(file, "tried")


@pytest.mark.parametrize("known", [False, True])
def test_a_file_that_is_replaced_after_it_was_tried(file: str, known: bool) -> None:
    with trial.Held(file) as held:
        check(held)
        if known:
            check(held)
        put(file, "tried")
        with pytest.raises(InvalidArg, match=CHANGED):
            held.unchanged()
        os.unlink(file)
        with pytest.raises(InvalidArg, match=CHANGED):
            held.unchanged()


def test_a_file_that_is_written_to(file: str) -> None:
    with trial.Held(file) as held:
        check(held)
        with open(file, "a") as written:
            written.write(" more")
        with pytest.raises(InvalidArg, match=CHANGED):
            held.unchanged()


def test_a_file_that_is_not_there(file: str) -> None:
    with pytest.raises(Unavailable, match="can not open the file: No such file or directory"):
        trial.Held(file + ".none")
