"""Every way a gRPC call can end in every state it can be in, without sockets: nothing is left over, nothing is used
after it was freed (under ``make asan``), and what was decided is what the client hears.
"""

from __future__ import annotations

import contextlib
import gzip
import struct
from queue import SimpleQueue

import pytest
from hyperframe import frame as h2

from tests.helpers.grpc_transport import (
    INFER,
    STREAM,
    Answer,
    Rig,
    counters,
    counters_at_base,
    echoes,
    framed,
    request,
)
from tests.helpers.models import ANY, ANY_OUT, INT32, LONG_S, Gate, first_number, served
from triton_fast._native.backends.identity import IdentityInstance

__all__ = ["counters_at_base"]

PYTHON = "/inference.GRPCInferenceService/ServerLive"
SHAPES = {"inputs": ANY, "outputs": ANY_OUT}
BIG = 12_000    # elements: more than one frame, so that the rest is sent from where it lies


def out(value, n=1):
    return {"OUT": (INT32, (1, n), struct.pack("<i", value) * n)}


class State:
    """One call brought into a state. ``go_on`` lets everything run to its end."""

    def __init__(self, rig, gate):
        self.rig, self.gate, self.stream, self.client = rig, gate, 0, None
        self.decided = None     # the status, if it is no longer open
        self.handlers = echoes(rig)

    def open(self, path=INFER, *, window=2**31 - 1, **fields):
        self.client = self.rig.connect(window=window)
        self.stream = self.client.open(path, grpc_timeout="1n", **fields)

    def put(self, data, *, end=False):
        self.client.send(self.stream, data, end=end)

    def take_all(self):
        """The client reads whatever there is."""
        self.client.transport.drain()
        self.client.feed(self.client.grant(0, 1 << 20) + self.client.grant(self.stream, 1 << 20))

    def go_on(self):
        self.gate.open()
        while self.rig.app.jobs or self.rig.server.in_flight:
            while self.rig.app.jobs:
                self.rig.app.jobs.pop(0).finish()
            if self.rig.server.in_flight:
                n = self.rig.server.in_flight
                self.rig.until(lambda n=n: self.rig.app.jobs or self.rig.server.in_flight < n)
            self.rig.loop.run_ready()

    def before_message(self):
        self.open()

    def in_head(self):
        self.open()
        block = self.client.encoder.encode([(":method", "POST"), (":scheme", "http"), (":path", STREAM)])
        self.client.feed(h2.HeadersFrame(self.client.next_id, data=block).serialize())
        self.client.answers[self.client.next_id] = Answer()

    def in_prefix(self):
        self.open()
        self.put(b"\0\0\0")

    def in_message(self):
        self.open(STREAM)
        self.put(framed(request(1, 100))[:200])

    def before_end(self):
        self.open()
        self.put(framed(request(1)))

    def queued(self):
        self.open(STREAM)
        self.put(framed(request(1)))
        self.gate.taken()
        self.put(framed(request(2)) + framed(request(3)), end=True)

    def running(self):
        self.open()
        self.put(framed(request(1)), end=True)
        self.gate.taken()

    def running_in_a_stream(self):
        self.open(STREAM)
        self.put(framed(request(1)) + framed(request(2)))
        self.gate.taken()

    def in_the_ring(self):
        self.open(STREAM)
        before = counters()["blocks"]
        self.put(framed(request(1)))
        self.gate.taken()
        self.gate.step()
        while counters()["blocks"] <= before:   # the output is made; the ring is not looked at
            pass

    def between_responses(self):
        self.open(STREAM)
        self.put(framed(request(1, model="many")))
        self.rig.until(lambda: self.client.answers[self.stream].data)

    def unsent(self):
        self.open(window=0)
        self.put(framed(request(1, BIG, model="i")), end=True)
        self.rig.until(lambda: self.rig.server.in_flight == 0)
        self.decided = 0

    def unsent_of_many(self):
        self.open(STREAM, window=0)
        self.put(framed(request(1, model="many")))
        self.rig.until(lambda: counters()["live_outs"])

    def half_sent(self):
        self.open(STREAM, window=4000)
        self.put(framed(request(1, BIG, model="i")) + framed(request(2, BIG, model="i")))
        self.rig.until(lambda: self.rig.server.in_flight == 0)

    def paused(self):
        self.open(STREAM)
        self.client.transport.full = True
        self.put(framed(request(1, BIG, model="i")) * 3)
        self.rig.until(lambda: self.rig.server.in_flight == 0)

    def out_of_order(self):
        self.open(STREAM)
        self.put(framed(request(1)))
        self.gate.taken()
        self.put(framed(request(2, BIG, model="i")) + framed(request(3, model="none")))
        self.rig.until(lambda: self.rig.server.in_flight == 1)

    def packing(self):
        self.rig.server.compression_level = 1
        self.open(STREAM, grpc_accept_encoding="gzip")
        self.put(framed(request(1, BIG, model="i")) + framed(request(2, BIG, model="i")))
        self.rig.until(lambda: len(self.rig.app.jobs) == 2)

    def packing_of_many(self):
        self.rig.server.compression_level = 1
        self.open(STREAM, grpc_accept_encoding="gzip")
        self.put(framed(request(BIG, model="many")))
        self.rig.until(lambda: self.rig.app.jobs)

    def packing_the_only_one(self):
        self.rig.server.compression_level = 6
        self.open(grpc_accept_encoding="gzip, deflate")
        self.put(framed(request(1, BIG, model="i")), end=True)
        self.rig.until(lambda: self.rig.app.jobs)

    def inflating(self):
        self.open(grpc_encoding="gzip")
        self.put(framed(gzip.compress(request(1, 1 << 18, model="i")), flag=1), end=True)
        self.rig.loop.run_ready()
        assert self.rig.app.jobs

    def inflating_with_more_behind(self):
        self.open(STREAM, grpc_encoding="gzip")
        self.put(framed(gzip.compress(request(1, 1 << 18, model="i")), flag=1) + framed(request(2)) + b"\0\0")
        self.rig.loop.run_ready()
        assert self.rig.app.jobs

    def held(self):
        self.open(STREAM)
        self.put(framed(request(1)) * 1100)

    def python_open(self):
        self.open(PYTHON)
        self.put(framed(b"x") + b"\0\0")

    def python_finished(self):
        self.open(PYTHON)
        self.handlers[-1].call.finish(3, "no")
        self.decided = 3

    def python_unsent(self):
        self.open(PYTHON, window=3)
        self.put(framed(b"y" * 100))
        self.handlers[-1].call.finish(0)
        self.decided = 0

    def refused(self):
        self.open("/none", grpc_encoding="br")
        self.decided = 12

    def ended_early(self):
        self.open()
        self.put(framed(request(1)) * 2)
        self.decided = 13


STATES = [name for name in vars(State) if not name.startswith("_") and name not in ("open", "put", "take_all", "go_on")]


def by_reset(state):
    state.client.feed(state.client.reset(state.stream))


def by_deadline(state):
    state.rig.server.on_due()
    state.take_all()
    state.go_on()
    state.client.read()
    assert state.client.answers[state.stream].status == (4 if state.decided is None else state.decided)


def by_loss(state):
    state.client.transport.lose()


def by_loss_at_once(state):
    state.client.transport.lost_at_once = True
    state.rig.server.abort_all()


def by_end_of_file(state):
    assert not state.client.connection.eof_received()
    state.client.transport.close()
    state.rig.deliver()
    state.client.transport.lose()


def by_garbage(state):
    state.client.feed(b"\xff" * 100)
    state.client.feed(bytes(h2.PingFrame(0).serialize()))


def by_drain(state):
    state.rig.server.begin_drain()
    state.rig.server.end_incomplete()
    state.take_all()
    state.go_on()
    state.rig.server.tick()


def by_ticks(state):
    state.rig.server.stall_ns = 0
    state.rig.server.keepalive_ns = 1
    state.rig.server.keepalive_timeout_ns = 1
    state.rig.server.keepalive_idle = True
    for _ in range(6):
        state.rig.server.tick()
    assert state.client.transport.closing == "aborted"


def by_detach(state):
    state.rig.server.detach()
    state.take_all()


def by_stop_of_the_model(state):
    state.gate.open()
    state.rig.app.models["m"].stop(abort=True)
    state.take_all()


def by_running_on(state):
    state.take_all()


ENDS = [by_reset, by_deadline, by_loss, by_loss_at_once, by_end_of_file, by_garbage, by_drain, by_ticks, by_detach,
        by_stop_of_the_model, by_running_on]  # fmt: skip


@contextlib.contextmanager
def in_state(name):
    gate, many = Gate(), Gate(held=False)
    steps = SimpleQueue()

    def generate(n):
        yield out(1, n)
        steps.get(timeout=LONG_S)
        yield out(2, n)

    many.answer = lambda requests: [generate(first_number(r)) for r in requests]
    with served(many, **SHAPES, decoupled=True) as generator, served(IdentityInstance("i"), **SHAPES) as identity, \
            served(gate, **SHAPES, max_batch=1) as model, Rig(m=model, i=identity, many=generator) as rig:
        rig.server.max_responses = 1
        try:
            state = State(rig, gate)
            getattr(state, name)()
            steps.put(None)
            yield state
        finally:
            steps.put(None)
            gate.open()


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", STATES)
def test_every_end_in_every_state(name, end):
    with in_state(name) as state:
        end(state)
        state.go_on()


@pytest.mark.parametrize("name", STATES)
def test_every_state_left_alone(name):
    with in_state(name) as state:
        state.client.transport.lose()
        state.go_on()


@pytest.mark.parametrize("error", [RuntimeError("boom"), MemoryError()])
@pytest.mark.parametrize("name", ["packing", "packing_of_many", "packing_the_only_one", "inflating",
                                  "inflating_with_more_behind"])  # fmt: skip
def test_compression_that_fails(name, error):
    with in_state(name) as state:
        state.rig.app.jobs.pop(0).fail(error)
        state.go_on()
        state.rig.ended(state.client)
        assert state.client.answers[state.stream].status == 13
        assert state.rig.app.errors == [error]
        state.rig.app.errors.clear()
