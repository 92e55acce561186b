"""Header values that are no numbers, no names, or too much of either: an error for that request, never more."""

from __future__ import annotations

import json

import pytest

from tests.helpers.raw import Client, Closed, binary_body, fp32, get, infer_json, infer_object, infer_path, values_of
from tests.helpers.server import ServerProcess

INFER = infer_path("m")
JSON = json.dumps(infer_object([1.5])).encode()
BODY, SIZE = binary_body(fp32([1.5]), [1, 1])
HEADER = "Inference-Header-Content-Length"

NUMBERS = [
    b"", b" ", b"abc", b"-", b"--1", b"+5", b"5 5", b"5,5", b"5;a", b"0x10", b"1e2", b"1.0", b"\xef\xbc\x95",
    b"\xc2\xa05",
    b"five", b"nan", b"inf", b"9" * 30, b"-" + b"9" * 30, b"9" * 400, b"2147483648", b"-2147483649", b"4294967296",
    b"9223372036854775807",
    b"9223372036854775808", b"18446744073709551616", b"%d", b"%n%n%n", b"1_000", b"\xff\xfe", b"'", b'"5"', b"{}",
    b"5" + b"0" * 5000,
]  # fmt: skip


def message(*lines: bytes) -> bytes:
    return b"\r\n".join([f"POST {INFER} HTTP/1.1".encode(), b"Host: t", *lines, b"", b""])


@pytest.mark.parametrize("value", NUMBERS, ids=range(len(NUMBERS)))
def test_content_length(server: ServerProcess, value: bytes) -> None:
    with Client(server.http) as client:
        client.send_until_refused([message(b"Content-Length: " + value), b"x" * 10])
        if value in {b"2147483648", b"4294967296", b"9223372036854775807"}:
            assert client.answer().status in {400, 413}  # a number, and more than is taken
            return
        answer = client.answer()
        assert answer.status == 400
        assert answer.error.startswith("Unable to parse Content-Length, ") or "ontent-Length" in answer.error
        with pytest.raises(Closed):
            client.answer()


@pytest.mark.parametrize("value", NUMBERS, ids=range(len(NUMBERS)))
def test_inference_header_content_length(server: ServerProcess, value: bytes) -> None:
    with Client(server.http) as client:
        lines = [b"Content-Length: %d" % len(BODY), HEADER.encode() + b": " + value]
        client.send_until_refused([message(*lines) + BODY])
        answer = client.answer()
        assert answer.status == 400, answer
        assert HEADER in answer.error
        assert len(answer.error) < 700


@pytest.mark.parametrize("second", [b"%d" % SIZE, b"0", b"1", b"", b"x"])
def test_two_json_lengths(server: ServerProcess, second: bytes) -> None:
    with Client(server.http) as client:
        name = HEADER.encode()
        lines = [b"Content-Length: %d" % len(BODY), name + b": %d" % SIZE, name.lower() + b": " + second]
        client.send_until_refused([message(*lines) + BODY])
        answer = client.answer()
        # Two that are equal say nothing new; two that differ have no meaning.
        assert answer.status == 400 or (second == b"%d" % SIZE and values_of(answer) == [1.5]), answer


@pytest.mark.parametrize("name", [
    "Accept-Encoding", "Content-Type", "Accept", "Authorization", "Content-Encoding", "Expect", "Connection", "Host",
    "Range",
    "Upgrade", "TE", "Trailer", "X-Forwarded-For", "traceparent", "Cookie", "If-None-Match", "Keep-Alive",
    "endpoint-load-metrics-format",
])  # fmt: skip
@pytest.mark.parametrize(
    "value",
    [b"", b" ", b"\xff" * 50, b"," * 1000, b";" * 1000, b"=" * 1000, b"a" * 20000, b"%s%n", b"'\"\\", b"q=1e999;q=nan"],
)
def test_any_value_of_any_header(server: ServerProcess, name: str, value: bytes) -> None:
    with Client(server.http) as client:
        line = name.encode() + b": " + value
        host = [] if name == "Host" else [b"Host: t"]
        request = b"\r\n".join(
            [f"POST {INFER} HTTP/1.1".encode(), *host, line, b"Content-Length: %d" % len(JSON), b"", JSON]
        )
        client.send_until_refused([request])
        answer = client.answer()
        assert answer.status in {200, 400, 413, 417, 501}, answer
        if answer.status == 200:
            body = answer.body if "content-encoding" not in answer.headers else None
            assert body is None or values_of(answer) == [1.5]
        else:
            assert answer.error


@pytest.mark.parametrize("value", [b"a\x00b", b"a\rb", b"\x01", b"\x7f", b"a\nb", b"\x1b[31m"])
def test_control_characters_are_refused(server: ServerProcess, value: bytes) -> None:
    log = len(server.log())
    with Client(server.http) as client:
        client.send_until_refused([message(b"X: " + value, b"Content-Length: 0")])
        assert client.answer().status == 400
    assert "\x1b" not in server.log()[log:]


def test_a_value_that_is_quoted_back_is_cut_and_escaped(server: ServerProcess) -> None:
    """The error is JSON whatever the value was, and not as long as it."""
    with Client(server.http) as client:
        value = b'"\\' + b"\xc3\x28" * 3000
        client.send_until_refused([message(b"Content-Length: 5", HEADER.encode() + b": " + value)])
        answer = client.answer()
        assert answer.status == 400
        assert answer.headers["content-type"] == "application/json"
        assert len(answer.body) < 2000
        assert '"\\' in answer.error


def test_a_header_that_fails_is_that_requests_only(server: ServerProcess) -> None:
    """Others on the server never notice; 200 bad ones in a row neither."""
    with Client(server.http) as neighbour:
        for i in range(200):
            with Client(server.http) as client:
                client.send_until_refused([message(b"Content-Length: " + b"9" * (15 + i % 40))])
                assert client.answer().status in {400, 413}
            if i % 20 == 0:
                assert values_of(neighbour.ask(infer_json("m", [i]))) == [i]


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS", "BREW"])
def test_lengths_on_every_method(server: ServerProcess, method: str) -> None:
    with Client(server.http) as client:
        client.send_until_refused([get("/v2", "Content-Length: -1", method=method)])
        answer = client.answer()
        assert answer.status == 400
        assert answer.closes
