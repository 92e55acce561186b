"""The server's side of docs/python_worker.md in plain Python: an oracle that drives a real worker process.

Knows the wire from that page alone and shares nothing with the worker's code.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import queue
import socket
import struct
import subprocess
import sys
import threading
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

START = Path(__file__).resolve().parents[2] / "triton_fast" / "backends" / "python" / "worker" / "start.py"
WORK, ANSWERS, DONE, EVENTS = range(4)
CONTROL_END = 0x110000
KINDS = ["", "bool", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "O", "u2"]
BYTES, BF16 = 13, 14
WAIT_S = 30.0
# Another interpreter for the workers, with numpy: the models' may be older or newer than the server's.
PYTHON = os.environ.get("TF_WORKER_PYTHON", sys.executable)
# Path of the compiled client that workers are told of, "" for none; tests set it.
client = ""


class WorkerError(Exception):
    """The worker answered a control message with an error."""


def pad(data: bytes, to: int = 8) -> bytes:
    return data + bytes(-len(data) % to)


def serialize(items: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(item)) + item for item in items)


def deserialize(data: bytes) -> list[bytes]:
    items, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        items.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return items


@dataclass
class Tensor:
    name: str
    dtype: int
    dims: tuple[int, ...]
    data: bytes
    off: int = 0

    @property
    def value(self) -> Any:
        if self.dtype == BYTES:
            return deserialize(self.data)
        return np.frombuffer(self.data, np.dtype(KINDS[self.dtype])).reshape(self.dims)


def tensor(name: str, value: Any, dtype: int = 0) -> Tensor:
    if isinstance(value, list):
        return Tensor(name, BYTES, (len(value),), serialize(value))
    number = dtype or next(n for n, kind in enumerate(KINDS) if n and np.dtype(kind) == value.dtype)
    return Tensor(name, number, value.shape, value.tobytes())


@dataclass
class Request:
    inputs: list[Tensor]
    wanted: list[str] | None = None
    slot: int = 1
    generation: int = 1
    flags: int = 0
    correlation: int | str = 0
    timeout: int = 0
    request_id: str = ""
    params: str = ""
    trace: str = ""


@dataclass
class Response:
    kind: int
    slot: int
    generation: int
    code: int
    error: str
    params: dict[str, Any]
    outputs: dict[str, Tensor]
    final: bool


@dataclass
class Done:
    number: int
    code: int
    error: str
    responses: list[Response] | None


@dataclass
class Bls:
    call: int
    model: str
    options: int
    flags: int
    correlation: int | str
    timeout: int
    version: int
    wanted: list[str]
    request_id: str
    params: dict[str, Any]
    trace: str
    parent: tuple[int, int]
    inputs: dict[str, Tensor] = field(default_factory=dict)


class Peer:
    """A worker with the given model. Use as a context manager; ``close`` ends the process whatever it does."""

    def __init__(
        self, root: Path, source: str, inputs: Any = ("IN",), outputs: Any = ("OUT",), *, decoupled: bool = False,
        in_bytes: int = 8 << 20, out_bytes: int = 8 << 20, python: str = PYTHON, region: bool = True,
        env: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.version_dir = root / "m" / "1"
        self.version_dir.mkdir(parents=True, exist_ok=True)
        self.path = self.version_dir / "model.py"
        self.path.write_text(source)
        self.inputs, self.outputs, self.decoupled = list(inputs), list(outputs), decoupled
        self.in_off, self.in_bytes = CONTROL_END, in_bytes
        self.out_off, self.out_bytes = CONTROL_END + in_bytes, out_bytes
        size = self.out_off + out_bytes
        self.fd = os.memfd_create("region", os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
        self.map = mmap.mmap(self.fd, size)
        self._words, self._quads = memoryview(self.map).cast("I"), memoryview(self.map).cast("Q")
        struct.pack_into("<IIQQQQQ", self.map, 0, 0x31574654, 1, size, self.in_off, in_bytes, self.out_off, out_bytes)
        self.eventfds = [os.eventfd(0) for _ in range(4)]
        self.bump = self.in_off
        self.allocations: list[int] = []
        self.messages: queue.Queue[dict[str, Any]] = queue.Queue()
        self.replies: dict[str, Any] = {}
        self.blobs: list[bytes] = []
        # Messages of the worker that were read and not given back; it is as if clients still read them.
        self.holding = False
        self.unread: deque[int] = deque()
        self.shm_wait = WAIT_S
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._call = 0
        self._batch = 0
        self._closing = False
        mine, theirs = socket.socketpair()
        self.socket = mine
        fds = [theirs.fileno(), *([self.fd, *self.eventfds] if region else [-1] * 5)]
        argv = [python, "-u", "-X", "faulthandler", str(START), *map(str, fds)]
        given = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **(env or {})}
        self.process = subprocess.Popen(argv, pass_fds=[fd for fd in fds if fd >= 0], env=given)
        theirs.close()
        for ring in (WORK, ANSWERS):
            self._put64(self._ring(ring), 0)
        for ring in (DONE, EVENTS):
            self._put32(self._ring(ring) + 128, 1)
        self.done: queue.Queue[Done] = queue.Queue()
        self.events: queue.Queue[tuple[int, int, Any]] = queue.Queue()
        self._threads = [
            threading.Thread(target=self._read_control),
            threading.Thread(target=self._consume, args=(DONE, self._take_done)),
            threading.Thread(target=self._consume, args=(EVENTS, self._take_event)),
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        self._closing = True
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        for fd in self.eventfds[2:]:
            os.eventfd_write(fd, 1)
        try:
            self.process.wait(WAIT_S)
        finally:
            self.process.kill()
            self.process.wait()
        for thread in self._threads:
            thread.join(WAIT_S)
        self.socket.close()
        self._words.release()
        self._quads.release()
        self.map.close()
        for fd in (self.fd, *self.eventfds):
            os.close(fd)

    # Control

    @property
    def context(self) -> dict[str, Any]:
        folder = self.version_dir
        return {
            "model_path": str(self.path), "version_dir": str(folder), "model_dir": str(folder.parent),
            "model_name": "m", "instance_name": "m_0", "explicit_control": True, "native": client, "keep_bytes": 0,
            "bls_threads": 8, "shm_wait": self.shm_wait,
        }  # fmt: skip

    def send(self, message: dict[str, Any], blob: bytes = b"") -> None:
        text = json.dumps(message).encode()
        self.socket.sendall(struct.pack("<II", len(text), len(blob)) + text + blob)

    def ask(self, kind: str, **fields: Any) -> Any:
        self._call += 1
        self.send({"type": kind, "call": self._call, **fields})
        answer = self._answers.get(timeout=WAIT_S)
        assert answer["call"] == self._call
        if "error" in answer:
            raise WorkerError(answer["error"]["message"])
        return answer["value"]

    def init(self, **args: str) -> Any:
        given = {"model_config": "{}", "model_name": "m", "model_instance_name": "m_0", **args}
        return self.ask(
            "init", args=given, inputs=self.inputs, outputs=self.outputs, decoupled=self.decoupled, context=self.context
        )

    def message(self, kind: str) -> dict[str, Any]:
        """The next message of that kind; others before it are dropped."""
        while True:
            message = self.messages.get(timeout=WAIT_S)
            if message["type"] == kind:
                return message

    def _read_control(self) -> None:
        file = self.socket.makefile("rb")
        with contextlib.suppress(OSError):
            while len(head := file.read(8)) == 8:
                json_bytes, blob_bytes = struct.unpack("<II", head)
                message = json.loads(file.read(json_bytes))
                self.blobs.append(file.read(blob_bytes))
                if message["type"] == "answer":
                    self._answers.put(message)
                    continue
                self.messages.put(message)
                if "call" in message:
                    reply = self.replies.get(message["type"])
                    value = reply(message) if callable(reply) else reply
                    answer: dict[str, Any] = {"value": value}
                    if isinstance(value, Exception):
                        answer = {"error": {"code": 1, "message": str(value)}}
                    self.send({"type": "answer", "call": message["call"], **answer})
        file.close()

    # Region

    @staticmethod
    def _ring(ring: int) -> int:
        return 0x1000 + ring * 0x21000

    def word(self, off: int) -> int:
        return int(struct.unpack_from("<I", self.map, off)[0])

    def _put32(self, off: int, value: int) -> None:
        """One store: the worker looks at any moment."""
        self._words[off >> 2] = value

    def _put64(self, off: int, value: int) -> None:
        self._quads[off >> 3] = value

    def _taken(self, off: int) -> None:
        """What the worker sent has been read."""
        self.unread.append(off)
        while not self.holding and self.unread:
            self._put32(self.unread.popleft() - 64, 0)

    def release(self) -> None:
        """Give back what was read while ``holding``, and hold no longer."""
        self.holding = False
        while self.unread:
            self._put32(self.unread.popleft() - 64, 0)

    def cancel(self, slot: int, generation: int) -> None:
        self._put32(0x90000 + 4 * slot, generation)

    def hold(self, slot: int, generation: int) -> None:
        self._put32(0xD0000 + 4 * slot, generation)

    def in_use(self) -> list[int]:
        """Inbound allocations that the worker has not given back."""
        return [off for off in self.allocations if self.word(off - 64)]

    def outbound_in_use(self) -> int:
        """Pages of the outbound heap whose first word says so: every block begins one."""
        return sum(self.word(off) for off in range(self.out_off, self.out_off + self.out_bytes, 4096))

    def allocate(self, size: int) -> int:
        off = self.bump + 64
        self.bump = (off + size + 63) & ~63
        assert self.bump <= self.in_off + self.in_bytes
        struct.pack_into("<IIQ", self.map, off - 64, 1, 0, size)
        self.allocations.append(off)
        return off

    def publish(self, ring: int, kind: int, number: int = 0, off: int = 0, length: int = 0, *, arg: int = 0) -> None:
        base = self._ring(ring)
        (head,) = struct.unpack_from("<Q", self.map, base)
        slot = base + 0x1000 + head % 4096 * 32
        struct.pack_into("<IIQQQ", self.map, slot, kind, number, off, length, arg)
        self._put64(base, head + 1)
        os.eventfd_write(self.eventfds[ring], 1)

    def _consume(self, ring: int, take: Any) -> None:
        base, at = self._ring(ring), 0
        while not self._closing:
            os.eventfd_read(self.eventfds[ring])
            while at < struct.unpack_from("<Q", self.map, base)[0]:
                kind, number, off, length, _ = struct.unpack_from("<IIQQQ", self.map, base + 0x1000 + at % 4096 * 32)
                take(kind, number, off, length)
                at += 1
                self._put64(base + 64, at)

    def _payload(self, tensors: list[Tensor], names: list[str], records: Any) -> tuple[int, int]:
        """Allocate for a message: ``records(tensor -> record)`` gives its bytes, the same number each time."""
        plain = records(lambda one: self._tensor_record(one, names, 0))
        size, places = len(plain), []
        for one in tensors:
            size = (size + 63) & ~63
            places.append(size)
            size += len(one.data)
        off = self.allocate(size)
        where = {id(one): off + place for one, place in zip(tensors, places, strict=True)}
        for one in tensors:
            self.map[where[id(one)] : where[id(one)] + len(one.data)] = one.data
        data = records(lambda one: self._tensor_record(one, names, where[id(one)]))
        self.map[off : off + len(data)] = data
        return off, len(data)

    @staticmethod
    def _tensor_record(one: Tensor, names: list[str], off: int) -> bytes:
        index = names.index(one.name) if one.name in names else -1 - len(one.name.encode())
        head = struct.pack("<HHiQQ", one.dtype, len(one.dims), index, off, len(one.data))
        return head + struct.pack(f"<{len(one.dims)}q", *one.dims) + (pad(one.name.encode()) if index < 0 else b"")

    # Executions

    def execute(self, requests: list[Request]) -> int:
        def records(tensor_record: Any) -> bytes:
            made = struct.pack("<II", len(requests), 0)
            for one in requests:
                wanted = self.outputs if one.wanted is None else one.wanted
                number = one.correlation if isinstance(one.correlation, int) else 0
                text = one.correlation if isinstance(one.correlation, str) else ""
                texts = [part.encode() for part in (one.request_id, text, one.params, one.trace)]
                body = b"".join(map(tensor_record, one.inputs))
                body += pad(struct.pack(f"<{len(wanted)}i", *map(self.outputs.index, wanted)))
                body += b"".join(map(pad, texts))
                made += struct.pack(
                    "<IIIIQQQIIIIII", 64 + len(body), one.slot, one.generation, one.flags, number, one.timeout, 0,
                    *map(len, texts), len(one.inputs), len(wanted),
                ) + body  # fmt: skip
            return made

        tensors = [one for request in requests for one in request.inputs]
        off, length = self._payload(tensors, self.inputs, records)
        self._batch += 1
        self.publish(WORK, 1, self._batch, off, length)
        return self._batch

    def infer(self, *requests: Request) -> Done:
        number = self.execute(list(requests))
        done = self.done.get(timeout=WAIT_S)
        assert done.number == number
        return done

    def one(self, *inputs: Tensor, **fields: Any) -> Response:
        done = self.infer(Request(list(inputs), **fields))
        assert done.error == ""
        assert done.responses is not None
        return done.responses[0]

    def finalize(self) -> dict[str, Any]:
        self.publish(WORK, 2)
        message = self.message("finalized")
        assert self.process.wait(WAIT_S) == 0
        return message

    def event(self) -> tuple[int, int, Any]:
        return self.events.get(timeout=WAIT_S)

    def response(self) -> Response:
        kind, _, response = self.event()
        assert kind == 1
        assert isinstance(response, Response)
        return response

    def answer(
        self, call: int, *outputs: Tensor, error: str = "", code: int = -1, kind: int = 0, final: bool = True,
        params: str = "",
    ) -> None:  # fmt: skip
        text, extra = error.encode(), params.encode()

        def records(tensor_record: Any) -> bytes:
            body = b"".join(map(tensor_record, outputs)) + pad(text) + pad(extra)
            return struct.pack(
                "<IIIIiIIIII", 40 + len(body), kind, 0, 0, code, len(text), len(extra), len(outputs), int(final), 0
            ) + body  # fmt: skip

        self.publish(ANSWERS, 1, call, *self._payload(list(outputs), [], records))

    # What the worker sends

    def _tensors(self, at: int, count: int, names: list[str]) -> tuple[dict[str, Tensor], int]:
        found: dict[str, Tensor] = {}
        for _ in range(count):
            dtype, ndim, index, off, nbytes = struct.unpack_from("<HHiQQ", self.map, at)
            dims = struct.unpack_from(f"<{ndim}q", self.map, at + 24)
            at += 24 + 8 * ndim
            if index < 0:
                name = self.map[at : at + (-1 - index)].decode()
                at += len(pad(bytes(-1 - index)))
            else:
                name = names[index]
            assert off % 64 == 0 or self.in_off <= off < self.out_off
            found[name] = Tensor(name, dtype, dims, self.map[off : off + nbytes], off)
        return found, at

    def _params(self, at: int, length: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if length:
            (count,) = struct.unpack_from("<I", self.map, at)
            at += 8
            for _ in range(count):
                kind, key_bytes, value = struct.unpack_from("<IIQ", self.map, at)
                key = self.map[at + 16 : at + 16 + key_bytes].decode()
                at += 16 + len(pad(bytes(key_bytes)))
                if kind == 0:
                    found[key] = self.map[at : at + value].decode()
                    at += len(pad(bytes(value)))
                else:
                    found[key] = bool(value) if kind == 2 else value - (value >> 63 << 64)
        return found

    def _response(self, at: int) -> tuple[Response, int]:
        head = struct.unpack_from("<IIIIiIIIII", self.map, at)
        size, kind, slot, generation, code, error, params, outputs, flags, _ = head
        tensors, here = self._tensors(at + 40, outputs, self.outputs)
        text = self.map[here : here + error].decode()
        extra = self._params(here + len(pad(bytes(error))), params)
        return Response(kind, slot, generation, code, text, extra, tensors, bool(flags & 1)), at + size

    def _take_done(self, kind: int, number: int, off: int, length: int) -> None:
        if not length:
            self.done.put(Done(number, -1, "", None))
            return
        count, code, error, _ = struct.unpack_from("<IiII", self.map, off)
        done = Done(number, code, self.map[off + 16 : off + 16 + error].decode(), [])
        at = off + 16
        for _ in range(count):
            response, at = self._response(at)
            assert done.responses is not None
            done.responses.append(response)
        self._taken(off)
        self.done.put(done)

    def _take_event(self, kind: int, number: int, off: int, length: int) -> None:
        payload: Any = None
        if kind == 1:
            payload, _ = self._response(off)
        elif kind == 2:
            payload = self._bls(number, off)
        if length:
            self._taken(off)
        self.events.put((kind, number, payload))

    def _bls(self, number: int, off: int) -> Bls:
        (_, options, flags, inputs, correlation, timeout, version, wanted, model, request_id, text, params, trace, slot,
         generation) = struct.unpack_from("<IIIIQQqIIIIIIII", self.map, off)  # fmt: skip
        tensors, at = self._tensors(off + 72, inputs, [])
        names = []
        for _ in range(wanted):
            (length,) = struct.unpack_from("<I", self.map, at)
            names.append(self.map[at + 4 : at + 4 + length].decode())
            at += len(pad(bytes(4 + length)))
        texts = []
        for length in (model, request_id, text):
            texts.append(self.map[at : at + length].decode())
            at += len(pad(bytes(length)))
        extra = self._params(at, params)
        at += len(pad(bytes(params)))
        return Bls(
            number, texts[0], options, flags, texts[2] or correlation, timeout, version, names, texts[1], extra,
            self.map[at : at + trace].decode(), (slot, generation), tensors,
        )  # fmt: skip
