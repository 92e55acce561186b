"""What was answered within the submit of a gRPC request goes to its call behind what came before, over the ring."""

from __future__ import annotations

import struct

import pytest
from hyperframe import frame as h2

from tests.helpers.ensemble_models import ints, io, step, values, zoo
from tests.helpers.grpc_transport import INFER, STREAM, Rig, counters_at_base, framed, request
from tests.helpers.models import LONG_S
from triton_fast import protos
from triton_fast._native.sched.inprocess import StreamCall

__all__ = ["counters_at_base"]


def count(requests):
    """The answer to [n] is 0 to n - 1, one by one."""
    return [({"OUT": ints(k)} for k in range(values(one["IN"])[0])) for one in requests]


def numbers(data):
    """OUT of each response in a stream's bytes; None of one that has no outputs."""
    found = []
    while data:
        size = int.from_bytes(data[1:5], "big")
        answer = protos.ModelStreamInferResponse.FromString(data[5 : 5 + size])
        assert not answer.error_message
        raw = answer.infer_response.raw_output_contents
        found.append(struct.unpack("<i", raw[0])[0] if raw else None)
        data = data[5 + size :]
    return found


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_stream_that_ends_within_its_submit_keeps_its_order(n):
    with zoo() as z:
        counter = z.add("count", count, inputs=(io("IN"),), decoupled=True)
        z.add("gone", count).stop()
        resolve = z.resolve

        def late(name, version):
            # Who submits looks up anew, for "gone" takes nothing: meanwhile the other step comes to its end.
            if z.asked.count("gone") == 1 and name == "gone":
                again = StreamCall(counter, [("IN", *ints(0))])
                assert again.take(LONG_S)
                z.inline("gone")
            return resolve(name, version)

        z.resolve = late
        stream = step("count", {"IN": "IN"}, {"OUT": "OUT"}, decoupled=True)
        steps = [stream, step("gone", {"IN": "IN"}, {"OUT": "u"})]
        model = z.ensemble("e", steps, inputs=(io("IN"),), outputs=(io("OUT"), io("u")))
        with Rig(m=model) as rig:
            client = rig.connect()
            stream = client.open(STREAM)
            client.send(stream, framed(request(n)), end=True)
            rig.ended(client, stream)
            assert numbers(client.answers[stream].data) == list(range(n))
        assert z.asked.count("gone") == 2


@pytest.mark.parametrize("n", [1, 3000])
def test_what_is_kept_of_a_stream_leaves_in_order(n):
    with zoo() as z, Rig(m=z.inline("m")) as rig:
        client = rig.connect()
        stream = client.open(STREAM)
        client.send(stream, b"".join(framed(request(k)) for k in range(n)), end=True)
        rig.ended(client, stream)
        assert numbers(client.answers[stream].data) == list(range(n))


@pytest.mark.parametrize("path", [INFER, STREAM])
@pytest.mark.parametrize("other", [False, True])
def test_a_call_that_ends_in_the_read_that_brought_it(path, other):
    """The answer is kept while nghttp2 goes on reading, and finds no call then."""
    with zoo() as z, Rig(m=z.inline("m")) as rig:
        client = rig.connect()
        stream, beside = client.open(path), client.open(path)
        data = client.data(stream, framed(request(1)), end=True)
        data += h2.RstStreamFrame(stream, error_code=8).serialize()
        data += client.data(beside, framed(request(2)), end=True) if other else b""
        client.feed(data)
        if other:
            rig.ended(client, beside)
            assert client.answers[beside].status == 0
        assert not client.answers[stream].data
        assert rig.server.in_flight == 0


def test_a_connection_that_breaks_in_the_read_that_brought_it():
    with zoo() as z, Rig(m=z.inline("m")) as rig:
        client = rig.connect()
        stream = client.open(STREAM)
        client.feed(client.data(stream, framed(request(1)) * 10) + b"\0\0\1\0\0\0\0\0\0?")
        assert client.transport.lost or client.goaway is not None
        assert rig.server.in_flight == 0
