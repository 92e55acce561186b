"""What a hostile client, or Python code that misbehaves, could do to a gRPC connection, and no longer can."""

from __future__ import annotations

import asyncio
import gzip
import struct
from queue import SimpleQueue

import pytest
from hyperframe import frame as h2

from tests.helpers.grpc_transport import INFER, STREAM, Client, Rig, counters_at_base, framed, request
from tests.helpers.models import ANY, ANY_OUT, INT32, LONG_S, Gate, first_number, served
from triton_fast import protos
from triton_fast._native.backends.identity import IdentityInstance
from triton_fast.config import IoSpec
from triton_fast.errors import Internal
from triton_fast.types import DataType

__all__ = ["counters_at_base"]

PYTHON = "/inference.GRPCInferenceService/ServerLive"
GZIP = 2


def out(value, n=1):
    return {"OUT": (INT32, (1, n), struct.pack("<i", value) * n)}


def identity(**options):
    return served(IdentityInstance("i"), inputs=ANY, outputs=ANY_OUT, **options)


def decoupled(answer, **options):
    gate = Gate(held=False, answer=lambda requests: [answer(first_number(inputs)) for inputs in requests])
    return served(gate, decoupled=True, inputs=ANY, outputs=ANY_OUT, **options)


class Handler:
    """A Python call; what it does is given by name."""

    def __init__(self, call, **does):
        self.call, self.does, self.told = call, does, []

    def message(self, data):
        self._on("message", data)

    def end(self):
        self._on("end")

    def cancel(self):
        self._on("cancel")

    def _on(self, what, *arguments):
        self.told.append((what, *arguments))
        if what in self.does:
            self.does[what](self.call)


def handlers(rig, **does):
    """Have each Python call handled by a ``Handler``; they are collected in the list that is returned."""
    made = []

    def start(call):
        made.append(Handler(call, **does))
        return made[-1]

    rig.app.start = start
    return made


def boom(*_):
    raise RuntimeError("boom")


def taken_errors(rig):
    errors = [str(error) for error in rig.app.errors]
    rig.app.errors.clear()
    return errors


# --- memory safety ----------------------------------------------------------------------------------------------------


def classified(message, classes=1):
    asked = protos.ModelInferRequest.FromString(message)
    asked.outputs.add(name="OUT").parameters["classification"].int64_param = classes
    return asked.SerializeToString()


def test_classification_that_fails_is_an_error_of_its_response():
    spec = {"inputs": (IoSpec("IN", DataType.BOOL, (-1,)),), "outputs": (IoSpec("OUT", DataType.BOOL, (-1,)),)}
    asked = protos.ModelInferRequest(model_name="m", id="the id")
    asked.inputs.add(name="IN", datatype="BOOL", shape=[1, 2])
    asked.raw_input_contents.append(b"\1\0")
    with served(IdentityInstance("i"), **spec) as model, Rig(m=model) as rig:
        client = rig.connect()
        stream = client.open(STREAM)
        client.send(stream, framed(classified(asked.SerializeToString())), end=True)
        rig.ended(client)
        (reply,) = client.answers[stream].replies()
        assert "unsupported type 'BOOL'" in reply.error_message
        assert (reply.infer_response.id, reply.infer_response.model_name) == ("the id", "m")
        assert client.outcome(stream) == (0, "")


def test_each_response_of_a_request_is_classified():
    def answer(n):
        yield out(1, 3)
        yield out(2, 3)

    with decoupled(answer) as model, Rig(m=model) as rig:
        client = rig.connect()
        stream = client.open(STREAM)
        client.send(stream, framed(classified(request(1))), end=True)
        rig.ended(client)
        kinds = [r.infer_response.outputs[0].datatype for r in client.answers[stream].replies()
                 if r.infer_response.outputs]  # fmt: skip
        assert kinds == ["BYTES", "BYTES"]


@pytest.mark.parametrize("error_mode", ["true", "false"])
def test_an_error_behind_a_response_that_is_being_compressed(error_mode):
    go_on = SimpleQueue()

    def answer(n):
        yield out(1, 3000)
        go_on.get(timeout=LONG_S)
        raise Internal("later")

    with decoupled(answer) as model, Rig(m=model) as rig:
        rig.server.compression_level = 1
        client = rig.connect()
        stream = client.open(STREAM, grpc_accept_encoding="gzip", triton_grpc_error=error_mode)
        client.send(stream, framed(request(1)), end=True)
        rig.until(lambda: rig.app.jobs)
        go_on.put(None)
        rig.until(lambda: rig.server.in_flight == 0)
        for job in rig.app.jobs:        # the error of a response is compressed behind it
            job.finish()
        rig.ended(client)
        assert client.outcome(stream) == ((13, "later") if error_mode == "true" else (0, ""))


@pytest.mark.parametrize("call_open", [True, False])
def test_a_task_that_is_cancelled_lets_go_of_what_it_compressed(call_open):
    with decoupled(lambda n: [out(1, 3000)]) as model, Rig(m=model) as rig:
        rig.server.compression_level = 1
        client = rig.connect()
        stream = client.open(STREAM, grpc_accept_encoding="gzip")
        client.send(stream, framed(request(1)), end=True)
        rig.until(lambda: rig.server.in_flight == 0)
        if not call_open:
            client.feed(client.reset(stream))
        rig.loop.tasks[0].cancel(asyncio.CancelledError())


def test_compressed_responses_count_against_the_limit_of_unsent_ones():
    with decoupled(lambda n: [out(k, 3000) for k in range(n)]) as model, Rig(m=model) as rig:
        rig.server.compression_level = 1
        rig.server.max_responses = 2
        client = rig.connect(window=0)
        stream = client.open(STREAM, grpc_accept_encoding="gzip")
        client.send(stream, framed(request(8)), end=True)
        for done in range(2):
            rig.until(lambda done=done: len(rig.app.jobs) > done)
            rig.app.jobs[done].finish()
        # Both are packed and unsent: the model waits.
        rig.deliver()
        assert len(rig.app.jobs) == 2
        client.feed(client.grant(stream, 1 << 20))
        for done in range(2, 8):
            rig.until(lambda done=done: len(rig.app.jobs) > done)
            rig.app.jobs[done].finish()
        rig.ended(client)
        assert [flag for flag, _ in client.answers[stream].messages()] == [1] * 8


def test_a_handler_whose_cancel_fails_is_let_go():
    with Rig() as rig:
        handlers(rig, cancel=boom)
        client = rig.connect()
        client.feed(client.reset(client.open(PYTHON)))
        assert taken_errors(rig) == ["boom"]


def test_deadlines_of_a_connection_that_a_failing_handler_takes_down():
    with Rig() as rig:
        made = handlers(rig, cancel=boom)
        client, other = rig.connect(), rig.connect()
        streams = [client.open(PYTHON, grpc_timeout="1n") for _ in range(4)]
        late = other.open(PYTHON, grpc_timeout="1n")
        rig.server.on_due()
        client.read()
        other.read()
        assert [handler.told for handler in made] == [[("cancel",)]] * 5
        assert [client.answers[stream].status for stream in streams] == [4] * 4
        assert other.outcome(late) == (4, "Deadline Exceeded")
        assert taken_errors(rig) == ["boom"] * 5


@pytest.mark.parametrize("how", ["finish", "send", "both"])
@pytest.mark.parametrize("by", ["reset", "deadline", "lost"])
def test_a_handler_that_answers_when_it_is_cancelled(how, by):
    def answer(call):
        if how != "finish":
            call.send(b"x")
        if how != "send":
            call.finish(0)

    with Rig() as rig:
        handlers(rig, cancel=answer)
        client = rig.connect()
        stream = client.open(PYTHON, grpc_timeout="1n")
        if by == "reset":
            client.feed(client.reset(stream))
        elif by == "deadline":
            rig.server.on_due()
        else:
            client.transport.lose()
        client.read()


def test_a_cancelled_handler_that_ends_other_calls_of_its_connection():
    """The cancel comes from within HTTP/2's sending, which must not be entered again."""
    with Rig() as rig:
        made = handlers(rig, cancel=lambda call: [handler.call.finish(0, "too") for handler in made])
        client = rig.connect()
        streams = [client.open(PYTHON, grpc_timeout="1H") for _ in range(5)]
        client.feed(b"".join(client.reset(stream) for stream in streams[:1]))
        rig.deliver()
        assert [client.outcome(stream) for stream in streams[1:]] == [(0, "too")] * 4
        streams = [client.open(PYTHON, grpc_timeout="1n") for _ in range(5)]
        rig.server.on_due()
        client.read()
        assert all(client.answers[stream].status in (0, 4) for stream in streams)


def test_a_stalled_call_whose_handler_ends_others():
    with Rig() as rig:
        made = handlers(rig, cancel=lambda call: [handler.call.finish(0, "too") for handler in made])
        client = rig.connect()
        streams = [client.open(PYTHON) for _ in range(3)]
        client.send(streams[0], b"\0\0\0")
        rig.server.stall_ns = 0
        rig.server.tick()
        rig.server.tick()       # resets the first while it sends, which cancels its handler
        client.read()
        assert client.answers[streams[0]].reset == 8
        assert [client.outcome(stream) for stream in streams[1:]] == [(0, "too")] * 2


def test_a_cancelled_handler_that_ends_a_call_of_another_connection():
    """Bytes of the one are gathered while the other has something to send: they must not get mixed up."""
    with Rig() as rig:
        made = handlers(rig, cancel=lambda call: made[-1].call.finish(0, "too"))
        client, other = rig.connect(), rig.connect()
        streams = [client.open(PYTHON) for _ in range(3)]
        theirs = other.open(PYTHON)
        other.take = lambda frame, take=other.take: (frames.append(type(frame).__name__), take(frame))
        frames = []
        for stream in streams:
            client.send(stream, b"\0\0\0")
        rig.server.stall_ns = 0
        rig.server.tick()
        rig.server.tick()
        rig.deliver()
        assert [client.answers[stream].reset for stream in streams] == [8] * 3
        assert other.outcome(theirs) == (0, "too")
        assert frames == ["HeadersFrame", "RstStreamFrame"]


def test_a_tick_that_ends_the_connection_pings_no_more():
    with Rig() as rig:
        client = rig.connect()
        rig.server.keepalive_idle = True
        rig.server.keepalive_ns = 1
        rig.server.tick()
        rig.server.max_age_ns = 1
        client.transport.closing = "by the peer"
        rig.server.tick()


@pytest.mark.parametrize("path", [INFER, STREAM])
@pytest.mark.parametrize("what", ["deflate", "create_task", "call_soon"])
def test_memory_that_runs_out_on_the_way(what, path):
    """Whichever call of Python fails: no request is lost, none is given back twice, other connections go on."""

    def no_memory(*arguments):
        del arguments
        raise MemoryError("none")

    with identity() as model, Rig(m=model) as rig:
        rig.server.compression_level = 1
        client, other = rig.connect(), rig.connect()
        target = rig.app if what == "deflate" else rig.loop
        streams = [client.open(path, grpc_accept_encoding="gzip") for _ in range(3)]
        works = getattr(target, what)
        setattr(target, what, no_memory)
        for stream in streams:
            client.send(stream, framed(request(1, 3000 if what == "create_task" else 1)), end=True)
        rig.until(lambda: rig.server.in_flight == 0)
        setattr(target, what, works)
        assert set(taken_errors(rig)) == {"none"} or what == "call_soon"    # needed only while an instance sleeps
        stream = other.infer(request(2))
        rig.ended(other)
        assert other.outcome(stream) == (0, "")


# --- liveness ---------------------------------------------------------------------------------------------------------


def test_answers_of_a_stream_that_is_held_again_at_once_are_sent():
    """Each look lets a held stream go on until it is full again; all it says on the way must go out."""
    with Rig() as rig:
        client = rig.connect(window=0)
        stream = client.open(STREAM)
        client.send(stream, framed(b"") * 150_000, end=True)    # each is answered with an error, which is much longer
        client.feed(client.grant(0, 2**30) + client.grant(stream, 2**31 - 1))
        answer = client.answers[stream]
        assert len(answer.messages()) == 150_000
        assert answer.status == 0


def test_a_failing_drain_of_one_connection_leaves_the_others():
    with Rig() as rig:
        clients = [rig.connect() for _ in range(3)]
        for client in clients:
            client.transport.write = boom
        rig.server.begin_drain()
        assert taken_errors(rig) == ["boom"] * 3
        assert [client.transport.closing for client in clients] == ["aborted"] * 3


def test_a_peer_that_takes_no_bytes_is_cut_off():
    with identity() as model, Rig(m=model) as rig:
        client = rig.connect()
        client.transport.full = True
        client.infer(request(1, 3000))
        rig.until(lambda: rig.server.in_flight == 0)
        rig.server.stall_ns = 0
        rig.server.tick()
        assert client.transport.closing == ""   # the first look
        client.transport.pieces.pop()           # it took something
        rig.server.tick()
        assert client.transport.closing == ""
        rig.server.tick()
        assert client.transport.closing == "aborted"


def test_a_call_that_waits_for_the_server_is_not_stalled():
    gate = Gate()
    with served(gate, inputs=ANY, outputs=ANY_OUT, max_batch=1) as model, Rig(m=model) as rig:
        client = rig.connect()
        stream = client.open(STREAM)
        client.send(stream, framed(request(1, 1)) * 1100 + b"\0\0\0")
        rig.server.stall_ns = 0
        for _ in range(3):
            rig.server.tick()
        client.read()
        assert client.answers[stream].reset is None
        gate.open()
        rig.until(lambda: len(client.answers[stream].messages()) == 1100)


# --- bounds -----------------------------------------------------------------------------------------------------------


def raw_headers(client: Client, *, bad: bool = False) -> bytes:
    block = client.encoder.encode([
        (":method", "POST"), (":scheme", "http"), (":path", PYTHON), (":authority", "h"),
        ("content-type", "application/grpc"), *([("connection", "close")] if bad else []),
    ])  # fmt: skip
    client.next_id += 2
    return bytes(h2.HeadersFrame(client.next_id - 2, data=block, flags=["END_HEADERS"]).serialize())


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("acked", [False, True])
def test_refusals_that_nobody_reads_do_not_pile_up(bad, acked):
    with Rig() as rig:
        handlers(rig)
        client = rig.connect(hello=False)
        client.feed(client.hello() + (bytes(h2.SettingsFrame(0, flags=["ACK"]).serialize()) if acked else b""))
        client.transport.full = True
        client.feed(client.ping())
        for _ in range(40):
            client.feed(b"".join(raw_headers(client, bad=bad) for _ in range(500)))
        client.transport.drain()
        client.read()
        assert client.transport.closing


def test_settings_that_come_without_end_end_the_connection():
    """Each changes the window of every call: cheap to say, not to do."""
    with Rig() as rig:
        handlers(rig)
        client = rig.connect()
        for _ in range(100):
            client.open(PYTHON)
        change = h2.SettingsFrame(0, settings={h2.SettingsFrame.INITIAL_WINDOW_SIZE: 70000}).serialize()
        for _ in range(10):
            client.feed(change * 100)
            if client.transport.closing:
                break
        assert client.goaway.error_code == 11
        assert client.transport.closing


def test_settings_now_and_then_are_taken():
    with Rig() as rig:
        client = rig.connect()
        for n in range(50):
            settings = {h2.SettingsFrame.INITIAL_WINDOW_SIZE: 70000 + n}
            client.feed(h2.SettingsFrame(0, settings=settings).serialize())
        assert client.goaway is None


def test_a_head_of_endless_continuations_ends_the_connection():
    with Rig() as rig:
        handlers(rig)
        client = rig.connect()
        client.feed(h2.HeadersFrame(1, data=client.encoder.encode([(":method", "POST")])).serialize())
        for _ in range(1000):
            client.feed(h2.ContinuationFrame(1, data=b"").serialize() * 10)
            if client.transport.closing:
                break
        assert client.transport.closing


def test_a_name_too_long_for_any_model_is_not_carried_around():
    with identity() as model, Rig(m=model) as rig:
        client = rig.connect()
        for asked in (request(1, model="n" * 100_000), request(1, model_version="0" * 100_000)):
            client.infer(asked)
        rig.ended(client)
        assert all(len(name) < 5000 and len(version) < 5000 for name, version in rig.app.resolved)


def test_only_short_names_are_kept():
    with identity() as model, Rig(m=model) as rig:
        client = rig.connect()
        asked = request(1, model_version="0" * 3000 + "1")
        client.infer(asked)
        client.infer(asked)
        rig.ended(client)
        assert len(rig.app.resolved) == 2


def test_a_small_message_that_inflates_to_much_does_not_hold_the_loop():
    plain = request(0, 1 << 18)
    with identity() as model, Rig(m=model) as rig:
        client = rig.connect()
        packed = gzip.compress(plain, mtime=0)
        assert len(packed) < 4096
        stream = client.open(grpc_encoding="gzip")
        client.send(stream, framed(packed, flag=1), end=True)
        rig.deliver()
        (job,) = rig.app.jobs
        job.finish()
        rig.ended(client)
        assert client.outcome(stream) == (0, "")


def test_a_handler_may_bound_its_messages():
    with Rig() as rig:
        made = handlers(rig)
        start = rig.app.start

        def bounded(call):
            handler = start(call)
            handler.limit = 100
            return handler

        rig.app.start = bounded
        client = rig.connect()
        fits, over = client.open(PYTHON), client.open(PYTHON)
        client.send(fits, framed(bytes(100)))
        client.send(over, b"\0\0\0\0\x65")
        assert client.outcome(over) == (8, "Received message larger than max (101 vs. 100)")
        assert [handler.told for handler in made] == [[("message", bytes(100))], [("cancel",)]]


def test_a_long_text_is_cut_to_what_clients_take():
    with Rig() as rig:
        handlers(rig, end=lambda call: call.finish(13, "é" * 20_000))
        client = rig.connect()
        stream = client.open(PYTHON, end=True)
        text = client.answers[stream].text
        assert 1000 < len(text) < 8000
        assert text.replace("%C3%A9", "") in ("", "%C3")


def test_early_deadlines_do_not_make_the_server_look_each_time():
    with Rig() as rig:
        handlers(rig)
        client = rig.connect()
        for _ in range(10):
            client.open(PYTHON, grpc_timeout="1H")
        rig.loop.timers[-1].fire()
        stream = client.open(PYTHON, grpc_timeout="1n")
        (timer,) = rig.loop.timers
        assert 0 < timer.delay <= 0.01
        while client.answers[stream].status is None:
            rig.loop.timers[-1].fire()
            client.read()
