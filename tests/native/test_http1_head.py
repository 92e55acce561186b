"""Unit tables for the request-head parser: good heads, refused heads, limits, numeric fields.

Each table row is also delivered byte by byte (``test_any_delivery``). Knows nothing of the connection code.
"""

from __future__ import annotations

import pytest

from triton_fast._native.wire import http1
from triton_fast._native.wire.http1 import HeadParser, HttpError, parse_head


def get(*lines: bytes, first: bytes = b"GET / HTTP/1.1", host: bool = True) -> bytes:
    return b"\r\n".join([first, *([b"Host: h"] if host else []), *lines, b"", b""])


GOOD = {
    "plain": (get(), {"method": "GET", "path": b"/", "query": None, "host": b"h", "keep_alive": True, "minor": 1}),
    "http 1.0": (get(first=b"GET / HTTP/1.0", host=False), {"keep_alive": False, "minor": 0, "host": None}),
    "1.0 keep-alive": (get(b"Connection: Keep-Alive", first=b"GET / HTTP/1.0"), {"keep_alive": True}),
    "1.0 both": (get(b"Connection: keep-alive, close", first=b"GET / HTTP/1.0"), {"keep_alive": False}),
    "close": (get(b"Connection: CLOSE"), {"keep_alive": False}),
    "close in list": (get(b"connection: te ,\tclose , upgrade"), {"keep_alive": False}),
    "close in second line": (get(b"Connection: keep-alive", b"Connection: x, close"), {"keep_alive": False}),
    "no close token": (get(b"Connection: closed, x-close"), {"keep_alive": True}),
    "post": (
        get(b"Content-Length: 12", b"Content-Type: a/b", first=b"POST /v2/models/m/infer?x=1?y HTTP/1.1"),
        {"method": "POST", "path": b"/v2/models/m/infer", "query": b"x=1?y", "content_length": 12, "chunked": False,
         "target": b"/v2/models/m/infer?x=1?y", "content_type": b"a/b"},
    ),
    "content length 0": (get(b"Content-Length: 0"), {"content_length": 0}),
    "no content length": (get(), {"content_length": None}),
    "leading zeros": (get(b"Content-Length: 0068"), {"content_length": 68}),
    "max content length": (get(b"Content-Length: 9223372036854775807"), {"content_length": 2**63 - 1}),
    "chunked": (get(b"transfer-encoding: Chunked"), {"chunked": True, "content_length": None}),
    "expect": (get(b"Expect: 100-Continue"), {"expect_continue": True}),
    "expect 1.0": (get(b"Expect: 100-continue", first=b"GET / HTTP/1.0"), {"expect_continue": False}),
    "one empty line": (b"\r\n" + get(), {"head_len": len(get()) + 2}),
    "two empty lines": (b"\r\n\r\n" + get(), {"head_len": len(get()) + 4}),
    "empty query": (get(first=b"GET /a? HTTP/1.1"), {"path": b"/a", "query": b""}),
    "absolute": (
        get(first=b"GET http://other:80/v2/x?q HTTP/1.1"),
        {"path": b"/v2/x", "query": b"q", "authority": b"other:80", "host": b"other:80"},
    ),
    "absolute https": (get(first=b"GET HTTPS://o/p HTTP/1.1"), {"path": b"/p", "authority": b"o"}),
    "absolute, no path": (get(first=b"GET http://o HTTP/1.1"), {"path": b"/", "authority": b"o"}),
    "absolute, query only": (get(first=b"GET http://o?x HTTP/1.1"), {"path": b"/", "query": b"x"}),
    "absolute options": (get(first=b"OPTIONS http://o HTTP/1.1"), {"path": b"*"}),
    "asterisk": (get(first=b"OPTIONS * HTTP/1.1"), {"method": "OPTIONS", "path": b"*"}),
    "double slash is a path": (get(first=b"GET //x/../y HTTP/1.1"), {"path": b"//x/../y", "authority": None}),
    "percent stays": (get(first=b"GET /a%2Fb HTTP/1.1"), {"path": b"/a%2Fb"}),
    "other method": (get(first=b"brew /pot HTTP/1.1"), {"method": "OTHER", "method_name": b"brew"}),
    "method is case-sensitive": (get(first=b"get / HTTP/1.1"), {"method": "OTHER"}),
    "blanks around value": (get(b"X: \t a \t b \t "), {"headers": [(b"Host", b"h"), (b"X", b"a \t b")]}),
    "empty values": (get(b"X:", b"Y: \t "), {"headers": [(b"Host", b"h"), (b"X", b""), (b"Y", b"")]}),
    "obs-text": (get(b"X: \xff\x80"), {"headers": [(b"Host", b"h"), (b"X", b"\xff\x80")]}),
    "all token characters": (get(b"!#$%&'*+-.^_`|~09azAZ: 1"), {}),
    "long unknown name": (get(b"x" * 300 + b": 1"), {}),
    "first accept-encoding": (get(b"Accept-Encoding: gzip", b"accept-encoding: br"), {"accept_encoding": b"gzip"}),
    "known fields": (
        get(b"CONTENT-ENCODING: gzip", b"authorization: Basic x", b"inference-header-content-LENGTH: 7"),
        {"content_encoding": b"gzip", "authorization": b"Basic x", "infer_header_len": b"7"},
    ),
    "empty host": (get(b"Host:", host=False), {"host": b""}),
    "ipv6 host": (get(b"Host: [::1]:8000", host=False), {"host": b"[::1]:8000"}),
    "long host": (get(b"Host: " + b"a-long.name" * 9 + b":8000", host=False), {}),
    "100 fields": (get(*[b"a%d: b" % i for i in range(99)]), {}),
    "longest target": (get(first=b"GET /" + b"a" * 8191 + b" HTTP/1.1"), {}),
    "longest method": (get(first=b"M" * 32 + b" / HTTP/1.1"), {"method": "OTHER"}),
}
GOOD.update({m: (get(first=m.encode() + b" /p HTTP/1.1"), {"method": m, "path": b"/p"})
             for m in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE")})

CL = "Unable to parse Content-Length, "
RANGE = CL + "value is out of range [ 0, 9223372036854775807 ], got: "
BAD = {
    # request line
    "no version": (get(first=b"GET /"), 400, "HTTP version is missing"),
    "no target": (get(first=b"GET"), 400, "malformed request line"),
    "two spaces": (get(first=b"GET  / HTTP/1.1"), 400, "more than one space"),
    "space before version": (get(first=b"GET /  HTTP/1.1"), 400, "malformed HTTP version"),
    "space in target": (get(first=b"GET /a b HTTP/1.1"), 400, "malformed HTTP version"),
    "space after version": (get(first=b"GET / HTTP/1.1 "), 400, "malformed HTTP version"),
    "tab for space": (get(first=b"GET\t/ HTTP/1.1"), 400, "malformed request line"),
    "leading space": (b" " + get(), 400, "malformed request line"),
    "control in target": (get(first=b"GET /\x01 HTTP/1.1"), 400, "control or non-ASCII"),
    "nul in target": (get(first=b"GET /a?\x00 HTTP/1.1"), 400, "control or non-ASCII"),
    "delete in target": (get(first=b"GET /\x7f HTTP/1.1"), 400, "control or non-ASCII"),
    "utf-8 in target": (get(first="GET /é HTTP/1.1".encode()), 400, "control or non-ASCII"),
    "http/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "use HTTP/1.1"),
    "version 1.2": (get(first=b"GET / HTTP/1.2"), 505, "use HTTP/1.1"),
    "version 0.9": (get(first=b"GET / HTTP/0.9"), 505, "use HTTP/1.1"),
    "version 2": (get(first=b"GET / HTTP/2"), 400, "malformed HTTP version"),
    "version 1.10": (get(first=b"GET / HTTP/1.10"), 400, "malformed HTTP version"),
    "lower-case version": (get(first=b"GET / http/1.1"), 400, "malformed HTTP version"),
    "short version": (b"GET / HTT\r\n", 400, "malformed HTTP version"),
    "empty version": (b"GET / \r\n", 400, "malformed HTTP version"),
    "relative target": (get(first=b"GET v2 HTTP/1.1"), 400, "must start with '/'"),
    "authority-form": (get(first=b"CONNECT h:1 HTTP/1.1"), 400, "must start with '/'"),
    "asterisk get": (get(first=b"GET * HTTP/1.1"), 400, "must start with '/'"),
    "other scheme": (get(first=b"GET ftp://h/x HTTP/1.1"), 400, "must start with '/'"),
    "no authority": (get(first=b"GET http:///x HTTP/1.1"), 400, "malformed authority"),
    "userinfo": (get(first=b"GET http://u@h/x HTTP/1.1"), 400, "malformed authority"),
    "method character": (get(first=b"G(T / HTTP/1.1"), 400, "malformed request line"),
    "long method": (get(first=b"M" * 33 + b" / HTTP/1.1"), 501, "not implemented"),
    "long target": (get(first=b"GET /" + b"a" * 8192 + b" HTTP/1.1"), 414, "shorter URL"),
    "tls hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "TLS"),
    "three empty lines": (b"\r\n\r\n\r\n" + get(), 400, "2 empty lines"),
    # line ends
    "bare lf first": (b"\n" + get(), 400, "bare LF"),
    "bare cr first": (b"\rG" + get(), 400, "bare CR"),
    "bare lf in request line": (b"GET / HTTP/1.1\nHost: h\r\n\r\n", 400, "bare LF"),
    "bare cr in request line": (b"GET / HTTP/1.1\rHost: h\r\n\r\n", 400, "bare CR"),
    "bare lf in header": (get(b"A: b\nC: d"), 400, "bare LF"),
    "bare cr in header": (get(b"A: b\rC: d"), 400, "bare CR"),
    "bare lf at the end": (b"GET / HTTP/1.1\r\nHost: h\r\n\n", 400, "bare LF"),
    "bare cr at the end": (b"GET / HTTP/1.1\r\nHost: h\r\n\rX", 400, "bare CR"),
    "cr cr lf": (get(b"A: b\r"), 400, "bare CR"),
    # header fields
    "folded": (get(b"A: b", b" c"), 400, "folded"),
    "folded first": (get(b" Host: h", host=False), 400, "folded"),
    "folded blank": (get(b"A: b", b"\t"), 400, "folded"),
    "space before colon": (get(b"Content-Length : 3"), 400, "space in or after"),
    "tab before colon": (get(b"A\t: 3"), 400, "space in or after"),
    "space in name": (get(b"A B: c"), 400, "space in or after"),
    "no colon": (get(b"Ab"), 400, "without ':'"),
    "empty name": (get(b": x"), 400, "empty header field name"),
    "control in name": (get(b"A\x01: x"), 400, "invalid character in a header"),
    "delete in name": (get(b"A\x7f: x"), 400, "invalid character in a header"),
    "bracket in name": (get(b"A(: x"), 400, "invalid character in a header"),
    "non-ascii name": (get("Ä: x".encode()), 400, "invalid character in a header"),
    "nul in name": (get(b"\x00A: x"), 400, "invalid character in a header"),
    "cr taken for dash": (get(b"Content\rLength: 3"), 400, "header line without"),
    "nul in value": (get(b"A: b\x00"), 400, "control character"),
    "delete in value": (get(b"A: b\x7f"), 400, "control character"),
    "escape in value": (get(b"A: \x1b[1m"), 400, "control character"),
    "101 fields": (get(*[b"a%d: b" % i for i in range(100)]), 431, "more than 100"),
    "no host": (get(host=False), 400, "missing Host"),
    "two hosts": (get(b"host: h"), 400, "more than one Host"),
    "host list": (get(b"Host: a, b", host=False), 400, "malformed Host"),
    "host path": (get(b"Host: a/b", host=False), 400, "malformed Host"),
    "host userinfo": (get(b"Host: u@b", host=False), 400, "malformed Host"),
    "host obs-text": (get(b"Host: \xe4", host=False), 400, "malformed Host"),
    "long bad host": (get(b"Host: " + b"a" * 40 + b"/", host=False), 400, "malformed Host"),
    "two content types": (get(b"Content-Type: a", b"Content-Type: a"), 400, "more than one Content-Type"),
    "two encodings": (get(b"Content-Encoding: gzip", b"content-encoding: x"), 400, "more than one Content-Encoding"),
    "two authorizations": (get(b"Authorization: a", b"Authorization: b"), 400, "more than one Authorization"),
    "two infer lengths": (
        get(b"Inference-Header-Content-Length: 1", b"Inference-Header-Content-Length: 1"), 400,
        "more than one Inference-Header-Content-Length",
    ),
    "expect other": (get(b"Expect: 200-ok"), 417, "100-continue"),
    "expect twice": (get(b"Expect: 100-continue", b"Expect: x"), 417, "100-continue"),
    # framing: request smuggling
    "both lengths": (get(b"Content-Length: 3", b"Transfer-Encoding: chunked"), 400, "both Content-Length"),
    "both lengths, turned": (get(b"Transfer-Encoding: chunked", b"Content-Length: 3"), 400, "both Content-Length"),
    "two lengths": (get(b"Content-Length: 3", b"Content-Length: 4"), 400, "more than one Content-Length"),
    "two equal lengths": (get(b"Content-Length: 3", b"content-length: 3"), 400, "more than one Content-Length"),
    "length list": (get(b"Content-Length: 3, 3"), 400, CL + "got: 3, 3"),
    "te twice": (get(b"Transfer-Encoding: chunked", b"Transfer-Encoding: x"), 400, "more than one Transfer"),
    "te gzip": (get(b"Transfer-Encoding: gzip, chunked"), 501, "only chunked"),
    "te chunked first": (get(b"Transfer-Encoding: chunked, identity"), 501, "only chunked"),
    "te chunked twice": (get(b"Transfer-Encoding: chunked, chunked"), 501, "only chunked"),
    "te identity": (get(b"Transfer-Encoding: identity"), 501, "only chunked"),
    "te x": (get(b"Transfer-Encoding: xchunked"), 501, "only chunked"),
    "te quoted": (get(b'Transfer-Encoding: "chunked"'), 501, "only chunked"),
    "te parameter": (get(b"Transfer-Encoding: chunked;q=1"), 501, "only chunked"),
    "te comma": (get(b"Transfer-Encoding: chunked,"), 501, "only chunked"),
    "te empty": (get(b"Transfer-Encoding:"), 501, "only chunked"),
    "te tab inside": (get(b"Transfer-Encoding: chun\tked"), 501, "only chunked"),
    "te vertical tab": (get(b"Transfer-Encoding: \x0bchunked"), 400, "control character"),
    "te space before colon": (get(b"Transfer-Encoding : chunked"), 400, "space in or after"),
    "te folded": (get(b"Transfer-Encoding:", b" chunked"), 400, "folded"),
    "te hidden by lf": (get(b"X: y\nTransfer-Encoding: chunked"), 400, "bare LF"),
    "te 1.0": (get(b"Transfer-Encoding: chunked", first=b"POST / HTTP/1.0"), 400, "HTTP/1.0"),
}
NOT_A_LENGTH = [b"abc", b"-1", b"+5", b"0x10", b"1 2", b"12abc", b"68.0", b"1e3", b"", b"-", b"1_000", "٣".encode(),
                b"\xff", b"5;", b"9" * 30 + b"x"]
TOO_LONG = [b"9" * 30, b"9223372036854775808", b"18446744073709551617", b"0" * 29 + b"1"]
for field in NOT_A_LENGTH + TOO_LONG:
    wanted_text = (RANGE if field in TOO_LONG else CL + "got: ") + field.decode("utf-8", "backslashreplace")
    BAD[f"content length {field!r}"] = (get(b"Content-Length: " + field), 400, wanted_text)


@pytest.mark.parametrize("name", GOOD)
def test_good(name: str) -> None:
    data, wanted = GOOD[name]
    for tail in (b"", b"\x00rest of the stream"):
        head = parse_head(data + tail)
        assert head is not None
        assert head["head_len"] == len(data)
        assert {k: head[k] for k in wanted} == wanted


@pytest.mark.parametrize("name", BAD)
def test_bad(name: str) -> None:
    data, status, text = BAD[name]
    with pytest.raises(HttpError) as caught:
        parse_head(data)
    assert caught.value.status == status
    assert text in caught.value.text


ALPHANUMERIC = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
VISIBLE = bytes(range(0x21, 0x7f))
ALLOWED = {
    "name": (b"%b: v", ALPHANUMERIC + b"!#$%&'*+-.^_`|~"),
    "value": (b"n: %b", VISIBLE + b" \t" + bytes(range(128, 256))),
    "Host": (b"Host: %b", ALPHANUMERIC + b"!$%&'()*+,-.:;=[]_~"),
    "target": (b"GET /%b HTTP/1.1", VISIBLE),
    "query": (b"GET /?%b HTTP/1.1", VISIBLE),
}


@pytest.mark.parametrize("part", ALLOWED)
def test_every_byte(part: str) -> None:
    """Each byte at places of the wide scans and of their short tails, before a long and a short rest."""
    form, allowed = ALLOWED[part]
    for byte in range(256):
        for before, after in ((1, 1), (3, 40), (20, 2), (31, 0)):
            filled = form.replace(b"%b", b"a" * before + bytes([byte]) + b"a" * after)
            data = get(first=filled) if part in {"target", "query"} else get(filled, host=part != "Host")
            if part == "name" and byte == ord(":"):
                continue
            trimmed = part == "Host" and not after and byte in b" \t"
            for rest in (b"", b"body" * 9):
                try:
                    accepted = parse_head(data + rest) is not None
                except HttpError as error:
                    accepted = False
                    assert error.status == 400
                assert accepted == (byte in allowed or trimmed), (byte, before)


def outcome(data: bytes, cuts: list[int], max_head: int = 16384) -> object:
    """What the parser says about data cut at these places: a head, (status, text) or None."""
    parser = HeadParser(max_head)
    for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        try:
            head = parser.feed(data[begin:end])
        except HttpError as error:
            return error.status, error.text
        if head is not None:
            return head
    return None


@pytest.mark.parametrize("name", [*GOOD, *BAD])
def test_any_delivery(name: str) -> None:
    """Every two-way split, and byte by byte, ends as the whole does."""
    data = {**GOOD, **BAD}[name][0]
    if not data.endswith(b"\n"):
        data += b"\r\n"     # an error in an unfinished line may wait for its line feed
    whole = outcome(data, [])
    assert whole is not None
    step = max(1, len(data) // 700)
    for cut in range(0, len(data) + 1, step):
        assert outcome(data, [cut]) == whole
    assert outcome(data, list(range(1, len(data), step))) == whole


@pytest.mark.parametrize("name", GOOD)
def test_every_prefix_needs_more(name: str) -> None:
    data = GOOD[name][0]
    for end in range(0, len(data), max(1, len(data) // 700)):
        assert parse_head(data[:end]) is None


def test_max_head() -> None:
    data = get(b"A: " + b"x" * 100)
    head = parse_head(data, len(data))
    assert head is not None
    with pytest.raises(HttpError) as caught:
        parse_head(data, len(data) - 1)
    assert caught.value.status == 431
    with pytest.raises(HttpError) as caught:
        parse_head(b"GET /" + b"a" * 200, 100)
    assert caught.value.status == 414
    assert outcome(data, list(range(1, len(data))), 64) == outcome(data, [], 64)
    assert parse_head(b"") is None


def test_byte_by_byte_is_not_quadratic() -> None:
    """A pass is made for a new line feed only, however the bytes arrive."""
    data = get(b"A: " + b"x" * 3000, first=b"GET /" + b"a" * 4000 + b" HTTP/1.1")
    parser = HeadParser()
    for byte in data[:-1]:
        assert parser.feed(bytes([byte])) is None
    assert parser.feed(data[-1:]) is not None
    assert parser.passes <= data.count(b"\n") + 1


def test_parser_serves_the_next_head() -> None:
    parser = HeadParser()
    assert parser.feed(get()[:-1]) is None
    assert parser.feed(b"\n") is not None
    assert http1.repeat_parse(get(), 3) == 3 * len(get())
    assert http1.repeat_parse(b"GET", 3) == 0


@pytest.mark.parametrize(("value", "number"), [
    (b"0", 0), (b"145", 145), (b"0145", 145), (b"2147483647", 2**31 - 1), (b"-1", -1), (b"-2147483648", -(2**31)),
])
def test_infer_header_len(value: bytes, number: int) -> None:
    assert http1.parse_infer_header_len(value) == number


@pytest.mark.parametrize("value", [b"", b"-", b"+5", b"abc", b"12abc", b"0x10", b"1 2", b" 1", b"68, 68", b"6.0", b"-0",
                                   b"--1", "٣".encode(), b"\xff", b"1\x00", b"9" * 30 + b"x"])
def test_infer_header_len_not_a_number(value: bytes) -> None:
    with pytest.raises(HttpError) as caught:
        http1.parse_infer_header_len(value)
    assert caught.value.status == 400
    assert caught.value.text.startswith("Unable to parse Inference-Header-Content-Length, got: ")


@pytest.mark.parametrize("value", [b"2147483648", b"-2147483649", b"9" * 30, b"-" + b"9" * 30, b"0" * 29 + b"1",
                                   b"21474836470", b"-21474836480", b"18446744073709551617"])
def test_infer_header_len_out_of_range(value: bytes) -> None:
    with pytest.raises(HttpError) as caught:
        http1.parse_infer_header_len(value)
    assert caught.value.text == ("Unable to parse Inference-Header-Content-Length, value is out of range "
                                 "[ -2147483648, 2147483647 ], got: " + value.decode())


def test_quoted_value_is_cut() -> None:
    with pytest.raises(HttpError) as caught:
        parse_head(get(b"Content-Length: " + b"x" * 5000))
    assert caught.value.text == CL + "got: " + "x" * 256
