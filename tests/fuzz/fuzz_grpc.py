"""Fuzz a gRPC connection: mutated client bytes, cut anywhere, between completions, cancels, deadlines, slow readers and
Python calls that misbehave. No exception escapes, what comes back is whole HTTP/2 frames, and nothing is left over.

Run for TF_FUZZ_SECONDS (default 5). A failing case prints its seed: TF_FUZZ_CASE runs it alone. Instances are threads,
so a case need not fail each time. Meant for the AddressSanitizer build as well.
"""

from __future__ import annotations

import contextlib
import gc
import gzip
import os
import random
import re
import sys
import time
import zlib
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hyperframe import frame as h2

from tests.helpers.grpc_transport import INFER, STREAM, Client, Echo, Rig, counters, framed, request
from tests.helpers.models import ANY, ANY_OUT, INT32, Gate, first_number, make_model
from triton_fast import protos
from triton_fast._native.backends.identity import IdentityInstance
from triton_fast.errors import Internal

SECONDS = float(os.environ.get("TF_FUZZ_SECONDS", "5"))
PYTHON = "/inference.GRPCInferenceService/ServerLive"
PATHS = [INFER, INFER, INFER, STREAM, STREAM, STREAM, STREAM, PYTHON, PYTHON, "/x", ""]
FIELDS: list[tuple[str, list[str]]] = [
    ("grpc-timeout", ["1n", "1H", "1H", "99999999H", "5u", "x"]),
    ("grpc-encoding", ["gzip", "gzip", "gzip", "deflate", "br", "identity"]),
    ("grpc-accept-encoding", ["gzip", "gzip,deflate", "deflate", ",,"]), ("triton_grpc_error", ["true", ""]),
    ("key", ["secret", "wrong!"]), ("fwd-a", ["b", ""]), ("fwd-timeout", ["1"]), ("x" * 200, ["y" * 9000]),
    ("content-type", ["text/html", "application/grpc+proto"]), ("connection", ["close"]),
]


class Odd(Echo):
    """A Python call that may fail, finish others, or answer when it should not."""

    def __init__(self, call: Any, rng: random.Random, all_of_them: list[Any]) -> None:
        super().__init__(call)
        self.rng, self.all = rng, all_of_them

    def _act(self) -> None:
        how = self.rng.randrange(12)
        if how == 0:
            raise RuntimeError("odd")
        if how == 1:
            self.call.finish(self.rng.choice([0, 5, 99, -1]), "é\n%" * self.rng.choice([1, 5000]))
        elif how == 2:
            self.rng.choice(self.all).call.finish(0)
        elif how == 3:
            self.rng.choice(self.all).call.send(bytes(self.rng.choice([0, 1, 20_000])))

    def message(self, data: bytes) -> None:
        self._act()
        super().message(data)

    def end(self) -> None:
        self._act()
        if self.rng.random() < 0.8:
            super().end()

    def cancel(self) -> None:
        self._act()


class Models:
    """Made once: threads are dear."""

    def __init__(self) -> None:
        self.slow = Gate()
        self.many = Gate(held=False, answer=lambda requests: [self.answers(first_number(r)) for r in requests])
        self.odd = Gate(held=False, answer=lambda requests: [Internal("é odd") if first_number(r) % 3 == 0 else {
            "OUT": r["IN"]} for r in requests])  # fmt: skip
        shapes: dict[str, Any] = {"inputs": ANY, "outputs": ANY_OUT}
        self.models = {
            "i": make_model(IdentityInstance("i"), **shapes), "slow": make_model(self.slow, **shapes, max_batch=1),
            "many": make_model(self.many, **shapes, decoupled=True), "odd": make_model(self.odd, **shapes),
        }  # fmt: skip

    @staticmethod
    def answers(n: int) -> Any:
        for k in range(n % 5):
            yield {"OUT": (INT32, (1, n % 5000), bytes(4 * (n % 5000)))} if k != 3 else Internal("in between")
        if n % 7 == 0:
            raise Internal("at the end")
        return {"OUT": (INT32, (1, 1), b"last")} if n % 2 else None

    def stop(self) -> None:
        self.slow.open()
        for model in self.models.values():
            model.stop()


def infer_message(rng: random.Random) -> bytes:
    n = rng.choice([1, 1, 1, 3, 300, 2000, 12_000])
    data = request(rng.randrange(10_000), n, model=rng.choice(["i", "i", "slow", "many", "many", "odd", "odd", "none"]),
                   id=rng.choice(["", "id", "é"]), model_version=rng.choice(["", "", "", "1", "x"]))  # fmt: skip
    if rng.random() < 0.2:
        asked = protos.ModelInferRequest.FromString(data)
        asked.parameters["triton_enable_empty_final_response"].bool_param = True
        if rng.random() < 0.5:
            asked.outputs.add(name="OUT").parameters["classification"].int64_param = rng.choice([1, 5000])
        data = asked.SerializeToString()
    if rng.random() < 0.15:
        data = flip(data, rng)
    return bytes(data)


def flip(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(out) + 1)
        how = rng.randrange(4)
        if how == 0:
            out[at : at + 1] = bytes([rng.randrange(256)])
        elif how == 1:
            del out[at : at + rng.choice([1, 3, 9])]
        elif how == 2:
            out[at:at] = rng.randbytes(rng.choice([1, 3, 9]))
        elif out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
    return bytes(out)


def framed_messages() -> list[bytes]:
    """Made once: protobuf and zlib take longer than what is tested. The same in every run, so that a case is, too."""
    rng = random.Random(1)
    made = []
    for _ in range(600):
        message, flag = infer_message(rng), 0
        if rng.random() < 0.15:
            message, flag = rng.choice([gzip.compress, zlib.compress])(message), 1
        made.append(framed(message, flag))
    return made


MESSAGES = framed_messages()


class Case:
    def __init__(self, rng: random.Random, models: Models) -> None:
        self.rng = rng
        self.models = models
        self.rig = Rig(**models.models)
        self.odd: list[Odd] = []
        self.streams: list[tuple[Client, int]] = []
        self.taken = 0

    def start(self, call: Any) -> Any:
        if self.rng.random() < 0.1:
            raise RuntimeError("start")
        if self.rng.random() < 0.1:
            return None
        self.odd.append(Odd(call, self.rng, self.odd))
        return self.odd[-1]

    def run(self) -> None:
        rng, server = self.rng, self.rig.server
        self.rig.app.start = self.start
        server.compression_level = rng.choice([0, 1, 6])
        server.max_responses = rng.choice([0, 1, 8])
        server.max_message = rng.choices([2**31 - 1, 3000], [9, 1])[0]
        server.max_inflated = rng.choices([1 << 28, 1000], [9, 1])[0]
        server.max_metadata = rng.choices([16384, 300], [9, 1])[0]
        server.max_streams = rng.choices([1000, 3], [9, 1])[0]
        if rng.random() < 0.1:
            server.restrict_infer("Key", "secret")
        if rng.random() < 0.2:
            server.forward = re.compile("^fwd")
        try:
            for _ in range(rng.choice([1, 1, 2])):
                self.rig.clients.append(self.connect())
            for _ in range(rng.choice([5, 20, 60])):
                self.step()
        finally:
            self.end()

    def connect(self) -> Client:
        client = self.rig.connect(hello=False, window=self.rng.choice([0, 1, 5000, 65535, 2**31 - 1]),
                                  lost_at_once=self.rng.random() < 0.2)  # fmt: skip
        self.rig.clients.remove(client)
        self.feed(client, client.hello() if self.rng.random() < 0.95 else flip(client.hello(), self.rng))
        return client

    def feed(self, client: Client, data: bytes) -> None:
        """As a transport does it: nothing comes once it is closed."""
        at = 0
        while at < len(data) and not client.transport.closing:
            n = self.rng.choice([1, 5, 9, 100, 65536, 65536, 65536])
            piece = data[at : at + n]
            memoryview(client.connection.get_buffer(-1))[: len(piece)] = piece
            client.connection.buffer_updated(len(piece))
            at += n
        self.check(client)

    def check(self, client: Client) -> None:
        """What came back is frames that a client may get."""
        if client.transport.full:
            return
        data = client.rest + client.transport.take()
        if data.startswith(b"HTTP/1.1 400 ") or client.rest == b"HTTP":
            client.rest = b"HTTP"
            return
        while len(data) >= 9:
            frame, length = h2.Frame.parse_frame_header(memoryview(data[:9]), strict=True)
            assert length <= 1 << 24
            if len(data) < 9 + length:
                break
            frame.parse_body(memoryview(data[9 : 9 + length]))
            if isinstance(frame, h2.GoAwayFrame):
                client.goaway = frame
            assert not isinstance(frame, (h2.PushPromiseFrame, h2.ExtensionFrame)), frame
            data = data[9 + length :]
            self.taken += 1
        client.rest = data

    def head(self, client: Client) -> bytes:
        rng = self.rng
        fields = [(":method", "POST"), (":scheme", "http"), (":path", rng.choice(PATHS)), (":authority", "h"),
                  ("te", "trailers"), ("content-type", "application/grpc")]  # fmt: skip
        for _ in range(rng.choice([0, 0, 1, 2])):
            name, values = rng.choice(FIELDS[: len(FIELDS) if rng.random() < 0.2 else 4])
            fields.append((name, rng.choice(values)))
        if rng.random() < 0.05:
            rng.shuffle(fields)
        block = client.encoder.encode(fields, huffman=rng.random() < 0.1)
        stream = client.next_id if rng.random() < 0.97 else rng.randrange(1, 50)
        client.next_id += 2
        client.windows[stream] = 0
        self.streams.append((client, stream))
        flags = ["END_STREAM"] if rng.random() < 0.05 else []
        if rng.random() < 0.9:
            return bytes(h2.HeadersFrame(stream, data=block, flags=["END_HEADERS", *flags]).serialize())
        cut = rng.randrange(len(block) + 1)
        return bytes(h2.HeadersFrame(stream, data=block[:cut], flags=flags).serialize()
                     + h2.ContinuationFrame(stream, data=block[cut:], flags=["END_HEADERS"]).serialize())  # fmt: skip

    def body(self, client: Client, stream: int) -> bytes:
        rng = self.rng
        data = b""
        for message in rng.choices(MESSAGES, k=rng.choice([1, 1, 1, 3, 30])):
            if len(data) + len(message) < 100_000:      # more than the window would end the connection
                data += message
        if rng.random() < 0.1:
            data = data[: rng.randrange(len(data) + 1)]
        return client.data(stream, data, end=rng.random() < 0.6)

    def frames(self) -> None:
        """A few valid frames, of which some are then broken or change places."""
        rng = self.rng
        at = rng.randrange(len(self.rig.clients))
        client = self.rig.clients[at]
        if client.transport.closing or client.goaway:
            client = self.rig.clients[at] = self.connect()
        parts = []
        for _ in range(rng.choice([1, 2, 6])):
            mine = [stream for owner, stream in self.streams if owner is client]
            stream = rng.choice(mine[-3:] or [1])
            how = rng.randrange(14)
            if how < 4 or not mine:
                parts.append(self.head(client))
                if rng.random() < 0.8:
                    parts.append(self.body(client, self.streams[-1][1]))
            elif how < 7:
                parts.append(self.body(client, stream))
            elif how == 7:
                parts.append(client.reset(stream, rng.choice([0, 5, 8])))
            elif how == 8:
                n = rng.choice([1, 100, 5000, 1 << 20, 2**31 - 1 if rng.random() < 0.1 else 7])
                parts.append(bytes(h2.WindowUpdateFrame(rng.choice([0, stream]), window_increment=n).serialize()))
            elif how == 9:
                parts.append(bytes(h2.SettingsFrame(0, settings={
                    rng.choice([1, 3, 4, 4, 4, 6, 77, rng.choice([2, 5, 9])]):
                    rng.choice([0, 1, 16384, 65535, 2**31 - 1, 2**32 - 1 if rng.random() < 0.1 else 9000])
                }).serialize()))  # fmt: skip
            elif how == 10:
                other = rng.choice(mine or [3])
                parts.append(client.ping() if rng.random() < 0.5 else
                             bytes(h2.PriorityFrame(stream, depends_on=other).serialize()))  # fmt: skip
            elif how == 11:
                parts.append(bytes(h2.SettingsFrame(0, flags=["ACK"]).serialize()))
            elif how == 12:
                parts.append(bytes(h2.DataFrame(stream, data=rng.randbytes(20), pad_length=rng.choice([0, 9]),
                                                flags=["PADDED"]).serialize()))  # fmt: skip
            elif rng.random() < 0.2:
                parts.append(bytes(h2.GoAwayFrame(0, last_stream_id=rng.choice([0, stream])).serialize()))
        if rng.random() < 0.03:
            rng.shuffle(parts)
        if parts and rng.random() < 0.03:
            at = rng.randrange(len(parts))
            parts[at] = flip(parts[at], rng)
        self.feed(client, b"".join(parts))

    def step(self) -> None:
        rng, rig = self.rng, self.rig
        how = rng.randrange(40)
        transport = rng.choice(rig.transports)
        if how < 20:
            self.frames()
        elif how < 26:
            self.deliver()
        elif how == 26:
            rig.server.on_due()
        elif how < 30 and rig.app.jobs:
            job = rig.app.jobs.pop(rng.randrange(len(rig.app.jobs)))
            rig.loop.run_ready()
            if job.task is None:
                rig.app.jobs.append(job)
            elif rng.random() < 0.1:
                job.fail(RuntimeError("job"))
            else:
                try:
                    result = job.work()
                except Exception as error:
                    job.fail(error)
                else:
                    job.settle(lambda: result)
        elif how == 30:
            rig.server.stall_ns = rng.choice([0, 1 << 40])
            rig.server.tick()
        elif how < 33:
            self.models.slow.step()
        elif how == 33 and rng.random() < 0.2:
            rig.server.begin_drain()
        elif how == 34 and rng.random() < 0.2:
            rig.server.end_incomplete()
        elif how == 35:
            rig.epoch.advance()
        elif how == 36:
            transport.full = not transport.lost and not transport.closing
        elif how == 37:
            transport.drain()
        elif how == 38 and rng.random() < 0.3:
            transport.lose()
        elif self.odd:
            with contextlib.suppress(RuntimeError):
                rng.choice(self.odd)._act()

    def deliver(self) -> None:
        self.rig.loop.run_ready()
        self.rig.server.on_completions()
        self.rig.loop.run_ready()
        for client in self.rig.clients:
            self.check(client)

    def end(self) -> None:
        rig = self.rig
        for transport in rig.transports:
            transport.lose()
        rig.clients.clear()
        for job in rig.app.jobs:
            if job.task is not None:
                job.fail(RuntimeError("the end"))
        while rig.server.in_flight:
            self.models.slow.step()
            rig.until(lambda n=rig.server.in_flight: rig.server.in_flight < n)
        rig.loop.run_ready()
        rig.server.detach()
        known = ("odd", "start", "job", "the end", "internal")
        for error in rig.app.errors:
            assert str(error) in known, repr(error)


def one(seed: int, models: Models) -> int:
    case = Case(random.Random(seed), models)
    case.run()
    return case.taken


def main() -> int:
    models = Models()
    alone = os.environ.get("TF_FUZZ_CASE")
    first = int(alone or os.environ.get("TF_FUZZ_SEED") or time.time_ns() % 2**32)
    stop = time.monotonic() + SECONDS
    seed, frames = first, 0
    one(first, models)      # what is made once is made now
    gc.collect()
    base = counters()
    while time.monotonic() < stop:
        try:
            frames += one(seed, models)
            if seed % 16 == 0 or alone:
                gc.collect()
                assert counters() == base, (counters(), base)
        except BaseException:
            sys.stderr.write(f"case {seed}\n")
            raise
        seed += 1
        if alone:
            break
    gc.collect()
    assert counters() == base, (counters(), base)
    models.stop()
    assert frames, "nothing came back"
    sys.stdout.write(f"fuzz_grpc: {seed - first} cases, {frames} frames back, seed {first}, no finding\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
