"""A gRPC server without sockets, loop or threads of its own: bytes go in by hand, time and completions are steps.

``Rig`` is the server side, ``Client`` speaks HTTP/2 by frames and checks what comes back: frame order, HPACK, and that
the flow-control windows are kept. Everything runs on the caller's thread but the instances of the models.
"""

from __future__ import annotations

import gc
import select
import struct
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import pytest
from hpack import Decoder, Encoder
from hyperframe import frame as h2

from tests.helpers.models import LONG_S, live
from triton_fast import protos
from triton_fast._native.grpc import call as native_call
from triton_fast._native.grpc.connection import GrpcServer
from triton_fast._native.sched.model import Epoch
from triton_fast.errors import NotFound
from triton_fast.frontends import compression

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SERVICE = "/inference.GRPCInferenceService/"
INFER, STREAM = SERVICE + "ModelInfer", SERVICE + "ModelStreamInfer"
SCRATCH = 65536


def counters() -> dict[str, int]:
    """Return everything that must be back at base once all connections are gone."""
    return {**live(), **native_call.stats()}


@pytest.fixture(autouse=True)
def counters_at_base() -> Iterator[None]:
    """Import this into a test module: each test must give back all blocks, requests, models, calls, items, messages."""
    gc.collect()
    before = counters()
    yield
    gc.collect()
    after = counters()
    assert after == before, f"left over: {({name: after[name] - before[name] for name in after})}"


def framed(data: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(data).to_bytes(4, "big") + data


def request(value: int = 7, n: int = 1, *, model: str = "m", id: str = "", raw: bytes | None = None,
            **fields: Any) -> bytes:  # fmt: skip
    """Return a ModelInferRequest whose IN has n elements, each ``value``; the shape is [1, n]."""
    data = struct.pack("<i", value) * n if raw is None else raw
    message = protos.ModelInferRequest(model_name=model, id=id, **fields)
    message.inputs.add(name="IN", datatype="INT32", shape=[1, len(data) // 4])
    message.raw_input_contents.append(data)
    return bytes(message.SerializeToString())


class Job:
    """What ``run_later`` was asked for; done when the test says so."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.outcome: Callable[[], Any] | None = None
        self.task: Task | None = None

    def __await__(self) -> Iterator[Job]:
        yield self
        assert self.outcome is not None
        return self.outcome()

    def finish(self) -> None:
        result = self.work()
        self.settle(lambda: result)

    def fail(self, error: BaseException) -> None:
        def outcome() -> None:
            raise error

        self.settle(outcome)

    def settle(self, outcome: Callable[[], Any]) -> None:
        self.outcome = outcome
        assert self.task is not None
        self.task.step()


class Task:
    def __init__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self.coroutine = coroutine
        self.done = False

    def step(self) -> None:
        try:
            self.coroutine.send(None).task = self
        except StopIteration:
            self.done = True

    def cancel(self, error: BaseException) -> None:
        try:
            self.coroutine.throw(error)
        except (StopIteration, type(error)):
            self.done = True


class Loop:
    """The few methods of an event loop that the native side uses."""

    def __init__(self) -> None:
        self.ready: list[Callable[[], Any]] = []
        self.timers: list[Timer] = []
        self.tasks: list[Task] = []
        self.readers: dict[int, Callable[[], Any]] = {}

    def call_soon(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.ready.append(partial(function, *arguments))

    def call_later(self, delay: float, function: Callable[[], Any]) -> Timer:
        assert delay >= 0
        timer = Timer(self, delay, function)
        self.timers.append(timer)
        return timer

    def create_task(self, coroutine: Coroutine[Any, Any, None]) -> Task:
        task = Task(coroutine)
        self.tasks.append(task)
        self.call_soon(task.step)
        return task

    def add_reader(self, fd: int, function: Callable[[], Any]) -> None:
        self.readers[fd] = function

    def remove_reader(self, fd: int) -> None:
        del self.readers[fd]

    def run_ready(self) -> None:
        while self.ready:
            self.ready.pop(0)()


class Timer:
    def __init__(self, loop: Loop, delay: float, function: Callable[[], Any]) -> None:
        self.loop, self.delay, self.function = loop, delay, function

    def cancel(self) -> None:
        if self in self.loop.timers:
            self.loop.timers.remove(self)

    def fire(self) -> None:
        self.cancel()
        self.function()


class App:
    """The Python side. ``errors``: what was reported as failed, each of which a test must take out."""

    def __init__(self) -> None:
        self.models: dict[str, Any] = {}
        self.errors: list[BaseException] = []
        self.jobs: list[Job] = []
        self.start: Callable[[Any], Any] = lambda call: None
        self.resolved: list[tuple[str, str]] = []
        self.inflate = partial(compression.inflate, flag="--flag")
        self.deflate = compression.deflate

    def resolve(self, name: str, version: str) -> Any:
        self.resolved.append((name, version))
        if name not in self.models:
            raise NotFound(f"Request for unknown model: '{name}' is not found")
        if isinstance(self.models[name], BaseException):
            raise self.models[name]
        return self.models[name]

    def run_later(self, function: Callable[..., Any], *arguments: Any) -> Job:
        job = Job(partial(function, *arguments))
        self.jobs.append(job)
        return job

    def denied(self, header: str) -> tuple[int, str]:
        return 14, f"This protocol is restricted, expecting header '{header}'"

    def failed(self, error: BaseException) -> None:
        self.errors.append(error)


class Transport:
    """Keeps what is written. While ``full`` each write pauses the protocol, as a real one with a slow peer does.

    ``lost_at_once``: close and abort tell the protocol at once, not later as real ones do.
    """

    def __init__(self, *, lost_at_once: bool = False) -> None:
        self.protocol: Any = None
        self.pieces: list[Any] = []     # as they were given: views of tensors stay views
        self.closing = ""
        self.full = False
        self.paused = False
        self.lost = False
        self.lost_at_once = lost_at_once

    def get_extra_info(self, name: str) -> Any:
        return object() if name == "sslcontext" else None

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return sum(len(piece) for piece in self.pieces) if self.paused else 0

    def is_closing(self) -> bool:
        return bool(self.closing)

    def write(self, data: Any) -> None:
        assert not self.lost, "a write after connection_lost"
        if self.closing != "aborted":
            self.pieces.append(data)
        if self.full and not self.paused:
            self.paused = True
            self.protocol.pause_writing()

    def close(self) -> None:
        self._end("closed")

    def abort(self) -> None:
        self._end("aborted")

    def _end(self, how: str) -> None:
        self.closing = self.closing or how
        if self.lost_at_once:
            self.lose()

    def lose(self) -> None:
        """The connection is gone."""
        self.paused = self.full = False
        if not self.lost:
            self.lost = True
            self.closing = self.closing or "lost"
            self.protocol.connection_lost(None)

    def take(self) -> bytes:
        """What was written since the last time, copied only now."""
        data = b"".join(bytes(piece) for piece in self.pieces)
        self.pieces.clear()
        return data

    def drain(self) -> None:
        """The peer takes everything again."""
        self.full = False
        if self.paused:
            self.paused = False
            self.protocol.resume_writing()


class Answer:
    """What came of one call."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self.trailer: dict[str, str] = {}
        self.data = bytearray()
        self.ended = False
        self.reset: int | None = None

    @property
    def status(self) -> int | None:
        value = self.trailer.get("grpc-status", self.fields.get("grpc-status"))
        return None if value is None else int(value)

    @property
    def text(self) -> str:
        return self.trailer.get("grpc-message", self.fields.get("grpc-message", ""))

    def messages(self) -> list[tuple[int, bytes]]:
        """Whole messages as (flag, bytes)."""
        found, at = [], 0
        while at + 5 <= len(self.data):
            n = int.from_bytes(self.data[at + 1 : at + 5], "big")
            if at + 5 + n > len(self.data):
                break
            found.append((self.data[at], bytes(self.data[at + 5 : at + 5 + n])))
            at += 5 + n
        return found

    def replies(self) -> list[Any]:
        """The answers of a stream, parsed."""
        return [protos.ModelStreamInferResponse.FromString(data) for _, data in self.messages()]

    def values(self) -> list[Any]:
        """Of a stream: the first element of each response, or the error's text."""
        return [r.error_message or first(r.infer_response) for r in self.replies()]


def first(response: Any) -> int | None:
    return struct.unpack_from("<i", response.raw_output_contents[0])[0] if response.raw_output_contents else None


class Client:
    """Makes frames and takes answers apart. ``window``: what it grants each stream and the connection at first."""

    def __init__(self, connection: Any, transport: Transport, *, window: int = 2**31 - 1) -> None:
        self.connection, self.transport = connection, transport
        self.encoder, self.decoder = Encoder(), Decoder()
        self.answers: dict[int, Answer] = {}
        self.next_id = 1
        self.rest = b""
        self.window = 65535
        self.first_window = window
        self.windows: dict[int, int] = {}
        self.goaway: h2.GoAwayFrame | None = None
        self.pongs = 0
        self.pings: list[bytes] = []
        self.settled = 0

    # ---- bytes

    def hello(self) -> bytes:
        settings = h2.SettingsFrame(0, settings={h2.SettingsFrame.INITIAL_WINDOW_SIZE: self.first_window})
        data = PREFACE + settings.serialize()
        if self.first_window > 65535:
            self.window = 2**31 - 1
            data += h2.WindowUpdateFrame(0, window_increment=2**31 - 1 - 65535).serialize()
        return data

    def head(self, path: str = INFER, *, end: bool = False, stream: int = 0, **fields: str) -> bytes:
        names = {name.replace("_", "-") if not name.startswith("triton") else name: value
                 for name, value in fields.items()}
        block = self.encoder.encode([
            (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "h"),
            ("te", "trailers"), ("content-type", "application/grpc"), *names.items(),
        ])  # fmt: skip
        stream = stream or self.next_id
        self.next_id = max(self.next_id, stream + 2)
        self.answers[stream] = Answer()
        self.windows[stream] = self.first_window
        frame = h2.HeadersFrame(stream, data=block, flags=["END_HEADERS", *(["END_STREAM"] if end else [])])
        return bytes(frame.serialize())

    def data(self, stream: int, data: bytes, *, end: bool = False) -> bytes:
        out = b""
        for at in range(0, len(data), 16384):
            out += h2.DataFrame(stream, data=data[at : at + 16384]).serialize()
        return out + (h2.DataFrame(stream, flags=["END_STREAM"]).serialize() if end else b"")

    def reset(self, stream: int, code: int = 8) -> bytes:
        return bytes(h2.RstStreamFrame(stream, error_code=code).serialize())

    def grant(self, stream: int, n: int) -> bytes:
        if stream:
            self.windows[stream] += n
        else:
            self.window += n
        return bytes(h2.WindowUpdateFrame(stream, window_increment=n).serialize())

    def ping(self) -> bytes:
        return bytes(h2.PingFrame(0, opaque_data=b"12345678").serialize())

    # ---- going in

    def feed(self, data: bytes, cut: int = SCRATCH) -> None:
        """Give bytes to the connection as a transport does, at most ``cut`` at a time; read what comes back."""
        for at in range(0, len(data), min(cut, SCRATCH)):
            if self.transport.lost:
                break
            piece = data[at : at + min(cut, SCRATCH)]
            memoryview(self.connection.get_buffer(-1))[: len(piece)] = piece
            self.connection.buffer_updated(len(piece))
        self.read()

    def open(self, path: str = INFER, *, end: bool = False, **fields: str) -> int:
        stream = self.next_id
        self.feed(self.head(path, end=end, **fields))
        return stream

    def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        self.feed(self.data(stream, data, end=end))

    def infer(self, message: bytes, **fields: str) -> int:
        stream = self.open(**fields)
        self.send(stream, framed(message), end=True)
        return stream

    # ---- coming back

    def read(self) -> None:
        if self.transport.full:
            return
        data = self.rest + self.transport.take()
        while len(data) >= 9:
            frame, length = h2.Frame.parse_frame_header(memoryview(data[:9]))
            if len(data) < 9 + length:
                break
            frame.parse_body(memoryview(data[9 : 9 + length]))
            data = data[9 + length :]
            self.take(frame)
        self.rest = data

    def take(self, frame: h2.Frame) -> None:
        answer = self.answers.get(frame.stream_id)
        if isinstance(frame, h2.HeadersFrame):
            assert answer is not None, "an answer to a call that was not made"
            assert not answer.ended
            assert "END_HEADERS" in frame.flags
            fields = dict(self.decoder.decode(frame.data))
            if answer.fields:
                assert "END_STREAM" in frame.flags
                answer.trailer = fields
            else:
                answer.fields = fields
            answer.ended = "END_STREAM" in frame.flags
        elif isinstance(frame, h2.DataFrame):
            assert answer is not None
            assert answer.fields
            assert not answer.ended
            answer.data += frame.data
            answer.ended = "END_STREAM" in frame.flags
            n = len(frame.data)
            self.window -= n
            self.windows[frame.stream_id] -= n
            assert self.window >= 0, "more data than the connection's window"
            assert self.windows[frame.stream_id] >= 0, "more data than the stream's window"
        elif isinstance(frame, h2.RstStreamFrame):
            if answer is not None:
                answer.reset = frame.error_code
        elif isinstance(frame, h2.GoAwayFrame):
            self.goaway = frame
        elif isinstance(frame, h2.PingFrame):
            if "ACK" in frame.flags:
                self.pongs += 1
            else:
                self.pings.append(frame.opaque_data)
        elif isinstance(frame, h2.SettingsFrame):
            self.settled += 1

    def outcome(self, stream: int) -> tuple[int | None, str]:
        answer = self.answers[stream]
        return answer.status, answer.text


class Rig:
    """A server and what drives it. Leaving it drops every connection and looks that nothing is in flight."""

    def __init__(self, **models: Any) -> None:
        self.loop, self.app, self.epoch = Loop(), App(), Epoch()
        self.app.models.update(models)
        self.server = GrpcServer(self.app, self.loop, self.epoch)
        self.server.attach()
        self.transports: list[Transport] = []
        self.clients: list[Client] = []

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *exc: object) -> None:
        for transport in self.transports:
            transport.lose()
        if exc[0] is None:
            self.until(lambda: self.server.in_flight == 0)
            assert self.app.errors == []
            assert self.server.connections == set()
        if self.loop.readers:
            self.server.detach()
        self.loop.ready.clear()

    def connect(self, *, hello: bool = True, lost_at_once: bool = False, window: int = 2**31 - 1) -> Client:
        connection = self.server()
        transport = Transport(lost_at_once=lost_at_once)
        transport.protocol = connection
        self.transports.append(transport)
        connection.connection_made(transport)
        client = Client(connection, transport, window=window)
        self.clients.append(client)
        if hello:
            client.feed(client.hello())
            client.feed(bytes(h2.SettingsFrame(0, flags=["ACK"]).serialize()))
        return client

    def deliver(self) -> None:
        """Hand out the responses that have come by now."""
        self.loop.run_ready()
        self.server.on_completions()
        self.loop.run_ready()
        for client in self.clients:
            client.read()

    def until(self, condition: Callable[[], bool]) -> None:
        """Let instances and the loop work until this holds."""
        while True:
            self.deliver()
            if condition():
                return
            ready, _, _ = select.select([self.server.ring.fileno()], [], [], LONG_S)
            if not ready:
                raise TimeoutError("nothing came")

    def ended(self, client: Client, *streams: int) -> None:
        def closed(stream: int) -> bool:
            answer = client.answers[stream]
            return answer.ended or answer.reset is not None

        self.until(lambda: all(closed(stream) for stream in streams or client.answers))


class Echo:
    """A Python call that sends each message back and ends with its client."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.told: list[Any] = []

    def message(self, data: bytes) -> None:
        self.told.append(data)
        self.call.send(data)

    def end(self) -> None:
        self.told.append("end")
        self.call.finish(0)

    def cancel(self) -> None:
        self.told.append("cancel")


def echoes(rig: Rig) -> list[Echo]:
    """Have each Python call handled by an ``Echo``; they are collected in the list that is returned."""
    made = []

    def start(call: Any) -> Echo:
        made.append(Echo(call))
        return made[-1]

    rig.app.start = start
    return made
