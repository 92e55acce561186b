"""Fuzz target for request heads and chunked bodies: any bytes, any delivery, one outcome.

``TF_FUZZ_SECONDS=60 python tests/fuzz/fuzz_http1.py``; the default is short. A failing input is printed by
hypothesis, shrunk. Meant for the AddressSanitizer build as well; knows no connection code.
"""

from __future__ import annotations

import os
import time
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triton_fast._native.wire.chunked import ChunkedDecoder
from triton_fast._native.wire.http1 import HeadParser, HttpError, parse_head, parse_infer_header_len

WORDS = [
    b"GET / HTTP/1.1\r\n", b"POST /v2/models/m/infer HTTP/1.1\r\n", b"HTTP/1.0", b"HTTP/1.1", b"OPTIONS * ", b"PRI * ",
    b"http://h/", b"Host: h\r\n", b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", b"Connection: close",
    b"Expect: 100-continue\r\n", b"Inference-Header-Content-Length: ", b"Accept-Encoding:", b"Content-Type: a\r\n",
    b"\r\n", b"\r\n\r\n", b"\n", b"\r", b" ", b"\t", b":", b";", b",", b"?", b"*", b"-", b"0", b"1", b"5", b"fF",
    b"9" * 19, b"f" * 16, b"0\r\n\r\n", b"5\r\nhello\r\n", b"A: b\r\n", b"\x00", b"\x7f", b"\x80\xff", b"\x16\x03\x01",
    b"a" * 15, b"a" * 16, b"a" * 17, b"a" * 33, b"x" * 300, b"A: b\r\n" * 101,
]
inputs = st.lists(st.one_of(st.sampled_from(WORDS), st.binary(max_size=12)), max_size=24).map(b"".join)
places = st.lists(st.integers(0, 600), max_size=8)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    ends = [*sorted({min(c, len(data)) for c in cuts}), len(data)]
    return [data[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def check_head(data: bytes, cuts: list[int], max_head: int) -> None:
    """The same head or the same error, whole and in pieces; only slices of the input come back."""
    data += b"\r\n"     # an error in an unfinished line may wait for its line feed
    results: list[Any] = []
    for parts in ([data], pieces(data, cuts)):
        parser = HeadParser(max_head)
        result: Any = None
        for part in parts:
            try:
                result = parser.feed(part)
            except HttpError as error:
                result = (error.status, error.text)
            if result is not None:
                break
        results.append(result)
    whole, split = results
    # In pieces, the size limit may strike before the line feed that an error waits for.
    late = isinstance(whole, tuple) and isinstance(split, tuple) and {whole[0], split[0]} & {414, 431}
    assert whole == split or late, (whole, split)
    if isinstance(whole, tuple):
        assert whole[0] in {400, 414, 417, 431, 501, 505} and whole[1]
    elif whole is not None:
        assert whole["head_len"] <= min(len(data), max_head)
        assert parse_head(data[:whole["head_len"]], max_head) == whole
        assert all(name and name in data and value in data for name, value in whole["headers"])
        assert not (whole["chunked"] and whole["content_length"] is not None)


def decode(parts: list[bytes], cap: int) -> Any:
    decoder = ChunkedDecoder(400, 6)
    payload, used = b"", 0
    for part in parts:
        rest = part
        while True:
            try:
                got, done, n = decoder.feed(rest, cap)
            except HttpError as error:
                return error.status, error.text
            assert len(got) <= cap and n <= len(rest)
            payload, used, rest = payload + got, used + n, rest[n:]
            if done:
                return payload, used, True
            if not rest:
                break
    return payload, used, False


def check_chunked(data: bytes, cuts: list[int], cap: int) -> None:
    whole = decode([data], 10**6)
    assert decode(pieces(data, cuts), cap) == whole
    if len(whole) == 3:
        assert len(whole[0]) <= 400 and whole[1] <= len(data)


def check_number(data: bytes) -> None:
    try:
        number = parse_infer_header_len(data)
    except HttpError as error:
        assert error.status == 400 and error.text.startswith("Unable to parse Inference-Header-Content-Length")
    else:
        assert number == int(data) and -(2**31) <= number < 2**31


@settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(inputs, places, st.sampled_from([16384, 64, 100, 200]), st.integers(1, 40))
def one_round(data: bytes, cuts: list[int], max_head: int, cap: int) -> None:
    check_head(data, cuts, max_head)
    check_head(b"GET / HTTP/1.1\r\nHost: h\r\n" + data, cuts, max_head)
    check_chunked(data, cuts, cap)
    check_number(data[:40])
    COUNT[0] += 1


COUNT = [0]


def fuzz(seconds: float, least: int = 0) -> int:
    """Run rounds until the time is over and at least ``least`` inputs were tried; their number."""
    COUNT[0] = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end or COUNT[0] < least:
        one_round()
    return COUNT[0]


if __name__ == "__main__":
    print(f"http1: {fuzz(float(os.environ.get('TF_FUZZ_SECONDS', '5')), least=100)} inputs, no failure")
