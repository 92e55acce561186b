"""Files that are opened in a process of their own first: what changes on the way has not been tried."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from triton_fast.backends import trial
from triton_fast.errors import InvalidArg

CHANGED = "the file was changed while it was opened: load the model again once it is whole"
# Passes whatever there is; with "replace", puts another file in its place first.
PROBE = """
import os, sys
from triton_fast.backends import trial
trial.begin()
if sys.argv[2] == "replace":
    with open(sys.argv[1] + ".new", "w") as file:
        file.write("other")
    os.replace(sys.argv[1] + ".new", sys.argv[1])
trial.end(None)
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "trial_probe.py").write_text(PROBE)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "model").write_text("tried")
    return str(tmp_path / "model")


def check(file: str, what: str = "") -> trial.State:
    return trial.check("trial_probe", [file, what], file, timeout=60.0, crashed="{}")


def test_a_file_that_stays(file: str) -> None:
    state = check(file)
    trial.unchanged(file, state)
    os.link(file, file + ".link")  # what a cache of downloads does for another version
    trial.unchanged(file, state)
    trial.unchanged(file, check(file))


def test_a_file_that_is_replaced_while_it_is_tried(file: str) -> None:
    for _ in range(2):  # nor is it known as good afterwards
        with pytest.raises(InvalidArg, match=CHANGED):
            check(file, "replace")


@pytest.mark.parametrize("known", [False, True])
def test_a_file_that_is_replaced_after_it_was_tried(file: str, known: bool) -> None:
    state = check(file)
    if known:
        state = check(file)
    Path(file + ".new").write_text("tried")
    os.replace(file + ".new", file)
    with pytest.raises(InvalidArg, match=CHANGED):
        trial.unchanged(file, state)
    os.unlink(file)
    with pytest.raises(InvalidArg, match=CHANGED):
        trial.unchanged(file, state)


def test_a_file_that_is_written_to(file: str) -> None:
    state = check(file)
    with open(file, "a") as written:
        written.write(" more")
    with pytest.raises(InvalidArg, match=CHANGED):
        trial.unchanged(file, state)
