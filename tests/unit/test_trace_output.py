"""Where traces go when that does not work: a full disk, a collector that hangs, contexts that are none."""

from __future__ import annotations

import errno
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from triton_fast.observability import log
from triton_fast.observability.tracing.files import TraceFiles
from triton_fast.observability.tracing.spans import SpanExport

LONG, SHORT = b'{"id":1,"model_name":"%s"}' % (b"m" * 200), b'{"id":2}'


class Small:
    """A file on a disk with so much room."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb", buffering=0)
        self.room = 0

    def write(self, data: Any) -> int:
        at = self.file.tell()
        grows = max(0, at + len(data) - self.file.seek(0, 2))
        self.file.seek(at)
        if grows > self.room:
            data = data[: len(data) - grows + self.room]
        if not data:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= min(grows, self.room)
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    for level in ("error", "warning"):
        monkeypatch.setattr(log, level, lambda text, **_: found.append(text))
    return found


def test_the_file_stays_whole_on_a_full_disk(tmp_path: Path, logged: list[str]) -> None:
    path = tmp_path / "trace"
    files, disk = TraceFiles(str(path)), Small(path)
    files._file = disk  # type: ignore[assignment]
    expected: list[Any] = []
    for room, traces, fits in ((0, [SHORT], 0), (100, [SHORT], 1), (50, [LONG], 0), (0, [SHORT, SHORT], 0),
                               (9, [SHORT], 1), (500, [LONG], 1)):  # fmt: skip
        disk.room = room
        files.write([(0, trace) for trace in traces])
        expected += [json.loads(trace) for trace in traces] if fits else []
        assert path.read_bytes() == b"" if not expected else json.loads(path.read_bytes()) == expected
    files.close()
    # Each time that it begins it is told once, and how much it cost when it is over.
    full = f"failed to write to trace file '{path}': No space left on device"
    assert logged == [
        full, "traces are written again; 1 were lost", full, "traces are written again; 3 were lost",
    ]  # fmt: skip


def test_a_part_of_a_file_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]) -> None:
    files = TraceFiles(str(tmp_path / "trace"))
    files.open_stream(1, 2)
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        write(path, data[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    files.write([(1, SHORT), (1, SHORT)])
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(Path, "write_bytes", write)
    files.write([(1, SHORT), (1, LONG)])
    (made,) = tmp_path.iterdir()
    assert json.loads(made.read_bytes()) == [json.loads(SHORT), json.loads(LONG)]
    assert logged[1:] == ["traces are written again; 2 were lost"]


class Stuck:
    """A processor whose collector does not answer."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.over = False

    def shutdown(self) -> None:
        self.gate.wait()
        self.over = True


def test_a_collector_that_hangs_does_not_hold_up_the_end(logged: list[str]) -> None:
    processor = Stuck()
    export = SpanExport((), processor)
    export.close(0.01)
    assert not processor.over
    assert logged == ["OpenTelemetry: the collector did not take the last spans in 0.01 s; they are lost"]
    processor.gate.set()


def test_a_malformed_state_says_nothing(logged: list[str]) -> None:
    made: list[Any] = []

    class Keeps(Stuck):
        def on_end(self, span: Any) -> None:
            made.append(span)

    record = (1, 0, 2, 4, "HTTP", "m", 1, "", False, (1, 2, 3, 4, 0, 0, 0, 0, 5), [])
    export = SpanExport((), Keeps())
    for state in ("=", "UPPER=1", "no pair", "a=b,a=b", ",".join(f"k{i}=v" for i in range(40)), "good=1"):
        export.write([(0, (b"\1" * 16, 9, 4, state, [record]))])
    assert [dict(span.context.trace_state) for span in made if span.name == "m"][-1] == {"good": "1"}
    assert len(made) == 12
    assert logged == []
