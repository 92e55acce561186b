"""The access log's ring and lines, and the parts of Server-Timing, natively: what is lost, cut, escaped, summed."""

from __future__ import annotations

import json
import re
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triton_fast._native.net import access, log_text, seen
from triton_fast._native.net.access import AccessLog
from triton_fast.observability import escape

RING = 65536
HTTP, INFER, GRPC_STREAM = 0, 1, 6
HOSTILE = 'a\r\nE1122 forged\x1b[2J\x9b31m\u202e\u2066\u200b\u2028\x00\x7f"\\'


def put(log: AccessLog, ident: str = "", *, kind: int = INFER, path: bytes | None = None) -> None:
    access._put(log, kind, 200, b"POST", path, b"m", b"127.0.0.1:1", ident.encode("utf-8", "surrogatepass"))


def lines(log: AccessLog, form: str = "json") -> list[str]:
    made = b""
    while more := log.take(form, 7):
        made += more
    return made.decode().splitlines()


def test_every_character_is_escaped_as_in_other_lines() -> None:
    for block in range(0, 0x110000, 256):
        text = "".join(map(chr, (c for c in range(block, block + 256) if not 0xD800 <= c <= 0xDFFF)))
        assert log_text.quoted(text.encode()).decode() == escape.quoted(text), hex(block)


@given(st.binary(max_size=64))
def test_any_bytes_are_one_json_string(data: bytes) -> None:
    made = log_text.quoted(data)
    # How many marks stand for broken bytes is this reader's own choice.
    assert re.sub("\ufffd+", "\ufffd", json.loads(made)) == re.sub("\ufffd+", "\ufffd", data.decode("utf-8", "replace"))
    assert escape.visible(made.decode()) == made.decode(), "nothing hidden is left"


def test_broken_bytes_are_replaced_one_by_one() -> None:
    assert (
        log_text.quoted(b"a\xff\xe2\x80b\xc0\x80\xed\xa0\x80").decode()
        == '"a' + "\ufffd" * 3 + "b" + "\ufffd" * 5 + '"'
    )


@pytest.mark.parametrize("form", ["default", "ISO8601", "json"])
def test_a_hostile_id_is_one_line(form: str) -> None:
    log = AccessLog(RING)
    put(log, HOSTILE)
    (line,) = lines(log, form)
    assert escape.visible(line) == line
    found = json.loads(line)["id"] if form == "json" else json.loads(re.findall(r' id=("(?:\\.|[^"\\])*")', line)[0])
    assert found == HOSTILE


def test_forms() -> None:
    log = AccessLog(RING)
    put(log, "x")
    (line,) = lines(log, "default")
    assert re.match(
        r'I\d{4} \d\d:\d\d:\d\d\.\d{6} 7 access:0\] "access" protocol="http" method="POST" rpc="infer" model="m" '
        r'id="x" peer="127\.0\.0\.1:1" status=200 bytes_in=0 bytes_out=0 us=\d+$', line
    )  # fmt: skip
    put(log, kind=GRPC_STREAM)
    (line,) = lines(log, "ISO8601")
    assert re.match(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ I 7 access:0\] "access" protocol="grpc"', line)
    assert ' rpc="ModelStreamInfer"' in line
    put(log, kind=HTTP, path=b"/v2")
    (line,) = lines(log)
    record = json.loads(line)
    assert record.pop("time").endswith("Z")
    assert record.pop("us") > 0
    assert record == {
        "level": "INFO", "pid": 7, "source": "access:0", "message": "access", "protocol": "http", "method": "POST",
        "path": "/v2", "model": "m", "peer": "127.0.0.1:1", "status": 200, "bytes_in": 0, "bytes_out": 0,
    }  # fmt: skip


def test_without_escape_the_message_is_bare() -> None:
    log = AccessLog(RING)
    put(log)
    assert b"] access protocol=" in log.take("default", 7, False)


def test_long_texts_are_cut() -> None:
    log = AccessLog(RING)
    put(log, "i" * 1000, kind=HTTP, path=b"/" * 10_000)
    record = json.loads(lines(log)[0])
    assert (len(record["id"]), len(record["path"])) == (128, 1024)


def test_a_full_ring_loses_and_counts() -> None:
    log = AccessLog(RING)
    for i in range(2000):
        put(log, str(i))
    kept = [json.loads(line)["id"] for line in lines(log)]
    assert 0 < len(kept) < 2000
    assert kept == [str(i) for i in range(len(kept))], "the first ones are kept, whole and in order"
    assert log.lost == 2000 - len(kept)


@given(st.lists(st.tuples(st.integers(0, 128), st.booleans()), max_size=400))
def test_records_wrap_around_the_end(steps: list[tuple[int, bool]]) -> None:
    log = AccessLog(RING)
    sent: list[str] = []
    got: list[str] = []

    def drain() -> None:
        got.extend(json.loads(line).get("id", "") for line in lines(log))

    for n, (length, take) in enumerate(steps * 3):
        sent.append((f"{n}-" + "x" * length)[:128])
        put(log, sent[-1])
        if take or n % 100 == 99:
            drain()
    drain()
    assert got == sent
    assert log.lost == 0


def test_a_reader_sleeps_until_there_is_something() -> None:
    log = AccessLog(RING)
    got: list[str] = []

    def read() -> None:
        while log.wait(0):
            got.extend(lines(log))

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(300):
        put(log, str(i))
    log.close()
    reader.join(30)
    assert not reader.is_alive()
    assert [json.loads(line)["id"] for line in got] == [str(i) for i in range(300)]


@pytest.mark.parametrize(("share", "low", "high"), [(0, 0, 0), (1, 100_000, 100_000), (0.01, 800, 1200)])
def test_the_share_is_kept(share: float, low: int, high: int) -> None:
    log = AccessLog(RING)
    log.set_share(share)
    assert low <= access._picked(log, 100_000) <= high


def test_a_log_without_a_ring_stays_off() -> None:
    log = AccessLog()
    log.set_share(1)
    assert access._picked(log, 10) == 0


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none(share: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        AccessLog(RING).set_share(share)


@pytest.mark.parametrize("size", [1, 4096, 100_000, -65536])
def test_a_size_that_is_none(size: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        AccessLog(size)


class Transport:
    def __init__(self, name: object) -> None:
        self.name = name

    def get_extra_info(self, key: str) -> object:
        return self.name if key == "peername" else None


@pytest.mark.parametrize(
    ("name", "text"), [(("1.2.3.4", 5), b"1.2.3.4:5"), (("::1", 5, 0, 0), b"[::1]:5"), ("", b""), (None, b"")]
)
def test_peer(name: object, text: bytes) -> None:
    assert access.peer_of(Transport(name)) == text  # type: ignore[arg-type]


# ---- Server-Timing

NAMES = ("recv", "decode", "queue", "compute_input", "compute_infer", "compute_output", "deliver", "encode", "total")
MOMENTS = st.integers(0, 10**13)


def microseconds(text: str) -> dict[str, int]:
    parts = dict(part.split(";dur=") for part in text.split(", "))
    assert tuple(parts) == NAMES
    assert all(re.fullmatch(r"\d+\.\d{3}", value) for value in parts.values()), text
    return {name: int(value.replace(".", "")) for name, value in parts.items()}


@given(st.lists(MOMENTS, min_size=9, max_size=9))
def test_parts_are_the_times_between_the_stamps_and_sum_to_the_total(moments: list[int]) -> None:
    began, whole, queued, started, inputs, computed, output, taken, now = (moment + 1 for moment in sorted(moments))
    stamps = [began, 0, queued, started, inputs, computed, output, 0]
    parts = microseconds(seen.timing(began, whole, stamps, taken, now))
    total = parts.pop("total")
    assert sum(parts.values()) == total == (now - began) // 1000
    ends = [whole, queued, started, inputs, computed, output, taken, now]
    for (name, value), begin, end in zip(parts.items(), [began, *ends], ends, strict=False):
        assert abs(value * 1000 - (end - begin)) < 2000, name


@given(st.lists(st.one_of(st.just(0), MOMENTS), min_size=9, max_size=9))
def test_whatever_the_stamps_nothing_is_negative_and_the_sum_holds(moments: list[int]) -> None:
    began, whole, taken, *stamps = moments
    now = max(moments)
    parts = microseconds(seen.timing(began, whole, [*stamps, 0, 0], taken, now))
    total = parts.pop("total")
    assert sum(parts.values()) == total == (now - began) // 1000


def test_a_request_that_was_not_executed_spent_its_time_where_it_was() -> None:
    refused = microseconds(seen.timing(1000, 2000, [0] * 8, 0, 9000))
    assert (refused["recv"], refused["decode"], refused["total"]) == (1, 7, 8)
    expired = microseconds(seen.timing(1000, 2000, [0, 0, 3000, 0, 0, 0, 0, 0], 8000, 9000))
    assert (expired["queue"], expired["encode"], expired["total"]) == (5, 1, 8)
    failed = microseconds(seen.timing(1000, 2000, [0, 0, 3000, 4000, 0, 0, 0, 0], 8000, 9000))
    assert (failed["queue"], failed["compute_infer"], failed["total"]) == (1, 4, 8)
