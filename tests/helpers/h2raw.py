"""HTTP/2 and gRPC over plain sockets, frame by frame: anything can be sent, and what comes back is kept as it came.

Fields are coded by hand (RFC 7541, literals only), so that invalid ones can be sent and frames can be made once for
many streams; what comes is parsed by hyperframe and hpack. Knows nothing of how a server is started.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import hpack
from hyperframe.frame import Frame

from tests.helpers.raw import send_until_refused
from triton_fast import protos

TIMEOUT_S = 30.0  # only so that a test that fails ends
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY_FLAG = 1, 1, 4, 8, 32
(NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR, SETTINGS_TIMEOUT, STREAM_CLOSED, FRAME_SIZE_ERROR,
 REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, CONNECT_ERROR, ENHANCE_YOUR_CALM) = range(12)  # fmt: skip
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_STREAMS, INITIAL_WINDOW, MAX_FRAME, MAX_HEADER_LIST = range(1, 7)

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
LIVE = "/inference.GRPCInferenceService/ServerLive"
WATCH = "/grpc.health.v1.Health/Watch"

Fields = Iterable[tuple[str | bytes, str | bytes]]
Address = tuple[str, int]


# ---- frames


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"", length: int | None = None) -> bytes:
    """One frame; ``length`` is a lie about the payload's."""
    n = len(payload) if length is None else length
    return struct.pack("!BHBBL", n >> 16, n & 0xFFFF, kind, flags, stream_id) + payload


def settings(values: dict[int, int] | None = None, *, ack: bool = False) -> bytes:
    payload = b"".join(struct.pack("!HL", key, value) for key, value in (values or {}).items())
    return frame(SETTINGS, ACK if ack else 0, 0, payload)


def rst(stream_id: int, code: int = CANCEL) -> bytes:
    return frame(RST_STREAM, 0, stream_id, struct.pack("!L", code))


def window(stream_id: int, n: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream_id, struct.pack("!L", n))


def ping(data: bytes = b"12345678", *, ack: bool = False) -> bytes:
    return frame(PING, ACK if ack else 0, 0, data)


def data(stream_id: int, payload: bytes = b"", *, end: bool = False) -> bytes:
    """DATA frames of a size that every peer takes."""
    pieces = [payload[at : at + 16384] for at in range(0, len(payload), 16384)] or [b""]
    last = len(pieces) - 1
    return b"".join(frame(DATA, END_STREAM * (end and i == last), stream_id, p) for i, p in enumerate(pieces))


# ---- fields


def number(value: int, bits: int, first: int = 0) -> bytes:
    """An integer of HPACK behind the flags of its first byte."""
    limit = (1 << bits) - 1
    if value < limit:
        return bytes([first | value])
    out = bytearray([first | limit])
    value -= limit
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def text(value: str | bytes) -> bytes:
    raw = value.encode("latin-1") if isinstance(value, str) else value
    return number(len(raw), 7) + raw


def literal(name: str | bytes, value: str | bytes, *, index: bool = False) -> bytes:
    """One field as it is; ``index``: the peer puts it into its table."""
    return (b"\x40" if index else b"\x00") + text(name) + text(value)


def block(fields: Fields) -> bytes:
    return b"".join(literal(name, value) for name, value in fields)


def request_fields(
    path: str | None = INFER, *extra: tuple[str, str], **replaced: str | None
) -> list[tuple[str, str]]:
    """The fields of a gRPC call; ``method=``, ``te=``, ``content_type=``: another value, or None to leave it out."""
    fields = {":method": "POST", ":scheme": "http", ":path": path or "", ":authority": "t", "te": "trailers",
              "content-type": "application/grpc"}  # fmt: skip
    if path is None:
        del fields[":path"]
    for key, value in replaced.items():
        name = key.replace("_", "-")
        name = f":{name}" if f":{name}" in fields else name
        if value is None:
            del fields[name]
        else:
            fields[name] = value
    return [*fields.items(), *extra]


CALL = block(request_fields())
STREAM_CALL = block(request_fields(STREAM))


def head(stream_id: int, fields: bytes = CALL, *, end: bool = False) -> bytes:
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream_id, fields)


# ---- messages


def message(payload: bytes, flag: int = 0, length: int | None = None) -> bytes:
    return struct.pack("!BL", flag, len(payload) if length is None else length) + payload


def infer_message(values: Iterable[float] = (1.0,), model: str = "m", **more: Any) -> bytes:
    """A ModelInferRequest of one FP32 row."""
    raw = [*values]
    request = protos.ModelInferRequest(model_name=model, **more)
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, len(raw)])
    request.raw_input_contents.append(struct.pack(f"<{len(raw)}f", *raw))
    return bytes(request.SerializeToString())


def bytes_message(payload: bytes, model: str = "big", **more: Any) -> bytes:
    """A ModelInferRequest of one UINT8 vector, for a model without batches."""
    request = protos.ModelInferRequest(model_name=model, **more)
    request.inputs.add(name="INPUT0", datatype="UINT8", shape=[len(payload)])
    request.raw_input_contents.append(payload)
    return bytes(request.SerializeToString())


def repeat_message(values: Iterable[int], delay_ms: int = 0, model: str = "repeat", **more: Any) -> bytes:
    """A ModelInferRequest for the repeat backend: one response for each value."""
    raw = [*values]
    request = protos.ModelInferRequest(model_name=model, **more)
    request.inputs.add(name="IN", datatype="INT32", shape=[len(raw)])
    request.inputs.add(name="DELAY", datatype="UINT32", shape=[len(raw)])
    request.inputs.add(name="WAIT", datatype="UINT32", shape=[1])
    request.raw_input_contents.append(struct.pack(f"<{len(raw)}i", *raw))
    request.raw_input_contents.append(struct.pack("<I", delay_ms) * len(raw))
    request.raw_input_contents.append(bytes(4))
    return bytes(request.SerializeToString())


def unary(stream_id: int, payload: bytes, fields: bytes = CALL) -> bytes:
    """The frames of a whole unary call."""
    return head(stream_id, fields) + data(stream_id, message(payload), end=True)


@dataclass
class Answer:
    """What came of one stream. ``heads``: each block of fields; ``reset``: the code of an RST_STREAM."""

    heads: list[dict[str, str]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    ended: bool = False
    ended_at: float = 0.0  # time.monotonic() when its end was read
    reset: int | None = None

    @property
    def over(self) -> bool:
        return self.ended or self.reset is not None

    @property
    def http_status(self) -> int:
        return int(self.heads[0][":status"])

    @property
    def status(self) -> int | None:
        """grpc-status; None while there is none."""
        value = self.heads[-1].get("grpc-status") if self.heads else None
        return None if value is None else int(value)

    @property
    def text(self) -> str:
        return urllib.parse.unquote(self.heads[-1].get("grpc-message", "") if self.heads else "")

    @property
    def outcome(self) -> tuple[int | None, str]:
        return self.status, self.text

    @property
    def messages(self) -> list[bytes]:
        """The whole messages that came, without their prefixes."""
        found, at = [], 0
        while at + 5 <= len(self.body):
            n = int.from_bytes(self.body[at + 1 : at + 5], "big")
            if at + 5 + n > len(self.body):
                break
            found.append(bytes(self.body[at + 5 : at + 5 + n]))
            at += 5 + n
        return found

    def values(self) -> list[float]:
        """The FP32 output of a unary infer response."""
        assert self.status == 0, self
        (raw,) = self.messages
        out = protos.ModelInferResponse.FromString(raw).raw_output_contents[0]
        return list(struct.unpack(f"<{len(out) // 4}f", out))


class Ended(Exception):
    """The server ended the connection before what was waited for came."""


class Http2:
    """One connection.

    Parameters
    ----------
    greet
        Send the preface and ``first``, the first SETTINGS.
    acks
        Acknowledge SETTINGS and PING.
    credit
        Give windows back for the data that came.
    """

    def __init__(
        self, address: Address, first: dict[int, int] | None = None, *, greet: bool = True, acks: bool = True,
        credit: bool = True, receive_buffer: int = 0,
    ) -> None:  # fmt: skip
        self.sock = socket.socket()
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.settimeout(TIMEOUT_S)
        try:
            self.sock.connect(address)
        except OSError:
            self.sock.close()
            raise
        self.acks, self.credit = acks, credit
        self.streams: dict[int, Answer] = {}
        self.goaways: list[tuple[int, int, bytes]] = []  # last stream, code, debug data
        self.settings: dict[int, int] = {}
        self.credits: Counter[int] = Counter()  # window that came back, by stream
        self.seen: Counter[str] = Counter()  # frames that came, "PING" and "PING ACK" ...
        self.late = 0  # fields and data of streams that were over
        self.ended = False
        self.next_id = 1
        self._decoder = hpack.Decoder(max_header_list_size=1 << 20)
        self._have = b""
        if greet:
            self.send(PREFACE + settings(first))

    def __enter__(self) -> Http2:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # ---- out

    def send(self, raw: bytes) -> None:
        self.sock.sendall(raw)

    def send_until_refused(self, parts: Iterable[bytes]) -> bool:
        """Send until the peer stops taking it; whether all was sent."""
        return send_until_refused(self.sock, parts)

    def new_id(self) -> int:
        taken = self.next_id
        self.next_id += 2
        return taken

    def call(self, payload: bytes = b"", fields: bytes = CALL) -> int:
        """Send a whole unary call; return its stream."""
        stream_id = self.new_id()
        self.send(unary(stream_id, payload, fields))
        return stream_id

    def open(self, fields: bytes = CALL, body: bytes = b"", *, end: bool = False) -> int:
        """Send a head and bytes of the body as they are; return the stream."""
        stream_id = self.new_id()
        self.send(head(stream_id, fields, end=end and not body) + (data(stream_id, body, end=end) if body else b""))
        return stream_id

    # ---- in

    def read(self) -> bool:
        """Take what comes next; False at the end of the connection."""
        try:
            came = self.sock.recv(1 << 18)
        except ConnectionResetError:
            came = b""
        if not came:
            self.ended = True
            return False
        self._have += came
        at = 0
        while len(self._have) - at >= 9:
            n = int.from_bytes(self._have[at : at + 3], "big")
            if len(self._have) - at < 9 + n:
                break
            self._take(memoryview(self._have)[at : at + 9 + n])
            at += 9 + n
        self._have = self._have[at:]
        return True

    def _take(self, raw: memoryview) -> None:
        got, _ = Frame.parse_frame_header(raw[:9])
        got.parse_body(raw[9:])
        name = type(got).__name__.removesuffix("Frame") + (" ACK" if "ACK" in got.flags else "")
        self.seen[name] += 1
        answer = None
        if got.stream_id and name != "WindowUpdate":
            answer = self.streams.setdefault(got.stream_id, Answer())
            self.late += answer.over and name != "RstStream"
        match name:
            case "Settings":
                self.settings.update(got.settings)
                if self.acks:
                    self.send_until_refused([settings(ack=True)])
            case "Ping":
                if self.acks:
                    self.send_until_refused([ping(got.opaque_data, ack=True)])
            case "GoAway":
                self.goaways.append((got.last_stream_id, got.error_code, bytes(got.additional_data)))
            case "WindowUpdate":
                self.credits[got.stream_id] += got.window_increment
            case "RstStream":
                assert answer is not None
                answer.reset = got.error_code
            case "Headers":
                assert answer is not None
                assert "END_HEADERS" in got.flags
                answer.heads.append({str(k): str(v) for k, v in self._decoder.decode(got.data)})
            case "Data":
                assert answer is not None
                answer.body += got.data
                if self.credit and got.data:
                    n = len(got.data)
                    self.send_until_refused([window(0, n) + window(got.stream_id, n)])
        if answer is not None and "END_STREAM" in got.flags:
            answer.ended, answer.ended_at = True, time.monotonic()

    def until(self, condition: Callable[[], bool]) -> None:
        """Read until it holds. Raises ``Ended``."""
        while not condition():
            if not self.read():
                raise Ended(f"frames that came: {dict(self.seen)}, goaways: {self.goaways}")

    def answer(self, stream_id: int) -> Answer:
        """Wait for the end of a stream."""
        self.until(lambda: stream_id in self.streams and self.streams[stream_id].over)
        return self.streams[stream_id]

    def ask(self, payload: bytes = b"", fields: bytes = CALL) -> Answer:
        return self.answer(self.call(payload, fields))

    def ask_large(self, body: bytes, fields: bytes = CALL) -> Answer:
        """Send a call with this body, as fast as the server gives window back, and wait for its end."""
        if not self.settings:
            self.sync()  # until it knows that we know, the window is smaller
        i = self.open(fields)
        sent, room = 0, self.settings[INITIAL_WINDOW]

        def over() -> bool:
            return i in self.streams and self.streams[i].over

        while sent < len(body) and not over():
            piece = body[sent : sent + min(room, 1 << 18)]
            self.send(data(i, piece))
            sent, room = sent + len(piece), room - len(piece)
            if room == 0:
                had = self.credits[i]
                self.until(lambda had=had: over() or self.credits[i] > had)  # type: ignore[misc]
                room += self.credits[i] - had
        if not over():
            self.send(data(i, end=True))
        return self.answer(i)

    def sync(self) -> None:
        """Return when the server has taken everything sent before: the answer to a PING."""
        before = self.seen["Ping ACK"]
        self.send(ping())
        self.until(lambda: self.seen["Ping ACK"] > before)

    def drain(self) -> None:
        """Read to the end of the connection."""
        while self.read():
            pass

    @property
    def code(self) -> int | None:
        """The error code of the last GOAWAY."""
        return self.goaways[-1][1] if self.goaways else None

    # ---- the end

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with RST, as a client that crashed."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.close()
