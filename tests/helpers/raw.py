"""HTTP/1.1 over plain sockets, byte for byte: requests as bytes, responses read without a client library's opinions.

Knows the v2 infer message; knows nothing of how a server is started.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

TIMEOUT_S = 30.0


@dataclass
class Answer:
    """One final response; ``interim``: the statuses of the 1xx ones before it."""

    status: int
    headers: dict[str, str]
    body: bytes
    version: str = "HTTP/1.1"
    interim: list[int] = field(default_factory=list)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The text of an error response."""
        return str(self.json()["error"])

    @property
    def closes(self) -> bool:
        return self.headers.get("connection") == "close"

    @property
    def events(self) -> list[Any]:
        """The objects of a generate_stream response, which must be nothing but events."""
        *events, rest = self.body.split(b"\n\n")
        assert rest == b"", self.body
        assert all(event.startswith(b"data: ") for event in events), self.body
        return [json.loads(event[6:]) for event in events]


class Closed(Exception):
    """The peer ended the connection; ``got`` is what came of an unfinished response."""

    def __init__(self, got: bytes = b"") -> None:
        super().__init__(f"connection closed, {len(got)} bytes of a response came: {got[:200]!r}")
        self.got = got


class Reader:
    """Splits a stream of bytes into responses; ``read`` returns b"" at its end."""

    def __init__(self, read: Any) -> None:
        self._read = read
        self._have = b""

    def _more(self) -> None:
        data = self._read()
        if not data:
            raise Closed(self._have)
        self._have += data

    def line(self) -> bytes:
        while b"\r\n" not in self._have:
            self._more()
        line, _, self._have = self._have.partition(b"\r\n")
        return line

    def chunk(self) -> bytes:
        """Return the next chunk of a chunked body; b"" is its end."""
        size = int(self.line(), 16)
        while len(self._have) < size + 2:
            self._more()
        data, self._have = self._have[:size], self._have[size:]
        assert self.line() == b"", "no CR LF behind a chunk"
        return data

    def rest_of_connection(self) -> bytes:
        with contextlib.suppress(Closed):
            while True:
                self._more()
        return self._have

    def head(self) -> Answer:
        """Return the next final response up to its body."""
        interim: list[int] = []
        while True:
            while b"\r\n\r\n" not in self._have:
                self._more()
            head, _, self._have = self._have.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            version, status, _ = first.split(" ", 2)
            assert version in {"HTTP/1.1", "HTTP/1.0"}, first
            if status.startswith("1"):
                interim.append(int(status))
                continue
            headers: dict[str, str] = {}
            for line in lines:
                name, colon, value = line.partition(": ")
                assert colon, line
                assert name.lower() not in headers, f"{name} twice"
                headers[name.lower()] = value
            return Answer(int(status), headers, b"", version, interim)

    def answer(self, *, head_only: bool = False) -> Answer:
        found = self.head()
        if head_only:
            return found
        if found.headers.get("transfer-encoding") == "chunked":
            assert "content-length" not in found.headers
            found.body = b"".join(iter(self.chunk, b""))
            return found
        if "content-length" not in found.headers:
            assert found.closes, "a body without an end"
            found.body, self._have = self.rest_of_connection(), b""
            return found
        length = int(found.headers["content-length"])
        parts, got = [self._have], len(self._have)
        while got < length:
            data = self._read()
            if not data:
                raise Closed(b"".join(parts))
            parts.append(data)
            got += len(data)
        whole = b"".join(parts)
        self._have = whole[length:]
        found.body = whole[:length]
        return found

    @property
    def rest(self) -> bytes:
        """What came and belongs to no response yet."""
        return self._have


def send_until_refused(sock: socket.socket, parts: Iterable[bytes]) -> bool:
    try:
        for part in parts:
            sock.sendall(part)
    except (BrokenPipeError, ConnectionResetError):
        return False
    return True


class Client:
    """One connection."""

    def __init__(self, address: tuple[str, int], *, receive_buffer: int = 0) -> None:
        self.sock = socket.socket()
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(address)
        self._reader = Reader(lambda: self.sock.recv(1 << 18))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def send_until_refused(self, parts: Iterable[bytes]) -> bool:
        """Send until the peer stops taking it; whether all was sent."""
        return send_until_refused(self.sock, parts)

    def answer(self, *, head_only: bool = False) -> Answer:
        """Read one response.

        Raises
        ------
        Closed
            The server ended the connection first.
        """
        try:
            return self._reader.answer(head_only=head_only)
        except ConnectionResetError:
            raise Closed(self._reader.rest) from None

    def head(self) -> Answer:
        """Read one response up to its body, whose chunks ``chunk`` reads."""
        return self._reader.head()

    def chunk(self) -> bytes:
        """Read the next chunk of a body; b"" is its end."""
        return self._reader.chunk()

    def ask(self, data: bytes) -> Answer:
        self.send(data)
        return self.answer(head_only=data.startswith(b"HEAD "))

    def closed(self) -> bool:
        """Wait for the server's end of the connection; False when it sends something instead."""
        if self._reader.rest:
            return False
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with RST, as a client that crashed."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.close()


@contextlib.contextmanager
def several(address: tuple[str, int], n: int) -> Iterator[list[Client]]:
    """``n`` connections, closed in the end whatever happened."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Client(address)) for _ in range(n)]


def ask(address: tuple[str, int], data: bytes) -> Answer:
    """Send one request on a connection of its own and return the response."""
    with Client(address) as client:
        return client.ask(data)


# ---- requests


def get(path: str, *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: t", *headers, "", ""]).encode("latin-1")


def post(path: str, body: bytes = b"", *headers: str, version: str = "1.1") -> bytes:
    return get(path, f"Content-Length: {len(body)}", *headers, method="POST", version=version) + body


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    return b"%x%s\r\n%s\r\n" % (len(data), extension, data)


def chunked(path: str, chunks: Iterable[bytes], *headers: str) -> bytes:
    head = get(path, "Transfer-Encoding: chunked", *headers, method="POST")
    return head + b"".join(map(chunk, chunks)) + b"0\r\n\r\n"


def infer_path(model: str) -> str:
    return f"/v2/models/{model}/infer"


def generate(model: str, body: Any, *headers: str, stream: bool = False, version: str = "1.1") -> bytes:
    """A generate request; ``body``: its object, or bytes as they are."""
    path = f"/v2/models/{model}/generate{'_stream' if stream else ''}"
    return post(path, body if isinstance(body, bytes) else json.dumps(body).encode(), *headers, version=version)


def fp32(values: Sequence[float]) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def infer_object(values: Sequence[Any], shape: Sequence[int] | None = None, datatype: str = "FP32", **more: Any) -> Any:
    tensor = {"name": "INPUT0", "datatype": datatype, "shape": list(shape or [1, len(values)]), "data": list(values)}
    return {**more, "inputs": [tensor]}


def infer_json(model: str, values: Sequence[Any], *headers: str, **more: Any) -> bytes:
    return post(infer_path(model), json.dumps(infer_object(values, **more)).encode(), *headers)


def binary_body(
    data: bytes, shape: Sequence[int], datatype: str = "FP32", *, binary_out: bool = True, **more: Any
) -> tuple[bytes, int]:
    """The body of a request with one binary tensor, and the length of its JSON part."""
    parameters = {"binary_data_size": len(data)}
    tensor = {"name": "INPUT0", "datatype": datatype, "shape": list(shape), "parameters": parameters}
    head = json.dumps({**more, "parameters": {"binary_data_output": binary_out}, "inputs": [tensor]}).encode()
    return head + data, len(head)


def infer_binary(
    model: str, data: bytes, shape: Sequence[int], *headers: str, datatype: str = "FP32", **more: Any
) -> bytes:
    body, size = binary_body(data, shape, datatype, **more)
    return post(infer_path(model), body, f"Inference-Header-Content-Length: {size}", *headers)


def values_of(answer: Answer) -> list[Any]:
    """The only output of an infer response, from JSON or binary FP32."""
    size = answer.headers.get("inference-header-content-length")
    if size is None:
        return list(answer.json()["outputs"][0]["data"])
    data = answer.body[int(size) :]
    return list(struct.unpack(f"<{len(data) // 4}f", data))
