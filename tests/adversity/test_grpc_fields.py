"""Heads of calls: fields that HTTP/2 forbids, fields that gRPC reads, heads that are too large, metadata numbers."""

from __future__ import annotations

import hpack
import pytest

from tests.helpers.h2raw import (
    CALL,
    CONTINUATION,
    END_HEADERS,
    ENHANCE_YOUR_CALM,
    HEADERS,
    INFER,
    LIVE,
    PROTOCOL_ERROR,
    STREAM,
    Answer,
    Http2,
    block,
    data,
    frame,
    head,
    infer_message,
    literal,
    message,
    request_fields,
    unary,
)  # fmt: skip
from tests.helpers.server import ServerProcess

LIMIT = 16384
CANCELLED, INVALID, DEADLINE, EXHAUSTED, UNIMPLEMENTED, INTERNAL = 1, 3, 4, 8, 12, 13
WIDE = (EXHAUSTED, f"received metadata size exceeds the limit of {LIMIT} bytes (--grpc-max-metadata-size)")

FORBIDDEN = {
    "upper case": request_fields(INFER, ("Abc", "d")),
    "upper case pseudo": [(":Path", INFER), *request_fields()],
    "space in a name": request_fields(INFER, ("a b", "c")),
    "colon in a name": request_fields(INFER, ("a:b", "c")),
    "no name": request_fields(INFER, ("", "c")),
    "nul in a name": request_fields(INFER, ("a\0", "c")),
    "high byte in a name": request_fields(INFER, ("a\xff", "c")),
    "nul in a value": request_fields(INFER, ("a", "b\0c")),
    "line end in a value": request_fields(INFER, ("a", "b\r\nc: d")),
    "line feed in a value": request_fields(INFER, ("a", "b\nc")),
    "connection": request_fields(INFER, ("connection", "keep-alive")),
    "keep-alive": request_fields(INFER, ("keep-alive", "5")),
    "proxy-connection": request_fields(INFER, ("proxy-connection", "close")),
    "transfer-encoding": request_fields(INFER, ("transfer-encoding", "chunked")),
    "upgrade": request_fields(INFER, ("upgrade", "h2c")),
    "te other than trailers": request_fields(te="gzip"),
    "two paths": [(":path", "/x"), *request_fields()],
    "two methods": [(":method", "GET"), *request_fields()],
    "a pseudo field behind others": request_fields(INFER, (":path", "/x")),
    "an unknown pseudo field": [(":x", "y"), *request_fields()],
    "a status": [(":status", "200"), *request_fields()],
    "no path": request_fields(path=None),
    "an empty path": request_fields(""),
    "a path of *": request_fields("*"),
    "no method": request_fields(method=None),
    "no scheme": request_fields(scheme=None),
    "no authority": request_fields(authority=None),
    "no fields at all": [],
    "connect with a path": request_fields(method="CONNECT"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORBIDDEN)
def test_forbidden_fields_reset_the_stream(grpc: ServerProcess, name: str) -> None:
    with Http2(grpc.grpc) as client:
        client.send(unary(1, infer_message(), block(FORBIDDEN[name])))
        assert client.answer(1).reset == PROTOCOL_ERROR
        assert client.streams[1].heads == []
        client.next_id = 3
        assert client.ask(infer_message()).values() == [1.0]


TAKEN = {
    "no te": request_fields(te=None),
    "another te first": request_fields(INFER, ("te", "trailers")),
    "a subtype": request_fields(content_type="application/grpc+proto"),
    "parameters": request_fields(content_type="application/grpc;charset=utf-8"),
    "a host": request_fields(INFER, ("host", "x")),
    "a host alone": request_fields(INFER, ("host", "x"), authority=None),
    "https": request_fields(scheme="https"),
    "high bytes in a value": request_fields(INFER, ("a", "\xff\x80")),
    "an empty value": request_fields(INFER, ("a", "")),
    "binary metadata that is none": request_fields(INFER, ("a-bin", "!!!")),
    "the same field often": request_fields(INFER, *[("a", "b")] * 400),
    "an unknown grpc field": request_fields(INFER, ("grpc-what", "x")),
    "an age to come": request_fields(INFER, ("grpc-timeout", "99999999H")),
    "identity": request_fields(INFER, ("grpc-encoding", "identity")),
    "encodings unheard of": request_fields(INFER, ("grpc-accept-encoding", ",,br , zstd;q=1,," + "x" * 1000)),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_odd_fields_that_are_allowed(grpc: ServerProcess, name: str) -> None:
    with Http2(grpc.grpc) as client:
        assert client.ask(infer_message(), block(TAKEN[name])).values() == [1.0]


REFUSED = {
    "get": (request_fields(method="GET"), 405),
    "get of a verb": (request_fields(LIVE, method="GET"), 405),
    "small letters": (request_fields(method="post"), 405),
    "options": (request_fields(method="OPTIONS"), 405),
    "connect": ([(":method", "CONNECT"), (":authority", "t")], 405),
    "json": (request_fields(content_type="application/json"), 415),
    "grpc-web": (request_fields(content_type="application/grpc-web+proto"), 415),
    "longer": (request_fields(content_type="application/grpcx"), 415),
    "shorter": (request_fields(content_type="application/grp"), 415),
    "capitals": (request_fields(content_type="Application/gRPC"), 415),
    "empty": (request_fields(content_type=""), 415),
    "none": (request_fields(content_type=None), 415),
    "none for a verb": (request_fields(LIVE, content_type=None), 415),
    "none, no method": (request_fields("/x", content_type=None), 415),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_grpc(grpc: ServerProcess, name: str) -> None:
    fields, status = REFUSED[name]
    for end in (False, True):
        with Http2(grpc.grpc) as client:
            client.send(head(1, block(fields), end=end))
            answer = client.answer(1)
            assert (answer.http_status, answer.status, bytes(answer.body)) == (status, None, b"")


@pytest.mark.parametrize(
    "path",
    ["/", "//", "/x", "/inference.GRPCInferenceService", "/inference.GRPCInferenceService/", INFER + "/", INFER + "x",
     INFER[:-1], INFER.lower(), "/" + INFER, INFER + "?a", INFER + "#", "/%2e%2e", "/\xff\xfe", "/" + "x" * 16000,
     "/grpc.health.v1.Health/check", "http://t" + INFER],
)  # fmt: skip
def test_unknown_paths(grpc: ServerProcess, path: str) -> None:
    with Http2(grpc.grpc) as client:
        answer = client.ask(infer_message(), block(request_fields(path)))
        if path.startswith("/"):
            assert answer.outcome == (UNIMPLEMENTED, "")
        else:
            assert answer.reset == PROTOCOL_ERROR
        assert client.ask(infer_message()).values() == [1.0]


BAD_TIMEOUT = (INTERNAL, "malformed grpc-timeout: expected one to eight digits and H, M, S, m, u or n")


@pytest.mark.parametrize("path", [INFER, STREAM, LIVE, "/x"])
@pytest.mark.parametrize(
    "value", ["", "S", "1", "1s", "-1S", "+1S", " 1S", "1S ", "1.5S", "123456789S", "0x1S", "9" * 99]
)
def test_timeouts_that_are_none(grpc: ServerProcess, value: str, path: str) -> None:
    with Http2(grpc.grpc) as client:
        # HTTP/2 says that a value has no space at its ends.
        answer = client.ask(infer_message(), block(request_fields(path, ("grpc-timeout", value))))
        assert answer.outcome == BAD_TIMEOUT or (answer.reset == PROTOCOL_ERROR and value.strip() != value)


@pytest.mark.parametrize("value", ["0n", "0H", "1n", "00000000S"])
def test_timeouts_that_are_over(grpc: ServerProcess, value: str) -> None:
    with Http2(grpc.grpc) as client:
        fields = block(request_fields(INFER, ("grpc-timeout", value)))
        assert client.ask(infer_message([1.0], "slow"), fields).outcome == (DEADLINE, "Deadline Exceeded")
        # Before its message has come.
        assert client.answer(client.open(fields)).status == DEADLINE


@pytest.mark.parametrize("encoding", ["br", "zstd", "snappy", "GZIP", "gzip,deflate", " ", "\xff", "x" * 5000])
def test_unknown_encodings(grpc: ServerProcess, encoding: str) -> None:
    with Http2(grpc.grpc) as client:
        answer = client.ask(infer_message(), block(request_fields(INFER, ("grpc-encoding", encoding))))
        if encoding == " ":
            assert answer.over
            return
        assert answer.outcome == (
            UNIMPLEMENTED, "the grpc-encoding of the call is not supported: use identity, deflate or gzip")  # fmt: skip
        assert answer.heads[0]["grpc-accept-encoding"] == "identity, deflate, gzip"


# ---- large heads


def size(fields: list[tuple[str, str]]) -> int:
    return sum(len(name) + len(value) + 32 for name, value in fields)


def of_size(total: int) -> list[tuple[str, str]]:
    """Fields of a call that count ``total`` bytes."""
    fields = request_fields()
    while total - size(fields) > 1200:
        fields.append(("a", "b" * 1000))
    fields.append(("a", "b" * (total - size(fields) - 33)))
    assert size(fields) == total
    return fields


def sent_in_pieces(client: Http2, fields: list[tuple[str, str]]) -> Answer:
    raw, i = block(fields), client.new_id()
    pieces = [raw[at : at + 16384] for at in range(0, len(raw), 16384)]
    frames = [frame(CONTINUATION if k else HEADERS, 0, i, piece) for k, piece in enumerate(pieces)]
    client.send(b"".join(frames) + frame(CONTINUATION, END_HEADERS, i) + data(i, message(infer_message()), end=True))
    return client.answer(i)


def test_the_size_of_a_head(grpc: ServerProcess) -> None:
    """As HTTP/2 counts it; the last byte allowed is allowed, one more is told."""
    with Http2(grpc.grpc) as client:
        assert client.ask(infer_message()).values() == [1.0]
        assert client.settings[6] == LIMIT
        assert sent_in_pieces(client, of_size(LIMIT)).values() == [1.0]
        assert sent_in_pieces(client, of_size(LIMIT + 1)).outcome == WIDE
        assert sent_in_pieces(client, of_size(LIMIT * 8)).outcome == WIDE
        assert client.ask(infer_message()).values() == [1.0]


@pytest.mark.parametrize("times", [15, 17])
def test_a_head_far_too_large(grpc: ServerProcess, times: int) -> None:
    """Up to sixteen times the limit it is told; then the connection ends. A field of the table is a byte a time."""
    field = ("a", "b" * 992)  # counts 1025
    with Http2(grpc.grpc) as client:
        i = client.new_id()
        fields = CALL + literal(*field, index=True) + b"\xbe" * (16 * times - 2)
        client.send(head(i, fields) + data(i, message(infer_message()), end=True))
        if times < 16:
            assert client.answer(i).outcome == WIDE
            assert client.ask(infer_message()).values() == [1.0]
        else:
            client.drain()
            assert client.code == ENHANCE_YOUR_CALM


def test_large_heads_keep_the_table_in_step(grpc: ServerProcess) -> None:
    """A head that is refused still fills the table that later heads refer to."""
    encoder = hpack.Encoder()
    with Http2(grpc.grpc) as client:
        client.sync()
        for k in range(40):
            many = [(f"k{k % 7}-{n}", "v" * (10 + n)) for n in range(60 if k % 2 else 200)]
            fields = encoder.encode([*request_fields(), *many], huffman=k % 3 == 0)
            assert len(fields) < 100_000
            i = client.new_id()
            pieces = [fields[at : at + 16000] for at in range(0, len(fields), 16000)]
            for n, piece in enumerate(pieces):
                client.send(frame(CONTINUATION if n else HEADERS, END_HEADERS * (n == len(pieces) - 1), i, piece))
            client.send(data(i, message(infer_message()), end=True))
            answer = client.answer(i)
            assert answer.outcome == WIDE if size([*request_fields(), *many]) > LIMIT else answer.values() == [1.0]


def test_large_trailers(grpc: ServerProcess) -> None:
    with Http2(grpc.grpc) as client:
        i = client.open(body=message(infer_message()))
        client.send(head(i, block([("a", "b" * 10000)]), end=True))
        assert client.answer(i).values() == [1.0]
