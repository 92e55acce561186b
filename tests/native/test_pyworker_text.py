"""Texts that a worker sends reach others as UTF-8: errors, ids, parameters, names; traces as they are.

The other is a worker too, for that reads bytes: what is not UTF-8 would not be decoded.
"""

from __future__ import annotations

import contextlib
import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.models import ANY, ANY_OUT, INT32, LONG_S, make_model, numbers, submit, value_of
from tests.helpers.pyworker_peer import EVENTS, pad
from tests.helpers.pyworker_scripted import BY_SENDER, everything_at_base, python_model  # noqa: F401
from triton_fast._native.pyworker.local import LocalInstance
from triton_fast._native.sched.inprocess import InferCall
from triton_fast._native.sched.model import Epoch

# Cut, overlong, surrogates, beyond Unicode, stray continuations, and whole.
TEXTS = [
    b"\xff", b"a\xe2\x82", b"\xe2\x82 b", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x80\x80",
    b"\xf0\x9f\x98", b"\xf0\x80\x80\x80", b"12345678\xfe12345678\xc3",
    "h\u00e9 \u20ac \U0001f600".encode(), b"\xc3\xa9" * 9 + b"\xe9",
]  # fmt: skip


@contextlib.contextmanager
def pair(**options):
    """A model whose worker answers, and one that calls it as "t"; both workers are the test."""
    options = {"inputs": ANY, "outputs": ANY_OUT, "out_bytes": 8 << 20} | options
    with python_model(**options) as t:
        def resolve(name, version):
            if name != "t":
                raise LookupError(name)
            return t.model

        with python_model(resolve, Epoch(), **options) as s:
            yield s, t
            s.instance.fail("the end")


def clean(data):
    return data.decode("utf-8", "replace")


def ask(s, t):
    """Have a call made, and return its execution."""
    s.worker.call(1, "t", [("IN", INT32, (1, 1), bytes(4))])
    return t.worker.execution()


def test_every_way_of_an_error_text():
    with pair() as (s, t):
        for text in TEXTS:
            e = ask(s, t)
            t.worker.done(e, t.worker.record(e.requests[0].name, code=4, error=text))
            assert s.worker.answered()[1]["error"] == clean(text)
            t.worker.failed(ask(s, t), text)
            assert s.worker.answered()[1]["error"] == clean(text)
            e = ask(s, t)
            t.worker.done(e, t.worker.record(e.requests[0].name, kind=BY_SENDER))
            t.worker.event(t.worker.record(e.requests[0].name, code=1, error=text))
            assert s.worker.answered()[1]["error"] == clean(text)
            e = ask(s, t)
            name = t.worker.tensor("?" * len(text), INT32, (1, 1), bytes(4))
            record = t.worker.record(e.requests[0].name, [("?" * len(text), INT32, (1, 1), bytes(4))])
            assert record[1] == name
            record[1] = (name[0].replace(b"?" * len(text), text), name[1])
            t.worker.done(e, record)
            assert s.worker.answered()[1]["error"] == f"unexpected inference output '{clean(text)}' for model 'm'"


def test_a_text_is_what_python_makes_of_it():
    with pair() as (s, t):
        pieces = st.sampled_from([b"a" * 9, b"\xe2\x82\xac", "\U0001f600".encode(), *TEXTS])

        @settings(max_examples=300, deadline=None)
        @given(st.lists(st.one_of(st.binary(max_size=12), pieces), max_size=8).map(b"".join))
        def check(text):
            t.worker.bump, s.worker.bump = t.worker.out_off, s.worker.out_off
            e = ask(s, t)
            t.worker.release(e.off)
            t.worker.done(e, t.worker.record(e.requests[0].name, code=1, error=text))
            assert s.worker.answered()[1]["error"] == clean(text)

        check()


@pytest.mark.parametrize("text", TEXTS)
def test_parameters_of_a_response(text):
    with pair() as (s, t):
        e = ask(s, t)
        record = t.worker.record(e.requests[0].name, [(0, INT32, (1, 1), bytes(4))],
                                 parameters={"k" * len(text): "v" * len(text), "n": 1})
        record[-1] = record[-1].replace(b"k" * len(text), text).replace(b"v" * len(text), text)
        t.worker.done(e, record)
        assert json.loads(s.worker.answered()[1]["params"]) == {clean(text): clean(text), "n": 1}


@pytest.mark.parametrize("text", TEXTS)
def test_what_a_call_says(text):
    with pair() as (s, t):
        head, tensor, tail = s.worker.bls_record("t", [("IN", INT32, (1, 1), bytes(4))], request_id=b"i" * len(text),
                                                 parameters={"k" * len(text): "v" * len(text)})
        tail = tail.replace(b"i" * len(text), text).replace(b"k" * len(text), text).replace(b"v" * len(text), text)
        # The correlation id's text, of the same length, lies behind the id.
        at = len(pad(b"t")) + len(pad(text))
        tail = tail[:at] + pad(text) + tail[at:]
        head = bytearray(head)
        struct.pack_into("<I", head, 0, struct.unpack_from("<I", head)[0] + len(pad(text)))
        struct.pack_into("<I", head, 52, len(text))
        off, n = s.worker.place([bytes(head), tensor, tail])
        s.worker.publish(EVENTS, 2, 5, off, n)
        given = t.worker.execution().requests[0]
        assert (given.id, given.correlation) == (clean(text), clean(text))
        assert json.loads(given.params) == {clean(text): clean(text)}


def test_names_that_are_not_the_models():
    with pair() as (s, _):
        for text in TEXTS:
            name = "?" * len(text)
            for record in (s.worker.bls_record(name, []), s.worker.bls_record("t", [(name, INT32, (1, 1), bytes(4))]),
                           s.worker.bls_record("t", [("IN", INT32, (1, 1), bytes(4))], wanted=(name,))):
                parts = [part.replace(name.encode(), text) if isinstance(part, bytes)
                         else (part[0].replace(name.encode(), text), part[1]) for part in record]
                off, n = s.worker.place(parts)
                s.worker.publish(EVENTS, 2, 5, off, n)
                assert clean(text) in s.worker.answered()[1]["error"]


def test_no_character_is_cut():
    with pair() as (s, t):
        for length in (2000, 2001, 2002, 700, 701):
            s.worker.call(1, "x" * (length % 3) + "\u20ac" * length, [])
            assert "\u20ac" * 99 in s.worker.answered()[1]["error"]
        for n in range(4):
            t.worker.failed(ask(s, t), b"x" * n + "\U0001f600".encode() * 20000)
            text = s.worker.answered()[1]["error"]
            assert text == "x" * n + "\U0001f600" * ((65536 - n) // 4)
        ask(s, t)
        t.instance.fail("x" + "\u20ac" * 1000)
        assert s.worker.answered()[1]["error"] == "x" + "\u20ac" * 341


def test_the_context_of_a_trace_is_carried():
    context = '{"traceparent":"00-ab-cd-01","h":"\u00e9"}'
    with pair() as (s, t):
        call = InferCall(s.model, [numbers(1, 1, 1)], trace=context)
        e = s.worker.execution()
        assert e.requests[0].trace == context
        s.worker.call(7, "t", [("IN", INT32, (1, 1), bytes(4))], trace=context.encode())
        inner = t.worker.execution()
        assert inner.requests[0].trace == context
        t.worker.done(inner, t.worker.record(inner.requests[0].name, [(0, INT32, (1, 1), bytes(4))]))
        assert s.worker.answered()[1]["code"] == -1
        s.worker.done(e, s.worker.record(e.requests[0].name, [(0, INT32, (1, 1), bytes(4))]))
        assert value_of(call) == 0
        submit(s.model, 2)
        assert s.worker.execution().requests[0].trace == ""


def test_a_model_in_this_process_sees_the_context_too():
    def execute(requests):
        for request in requests:
            seen.append(request.facts()[-1])
            request.send([("OUT", INT32, (1, 1), bytes(4))], final=True)

    seen = []
    model = make_model(LocalInstance("local", execute))
    try:
        for context in ("{}", "", "h\u00e9"):
            assert value_of(InferCall(model, [numbers(1, 1, 1)], trace=context)) == 0
    finally:
        model.stop()
    assert seen == ["{}", "", "h\u00e9"]


def test_an_output_may_come_twice_and_of_another_type():
    with pair() as (s, t):
        e = ask(s, t)
        sent = [(0, INT32, (1, 1), b"\1\0\0\0"), (0, 11, (1, 1), b"\2\0\0\0"), (0, INT32, (3, 1), bytes(12))]
        t.worker.done(e, t.worker.record(e.requests[0].name, sent))
        found = s.worker.answered()[1]["outputs"]
        assert [tensor[:4] for tensor in found] == [("OUT", *tensor[1:]) for tensor in sent]


def test_an_output_that_comes_thousands_of_times_breaks_the_worker():
    with pair(out_bytes=1 << 20, in_bytes=1 << 20) as (_, t):
        call = submit(t.model, 1, 1, 200_000)
        e = t.worker.execution()
        size = 200_000 * 4
        record = t.worker.record(e.requests[0].name, [(0, INT32, (1, 200_000), bytes(size))],
                                 at=e.requests[0].inputs[0][4])
        head, tensor, *rest = record
        many = 2000
        head = bytearray(head)
        struct.pack_into("<I", head, 0, struct.unpack_from("<I", head)[0] + (many - 1) * len(tensor))
        struct.pack_into("<I", head, 28, many)
        t.worker.done(e, [bytes(head), tensor * many, *rest])
        while not t.instance.broken:
            pass
        t.instance.fail("the end")
        with pytest.raises(Exception, match="malformed"):
            call.wait(LONG_S)
