"""Frames against the rules of HTTP/2: what ends the stream, what ends the connection, what is only ignored."""

from __future__ import annotations

import socket
import struct

import pytest

from tests.helpers.h2raw import (
    ACK,
    CALL,
    CANCEL,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PRIORITY_FLAG,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    STREAM_CLOSED,
    TIMEOUT_S,
    WINDOW_UPDATE,
    Http2,
    block,
    data,
    frame,
    head,
    infer_message,
    literal,
    message,
    number,
    ping,
    request_fields,
    rst,
    settings,
    unary,
    window,
)  # fmt: skip
from tests.helpers.server import ServerProcess

BODY = data(1, message(infer_message()), end=True)
BIG = (1 << 31) - 1
MAX_STREAMS = 1000

# name -> (frames, code of the GOAWAY)
ENDS_CONNECTION: dict[str, tuple[bytes, int]] = {
    "too long a frame": (frame(DATA, 0, 1, bytes(16385)), FRAME_SIZE_ERROR),
    "too long a head": (frame(HEADERS, END_HEADERS, 1, bytes(16385)), FRAME_SIZE_ERROR),
    "a length of 16 MB": (frame(DATA, 0, 1, b"", 0xFFFFFF), FRAME_SIZE_ERROR),
    "data on an idle stream": (data(1, b"x"), PROTOCOL_ERROR),
    "data on stream 0": (data(0, b"x"), PROTOCOL_ERROR),
    "data behind the end": (unary(1, infer_message([1.0], "slow")) + data(1, b"x"), STREAM_CLOSED),
    "head behind the end": (unary(1, infer_message([1.0], "slow")) + head(1), STREAM_CLOSED),
    "head on stream 0": (head(0), PROTOCOL_ERROR),
    "head on an even stream": (head(2), PROTOCOL_ERROR),
    "reset of an idle stream": (rst(1), PROTOCOL_ERROR),
    "reset of stream 0": (rst(0), PROTOCOL_ERROR),
    "reset of 3 bytes": (head(1) + frame(RST_STREAM, 0, 1, b"abc"), FRAME_SIZE_ERROR),
    "window of an idle stream": (window(1, 1), PROTOCOL_ERROR),
    "window of 0": (window(0, 0), PROTOCOL_ERROR),
    "window of 0 for a stream": (head(1) + window(1, 0), PROTOCOL_ERROR),
    "window that overflows": (window(0, BIG), FLOW_CONTROL_ERROR),
    "window of 5 bytes": (frame(WINDOW_UPDATE, 0, 0, b"abcde"), FRAME_SIZE_ERROR),
    "first window over 2^31": (settings({INITIAL_WINDOW: 1 << 31}), FLOW_CONTROL_ERROR),
    "frame size of 1": (settings({5: 1}), PROTOCOL_ERROR),
    "push of 2": (settings({2: 2}), PROTOCOL_ERROR),
    "settings of 5 bytes": (frame(SETTINGS, 0, 0, b"abcde"), FRAME_SIZE_ERROR),
    "settings on a stream": (frame(SETTINGS, 0, 1), PROTOCOL_ERROR),
    "acknowledgement with settings": (frame(SETTINGS, ACK, 0, bytes(6)), FRAME_SIZE_ERROR),
    "acknowledgement of nothing": (settings(ack=True) * 3, PROTOCOL_ERROR),
    "33 settings": (frame(SETTINGS, 0, 0, struct.pack("!HL", 4, 65535) * 33), ENHANCE_YOUR_CALM),
    "ping of 7 bytes": (frame(PING, 0, 0, b"1234567"), FRAME_SIZE_ERROR),
    "ping on a stream": (frame(PING, 0, 1, b"12345678"), PROTOCOL_ERROR),
    "push promise": (head(1) + frame(PUSH_PROMISE, END_HEADERS, 1, struct.pack("!L", 2) + CALL), PROTOCOL_ERROR),
    "priority of 6 bytes": (frame(PRIORITY, 0, 3, bytes(6)), FRAME_SIZE_ERROR),
    "goaway of 7 bytes": (frame(GOAWAY, 0, 0, bytes(7)), FRAME_SIZE_ERROR),
    "goaway on a stream": (frame(GOAWAY, 0, 1, bytes(8)), PROTOCOL_ERROR),
    "continuation of nothing": (frame(CONTINUATION, END_HEADERS, 1, CALL), PROTOCOL_ERROR),
    "a frame within a head": (frame(HEADERS, 0, 1, CALL) + ping(), PROTOCOL_ERROR),
    "a head within a head": (frame(HEADERS, 0, 1, CALL) + head(3), PROTOCOL_ERROR),
    "continuation of another": (frame(HEADERS, 0, 1, CALL) + frame(CONTINUATION, END_HEADERS, 3), PROTOCOL_ERROR),
    "padding longer than the data": (head(1) + frame(DATA, PADDED, 1, b"\xffabc"), PROTOCOL_ERROR),
    "padding longer than the head": (frame(HEADERS, END_HEADERS | PADDED, 1, b"\xff" + CALL[:10]), PROTOCOL_ERROR),
    "padded without a length": (head(1) + frame(DATA, PADDED, 1), PROTOCOL_ERROR),
    "an index outside the table": (head(1, b"\xff\xff\xff\x7f"), COMPRESSION_ERROR),
    "an index of 0": (head(1, b"\x80"), COMPRESSION_ERROR),
    "a number without an end": (head(1, b"\xff" * 30), COMPRESSION_ERROR),
    "a string longer than the head": (head(1, b"\x00" + number(1 << 20, 7) + b"a"), COMPRESSION_ERROR),
    "a string of 2^31": (head(1, b"\x00" + number(1 << 31, 7) + b"a"), COMPRESSION_ERROR),
    "a huffman string that is none": (head(1, b"\x00\x84\xff\xff\xff\xff\x01a"), COMPRESSION_ERROR),
    "a table larger than ours": (head(1, number(4097, 5, 0x20) + CALL), COMPRESSION_ERROR),
    "a table size behind a field": (head(1, CALL + number(0, 5, 0x20)), COMPRESSION_ERROR),
    "a head cut short": (head(1, CALL[:-1]), COMPRESSION_ERROR),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS_CONNECTION)
def test_ends_the_connection(grpc: ServerProcess, name: str) -> None:
    frames, code = ENDS_CONNECTION[name]
    for warm in (False, True):
        with Http2(grpc.grpc) as client:
            if warm:
                client.sync()
            client.send(frames)
            client.drain()
            assert client.code == code, client.goaways


# name -> (frames, code of the RST_STREAM of stream 1)
ENDS_STREAM: dict[str, tuple[bytes, int]] = {
    "window that overflows": (head(1) + window(1, BIG), FLOW_CONTROL_ERROR),
    "first window that overflows": (head(1) + window(1, 1 << 30) + settings({INITIAL_WINDOW: BIG}), FLOW_CONTROL_ERROR),
    "fields behind the message, without the end": (
        head(1) + data(1, message(infer_message())) + frame(HEADERS, END_HEADERS, 1, block([("a", "b")])),
        PROTOCOL_ERROR),
    "pseudo fields behind the message": (
        head(1) + data(1, message(infer_message())) + head(1, block([(":path", "/x")]), end=True), PROTOCOL_ERROR),
    "content-length that is not so": (
        head(1, block(request_fields("/x", ("content-length", "3")))) + BODY, PROTOCOL_ERROR),
    "two lengths": (
        head(1, block(request_fields("/x", ("content-length", "3"), ("content-length", "4")))) + BODY, PROTOCOL_ERROR),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS_STREAM)
def test_ends_the_stream(grpc: ServerProcess, name: str) -> None:
    frames, code = ENDS_STREAM[name]
    with Http2(grpc.grpc) as client:
        client.send(frames)
        assert client.answer(1).reset == code
        client.next_id = 3
        assert client.ask(infer_message()).values() == [1.0]


# name -> frames around a call on stream 1 that is answered all the same
IGNORED: dict[str, bytes] = {
    "unknown frames": frame(10, 255, 0, b"x") + unary(1, infer_message()) + frame(255, 255, 1, bytes(16384)),
    "unknown settings": settings({7: 1, 99: 5, 65535: BIG}) + unary(1, infer_message()),
    "priority of nothing": frame(PRIORITY, 0, 0, bytes(5)) + unary(1, infer_message()),
    "priority": frame(PRIORITY, 0, 1, b"\0\0\0\3\xff") + unary(1, infer_message()) + frame(PRIORITY, 0, 7, bytes(5)),
    "priority in the head": frame(HEADERS, END_HEADERS | PRIORITY_FLAG, 1, b"\0\0\0\0\1" + CALL) + BODY,
    "unknown flags": frame(HEADERS, END_HEADERS | 0xD2 & ~PADDED & ~PRIORITY_FLAG, 1, CALL) + BODY,
    "a reserved bit": frame(HEADERS, END_HEADERS, 1 | 1 << 31, CALL) + BODY,
    "padding": frame(HEADERS, END_HEADERS | PADDED, 1, b"\x05" + CALL + bytes(5))
    + frame(DATA, END_STREAM | PADDED, 1, b"\xff" + message(infer_message()) + bytes(255)),
    "a frame of padding": head(1) + frame(DATA, PADDED, 1, b"\0") + frame(DATA, PADDED, 1, b"\x09" + bytes(9)) + BODY,
    "a head in pieces": frame(HEADERS, 0, 1, CALL[:7])
    + b"".join(frame(CONTINUATION, 0, 1, piece) for piece in (b"", CALL[7:20], CALL[20:])) +
    frame(CONTINUATION, END_HEADERS, 1) + BODY,
    "fields behind the message": head(1) + data(1, message(infer_message())) + head(1, block([("a", "b")]), end=True),
    "a table of no size": head(1, number(0, 5, 0x20) + CALL) + BODY,
    "fields that do not fit the table": head(1, CALL + literal("a", "b" * 5000, index=True)) + BODY,
    "an end in a frame of its own": head(1) + data(1, message(infer_message())) + data(1, end=True),
    "empty data": head(1) + data(1) * 5 + data(1, message(infer_message())) + data(1) * 5 + data(1, end=True),
    "an answer to no ping": ping(ack=True) + unary(1, infer_message()),
    "a huge window": window(0, BIG - 65535) + unary(1, infer_message()),
}  # fmt: skip


@pytest.mark.parametrize("name", IGNORED)
def test_ignored(grpc: ServerProcess, name: str) -> None:
    with Http2(grpc.grpc) as client:
        client.send(IGNORED[name])
        assert client.answer(1).values() == [1.0]
        client.next_id = 3
        assert client.ask(infer_message([5.0])).values() == [5.0]


def test_frames_on_closed_streams_are_ignored(grpc: ServerProcess) -> None:
    """The client may have sent them before it knew. Their bytes must not cost the connection its window."""
    with Http2(grpc.grpc) as client:
        assert client.ask(infer_message()).values() == [1.0]
        for late in (data(1, b"x"), head(1), rst(1), window(1, 1), window(1, BIG) * 2, data(1, bytes(16384)) * 2000):
            client.send(late)
        assert client.ask(infer_message([2.0])).values() == [2.0]
        assert client.goaways == []


def test_stream_ids_that_go_back_are_ignored(grpc: ServerProcess) -> None:
    with Http2(grpc.grpc) as client:
        client.next_id = 101
        assert client.ask(infer_message()).values() == [1.0]
        client.send(unary(99, infer_message()) + unary(3, infer_message()))
        assert client.ask(infer_message()).values() == [1.0]
        assert set(client.streams) == {101, 103}


def test_the_last_stream_id(grpc: ServerProcess) -> None:
    with Http2(grpc.grpc) as client:
        client.next_id = BIG
        assert client.ask(infer_message()).values() == [1.0]


def test_streams_over_the_limit(grpc: ServerProcess) -> None:
    """Before the client knows the limit each is refused alone; then it is the client's fault."""
    first = b"".join(head(i) for i in range(1, 2 * MAX_STREAMS + 200, 2))
    with Http2(grpc.grpc, acks=False) as client:
        client.send(first)
        assert [client.answer(i).reset for i in range(2 * MAX_STREAMS + 1, 2 * MAX_STREAMS + 200, 2)] == (
            [REFUSED_STREAM] * 100)  # fmt: skip
        client.send(rst(1))
        client.next_id = 2 * MAX_STREAMS + 201
        assert client.ask(infer_message()).values() == [1.0]
    with Http2(grpc.grpc) as client:
        client.sync()
        client.sync()
        client.send(first)
        client.drain()
        assert client.code == PROTOCOL_ERROR


def test_a_goaway_of_the_client(grpc: ServerProcess) -> None:
    """What is in hand is answered, then the connection ends."""
    with Http2(grpc.grpc) as client:
        slow = client.call(infer_message([1.0], "slowish"))
        client.send(frame(GOAWAY, 0, 0, bytes(8)))
        assert client.answer(slow).values() == [1.0]
        client.drain()
        assert client.goaways == []


def test_a_client_that_leaves_in_the_middle(grpc: ServerProcess) -> None:
    """At every byte of a call; the fixture finds descriptors that stay."""
    whole = PREFACE + settings() + head(1) + BODY
    for at in range(0, len(whole), 3):
        for leave in ("reset", "half_close", "close"):
            with Http2(grpc.grpc, greet=False) as client:
                client.send(whole[:at])
                getattr(client, leave)()


# ---- what is no HTTP/2


def exchange(server: ServerProcess, sent: bytes) -> bytes:
    """Send bytes; return all that is answered until the server ends the connection."""
    with socket.create_connection(server.grpc, TIMEOUT_S) as sock:
        sock.sendall(sent)
        got = bytearray()
        try:
            while piece := sock.recv(65536):
                got += piece
        except ConnectionResetError:
            pass
        return bytes(got)


HINT = b"This port speaks gRPC over HTTP/2. HTTP/1.1 is served on --http-port, 8000 by default.\n"


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: t\r\n\r\n",
        b"POST /v2/models/m/infer HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\n\r\n{}",
        b"GET / HTTP/1.0\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSX\r\n\r\n", b"PRI * HTTP/1.1\r\n\r\n",
    ],
)  # fmt: skip
def test_http1_is_told_where_to_go(grpc: ServerProcess, sent: bytes) -> None:
    head_, _, body = exchange(grpc, sent).partition(b"\r\n\r\n")
    assert head_ == b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close"
    assert body == HINT


@pytest.mark.parametrize(
    "sent",
    [
        # A TLS ClientHello, SSH, NUL bytes, a Redis command, a reply of HTTP in small letters.
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(506), b"\x00" * 100, b"*1\r\n$4\r\nPING\r\n",
        b"http/1.1 200 ok\r\n\r\n", b"\xff" * 70000, b"\x80",
    ],
)  # fmt: skip
def test_garbage_is_not_answered(grpc: ServerProcess, sent: bytes) -> None:
    assert exchange(grpc, sent) == b""


@pytest.mark.parametrize("first", [head(1), ping(), frame(SETTINGS, ACK, 0), b"x" * 100])
def test_settings_come_first(grpc: ServerProcess, first: bytes) -> None:
    with Http2(grpc.grpc, greet=False) as client:
        client.send(PREFACE + first)
        client.drain()
        assert client.goaways == [(0, PROTOCOL_ERROR, b"SETTINGS expected")]


def test_a_preface_byte_by_byte(grpc: ServerProcess) -> None:
    with Http2(grpc.grpc, greet=False) as client:
        for i in range(len(PREFACE)):
            client.send(PREFACE[i : i + 1])
        client.send(settings())
        assert client.ask(infer_message()).values() == [1.0]


def test_an_error_in_the_first_bytes_is_told_too(grpc: ServerProcess) -> None:
    """Before anything else was sent or read."""
    with Http2(grpc.grpc, greet=False) as client:
        client.send(PREFACE + settings() + frame(HEADERS, 0, 1, CALL) + frame(CONTINUATION, 0, 1) * 1000)
        client.drain()
        assert client.code == ENHANCE_YOUR_CALM


def test_a_cancelled_call_of_a_running_model(grpc: ServerProcess) -> None:
    with Http2(grpc.grpc) as client:
        for _ in range(20):
            i = client.call(infer_message([1.0], "slowish"))
            client.send(rst(i, CANCEL))
        assert client.ask(infer_message()).values() == [1.0]
        assert set(client.streams) == {client.next_id - 2}
