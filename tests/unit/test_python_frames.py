"""Control frames: whatever pieces they come in, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triton_fast.backends.python import frames
from triton_fast.backends.python.frames import HEADER, BadFrame, FrameReader
from triton_fast.errors import Code, Internal, NotFound

VALUES = st.recursive(st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(), st.lists)


@given(st.lists(st.tuples(st.dictionaries(st.text(), VALUES), st.binary(max_size=50)), max_size=5), st.integers(1, 40))
def test_frames_come_out_as_they_went_in_however_cut(sent, size):
    sent = [({**message, "type": "x"}, blob) for message, blob in sent]
    data = b"".join(frames.encode(message, blob) for message, blob in sent)
    reader = FrameReader()
    got = [tuple(f) for at in range(0, len(data), size) for f in reader.feed(data[at : at + size])]
    assert got == sent


@pytest.mark.parametrize(
    "data",
    [
        HEADER.pack(frames.MAX_TAKEN_JSON + 1, 0),
        HEADER.pack(2, frames.MAX_BLOB + 1),
        HEADER.pack(0xFFFFFFFF, 0xFFFFFFFF),
        HEADER.pack(2, 0) + b"[]",
        HEADER.pack(2, 0) + b"{}",
        HEADER.pack(10, 0) + b'{"type":1}',
        HEADER.pack(3, 0) + b'"\xff"',
        HEADER.pack(0, 0),
        HEADER.pack(200_000, 0) + b"[" * 200_000,
    ],
)
def test_bad_frames_are_refused(data):
    with pytest.raises(BadFrame):
        list(FrameReader().feed(data))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    try:
        for frame in FrameReader().feed(data):
            assert isinstance(frame.message, dict)
    except BadFrame:
        pass


@pytest.mark.parametrize(
    ("take", "value"),
    [
        (frames.text, 1), (frames.text, None), (frames.whole, -1), (frames.whole, 1.0), (frames.whole, True),
        (frames.whole, 2**63), (frames.number, "1"), (frames.number, False), (frames.number, 10**400),
        (frames.flag, 1), (frames.flag, None),
    ],
)  # fmt: skip
def test_fields_of_other_types_are_refused(take, value):
    with pytest.raises(BadFrame, match="'m' with a bad 'f'"):
        take({"type": "m", "f": value}, "f")


def test_text_that_utf8_cannot_hold_is_made_printable():
    assert frames.text({"type": "m", "f": "a\ud800"}, "f") == "a?"


def test_outcome_of_answers():
    assert frames.outcome(frames.answer(1, {"a": 2})) == {"a": 2}
    with pytest.raises(NotFound, match=r"^gone$"):
        frames.outcome(frames.failure(1, NotFound("gone")))
    with pytest.raises(Internal, match=r"^internal error, see the server log$"):
        frames.outcome(frames.failure(1, OSError("a path")))
    for error in ([], {"code": 8, "message": ""}, {"code": 1}, {"code": 1, "message": 5}):
        with pytest.raises(BadFrame):
            frames.outcome({"type": "answer", "call": 1, "error": error})
    assert frames.failure(3, NotFound("x"))["error"]["code"] == Code.NOT_FOUND


def test_a_config_may_be_larger_than_other_messages():
    data = HEADER.pack(frames.MAX_TAKEN_CONFIG, 0) + b'{"type":"answer"}'.ljust(frames.MAX_TAKEN_CONFIG)
    reader = FrameReader(frames.MAX_TAKEN_CONFIG)
    assert [frame.message for frame in reader.feed(data)] == [{"type": "answer"}]
    assert reader.taken == frames.MAX_TAKEN_CONFIG
    with pytest.raises(BadFrame, match="bytes of JSON"):
        list(FrameReader().feed(data))
