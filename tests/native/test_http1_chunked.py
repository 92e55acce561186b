"""Unit tables for the chunked-body decoder: grammar, limits, delivery in pieces, linear work.

Knows nothing of request heads or connections.
"""

from __future__ import annotations

import tracemalloc

import pytest

from triton_fast._native.wire.chunked import ChunkedDecoder
from triton_fast._native.wire.http1 import HttpError

GOOD = {
    "empty": (b"0\r\n\r\n", b""),
    "one": (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
    "hex": (b"a\r\n0123456789\r\nB\r\nabcdefghijk\r\n000\r\n\r\n", b"0123456789abcdefghijk"),
    "leading zeros": (b"0000000000000005\r\nhello\r\n0\r\n\r\n", b"hello"),
    "extension": (b'2;a\r\nhi\r\n1;a=b;c="d e"\r\n!\r\n0;z\r\n\r\n', b"hi!"),
    "blanks in extension": (b"2;a = b \t\r\nhi\r\n0\r\n\r\n", b"hi"),
    "extension with obs-text": (b"2;\xff\r\nhi\r\n0\r\n\r\n", b"hi"),
    "line ends in data": (b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"),
    "trailers": (b"0\r\nA: b\r\nContent-Length:\t9\r\nEmpty:\r\n\r\n", b""),
}

BAD = {
    "no size": (b"\r\n", 400, "malformed chunk size"),
    "not hex": (b"g\r\n", 400, "malformed chunk size"),
    "sign": (b"+5\r\nhello\r\n", 400, "malformed chunk size"),
    "minus": (b"-1\r\n", 400, "malformed chunk size"),
    "0x": (b"0x5\r\nhello\r\n", 400, "malformed chunk size"),
    "leading blank": (b" 5\r\nhello\r\n", 400, "malformed chunk size"),
    "underscore": (b"1_0\r\n", 400, "malformed chunk size"),
    "only extension": (b";a\r\n", 400, "malformed chunk size"),
    "17 digits": (b"00000000000000005\r\n", 400, "16 hexadecimal digits"),
    "overflow": (b"10000000000000005\r\nhello\r\n", 400, "16 hexadecimal digits"),
    "huge": (b"ffffffffffffffff\r\n", 413, "maximum of 1000 bytes"),
    "top bit": (b"8000000000000000\r\n", 413, "maximum of 1000 bytes"),
    "sum wraps": (b"1\r\nx\r\nffffffffffffffff\r\n", 413, "maximum of 1000 bytes"),
    "blank after size": (b"5 \r\nhello\r\n", 400, "space after a chunk size"),
    "text after blank": (b"5 x\r\nhello\r\n", 400, "space after a chunk size"),
    "blank before extension": (b"5\t;a\r\nhello\r\n", 400, "space after a chunk size"),
    "bare lf after size": (b"5\nhello\r\n", 400, "malformed chunk size"),
    "bare cr after size": (b"5\r5\r\n", 400, "must end with CR LF"),
    "bare lf in extension": (b"5;a\nhello\r\n", 400, "control character in a chunk extension"),
    "nul in extension": (b"5;a\x00\r\n", 400, "control character in a chunk extension"),
    "data too long": (b"2\r\nhello\r\n", 400, "longer than its chunk size"),
    "bare lf after data": (b"2\r\nhi\n0\r\n\r\n", 400, "longer than its chunk size"),
    "bare cr after data": (b"2\r\nhi\r0\r\n\r\n", 400, "chunk data must end with CR LF"),
    "bad end": (b"0\r\n\rX", 400, "chunked body must end with CR LF"),
    "bare lf end": (b"0\r\n\n", 400, "malformed trailer"),
    "folded trailer": (b"0\r\nA: b\r\n c\r\n\r\n", 400, "malformed trailer"),
    "trailer without colon": (b"0\r\nAb\r\n\r\n", 400, "malformed trailer"),
    "trailer without name": (b"0\r\n: b\r\n\r\n", 400, "malformed trailer"),
    "blank before colon": (b"0\r\nA : b\r\n\r\n", 400, "malformed trailer"),
    "nul in trailer": (b"0\r\nA: \x00\r\n\r\n", 400, "malformed trailer"),
    "bare cr in trailer": (b"0\r\nA: b\rC: d\r\n\r\n", 400, "malformed trailer"),
    "body too large": (b"3e8\r\n" + b"x" * 1000 + b"\r\n1\r\ny\r\n", 413, "maximum of 1000 bytes"),
    "too many chunks": (
        b"1\r\nx\r\n" * 11, 400,
        "Chunked request body exceeds maximum of 10 non-empty chunks. Send fewer or larger HTTP chunks.",
    ),
    "long extension": (b"1;" + b"a" * 4096 + b"\r\n", 400, "chunk extensions exceed"),
    "extensions in all": ((b"1;" + b"a" * 1365 + b"\r\nx\r\n") * 3 + b"1;", 400, "chunk extensions exceed"),
    "trailers too large": (b"0\r\n" + b"A: b\r\n" * 1366, 431, "8192 bytes"),
}


def decode(data: bytes, cuts: list[int], cap: int = 65536) -> object:
    """(payload, bytes used) of data cut at these places, (status, text), or the payload when it does not end."""
    decoder = ChunkedDecoder(1000, 10)
    payload, used = b"", 0
    for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        piece = data[begin:end]
        while True:
            try:
                got, done, n = decoder.feed(piece, cap)
            except HttpError as error:
                with pytest.raises(HttpError) as again:
                    decoder.feed(b"0\r\n\r\n")
                assert (again.value.status, again.value.text) == (error.status, error.text)
                return error.status, error.text
            assert len(got) <= cap
            payload, used, piece = payload + got, used + n, piece[n:]
            if done:
                return payload, used
            if not piece:
                break
    return payload


@pytest.mark.parametrize("name", GOOD)
def test_good(name: str) -> None:
    data, payload = GOOD[name]
    for tail in (b"", b"GET / HTTP/1.1\r\n"):
        assert decode(data + tail, []) == (payload, len(data))
    assert ChunkedDecoder().discard(data + b"more") == (len(payload), True, len(data))


@pytest.mark.parametrize("name", BAD)
def test_bad(name: str) -> None:
    data, status, text = BAD[name]
    with pytest.raises(HttpError) as caught:
        ChunkedDecoder(1000, 10).feed(data)
    assert caught.value.status == status
    assert text in caught.value.text
    with pytest.raises(HttpError) as discarded:
        ChunkedDecoder(1000, 10).discard(data)
    assert discarded.value.args == caught.value.args


@pytest.mark.parametrize("name", [*GOOD, *BAD])
def test_any_delivery(name: str) -> None:
    data = {**GOOD, **BAD}[name][0]
    whole = decode(data, [])
    for cut in range(0, len(data) + 1, max(1, len(data) // 500)):
        assert decode(data, [cut]) == whole
    for cap in (1, 2, 3, 7):
        assert decode(data, [], cap) == whole
        assert decode(data, list(range(1, len(data))), cap) == whole


@pytest.mark.parametrize("name", GOOD)
def test_every_prefix_needs_more(name: str) -> None:
    data, payload = GOOD[name]
    for end in range(len(data)):
        got = decode(data[:end], [])
        assert isinstance(got, bytes)
        assert payload.startswith(got)


def test_full_destination_waits() -> None:
    decoder = ChunkedDecoder()
    assert decoder.feed(b"5\r\nhello\r\n0\r\n\r\n", 0) == (b"", False, 3)
    assert decoder.feed(b"hello\r\n0\r\n\r\nX", 5) == (b"hello", True, 12)
    assert decoder.feed(b"X", 5) == (b"", True, 0)


def test_limits_are_inclusive() -> None:
    assert ChunkedDecoder(3, 3).feed(b"1\r\na\r\n" * 3 + b"0\r\n\r\n") == (b"aaa", True, 23)
    assert ChunkedDecoder(0, 0).feed(b"0\r\n\r\n") == (b"", True, 5)
    assert ChunkedDecoder().feed(b"1;" + b"a" * 4095 + b"\r\nx\r\n0\r\n\r\n")[:2] == (b"x", True)
    trailers = b"A: b\r\n" * 1364 + b"C: ddd\r\n"
    assert len(trailers) == 8192
    with pytest.raises(HttpError):      # the blank line counts too
        ChunkedDecoder().feed(b"0\r\n" + trailers + b"\r\n")


def test_default_chunk_count_text() -> None:
    body = b"1\r\nx\r\n" * 65537
    with pytest.raises(HttpError) as caught:
        ChunkedDecoder().discard(body)
    assert caught.value.text == ("Chunked request body exceeds maximum of 65536 non-empty chunks. "
                                 "Send fewer or larger HTTP chunks.")
    assert ChunkedDecoder().discard(body[6:]) == (65536, False, len(body) - 6)


def test_three_million_one_byte_chunks() -> None:
    """Refused at the cap; with the cap raised, decoded with no memory of its own."""
    block = b"1\r\nx\r\n" * 10_000
    decoder = ChunkedDecoder()
    fed = 0
    with pytest.raises(HttpError):
        for _ in range(300):
            decoder.discard(block)
            fed += 1
    assert fed == 6

    decoder = ChunkedDecoder(2**63, 3_000_001)
    decoder.discard(block)
    tracemalloc.start()
    for _ in range(299):
        assert decoder.discard(block) == (10_000, False, len(block))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 10_000
    assert decoder.n_chunks == 3_000_000
    assert decoder.discard(b"0\r\n\r\n") == (0, True, 5)
