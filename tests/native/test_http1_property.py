"""The head parser and the chunked decoder against h11 and httptools, on generated and damaged requests.

A difference from an oracle fails unless it stands in a table below with its reason. Knows no connection code.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import h11
import httptools
import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from triton_fast._native.wire.chunked import ChunkedDecoder
from triton_fast._native.wire.http1 import HeadParser, HttpError, parse_head

Table = dict[str, tuple[bytes, str]]


def get(*lines: bytes, first: bytes = b"GET / HTTP/1.1") -> bytes:
    return b"\r\n".join([first, b"Host: h", *lines, b"", b""])


# What we refuse though h11 takes it: part of our text -> a request, why.
STRICTER_THAN_H11: Table = {
    "bare LF": (get(b"A: b\nC: d"), "RFC 9112 2.2 only permits it; llhttp and Triton refuse it"),
    "folded": (get(b"A: b", b" c"), "RFC 9112 5.2 lets a server refuse it"),
    "control character in a header": (get(b"A: \x01"), "RFC 9110 5.5 h11 refuses NUL and line ends only"),
    "malformed Host": (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "RFC 9112 3.2 demands 400"),
    "more than one Content-Length": (get(b"Content-Length: 5", b"Content-Length: 5"), "RFC 9110 8.6 leaves it to us"),
    "Unable to parse Content-Length, got": (get(b"Content-Length: 5, 5"), "the same, as a list"),
    "Unable to parse Content-Length, value": (get(b"Content-Length: 9999999999999999999"), "beyond int64"),
    "more than one Content-Type": (get(b"Content-Type: a", b"Content-Type: b"), "readers may take different ones"),
    "more than one Content-Encoding": (get(b"Content-Encoding: gzip", b"Content-Encoding: x"), "one coding is served"),
    "more than one Authorization": (get(b"Authorization: a", b"Authorization: b"), "readers may take different ones"),
    "more than one Inference-Header": (get(*[b"Inference-Header-Content-Length: 1"] * 2), "it splits the body"),
    "Transfer-Encoding in an HTTP/1.0": (
        get(b"Transfer-Encoding: chunked", first=b"GET / HTTP/1.0"), "RFC 9112 6.1: faulty framing"),
    "both Content-Length": (get(b"Transfer-Encoding: chunked", b"Content-Length: 5"), "RFC 9112 6.1 leaves it to us"),
    "HTTP version not supported": (get(first=b"GET / HTTP/1.2"), "h11 takes every HTTP/1.x"),
    "request target must start": (get(first=b"GET x HTTP/1.1"), "RFC 9112 3.2 names four forms, we serve three"),
    "malformed authority": (get(first=b"GET http://u@h/ HTTP/1.1"), "RFC 9110 4.2.4: userinfo is an error"),
    "unsupported Expect": (get(b"Expect: x"), "RFC 9110 10.1.1 permits 417"),
    "request method exceeds": (get(first=b"M" * 33 + b" / HTTP/1.1"), "h11 has no limit of its own"),
    "request has more than 100": (get(*[b"a: b"] * 100), "h11 limits bytes only"),
}

# What we refuse though httptools (llhttp as httptools sets it up) takes it.
STRICTER_THAN_HTTPTOOLS: Table = {
    "missing Host": (b"GET / HTTP/1.1\r\n\r\n", "RFC 9112 3.2 demands 400; llhttp leaves it to its user"),
    "malformed Host": (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "the same"),
    "more than one Host": (get(b"Host: h"), "the same"),
    "more than one Content-Type": (get(b"Content-Type: a", b"Content-Type: b"), "as for h11"),
    "more than one Content-Encoding": (get(b"Content-Encoding: gzip", b"Content-Encoding: x"), "as for h11"),
    "more than one Authorization": (get(b"Authorization: a", b"Authorization: b"), "as for h11"),
    "more than one Inference-Header": (get(*[b"Inference-Header-Content-Length: 1"] * 2), "as for h11"),
    "more than one Transfer-Encoding": (get(b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"), "not served"),
    "Transfer-Encoding in an HTTP/1.0": (
        get(b"Transfer-Encoding: chunked", first=b"GET / HTTP/1.0"), "RFC 9112 6.1: faulty framing"),
    "unsupported Transfer-Encoding": (get(b"Transfer-Encoding: gzip, chunked"), "not served"),
    "Unable to parse Content-Length, value": (get(b"Content-Length: 18446744073709551615"), "beyond int64"),
    "HTTP version not supported": (get(first=b"GET / HTTP/2.0"), "llhttp also takes 0.9 and 2.0"),
    "malformed HTTP version": (get(first=b"GET /  HTTP/1.1"), "llhttp skips spaces before the version"),
    "more than one space": (get(first=b"GET  / HTTP/1.1"), "llhttp skips spaces before the target"),
    "HTTP version is missing": (get(first=b"GET /"), "llhttp takes an HTTP/0.9 request line"),
    "request target must start": (get(first=b"GET ftp://h/ HTTP/1.1"), "not served; neither is '*' but for OPTIONS"),
    "malformed authority": (get(first=b"GET http://u@h/ HTTP/1.1"), "RFC 9110 4.2.4: userinfo is an error"),
    "unsupported Expect": (get(b"Expect: x"), "RFC 9110 10.1.1 permits 417"),
    "2 empty lines": (b"\r\n" * 3 + get(), "llhttp takes any number"),
    "bare LF": (b"\n" + get(), "llhttp takes it before the request line"),
    "bare CR": (b"\r" + get(), "llhttp takes it before the request line"),
    "request has more than 100": (get(*[b"a: b"] * 100), "llhttp has no limit"),
}

METHODS = [b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"OPTIONS", b"PATCH", b"get", b"G(", b"", b"M" * 33]
TARGETS = [b"/", b"/v2/models/m/infer", b"/a?b=c", b"*", b"http://o:1/p?q", b"http://u@o/", b"x", b"", b"/%00", b"/a#b",
           b"/" + b"p" * 40]
VERSIONS = [b"HTTP/1.1"] * 6 + [b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1", b"HTTP/1.1 ", b""]
FIELDS = [b"Host: h", b"host: 127.0.0.1:8000", b"Host: a b", b"Content-Length: 5", b"content-length: 0",
          b"Content-Length: +5", b"Content-Length: 5, 5", b"Content-Length: 99999999999999999999999999999999",
          b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"transfer-encoding: CHUNKED",
          b"Connection: close", b"Connection: keep-alive", b"Connection: a, Close ,b", b"Connection: close b",
          b"Expect: 100-continue", b"Expect: x", b"Content-Type: application/json", b"Accept: */*",
          b"Accept-Encoding: gzip", b"User-Agent: a (b; c)", b"Inference-Header-Content-Length: 12",
          b"Authorization: x", b"Content-Encoding: gzip", b"X-A:b", b"X-A:", b"X-A: \t b \t", b"X A: b", b"X-A : b",
          b": b", b"X-A", b" folded", b"X-\x80: b", b"X: \xff", b"X: a\x00b", b"X: a\x7f", b"x" * 37 + b": y" * 20]
EOLS = [b"\r\n"] * 30 + [b"\n", b"\r", b"\r\r\n", b" \r\n"]
DAMAGE = [b"\r", b"\n", b"\r\n", b" ", b"\t", b":", b"\x00", b"\x7f", b"\x80", b",", b"-", b"/", b"?", b"1", b"A", b"("]

damage = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 2), st.sampled_from(DAMAGE)), max_size=2)


def damaged(data: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    for place, cut, new in changes:
        at = place % (len(data) + 1)
        data = data[:at] + new + data[at + cut:]
    return data


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    pick = st.sampled_from
    parts = [draw(pick([b""] * 8 + [b"\r\n", b"\r\n\r\n", b"\n"])), draw(pick(METHODS + METHODS[:2] * 6)), b" ",
             draw(pick(TARGETS + TARGETS[:3] * 4)), b" ", draw(pick(VERSIONS)), draw(pick(EOLS))]
    if draw(st.integers(0, 5)):
        parts += [b"Host: h", draw(pick(EOLS))]
    for field in draw(st.lists(pick(FIELDS), max_size=6)):
        parts += [field, draw(pick(EOLS))]
    parts.append(draw(pick(EOLS)))
    return damaged(b"".join(parts), draw(st.one_of(st.just([]), damage)))


def ours(data: bytes) -> tuple[str, Any]:
    try:
        head = parse_head(data)
    except HttpError as error:
        return "error", error
    return ("more", None) if head is None else ("head", head)


def known(text: str, table: Table) -> bool:
    return any(part in text for part in table)


@pytest.mark.parametrize("text", STRICTER_THAN_H11)
def test_difference_from_h11_is_real(text: str) -> None:
    request, _ = STRICTER_THAN_H11[text]
    with pytest.raises(HttpError, match=text):
        parse_head(request)
    assert h11_reads(request)[0] == "head"


@pytest.mark.parametrize("text", STRICTER_THAN_HTTPTOOLS)
def test_difference_from_httptools_is_real(text: str) -> None:
    request, _ = STRICTER_THAN_HTTPTOOLS[text]
    with pytest.raises(HttpError, match=text):
        parse_head(request)
    assert httptools_reads(request)[0] == "head"


def with_body(data: bytes, head: Any) -> bytes:
    """The head, a body as it announces, and the start of a next request."""
    body = b"3\r\nabc\r\n0\r\n\r\n" if head["chunked"] else b"x" * min(head["content_length"] or 0, 100)
    return data[:head["head_len"]] + body + b"GET"


def h11_reads(data: bytes) -> tuple[str, Any]:
    """('head', (connection, request)), ('more', None) or ('error', why)."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=10**6)
    try:
        connection.receive_data(data)
        got = connection.next_event()
    except h11.RemoteProtocolError as error:
        return "error", error
    return ("more", None) if got is h11.NEED_DATA else ("head", (connection, got))


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(heads())
@example(b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n")
def test_head_against_h11(data: bytes) -> None:
    kind, mine = ours(data)
    event(kind)
    plain = data
    for _ in range(2):
        plain = plain.removeprefix(b"\r\n")     # h11 takes no empty line before a request
    theirs, value = h11_reads(with_body(data, mine).removeprefix(data[:len(data) - len(plain)])
                              if kind == "head" else plain)
    if kind == "more":
        assert theirs != "head"
        return
    if kind == "error":
        assert theirs != "head" or known(mine.text, STRICTER_THAN_H11), mine.text
        return
    assert theirs == "head", value
    connection, request = value
    assert request.method == mine["method_name"]
    assert request.target == mine["target"]
    assert request.http_version == b"1.%d" % mine["minor"]
    # h11 turns the value of Transfer-Encoding to lower case
    assert request.headers.raw_items() == [(n, v.lower() if n.lower() == b"transfer-encoding" else v)
                                           for n, v in mine["headers"]]
    if mine["minor"]:
        assert mine["expect_continue"] == connection.they_are_waiting_for_100_continue or mine["content_length"] == 0
    if (mine["content_length"] or 0) > 100:
        return
    while not isinstance(connection.next_event(), h11.EndOfMessage):
        assert connection.their_state is not h11.ERROR
    assert connection.trailing_data == (b"GET", False)
    if mine["minor"]:       # h11 never keeps an HTTP/1.0 connection
        assert mine["keep_alive"] == (connection.their_state is h11.DONE)


class Recorder:
    """Callbacks of httptools."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False
        self.keep_alive = False
        self.parser = httptools.HttpRequestParser(self)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        self.complete = True
        self.keep_alive = self.parser.should_keep_alive()


def httptools_reads(data: bytes) -> tuple[str, Any]:
    recorder = Recorder()
    try:
        recorder.parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        if not recorder.complete:
            return "error", error
    return ("head" if recorder.complete else "more"), recorder


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(heads())
def test_head_against_httptools(data: bytes) -> None:
    kind, mine = ours(data)
    event(kind)
    theirs, seen = httptools_reads(data[:mine["head_len"]] if kind == "head" else data)
    if kind == "more":
        assert theirs != "head"
    elif kind == "error":
        assert theirs != "head" or known(mine.text, STRICTER_THAN_HTTPTOOLS), mine.text
    elif theirs == "error":
        # llhttp knows a fixed list of methods
        assert isinstance(seen, httptools.HttpParserInvalidMethodError) or mine["method"] == "OTHER", seen
    else:
        assert theirs == "head"
        assert seen.url == mine["target"]
        assert seen.parser.get_method() == mine["method_name"]
        assert seen.parser.get_http_version() == f"1.{mine['minor']}"
        assert seen.headers == mine["headers"]
        assert seen.keep_alive == mine["keep_alive"]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(heads(), st.lists(st.integers(0, 400), max_size=6))
def test_delivery_does_not_matter(data: bytes, places: list[int]) -> None:
    data += b"\r\n"
    cuts = sorted({min(p, len(data)) for p in places})
    kind, whole = ours(data)
    parser = HeadParser()
    result: tuple[str, Any] = ("more", None)
    for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        try:
            head = parser.feed(data[begin:end])
        except HttpError as error:
            result = ("error", error)
            break
        if head is not None:
            result = ("head", head)
            break
    assert result[0] == kind
    assert whole.args == result[1].args if kind == "error" else whole == result[1]


# What the decoder refuses though h11 takes it.
CHUNKED_STRICTER: Table = {
    "space after a chunk size": (b"0 \r\n\r\n", "h11 takes blanks before the line end; neither takes them before ';'"),
    "16 hexadecimal digits": (b"0" * 17 + b"\r\n\r\n", "h11 takes 20"),
    "control character in a chunk extension": (b"0;\x00\r\n\r\n", "h11 takes any byte but a line end"),
    "chunk size line must end": (b"0;\r\r\n\r\n", "h11 takes a bare CR in an extension"),
    "malformed trailer": (b"0\r\nA: b\n\r\n", "bare LF, folded lines and controls, as in heads"),
    "chunk extensions exceed": (b"0;" + b"a" * 4096 + b"\r\n\r\n", "h11 limits them by its buffer size"),
    "trailer section exceeds": (b"0\r\nA: " + b"a" * 8192 + b"\r\n\r\n", "h11 limits it by its buffer size"),
}

SIZES = [b"0", b"1", b"3", b"a", b"0A", b"00000000000000003", b"ffffffffffffffff", b"-1", b"+1", b"0x1", b"", b" 1"]
EXTENSIONS = [b""] * 6 + [b";a=b", b" ;a", b";\x00", b" ", b";a\xff", b"\t"]
TRAILERS = [b"A: b", b"A:", b"A : b", b": b", b" b", b"A", b"A: \x00", b"X-Trailer: 5"]    # h11 reads some names


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    pick = st.sampled_from
    parts = []
    for payload in draw(st.lists(st.binary(min_size=1, max_size=20), max_size=4)):
        odd = draw(st.integers(0, 9)) == 0
        size = draw(pick(SIZES)) if odd else b"%x" % len(payload)
        parts += [size, draw(pick(EXTENSIONS)), draw(pick(EOLS)), payload, draw(pick(EOLS))]
    parts += [b"0", draw(pick(EOLS))]
    for trailer in draw(st.lists(pick(TRAILERS), max_size=2)):
        parts += [trailer, draw(pick(EOLS))]
    parts.append(draw(pick(EOLS)))
    return damaged(b"".join(parts), draw(st.one_of(st.just([]), damage)))


def h11_decodes(body: bytes) -> tuple[str, bytes, bytes]:
    """('done', 'more' or 'error'), the payload, and what follows the body."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=10**6)
    connection.receive_data(get(b"Transfer-Encoding: chunked"))
    assert isinstance(connection.next_event(), h11.Request)
    data = b""
    try:
        connection.receive_data(body)
        while (got := connection.next_event()) is not h11.NEED_DATA:
            if isinstance(got, h11.EndOfMessage):
                return "done", data, connection.trailing_data[0]
            data += got.data
    except h11.RemoteProtocolError:
        return "error", data, b""
    return "more", data, b""


@pytest.mark.parametrize("text", CHUNKED_STRICTER)
def test_chunked_difference_from_h11_is_real(text: str) -> None:
    body, _ = CHUNKED_STRICTER[text]
    with pytest.raises(HttpError, match=text):
        ChunkedDecoder().feed(body)
    assert h11_decodes(body)[0] == "done"


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(bodies(), st.integers(1, 9))
def test_chunked_against_h11(body: bytes, cap: int) -> None:
    decoder = ChunkedDecoder(1000)
    payload, used, kind, text = b"", 0, "more", ""
    try:
        while used < len(body) and kind == "more":
            got, done, n = decoder.feed(body[used:], cap)
            payload, used = payload + got, used + n
            kind = "done" if done else kind
    except HttpError as error:
        kind, text = "error", error.text
    event(kind)

    theirs, data, rest = h11_decodes(body)
    if kind == "error":
        assert theirs != "done" or known(text, CHUNKED_STRICTER), text
    elif kind == "done":
        assert theirs == "done"
        assert payload == data
        assert rest == body[used:]
    else:
        assert theirs != "done"


def test_fuzz_target_runs() -> None:
    """The fuzz driver itself, for a moment: CI runs it for longer."""
    path = Path(__file__).parent.parent / "fuzz" / "fuzz_http1.py"
    spec = importlib.util.spec_from_file_location("fuzz_http1", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.fuzz(seconds=0, least=50) >= 50
