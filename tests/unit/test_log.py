"""Log lines: Triton's forms, JSON, levels, sinks that fail, and one record = one line whatever is in it."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triton_fast.errors import Internal, InvalidArg
from triton_fast.observability import escape, log
from triton_fast.observability.log import Logger, LogSettings

NOW_NS = 1_700_000_000_123_456_789
SOURCE = ("model.py", 7)
HOSTILE = 'a\r\nE1122 00:00:00.000000 1 x.cc:1] "forged"\x1b[2J\x9b31m\u202e\u2066\u200b\u2028\x00\x7f"\\'


class Sinks:
    def __init__(self, **settings: object) -> None:
        self.out: list[bytes] = []
        self.err: list[bytes] = []
        self.logger = Logger(lambda: NOW_NS, self.out.append, self.err.append)
        self.logger.update(**settings)

    def line(self, message: str, letter: str = "I", /, **fields: object) -> str:
        self.logger.record(letter, message, fields, SOURCE)
        lines = (self.out if letter == "I" else self.err)[-1].decode()
        assert lines.endswith("\n")
        return lines[:-1]


def test_default_form() -> None:
    assert Sinks().line("hi") == f'I1114 22:13:20.123456 {os.getpid()} model.py:7] "hi"'


def test_iso_form() -> None:
    assert Sinks(format="ISO8601").line("hi", "W") == f'2023-11-14T22:13:20Z W {os.getpid()} model.py:7] "hi"'


def test_message_is_a_json_string() -> None:
    line = Sinks().line('hi\nthere "q" \x1b[31m é /')
    assert line.endswith(r'] "hi\nthere \"q\" \u001B[31m é /"')


def test_fields_follow_the_message() -> None:
    line = Sinks().line("m", model="a b", version=3, ok=True, ratio=0.5, none=None)
    assert line.endswith('] "m" model="a b" version=3 ok=true ratio=0.5 none=null')


def test_json_form() -> None:
    record = json.loads(Sinks(format="json").line("hi\n", "E", model="m", message="x", big=2**70, bad=float("nan")))
    assert record == {
        "time": "2023-11-14T22:13:20.123456Z", "level": "ERROR", "pid": os.getpid(), "source": "model.py:7",
        "message": "hi\n", "model": "m", "message_": "x", "big": str(2**70), "bad": "nan",
    }  # fmt: skip


def test_json_names_the_verbose_level() -> None:
    sinks = Sinks(format="json", verbose=2)
    sinks.logger.record("I", "v", {}, SOURCE, verbose=2)
    record = json.loads(sinks.out[0])
    assert (record["level"], record["verbose"]) == ("VERBOSE", 2)


def hidden(text: str) -> list[str]:
    return [
        char
        for char in text
        if re.match("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]", char)
    ]


@pytest.mark.parametrize("form", log.FORMATS)
def test_hostile_text_cannot_forge_or_reach_the_terminal(form: str) -> None:
    line = Sinks(format=form).line(HOSTILE, "W", request_id=HOSTILE, **{HOSTILE: 1})
    assert hidden(line) == []
    assert len(line.splitlines()) == 1
    if form == "json":
        record = json.loads(line)
        assert (record["message"], record["request_id"], record[HOSTILE]) == (HOSTILE, HOSTILE, 1)
    else:
        assert json.JSONDecoder().raw_decode(line[line.index("] ") + 2 :])[0] == HOSTILE


@given(st.text(), st.text())
def test_any_text_is_one_line_and_reads_back(message: str, value: str) -> None:
    line = Sinks(format="json").line(message, field=value)
    assert hidden(line) == []
    assert len(line.splitlines()) == 1
    record = json.loads(line)
    assert (record["message"], record["field"]) == (message, value)


def test_half_a_surrogate_pair_is_replaced() -> None:
    assert json.loads(escape.quoted("a\ud800b")) == "a\ufffdb"
    assert json.loads(escape.quoted("\U000e0041")) == "\U000e0041"


def test_without_escape_newlines_stay_but_cannot_pass_for_a_record() -> None:
    line = Sinks(escape=False).line(HOSTILE)
    first, second = line.split("\n")
    assert first.endswith("] a\\r")
    assert second.startswith("    E1122")
    assert hidden(first + second) == []


def test_long_text_is_cut() -> None:
    line = Sinks().line("x" * 10_000_000, field="y" * 10_000_000)
    assert "(9983616 characters more)" in line
    assert len(line) < log.MAX_MESSAGE + log.MAX_FIELD + 200


def test_an_object_that_cannot_be_printed() -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no")

    assert "<Broken that cannot be printed: RuntimeError>" in Sinks().line("m", field=Broken())


def test_levels_and_streams() -> None:
    sinks = Sinks(warning=False)
    for letter in "IWE":
        sinks.logger.record(letter, letter, {}, SOURCE)
    sinks.logger.record("I", "v", {}, SOURCE, verbose=1)
    assert (len(sinks.out), len(sinks.err)) == (1, 1)
    sinks.logger.update(info=False, verbose=1)
    sinks.logger.record("I", "i", {}, SOURCE)
    sinks.logger.record("I", "v1", {}, SOURCE, verbose=1)
    sinks.logger.record("I", "v2", {}, SOURCE, verbose=2)
    assert len(sinks.out) == 2
    assert b'"v1"' in sinks.out[1]


def test_settings_are_checked_and_kept_when_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    logger = Logger()
    with pytest.raises(InvalidArg, match="invalid argument for --log_format, got: x"):
        logger.update(format="x")
    with pytest.raises(Internal, match=r"Failed to open log file .*: Is a directory"):
        logger.update(file=str(tmp_path), verbose=3)
    assert logger.settings == LogSettings()


def test_file_is_appended_and_takes_all_levels(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "log"
    path.write_text("old\n")
    sinks = Sinks(file=str(path))
    sinks.logger.record("I", "one", {}, SOURCE)
    sinks.logger.record("E", "two", {}, SOURCE)
    sinks.logger.close()
    sinks.logger.record("I", "three", {}, SOURCE)
    lines = path.read_text().splitlines()
    assert [lines[0], lines[1][-5:], lines[2][-5:]] == ["old", '"one"', '"two"']
    assert (len(lines), len(sinks.out), len(sinks.err)) == (3, 1, 0)


@pytest.mark.parametrize("failure", [BrokenPipeError(), ValueError("I/O operation on closed file"), RuntimeError()])
def test_a_broken_sink_is_counted_not_raised(failure: Exception) -> None:
    def sink(_line: bytes) -> None:
        raise failure

    logger = Logger(out=sink, err=sink)
    logger.record("I", "x", {}, SOURCE)
    logger.record("E", "x", {}, SOURCE)
    assert logger.lost == 2


def test_a_line_that_a_full_disk_broke_off_does_not_run_into_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, room, write = tmp_path / "log", [0], os.write

    def short(fd: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        n = write(fd, data[: room[0]])
        room[0] -= n
        return n

    sinks = Sinks(file=str(path), format="json")
    monkeypatch.setattr("os.write", short)
    lines = []
    for room[0] in (10**6, 40, 0, 10**6, 30, 1, 10**6):
        sinks.logger.record("I", f"message {len(lines)}", {}, SOURCE)
        lines.append(sinks.logger.lost)
    assert lines == [0, 1, 2, 2, 3, 4, 4]
    whole = (b'{"message":"a"}' + b"\n") * 3
    for room[0] in (len(whole) - 20, 10**6):
        sinks.logger.write_lines(whole)
    assert sinks.logger.lost == 4 + 2
    sinks.logger.close()
    found = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line)["message"])
    assert found == ["message 0", "message 3", "message 6", *"aaaa"]


def test_closed_or_missing_console(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = Logger()
    for index, stream in enumerate((None, io.StringIO()), 1):
        if stream is not None:
            stream.close()
        monkeypatch.setattr("sys.stdout", stream)
        logger.record("I", "x", {}, SOURCE)
        assert logger.lost == index


SCRIPT = """
import os, sys
from triton_fast.observability import log
os.read(0, 1)  # until the reader of stdout is gone
for _ in range(3):
    log.info("x" * 5000)
log.warning(chr(233))
sys.exit(0 if log.lost() == 3 else 3)
"""


def test_a_reader_that_went_away_does_not_change_the_exit_code() -> None:
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", SCRIPT], env=env, **pipes) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        process.stdin.close()
        err = process.stderr.read().decode()
        assert process.wait() == 0, err
    assert re.fullmatch(r'W[^\]]+\] "é"\n', err)


def test_a_signal_handler_may_log_inside_a_log_call() -> None:
    lines: list[bytes] = []

    def sink(line: bytes) -> None:
        if not lines:
            lines.append(line)
            logger.record("I", "inner", {}, SOURCE)
        else:
            lines.append(line)

    logger = Logger(out=sink)
    logger.record("I", "outer", {}, SOURCE)
    assert [line[-8:] for line in lines] == [b'"outer"\n', b'"inner"\n']


def test_lines_of_many_threads_do_not_mix(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "log"
    logger = Logger()
    logger.update(file=str(path))

    def work(name: int) -> None:
        for index in range(50):
            logger.record("I", f"{name}-{index}-" + "x" * 500, {}, SOURCE)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    logger.close()
    lines = path.read_text().splitlines()
    assert len(lines) == 400
    assert all(re.fullmatch(r'I\d{4} [\d:.]+ \d+ model\.py:7\] "\d-\d+-x{500}"', line) for line in lines)


def test_module_functions_name_their_caller(capsys: pytest.CaptureFixture[str]) -> None:
    before = log.settings()
    try:
        log.configure(LogSettings(verbose=1))
        log.info("i", model="m")
        log.verbose(1, "v")
        log.verbose(2, "no")
        log.warning("w")
        log.error("e", source=("model.py", 4))
        log.table("+--+\n")
        assert (log.is_verbose(1), log.is_verbose(2)) == (True, False)
    finally:
        log.configure(before)
    out, err = capsys.readouterr()
    assert re.fullmatch(
        r'I[^\]]+ test_log\.py:\d+\] "i" model="m"\nI[^\]]+ test_log\.py:\d+\] "v"\n'
        r"I[^\]]+ test_log\.py:\d+\] \n\+--\+\n\n",
        out,
    )
    assert re.fullmatch(r'W[^\]]+ test_log\.py:\d+\] "w"\nE[^\]]+ model\.py:4\] "e"\n', err)
