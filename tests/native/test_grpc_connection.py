"""A gRPC connection step by step, without sockets: whole exchanges at every cut, order, flow control, models that
change, Python calls that misbehave. Each test gives back all that was taken (the fixture looks).
"""

from __future__ import annotations

import contextlib
import struct

import pytest

from tests.helpers.grpc_transport import INFER, STREAM, Rig, counters, counters_at_base, echoes, first, framed, request
from tests.helpers.models import ANY, ANY_OUT, INT32, STOPPED, Gate, first_number, live, make_model, served
from triton_fast import protos
from triton_fast._native.backends.identity import IdentityInstance
from triton_fast._native.backends.repeat import RepeatInstance
from triton_fast.config import IoSpec
from triton_fast.errors import Internal
from triton_fast.types import DataType

__all__ = ["counters_at_base"]

PYTHON = "/inference.GRPCInferenceService/ServerLive"
SHAPES = {"inputs": ANY, "outputs": ANY_OUT}
BIG = 12_000    # elements: more than one frame, so that the rest is sent from where it lies


def out(value, n=1):
    return {"OUT": (INT32, (1, n), struct.pack("<i", value) * n)}


@contextlib.contextmanager
def rigged(instance=None, **options):
    """A rig that serves model m, by default identity; and the model."""
    with served(instance or IdentityInstance("i"), **{**SHAPES, **options}) as model, Rig(m=model) as rig:
        try:
            yield rig
        finally:
            if isinstance(instance, Gate):
                instance.open()


def infer_value(answer):
    ((flag, data),) = answer.messages()
    assert flag == 0
    return first(protos.ModelInferResponse.FromString(data))


# --- exchanges --------------------------------------------------------------------------------------------------------


def test_a_unary_call():
    with rigged() as rig:
        client = rig.connect()
        stream = client.infer(request(5, 4, id="the id"))
        rig.ended(client)
        answer = client.answers[stream]
        assert answer.fields == {":status": "200", "content-type": "application/grpc"}
        assert answer.trailer == {"grpc-status": "0"}
        reply = protos.ModelInferResponse.FromString(answer.messages()[0][1])
        assert (reply.id, reply.model_name, list(reply.outputs[0].shape)) == ("the id", "m", [1, 4])
        assert list(reply.raw_output_contents) == [struct.pack("<i", 5) * 4]


def test_a_stream_with_errors_between():
    with rigged() as rig:
        client = rig.connect()
        stream = client.open(STREAM)
        client.send(stream, b"".join(framed(request(n, model="m" if n % 2 else "none")) for n in range(6)), end=True)
        rig.ended(client)
        missing = "Request for unknown model: 'none' is not found"
        assert client.answers[stream].values() == [missing, 1, missing, 3, missing, 5]
        assert client.outcome(stream) == (0, "")


def test_a_decoupled_request():
    spec = {
        "inputs": (IoSpec("IN", INT32, (-1,)), IoSpec("DELAY", DataType.UINT32, (-1,), optional=True),
                   IoSpec("WAIT", DataType.UINT32, (1,), optional=True)),
        "outputs": (IoSpec("OUT", INT32, (1,)), IoSpec("IDX", DataType.UINT32, (1,))),
        "max_batch": 0, "decoupled": True, "dynamic": False,
    }  # fmt: skip
    with rigged(RepeatInstance("r"), **spec) as rig:
        client = rig.connect()
        stream = client.open(STREAM)
        asked = protos.ModelInferRequest(model_name="m", id="d")
        asked.inputs.add(name="IN", datatype="INT32", shape=[3])
        asked.raw_input_contents.append(struct.pack("<3i", 4, 5, 6))
        asked.parameters["triton_enable_empty_final_response"].bool_param = True
        client.send(stream, framed(asked.SerializeToString()), end=True)
        rig.ended(client)
        assert client.answers[stream].values() == [4, 5, 6, None]
        finals = [r.infer_response.parameters["triton_final_response"].bool_param
                  for r in client.answers[stream].replies()]  # fmt: skip
        assert finals == [False, False, False, True]
        refused = client.infer(asked.SerializeToString())
        assert client.outcome(refused)[0] == 12


def test_a_python_call():
    with Rig() as rig:
        made = echoes(rig)
        client = rig.connect()
        stream = client.open(PYTHON, x_key="value")
        client.send(stream, framed(b"one") + framed(b""))
        client.send(stream, framed(b"two"), end=True)
        assert [data for _, data in client.answers[stream].messages()] == [b"one", b"", b"two"]
        assert client.outcome(stream) == (0, "")
        assert made[0].told == [b"one", b"", b"two", "end"]
        assert (made[0].call.path, made[0].call.metadata["x-key"]) == (PYTHON, "value")


def whole_exchange(client):
    """Bytes of three calls and a ping, and the streams of the calls."""
    unary, stream, python = 1, 3, 5
    data = client.hello() + client.head(INFER) + client.data(unary, framed(request(1)), end=True)
    data += client.head(STREAM) + client.data(stream, framed(request(2)) + framed(request(3, model="x")), end=True)
    data += client.ping() + client.head(PYTHON) + client.data(python, framed(b"echo"), end=True)
    return data


def check_exchange(client):
    answers = client.answers
    assert [answers[n].status for n in (1, 3, 5)] == [0, 0, 0]
    assert infer_value(answers[1]) == 1
    assert answers[3].values() == [2, "Request for unknown model: 'x' is not found"]
    assert answers[5].messages() == [(0, b"echo")]
    assert client.pongs == 1
    assert client.goaway is None


def test_an_exchange_cut_at_every_byte():
    with rigged() as rig:
        echoes(rig)
        cut = 0
        while True:
            client = rig.connect(hello=False)
            data = whole_exchange(client)
            if cut > len(data):
                break
            client.feed(data[:cut])
            client.feed(data[cut:])
            rig.ended(client)
            check_exchange(client)
            client.transport.lose()
            rig.clients.clear()
            cut += 1


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_an_exchange_in_pieces(size):
    with rigged() as rig:
        echoes(rig)
        client = rig.connect(hello=False)
        client.feed(whole_exchange(client), size)
        rig.ended(client)
        check_exchange(client)


@pytest.mark.parametrize("cut", [1, 20, 60, 100, 140, 200, 300, 400])
def test_an_exchange_that_breaks_off(cut):
    with rigged() as rig:
        echoes(rig)
        client = rig.connect(hello=False)
        client.feed(whole_exchange(client)[:cut])


def test_answers_through_a_window_of_one_byte():
    with rigged() as rig:
        client = rig.connect(window=1)
        stream = client.infer(request(9, 2))
        rig.until(lambda: client.answers[stream].data)
        while not client.answers[stream].ended:
            before = len(client.answers[stream].data)
            client.feed(client.grant(stream, 1))
            assert len(client.answers[stream].data) <= before + 1
        assert infer_value(client.answers[stream]) == 9


@pytest.mark.parametrize("window", [1, 1000, 12_000, 20_000])
def test_tensors_by_reference_through_small_windows(window):
    with rigged() as rig:
        client = rig.connect(window=window)
        stream = client.infer(request(9, BIG))
        rig.until(lambda: client.answers[stream].data)
        while not client.answers[stream].ended:
            client.feed(client.grant(stream, 4999))
        reply = protos.ModelInferResponse.FromString(client.answers[stream].messages()[0][1])
        assert reply.raw_output_contents[0] == struct.pack("<i", 9) * BIG


def test_more_pieces_than_one_write_takes():
    with rigged() as rig:
        client = rig.connect()
        client.transport.full = True
        client.feed(client.ping())      # from now on the transport is paused
        streams = [client.infer(request(n, BIG)) for n in range(100)]
        rig.until(lambda: rig.server.in_flight == 0)
        client.transport.drain()
        rig.ended(client)
        assert [infer_value(client.answers[stream]) for stream in streams] == list(range(100))


def test_a_paused_transport_in_the_middle_of_a_response():
    with rigged() as rig:
        client = rig.connect()
        big = 1 << 17
        streams = [client.infer(request(n, big)) for n in range(4)]
        client.transport.full = True
        rig.until(lambda: rig.server.in_flight == 0)
        views = [piece for piece in client.transport.pieces if isinstance(piece, memoryview)]
        assert views, "nothing was given by reference"
        assert client.transport.paused
        client.transport.drain()
        client.read()
        for n, stream in enumerate(streams):
            reply = protos.ModelInferResponse.FromString(client.answers[stream].messages()[0][1])
            assert reply.raw_output_contents[0] == struct.pack("<i", n) * big


def test_pieces_outlive_their_connection():
    with rigged() as rig:
        client = rig.connect()
        stream = client.infer(request(3, BIG))
        client.transport.full = True
        rig.until(lambda: rig.server.in_flight == 0)
        client.transport.lose()
        assert live()["blocks"] >= 1
        client.read()
        assert infer_value(client.answers[stream]) == 3


# --- order and holding ------------------------------------------------------------------------------------------------


def test_a_stream_answers_in_the_order_of_its_requests():
    slow = Gate()
    with served(slow, **SHAPES) as other, rigged() as rig:
        rig.app.models["slow"] = other
        client = rig.connect()
        stream = client.open(STREAM)
        client.send(stream, framed(request(1, model="slow")))
        client.send(stream, b"".join(framed(request(n)) for n in (2, 3)) + framed(request(4, model="none")), end=True)
        rig.until(lambda: rig.server.in_flight == 1)
        assert client.answers[stream].values() == []
        slow.open()
        rig.ended(client)
        assert client.answers[stream].values() == [1, 2, 3, "Request for unknown model: 'none' is not found"]


def test_decoupled_requests_do_not_wait_for_others():
    slow = Gate()
    with served(slow, **SHAPES) as other, rigged(
        Gate(held=False, answer=lambda requests: [[out(first_number(r)), out(0)] for r in requests]), decoupled=True
    ) as rig:
        rig.app.models["slow"] = other
        client = rig.connect()
        stream = client.open(STREAM)
        client.send(stream, framed(request(1, model="slow")) + framed(request(2)), end=True)
        rig.until(lambda: rig.server.in_flight == 1)
        assert client.answers[stream].values() == [2, 0]
        slow.open()
        rig.ended(client)
        assert client.answers[stream].values() == [2, 0, 1]


def test_a_stream_with_too_many_requests_is_held_and_goes_on():
    gate = Gate()
    with rigged(gate, max_batch=1) as rig:
        client = rig.connect()
        stream = client.open(STREAM)
        client.send(stream, b"".join(framed(request(n)) for n in range(1500)), end=True)
        assert rig.server.in_flight == 1024
        gate.open()
        rig.ended(client)
        assert client.answers[stream].values() == list(range(1500))


def test_a_stream_with_too_much_unread_is_held_and_goes_on():
    with rigged() as rig:
        client = rig.connect(window=0)
        client.feed(client.grant(0, 2**30))
        stream = client.open(STREAM)
        n = 1 << 17
        for k in range(6):
            client.send(stream, framed(request(k, n)))
            rig.until(lambda: rig.server.in_flight == 0)
        asked = len(rig.app.resolved)
        client.send(stream, framed(request(7)) + framed(request(8)), end=True)
        rig.deliver()
        client.feed(client.grant(stream, 2**31 - 1))
        rig.ended(client)
        assert asked == 1       # the model is resolved once
        assert client.answers[stream].values() == [0, 1, 2, 3, 4, 5, 7, 8]


def test_the_first_error_ends_a_stream_that_asked_for_it():
    gate = Gate()
    with rigged(gate, max_batch=1) as rig:
        client = rig.connect()
        stream = client.open(STREAM, triton_grpc_error="true")
        client.send(stream, b"".join(framed(request(n)) for n in range(100)))
        gate.taken()
        client.send(stream, framed(request(1, model="none")) + framed(request(2)))
        assert client.outcome(stream) == (5, "Request for unknown model: 'none' is not found")
        assert rig.server.in_flight == 1        # what was queued is taken back
        assert client.answers[stream].reset == 0


def test_an_error_of_a_model_ends_a_stream_that_asked_for_it():
    def answer(requests):
        return [Internal("no") if first_number(r) == 3 else out(first_number(r)) for r in requests]

    with rigged(Gate(held=False, answer=answer), max_batch=1) as rig:
        client = rig.connect()
        stream = client.open(STREAM, triton_grpc_error="true")
        client.send(stream, b"".join(framed(request(n)) for n in range(50)), end=True)
        rig.ended(client)
        assert client.answers[stream].values() == [0, 1, 2]
        assert client.outcome(stream) == (13, "no")


# --- ends and models --------------------------------------------------------------------------------------------------


def test_a_drain_lets_what_runs_end_and_closes():
    gate = Gate()
    with rigged(gate) as rig:
        client, idle = rig.connect(), rig.connect()
        stream = client.infer(request(1))
        gate.taken()
        half = client.open()
        client.send(half, b"\0")
        rig.server.begin_drain()
        client.read()
        assert client.goaway.last_stream_id == 2**31 - 1
        refused = client.open()
        assert client.outcome(refused)[0] == 14
        rig.server.end_incomplete()
        assert client.outcome(half)[0] == 14 or client.read() is None
        assert idle.transport.closing == "closed"
        assert client.transport.closing == ""
        gate.open()
        rig.ended(client)
        assert infer_value(client.answers[stream]) == 1
        assert client.transport.closing == "closed"


def test_models_are_remembered_until_the_epoch_changes():
    old = make_model(IdentityInstance("i"), **SHAPES)
    with Rig(m=old) as rig:
        client = rig.connect()
        for _ in range(3):
            client.infer(request(1))
        rig.ended(client)
        assert rig.app.resolved == [("m", "")]
        new = make_model(IdentityInstance("i"), **SHAPES)
        rig.app.models["m"] = new
        rig.epoch.advance()
        del old
        models = live()["models"]
        rig.server.tick()
        assert live()["models"] == models - 1
        client.infer(request(1))
        rig.ended(client)
        assert rig.app.resolved == [("m", "")] * 2
        rig.app.models.clear()
        rig.epoch.advance()
        gone = client.infer(request(1))
        assert client.outcome(gone)[0] == 5
        del new
        assert live()["models"] == models - 2


def test_a_stopped_model_is_resolved_again():
    stopped, model = make_model(IdentityInstance("i"), **SHAPES), make_model(IdentityInstance("i"), **SHAPES)
    with Rig(m=stopped) as rig:
        client = rig.connect()
        client.infer(request(1))
        rig.ended(client)
        rig.app.models["m"] = model
        stopped.stop()
        stream = client.infer(request(2))
        rig.ended(client)
        assert infer_value(client.answers[stream]) == 2
        model.stop()
        refused = client.infer(request(3))
        assert client.outcome(refused) == (14, STOPPED)


def test_a_look_up_that_fails_ends_its_call_alone():
    with rigged() as rig:
        rig.app.models["bad"] = RuntimeError("boom")
        client = rig.connect()
        unary, stream = client.infer(request(1, model="bad")), client.open(STREAM)
        client.send(stream, framed(request(1)) + framed(request(1, model="bad")) + framed(request(2)))
        good = client.infer(request(3))
        rig.ended(client)
        assert [client.answers[n].status for n in (unary, stream, good)] == [13, 13, 0]
        assert len(rig.app.errors) == 2
        rig.app.errors.clear()


# --- Python calls -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["start", "message", "end"])
def test_python_that_fails_ends_its_call_alone(what):
    def boom(*_):
        raise RuntimeError("boom")

    with Rig() as rig:
        made = echoes(rig)
        start = rig.app.start

        def failing(call):
            handler = start(call)
            if what == "start":
                boom()
            setattr(handler, what, boom)
            return handler

        rig.app.start = failing
        client = rig.connect()
        stream = client.open(PYTHON)
        client.send(stream, framed(b"x"), end=True)
        assert client.outcome(stream) == (13, "internal error, see the server log")
        rig.app.start = start
        other = client.open(PYTHON, end=True)
        assert client.outcome(other) == (0, "")
        assert [str(error) for error in rig.app.errors] == ["boom"]
        rig.app.errors.clear()
        assert "cancel" in made[0].told or what == "start"


def test_a_python_call_may_finish_twice_and_send_after_it():
    with Rig() as rig:
        made = echoes(rig)
        client = rig.connect()
        stream = client.open(PYTHON)
        call = made[0].call
        call.send(b"one")
        call.finish(5, "first")
        call.finish(0, "second")
        call.send(b"two")
        client.read()
        assert client.answers[stream].messages() == [(0, b"one")]
        assert client.outcome(stream) == (5, "first")
        client.transport.lose()
        call.send(b"three")
        call.finish(0)
        assert call.buffered == 0


def test_a_python_call_that_is_held_for_ever():
    with Rig() as rig:
        made = echoes(rig)
        client = rig.connect()
        before = counters()["live_calls"]
        client.open(PYTHON)
        client.transport.lose()
        assert counters()["live_calls"] == before + 1       # the handler has it
        assert made[0].told == ["cancel"]
        made[0].call.send(b"x")
        made.clear()


def test_nothing_is_started_that_was_refused():
    with Rig() as rig:
        rig.server.restrict_infer("Key", "secret")
        made = echoes(rig)
        client = rig.connect()
        denied = client.open(INFER, key="wrong!")
        assert client.outcome(denied)[0] == 14
        allowed = client.open(STREAM, key="secret", end=True)
        assert client.outcome(allowed) == (0, "")
        assert client.outcome(client.open(PYTHON, grpc_timeout="x"))[0] == 13
        assert made == []
