"""The thread of the access log, and what the log offers it: shares by verbose level, whole lines, losses, reopening."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from triton_fast._native.net import access
from triton_fast.errors import Internal
from triton_fast.observability import log
from triton_fast.observability.access import AccessWriter
from triton_fast.observability.log import Logger, LogSettings
from triton_fast.observability.metrics import Metrics


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    before = log.settings()
    try:
        log.configure(LogSettings(file=str(tmp_path / "log")))
        yield tmp_path / "log"
    finally:
        log.close()
        log.configure(before)


def put(writer: AccessWriter, ident: bytes) -> None:
    access._put(writer.native, 1, 200, b"POST", None, b"m", b"", ident)


def test_what_is_there_is_written_before_the_end(path: Path) -> None:
    writer = AccessWriter(1.0)
    writer.start()
    for i in range(500):
        put(writer, b"%d" % i)
    writer.close()
    lines = path.read_text().splitlines()
    assert [line.split(' id="')[1].split('"')[0] for line in lines] == [str(i) for i in range(500)]
    assert writer.lost == 0


def test_the_share_follows_the_verbose_level(path: Path) -> None:
    writer = AccessWriter(0.0)
    writer.start()
    try:
        assert access._picked(writer.native, 100) == 0
        log.update(verbose=1)
        assert (access._picked(writer.native, 100), writer.native.tensors) == (100, False)
        log.update(verbose=2)
        assert writer.native.tensors
        log.update(verbose=0)
        assert (access._picked(writer.native, 100), writer.native.tensors) == (0, False)
    finally:
        writer.close()
    log.update(verbose=1)
    assert access._picked(writer.native, 100) == 0, "it has ended"


def test_lost_lines_are_counted(path: Path) -> None:
    writer = AccessWriter(1.0, ring_bytes=1 << 16)
    for _ in range(1000):
        put(writer, b"x" * 100)
    assert writer.all_lost() == writer.lost + log.lost() >= writer.lost > 0
    page = Metrics(list, lost=writer.all_lost).render().decode()
    assert f"\ntriton_fast_log_lines_lost_total {writer.all_lost()}\n" in page
    writer.close()


def test_whole_lines_are_lost_together() -> None:
    def full(data: bytes) -> None:
        raise OSError(28, "No space left on device")

    logger = Logger(out=full)
    logger.write_lines(b"a\nb\nc\n")
    assert logger.lost == 3


def test_reopen(tmp_path: Path) -> None:
    path = tmp_path / "log"
    logger = Logger()
    logger.reopen()
    logger.configure(LogSettings(file=str(path)))
    logger.write_lines(b"one\n")
    path.rename(tmp_path / "old")
    logger.reopen()
    logger.write_lines(b"two\n")
    logger.close()
    assert ((tmp_path / "old").read_text(), path.read_text()) == ("one\n", "two\n")


def test_what_cannot_be_reopened_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    logger = Logger()
    logger.configure(LogSettings(file=str(folder / "log")))
    os.rename(folder, tmp_path / "moved")
    with pytest.raises(Internal, match="Failed to open log file"):
        logger.reopen()
    logger.write_lines(b"still\n")
    logger.close()
    assert (tmp_path / "moved" / "log").read_text() == "still\n"
