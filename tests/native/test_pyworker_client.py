"""The compiled client of Python workers against a peer in plain Python that plays the server's side."""

from __future__ import annotations

import gc
import importlib.machinery
import json
import os
import select
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.pyworker_peer import ANSWERS, CANCEL_AT, DONE, EVENTS, HOLD_AT, SLOTS, WORK, Peer, strings
from triton_fast._native.pyworker import client

NUMPY = {1: "bool", 2: "uint8", 3: "uint16", 4: "uint32", 5: "uint64", 6: "int8", 7: "int16", 8: "int32", 9: "int64",
         10: "float16", 11: "float32", 12: "float64"}
STRING, BF16, FP32 = 13, 14, 11


class Unusual(Exception):
    """Arguments that the compiled part leaves to the classes of the worker."""


class Tensor(client.TensorCore):
    __slots__ = ()

    def _construct(self, *arguments):
        if len(arguments) != 2:
            raise Unusual(arguments)
        name, array = arguments
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "SUfi":
            raise Unusual(name)
        if array.dtype.kind in "SU":
            self._set(name, STRING, array.astype(object))
        else:
            self._set(name, FP32, np.ascontiguousarray(array, dtype="float32"))

    def _no_numpy(self):
        raise Unusual("BF16")

    def _bad_strings(self, raw, count):
        raise Unusual(raw.tobytes(), count)


class Request(client.RequestCore):
    __slots__ = ("note",)


class Response(client.ResponseCore):
    __slots__ = ()

    def _construct(self, output_tensors, error, parameters):
        self._set(output_tensors or [], error, parameters, json.dumps(parameters or {}))


class Failure:
    def __init__(self, message, code=1):
        self.given = (message, code)

    def message(self):
        return self.given[0]

    def code(self):
        return self.given[1]


INPUTS, OUTPUTS = ("INPUT", "TEXT"), ("OUTPUT", "SECOND", "THIRD")


def transport_of(peer, inputs=INPUTS, outputs=OUTPUTS):
    transport = client.Transport(*peer.worker_fds, spin_us=0)
    transport.bind(Tensor, Request, Response, Failure, inputs, outputs)
    return transport


@pytest.fixture
def peer():
    with Peer() as made:
        yield made


@pytest.fixture
def transport(peer):
    return transport_of(peer)


def one_request(peer, transport, *inputs, **fields):
    off, size = peer.execution(peer.request(inputs, **fields))
    (request,) = client.decode_batch(transport, off, size)
    return off, request


# ---- serialized strings ----

elements = st.lists(st.one_of(st.binary(max_size=20), st.text(st.characters(codec="utf-8"), max_size=20), st.integers(),
                              st.none()), max_size=30)


def as_bytes(element):
    return element if isinstance(element, bytes) else str(element).encode()


def object_array(items):
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


@given(elements)
def test_strings_round_trip(items):
    raw = client.encode_bytes(object_array(items))
    assert raw == strings(*map(as_bytes, items))
    for count in (len(items), -1):
        decoded = client.decode_bytes(raw, count)
        assert decoded.dtype == object and decoded.tolist() == [as_bytes(item) for item in items]


@given(st.lists(st.binary(max_size=9), max_size=9), st.data())
def test_strings_that_lie_are_refused(items, data):
    raw = strings(*items)
    cut = data.draw(st.integers(0, len(raw)))
    fits = {sum(4 + len(item) for item in items[:k]): k for k in range(len(items) + 1)}
    for count in range(len(items) + 2):
        if fits.get(cut) == count:
            assert client.decode_bytes(raw[:cut], count).tolist() == items[:count]
        else:
            with pytest.raises(ValueError, match="serialized strings"):
                client.decode_bytes(raw[:cut], count)
    with pytest.raises(ValueError, match="serialized strings"):
        client.decode_bytes(raw + b"\xff\xff\xff\xff", -1)


def test_strings_of_other_arrays():
    assert client.encode_bytes(np.array([b"a", b"bc\0d", b""], dtype="S8")) == strings(b"a", b"bc\0d", b"")
    assert client.encode_bytes(np.array(["ä", "b"])) == strings("ä".encode(), b"b")
    table = np.array([[b"a", b"b"], [b"c", b"d"]], dtype=object)
    assert client.encode_bytes(table.T) == strings(b"a", b"c", b"b", b"d")
    assert client.encode_bytes(np.array(b"x", dtype=object)) == strings(b"x")


def test_an_array_that_changes_while_it_is_read_is_refused():
    class Spiteful:
        def __str__(self):
            array[0] = b"much longer than it was"
            return "x"

    array = object_array([b"a", Spiteful()])
    with pytest.raises(ValueError, match="changed"):
        client.encode_bytes(array)


def test_an_element_without_text_raises_its_own_error():
    with pytest.raises(UnicodeEncodeError):
        client.encode_bytes(object_array(["\ud800"]))


# ---- executions ----

@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize("dims", [(2, 3), (5,), (), (0, 4), (1, 2, 1, 3)])
def test_every_datatype_comes_as_a_view_and_goes_back(peer, transport, dtype, dims):
    size = int(np.prod(dims, dtype=int)) * np.dtype(NUMPY[dtype]).itemsize
    data = bytes(k % 2 if dtype == 1 else k * 7 % 120 for k in range(size))
    off, request = one_request(peer, transport, (0, dtype, dims, data))
    tensor = client.get_input_tensor_by_name(request, "INPUT")
    array = tensor.as_numpy()
    assert (tensor.name(), tensor.triton_dtype(), tensor.shape(), tensor.is_cpu()) == ("INPUT", dtype, list(dims), True)
    assert array.dtype == NUMPY[dtype] and array.shape == dims and array.tobytes() == data
    assert tensor.as_numpy() is array
    if size:
        assert array.flags.writeable
        first = off + (8 + 64 + 24 + 8 * len(dims) + 8 + 63) // 64 * 64     # after the records
        peer.memory[first] ^= 1
        assert array.tobytes() != data, "the array is a copy"
        peer.memory[first] ^= 1
    done, _ = client.encode_done(transport, [request], [Response([Tensor("OUTPUT", array)])])
    assert [t[:4] for t in peer.done(done)[0]["outputs"]] == [(0, dtype, dims, data)]


def test_bf16_and_strings(peer):
    transport = transport_of(peer, outputs=("OUTPUT", "TEXT", "SECOND"))
    words, raw = np.arange(3, dtype="uint16").tobytes(), strings(b"one", b"", b"three", b"4")
    _, request = one_request(peer, transport, (0, BF16, (3,), words), (1, STRING, (2, 2), raw), wanted=(0, 1))
    number, text = request.inputs()
    with pytest.raises(Unusual):
        number.as_numpy()
    assert number._raw().dtype == "uint16" and number._raw().tolist() == [0, 1, 2]
    assert text.as_numpy().tolist() == [[b"one", b""], [b"three", b"4"]]
    assert text._raw().tobytes() == raw
    text.as_numpy()[0, 1] = "new"
    raw = strings(b"one", b"new", b"three", b"4")
    done, _ = client.encode_done(transport, [request], [Response([text])])
    assert peer.done(done)[0]["outputs"][0][1:4] == (STRING, (2, 2), raw)
    assert text._raw().tobytes() == raw
    own = Tensor.__new__(Tensor)
    own._set("SECOND", BF16, b"\1\2\3\4", (1, 2))
    assert own.shape() == [1, 2] and own._raw().tolist() == [[0x201, 0x403]]
    response = Response([Tensor("OUTPUT", text.as_numpy()), own, Tensor("else", np.array(["x"]))])
    done, _ = client.encode_done(transport, [request], [response])
    # SECOND is an output that was not asked for; "else" is none, which the server is to say.
    unknown = ("else", STRING, (1,), strings(b"x"))
    assert [t[:4] for t in peer.done(done)[0]["outputs"]] == [(0, STRING, (2, 2), raw), unknown]
    _, request = one_request(peer, transport, wanted=(0, 1, 2))
    done, _ = client.encode_done(transport, [request], [response])
    assert [t[:4] for t in peer.done(done)[0]["outputs"]][1] == (2, BF16, (1, 2), b"\1\2\3\4")


def test_fields_of_a_request(peer, transport):
    _, request = one_request(peer, transport, slot=7, generation=9, flags=3, correlation=1 << 63, timeout=12,
                             wanted=(2, 0), request_id="näme".encode(), params=b'{"a": 1.5}', trace=b'{"t": 1}')
    assert isinstance(request, Request)
    for _ in range(2):
        assert (request.request_id(), request.correlation_id(), request.flags()) == ("näme", 1 << 63, 3)
        assert (request.timeout(), request.parameters(), request._trace_text()) == (12, '{"a": 1.5}', '{"t": 1}')
        assert request.requested_output_names() == {"THIRD", "OUTPUT"} and request._wanted == ("THIRD", "OUTPUT")
        assert (request._slot, request._generation, request.inputs()) == (7, 9, [])
    assert client.get_input_tensor_by_name(request, "INPUT") is None
    request._flags = 1
    assert request.flags() == 1
    _, request = one_request(peer, transport, correlation="text")
    assert (request.correlation_id(), request.request_id(), request.parameters()) == ("text", "", "{}")


def test_cancel_and_hold_words(peer, transport):
    _, request = one_request(peer, transport, slot=65535, generation=5)
    assert not request.is_cancelled() and not transport.is_held(65535, 5)
    peer.put32(CANCEL_AT + 65535 * 4, 4)
    assert not request.is_cancelled()
    peer.put32(CANCEL_AT + 65535 * 4, 5)
    assert request.is_cancelled() and transport.is_cancelled(65535, 5)
    peer.put32(HOLD_AT + 65535 * 4, 5)
    assert transport.is_held(65535, 5)
    waiter = threading.Thread(target=transport.wait_hold, args=(65535, 5))
    waiter.start()
    peer.put32(HOLD_AT + 65535 * 4, 0)
    waiter.join(60)
    assert not waiter.is_alive()


def test_tensors_that_models_make(transport):
    array = np.arange(6, dtype="float32").reshape(2, 3)
    tensor = Tensor("T", array)
    assert tensor.as_numpy() is array and (tensor.name(), tensor.shape()) == ("T", [2, 3])
    turned = Tensor("T", array.T)       # not contiguous: left to the class
    assert turned.as_numpy().flags.c_contiguous and (turned.as_numpy() == array.T).all()
    for arguments in ((), ("T",), ("", None), ("T", [1]), (3, "x"), ("T", np.zeros(2, "complex64"))):
        with pytest.raises(Unusual):
            Tensor(*arguments)
    with pytest.raises(ValueError, match="needs 8"):
        Tensor.__new__(Tensor)._set("T", BF16, b"123", (4,))
    with pytest.raises(ValueError, match="already"):
        tensor._set("T", FP32, array)
    half_made = Tensor.__new__(Tensor)
    assert half_made.name() == "" and half_made.shape() == []
    with pytest.raises(ValueError, match="no data"):
        half_made.as_numpy()
    with pytest.raises(TypeError):
        Response([tensor])._set([None], None, None, None)


# ---- messages that lie ----

GOOD = {"slot": 3, "generation": 2, "correlation": "seq", "wanted": (0, 1), "request_id": b"id", "params": b"{}",
        "trace": b"{}"}
# place in the first request record (8 bytes after the payload's start), format, value
LIES = [(0, "I", 0), (0, "I", 63), (0, "I", 72), (0, "I", 0xFFFFFFF8), (4, "I", 65536), (40, "I", 4096),
        (40, "I", 2**32 - 1), (44, "I", 999), (48, "I", 2**32 - 1), (52, "I", 77), (56, "I", 2),
        (56, "I", 2**32 - 1), (60, "I", 500), (60, "I", 2**32 - 1),
        (64, "H", 0), (64, "H", 15), (66, "H", 3), (66, "H", 33), (66, "H", 0xFFFF), (68, "i", 2), (68, "i", -1),
        (68, "i", -(2**31)), (72, "Q", 0), (72, "Q", 2**64 - 8), (72, "Q", 1 << 40), (80, "Q", 63), (80, "Q", 2**63),
        (88, "q", 17), (88, "q", -16), (88, "q", 2**62), (96, "q", 2), (104, "i", 3), (104, "i", -1)]


@pytest.mark.parametrize(("place", "form", "value"), LIES)
def test_lies_of_an_execution_are_refused(peer, transport, place, form, value):
    off, size = peer.execution(peer.request([(0, FP32, (1, 16), bytes(64))], **GOOD))
    assert len(client.decode_batch(transport, off, size)) == 1
    peer.put32(off - 64, 1)
    struct.pack_into("<" + form, peer.memory, off + 8 + place, value)
    with pytest.raises(ValueError, match="malformed"):
        client.decode_batch(transport, off, size)
    assert peer.in_use(off) == 0 and transport.region.stats()["leases"] == 0


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_damage_reads_outside(data):
    with Peer(1 << 16, 1 << 16) as peer:
        transport = transport_of(peer)
        inputs = [(0, FP32, (1, 2), bytes(8)), (1, STRING, (2,), strings(b"a", b"bcd"))]
        if answers := data.draw(st.booleans()):
            outputs = [(name, *rest) for name, (_, *rest) in zip(("A", "BB"), inputs, strict=True)]
            off, size = peer.answer(outputs, error=b"e", params=b"{}")
        else:
            off, size = peer.execution(peer.request(inputs, **GOOD), peer.request(inputs))
        for _ in range(data.draw(st.integers(1, 3))):
            place = off + data.draw(st.integers(0, size // 4 - 1)) * 4
            peer.put32(place, data.draw(st.one_of(st.integers(0, 300), st.integers(0, 2**32 - 1))))
        size = data.draw(st.one_of(st.just(size), st.integers(0, size)))
        try:
            if answers:
                response, _ = client.decode_answer(transport, off, size)
                tensors = response.output_tensors() if response else []
            else:
                requests = client.decode_batch(transport, off, size)
                for r in requests:
                    for text in (r.request_id(), r.correlation_id(), r.parameters(), r._trace_text()):
                        assert isinstance(text, (str, int))
                    assert all(name in OUTPUTS for name in r.requested_output_names())
                tensors = [t for r in requests for t in r.inputs()]
        except ValueError:
            return
        for tensor in tensors:
            assert isinstance(tensor.name(), str)
            try:
                assert list(tensor.as_numpy().shape) == tensor.shape()
                tensor.as_numpy().tolist()
            except (ValueError, Unusual):
                assert tensor.triton_dtype() in (STRING, BF16)
        del tensors


def test_what_is_no_allocation_is_not_leased(peer, transport):
    off, size = peer.execution(peer.request([]))
    end = peer.in_off + peer.in_bytes
    for place, n in [(off, peer.in_bytes), (off + 8, 8), (peer.in_off, 8), (0, 8), (end, 8), (end - 64, 65),
                     (off, 2**64 - 1), (2**64 - 64, 128), (peer.out_off + 64, 8)]:
        with pytest.raises(ValueError, match="bytes at"):
            client.decode_batch(transport, place, n)
    peer.release(off)
    with pytest.raises(ValueError, match="in use"):
        client.decode_batch(transport, off, size)


@pytest.mark.parametrize(("place", "form", "value"), [(0, "I", 1), (4, "I", 2), (8, "Q", 1 << 30), (16, "Q", 0),
                                                      (16, "Q", 2**63), (24, "Q", 2**63), (24, "Q", (1 << 20) + 64),
                                                      (32, "Q", 0x110001), (40, "Q", 2**64 - 1)])
def test_a_region_that_does_not_fit_is_refused(peer, place, form, value):
    struct.pack_into("<" + form, peer.memory, place, value)
    with pytest.raises(ValueError, match="region"):
        client.Region(peer.fd)


def test_a_short_file_is_no_region(peer):
    fd = os.memfd_create("short")
    try:
        with pytest.raises(ValueError, match="region"):
            client.Region(fd)
    finally:
        os.close(fd)


# ---- leases ----

def test_the_last_view_gives_an_allocation_back(peer, transport):
    off, request = one_request(peer, transport, (0, FP32, (4,), np.arange(4, dtype="float32").tobytes()))
    tensor = request.inputs()[0]
    part = memoryview(tensor.as_numpy()[1:3].reshape(2, 1))
    assert peer.in_use(off) == 1
    del request
    assert peer.in_use(off) == 1
    del tensor
    gc.collect()
    assert peer.in_use(off) == 1 and part.tolist() == [[1.0], [2.0]]
    del part
    assert peer.in_use(off) == 0 and transport.region.stats()["leases"] == 0


def test_views_outlive_the_transport(peer):
    transport = transport_of(peer)
    off, request = one_request(peer, transport, (0, FP32, (1,), struct.pack("<f", 2.5)))
    array = request.inputs()[0].as_numpy()
    del transport, request
    assert array[0] == 2.5 and peer.in_use(off) == 1
    del array
    assert peer.in_use(off) == 0


@pytest.mark.parametrize("how", ["array", "tensor", "part"])
def test_a_large_output_that_is_an_input_is_not_copied(peer, how):
    transport = transport_of(peer, outputs=("INPUT" if how == "tensor" else "OUTPUT",))
    data = bytes(range(256)) * 256
    off, request = one_request(peer, transport, (0, 2, (2, 32768), data))
    tensor = request.inputs()[0]
    array = tensor.as_numpy()
    output = tensor if how == "tensor" else Tensor("OUTPUT", array if how == "array" else array[1])
    done, size = client.encode_done(transport, [request], [Response([output])])
    assert size < 4096
    (_, _, dims, sent, at), = peer.done(done)[0]["outputs"]
    assert sent == data[-len(sent):] and dims == ((32768,) if how == "part" else (2, 32768))
    assert off <= at < off + 70000
    del request, tensor, array, output
    peer.publish(ANSWERS, 1, 0)
    transport.take_answer(0)
    assert peer.in_use(off) == 1, "the server may not have read the message"
    peer.release(done)
    assert transport.take_answer(0) is None
    assert peer.in_use(off) == 0 and transport.region.stats()["kept"] == 0


def test_a_small_output_and_another_array_are_copied(peer, transport):
    _, request = one_request(peer, transport, (0, FP32, (2,), bytes(8)))
    other = np.zeros(100_000, dtype="float32")
    response = Response([Tensor("OUTPUT", request.inputs()[0].as_numpy()), Tensor("more", other)])
    done, _ = client.encode_done(transport, [request], [response])
    assert all(t[4] > peer.out_off for t in peer.done(done)[0]["outputs"])
    assert transport.region.stats()["kept"] == 0


# ---- what goes to the server ----

def test_done_with_marks_errors_and_parameters(peer, transport):
    off, size = peer.execution(*(peer.request([], slot=k, generation=k + 1) for k in range(4)))
    requests = client.decode_batch(transport, off, size)
    requests[2]._release = 2
    params = {"text": "ä", "yes": True, "no": False, "n": -(2**63), "": ""}
    responses = [Response([Tensor("OUTPUT", np.zeros(1, "int8"))], Failure("bad ü", 3)), None, None,
                 Response([], None, params)]
    done, _ = client.encode_done(transport, requests, responses)
    found = peer.done(done)
    assert [(r["kind"], r["slot"], r["generation"], r["flags"]) for r in found] == [
        (0, 0, 1, 1), (1, 1, 2, 0), (2, 2, 3, 0), (0, 3, 4, 1),
    ]
    assert (found[0]["code"], found[0]["error"], found[0]["outputs"]) == (3, "bad ü", [])
    assert found[3]["params"] == params
    assert responses[3].parameters() == json.dumps(params)
    for wrong in (None, (), responses[:3], [*responses[:3], 1]):
        with pytest.raises(TypeError):
            client.encode_done(transport, requests, wrong)
    with pytest.raises(OverflowError):
        client.encode_done(transport, requests[:1], [Response([], None, {"n": 2**63})])


def test_failures_leave_nothing_in_use(peer, transport):
    _, request = one_request(peer, transport)

    class Spiteful:
        def __str__(self):
            array[0] = b"longer than before"
            return ""

    array = object_array([b"", Spiteful()])
    with pytest.raises(ValueError, match="changed"):
        client.encode_done(transport, [request], [Response([Tensor("OUTPUT", array)])])
    transport.region.trim(0)
    assert transport.region.stats()["used"] == 0
    done, _ = client.encode_failure(transport, 1, "boom\nät")
    assert peer.done(done) == (1, "boom\nät")


def test_events_of_senders(peer, transport):
    response = Response([Tensor("OUTPUT", np.ones(1, "?"))])
    transport.publish_event(1, 0, *client.encode_response(transport, 2, 8, response, None, 0))
    transport.publish_event(1, 0, *client.encode_response(transport, 2, 8, None, None, 1))
    transport.publish_event(3, 44)
    (kind, _, off, size, _), last, cancel = (peer.take(EVENTS) for _ in range(3))
    found, end = peer.response(off)
    assert kind == 1 and end <= off + size
    assert (found["kind"], found["flags"], found["outputs"][0][:4]) == (0, 0, (0, 1, (1,), b"\1"))
    found, _ = peer.response(last[2])
    assert (found["kind"], found["slot"], found["generation"], found["flags"]) == (3, 2, 8, 1)
    assert cancel == (3, 44, 0, 0, 0) and peer.take(EVENTS) is None
    response = Response([Tensor(name, np.ones(1, "?")) for name in ("OUTPUT", "SECOND", "else")])
    found, _ = peer.response(client.encode_response(transport, 2, 8, response, {"SECOND"}, 0)[0])
    assert [t[0] for t in found["outputs"]] == [1, "else"]


@pytest.mark.parametrize("correlation", [2**64 - 1, "seq"])
def test_a_request_to_another_model(peer, transport, correlation):
    request = Request()
    inputs = [Tensor("A", np.arange(3, dtype="int64")), Tensor("longer name", np.array(["x", "yz"], dtype=object))]
    request._set("id", correlation, inputs, ["O1", "output"], 3, 99, {"k": 5}, '{"k": 5}', '{"t": 0}')
    assert request.parameters() == '{"k": 5}' and request.inputs() == inputs and not request.is_cancelled()
    found = peer.bls(client.encode_bls(transport, request, "other", -1, 2, 4, 6)[0])
    sent = [t[:4] for t in found.pop("inputs")]
    assert sent == [("A", 9, (3,), np.arange(3, dtype="int64").tobytes()),
                    ("longer name", STRING, (2,), strings(b"x", b"yz"))]
    assert found == {"options": 2, "flags": 3, "correlation": correlation, "timeout": 99, "version": -1,
                     "model": "other", "id": "id", "wanted": ["O1", "output"], "params": {"k": 5}, "parent": (4, 6),
                     "trace": '{"t": 0}'}


def test_answers(peer, transport):
    off, size = peer.answer([("name", FP32, (2,), bytes(8)), ("s", STRING, (1,), strings(b"q"))], params=b'{"a":1}')
    response, last = client.decode_answer(transport, off, size)
    assert isinstance(response, Response) and last and not response.has_error() and response.parameters() == '{"a":1}'
    assert client.get_output_tensor_by_name(response, "s").as_numpy().tolist() == [b"q"]
    assert client.get_output_tensor_by_name(response, "t") is None
    del response
    assert peer.in_use(off) == 0
    response, last = client.decode_answer(transport, *peer.answer([], code=2, error=b"gone", flags=0))
    assert response.error().given == ("gone", 2) and not last and response.output_tensors() == []
    assert client.decode_answer(transport, *peer.answer([], kind=3)) == (None, True)


# ---- the outbound heap ----

class Model:
    """What was allocated: offset -> bytes, and the fill of each."""

    def __init__(self, peer, region):
        self.peer, self.region, self.live = peer, region, {}

    def allocate(self, n):
        off = self.region.allocate(n)
        assert off % 64 == 0 and self.peer.u64(off - 56) >= n and self.peer.in_use(off) == 1
        assert self.peer.out_off + 64 <= off and off + n <= self.peer.out_off + self.peer.out_bytes
        for other, (size, _) in self.live.items():
            assert off + n <= other - 64 or other + size <= off - 64, "allocations overlap"
        fill = bytes([len(self.live) * 37 % 255 + 1]) * n
        self.region.write(off, fill)
        self.live[off] = (n, fill)

    def check(self):
        for off, (size, fill) in self.live.items():
            assert self.peer.memory[off : off + size] == fill


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("aaarrt"), st.integers(0, 40_000), st.integers(0, 1 << 30)), max_size=60))
def test_heap_against_a_model(steps):
    with Peer(1 << 16, 1 << 20) as peer:
        region = client.Region(peer.fd)
        model = Model(peer, region)
        for what, size, choice in steps:
            if what == "a" and sum(n + 50_000 for n, _ in model.live.values()) < (1 << 20) - 100_000:
                model.allocate(size)
            elif what == "r" and model.live:
                off = sorted(model.live)[choice % len(model.live)]
                del model.live[off]
                peer.release(off)
            elif what == "t":
                region.trim(size)
            model.check()
        for off in model.live:
            peer.release(off)
        region.trim(0)
        assert region.stats() == {"used": 0, "bump": 0, "kept": 0, "leases": 0}
        assert region.allocate((1 << 20) - 4096) == peer.out_off + 64


def blocks(fd):
    return os.fstat(fd).st_blocks


def test_trimming_gives_memory_back(peer, transport):
    before = blocks(peer.fd)
    offs = [transport.region.allocate(200_000) for _ in range(4)]
    for off in offs:
        transport.region.write(off, b"x" * 200_000)
    assert blocks(peer.fd) - before > 4 * 380
    for off in offs[1:]:
        peer.release(off)
    transport.region.trim(0)
    assert blocks(peer.fd) - before < 2 * 400 and peer.memory[offs[0] : offs[0] + 9] == b"x" * 9
    peer.release(offs[0])
    transport.region.trim(0)
    assert blocks(peer.fd) <= before + 8


def test_what_never_fits_is_an_error_and_what_will_is_waited_for(peer, transport):
    for n in (peer.out_bytes, 1 << 41, 2**63):
        with pytest.raises(MemoryError, match="do not fit"):
            transport.region.allocate(n)
    first = transport.region.allocate(700_000)
    found = []
    waiter = threading.Thread(target=lambda: found.append(transport.region.allocate(700_000)))
    waiter.start()
    peer.release(first)
    waiter.join(60)
    assert found == [first]
    with pytest.raises(ValueError, match="outbound"):
        transport.region.write(peer.out_off + peer.out_bytes - 1, b"ab")


# ---- rings ----

def test_messages_keep_their_order_around_the_ring(peer, transport):
    for k in range(3 * SLOTS):
        peer.publish(WORK, 1, k, k * 64, k + 1, arg=2**64 - 1 - k)
        assert transport.wait_work() == (1, k, k * 64, k + 1, 2**64 - 1 - k)
        transport.publish_done(k, k * 8, 5)
        assert peer.take(DONE) == (1, k, k * 8, 5, 0)
    assert transport.take_answer(0) is None


def test_a_consumer_that_sleeps_is_woken(peer, transport):
    found = []
    consumer = threading.Thread(target=lambda: found.extend(transport.take_answer(60) for _ in range(500)))
    consumer.start()
    for k in range(500):
        peer.publish(ANSWERS, 1, k)
    consumer.join(60)
    assert [message[1] for message in found] == list(range(500))
    assert peer.u32(peer.ring(ANSWERS) + 128) == 0


def test_a_producer_wakes_only_a_sleeper(peer, transport):
    os.set_blocking(peer.fds[DONE], False)
    transport.publish_done(1)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(peer.fds[DONE])
    peer.put32(peer.ring(DONE) + 128, 1)
    transport.publish_done(2)
    assert os.eventfd_read(peer.fds[DONE]) == 1


def test_a_full_ring_makes_producers_wait(peer, transport):
    def produce(k):
        for n in range(SLOTS):
            transport.publish_event(3, k << 16 | n)

    threads = [threading.Thread(target=produce, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    seen = {0: [], 1: [], 2: []}
    while sum(map(len, seen.values())) < 3 * SLOTS:
        message = peer.take(EVENTS)
        if message is not None:
            seen[message[1] >> 16].append(message[1] & 0xFFFF)
    for thread in threads:
        thread.join(60)
    assert all(numbers == list(range(SLOTS)) for numbers in seen.values())


def test_a_ring_that_lies_is_an_error(peer, transport):
    struct.pack_into("<Q", peer.memory, peer.ring(WORK), SLOTS + 1)
    with pytest.raises(RuntimeError, match="more messages"):
        transport.wait_work()


WORKER = """
import importlib.util, sys
name, path, *fds = sys.argv[1:]
spec = importlib.util.spec_from_file_location("client", path)
client = importlib.util.module_from_spec(spec)
spec.loader.exec_module(client)
class Tensor(client.TensorCore): __slots__ = ()
class Request(client.RequestCore): __slots__ = ()
class Response(client.ResponseCore): __slots__ = ()
transport = client.Transport(*map(int, fds))
transport.bind(Tensor, Request, Response, None, ["INPUT"], ["OUTPUT"])
# Cython registers the module under its full name, which imports nothing.
assert [m for m in sys.modules if m.startswith("triton_fast")] == ["triton_fast._native.pyworker.client"], "imported"
while True:
    kind, number, off, size, arg = transport.wait_work()
    if kind == 2:
        break
    requests = client.decode_batch(transport, off, size)
    responses = [Response([Tensor("OUTPUT", client.get_input_tensor_by_name(r, "INPUT").as_numpy())]) for r in requests]
    transport.answer(number, requests, responses)
    del requests, responses
"""


def test_a_worker_process_without_the_package(peer):
    path = client.__file__
    assert path.endswith(tuple(importlib.machinery.EXTENSION_SUFFIXES))
    peer.put32(peer.ring(DONE) + 128, 1)
    fds = [str(fd) for fd in peer.worker_fds]
    worker = subprocess.Popen([sys.executable, "-c", WORKER, "client", path, *fds], pass_fds=peer.worker_fds, cwd="/")
    try:
        for k in range(300):
            data = struct.pack("<16f", *range(k, k + 16))
            off, size = peer.execution(*[peer.request([(0, FP32, (1, 16), data)], slot=n) for n in range(3)])
            peer.publish(WORK, 1, k, off, size)
            assert select.select([peer.fds[DONE]], [], [], 60)[0], f"no answer; the worker's exit code: {worker.poll()}"
            os.eventfd_read(peer.fds[DONE])
            _, number, done, _, _ = peer.take(DONE)
            found = peer.done(done)
            assert number == k and [r["slot"] for r in found] == [0, 1, 2]
            assert all(r["outputs"][0][:4] == (0, FP32, (1, 16), data) for r in found)
            peer.release(done)
            if k % 2:
                assert peer.in_use(peer.in_off + 64) == 0, "the worker has taken the next batch and keeps the last"
                peer.bump = peer.in_off
        peer.publish(WORK, 2, 0)
        assert worker.wait(60) == 0
    finally:
        worker.kill()
        worker.wait()
