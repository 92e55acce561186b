"""One HTTP/2 connection with one gRPC call at a time, as few instructions of Python as will do. For bench/micro/server.

Its headers travel as gRPC's clients send them: whole in the first call, as indices of the peer's table in later ones.
It knows frames and nothing of messages.
"""

from __future__ import annotations

import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
LARGEST_WINDOW = 2**31 - 1
STATIC_ENTRIES = 61


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def header_blocks(headers: dict[str, str]) -> tuple[bytes, bytes]:
    """HPACK of the first call, which enters every field into the peer's table, and of those that follow.

    Lengths are one byte here, so names and values stay below 127 bytes.
    """
    first = b"".join(
        b"\x40" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()
        for name, value in headers.items()
    )
    newest = STATIC_ENTRIES + len(headers)  # entered first, so the highest index
    later = bytes(0x80 | newest - place for place in range(len(headers)))
    return first, later


class GrpcClient:
    """Answers to equal requests have equal bytes, so `repeat` compares them with the first."""

    def __init__(self, port: int, path: str, body: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.body = body
        self.stream = 1
        self.received = b""
        self.blocks = header_blocks({
            ":method": "POST", ":scheme": "http", ":path": path, ":authority": f"127.0.0.1:{port}", "te": "trailers",
            "content-type": "application/grpc", "user-agent": "grpc-python/1.62.0 grpc-c/39.0.0 (linux; chttp2)",
        })
        window = struct.pack(">I", LARGEST_WINDOW - 65535)
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0, b"") + frame(WINDOW_UPDATE, 0, 0, window))

    def call(self) -> bytes:
        """One call; the payload of its DATA frames. A gRPC error has none."""
        block = self.blocks[self.stream > 1]
        self.socket.sendall(frame(HEADERS, END_HEADERS, self.stream, block)
                            + frame(DATA, END_STREAM, self.stream, self.body))
        answer = b""
        while True:
            kind, flags, stream, payload = self._frame()
            if kind in (GOAWAY, RST_STREAM):
                raise RuntimeError(f"the server ended the stream or the connection: {payload!r}")
            if kind in (SETTINGS, PING) and not flags & ACK:
                self.socket.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))
            if stream == self.stream:
                answer += payload if kind == DATA else b""
                if flags & END_STREAM and kind in (DATA, HEADERS):
                    self.stream += 2
                    return answer

    def first(self) -> bytes:
        answer = self.call()
        if not answer:
            raise RuntimeError("the answer has no message")
        return answer

    def repeat(self, answer: bytes, count: int) -> None:
        for _ in range(count):
            if (found := self.call()) != answer:
                raise RuntimeError(f"another answer than before: {found[-200:]!r}")

    def _frame(self) -> tuple[int, int, int, bytes]:
        while len(self.received) < 9:
            self._receive()
        length = int.from_bytes(self.received[:3], "big")
        while len(self.received) < 9 + length:
            self._receive()
        kind, flags, stream = struct.unpack_from(">BBI", self.received, 3)
        payload, self.received = self.received[9 : 9 + length], self.received[9 + length :]
        return kind, flags, stream, payload

    def _receive(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise RuntimeError("the server closed the connection")
        self.received += data
