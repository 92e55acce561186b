"""The gRPC message framing at every cut, its refusals, grpc-timeout and grpc-message."""

from __future__ import annotations

import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.models import counters_at_base  # noqa: F401
from triton_fast._native.core import memory
from triton_fast._native.grpc import message

TOO_LARGE, NO_MEMORY, BAD_FLAG = -1, -2, -3
MIB = 1 << 20
MILLISECOND = 1_000_000


def framed(data: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(data).to_bytes(4, "big") + data


def test_messages_at_every_cut():
    sent = [b"", b"a", bytes(range(200)), b"", b"end"]
    stream = b"".join(framed(data, flag=len(data) % 2) for data in sent)
    for cut in range(len(stream) + 1):
        found, begun, _ = message.split([stream[:cut], stream[cut:]])
        assert found == [(len(data) % 2 == 1, data) for data in sent]
        assert begun == 0


@given(st.lists(st.binary(max_size=300)), st.integers(1, 40))
def test_any_pieces_give_the_same_messages(sent, size):
    stream = b"".join(map(framed, sent))
    found, _, _ = message.split([stream[at : at + size] for at in range(0, len(stream), size)])
    assert [data for _, data in found] == sent


def test_a_message_that_grows_over_its_first_block():
    data = bytes(range(256)) * 40_000
    found, _, status = message.split([framed(data)[at : at + 65536] for at in range(0, len(data) + 5, 65536)])
    assert found == [(False, data)]
    assert status == 1


def test_a_lying_prefix_takes_no_more_memory_than_what_came():
    begun = framed(b"")[:1] + (2**31 - 1).to_bytes(4, "big") + b"x" * 100
    found, received, status = message.split([begun])
    assert (found, received, status) == ([], 100, 0)


@pytest.mark.parametrize("length", [101, 2**31, 2**32 - 1])
def test_a_length_over_the_limit_is_refused_before_its_first_byte(length):
    assert message.split([b"\0" + length.to_bytes(4, "big")], 100) == ([], 0, TOO_LARGE)


@pytest.mark.parametrize("flag", [2, 3, 128, 255])
def test_a_flag_that_is_none_is_refused(flag):
    assert message.split([bytes([flag, 0, 0, 0, 0])]) == ([], 0, BAD_FLAG)


def test_messages_before_a_refusal_are_kept():
    found, _, status = message.split([framed(b"one") + b"\7....."])
    assert found == [(False, b"one")]
    assert status == BAD_FLAG


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"1H", 3_600_000 * MILLISECOND), (b"2M", 120_000 * MILLISECOND), (b"3S", 3_000 * MILLISECOND),
        (b"250m", 250 * MILLISECOND), (b"7u", 7000), (b"0n", 0), (b"99999999n", 99_999_999),
    ],
)  # fmt: skip
def test_timeouts(text, expected):
    assert message.parse_timeout(text) == expected


def test_a_timeout_past_a_century_is_a_century():
    assert message.parse_timeout(b"99999999H") == 100 * 365 * 86_400_000 * MILLISECOND


@pytest.mark.parametrize(
    "text", [b"", b"S", b"1", b"1s", b"-1S", b"+1S", b" 1S", b"1.5S", b"123456789S", b"1SS", b"0x1S"]
)
def test_what_is_no_timeout(text):
    assert message.parse_timeout(text) == -1


@given(st.text())
def test_grpc_message_is_percent_encoded(text):
    encoded = message.percent_encode(text.encode("utf-8", "surrogatepass"))
    assert all(32 <= byte <= 126 for byte in encoded)
    assert urllib.parse.unquote_to_bytes(encoded) == text.encode("utf-8", "surrogatepass")


def test_the_limit_of_all_request_memory_ends_a_message_as_it_grows():
    promised = b"\0" + (64 * MIB).to_bytes(4, "big")
    memory.set_body_limit(memory.stats()["live_bytes"] + 8 * MIB)
    try:
        found, received, status = message.split([promised, bytes(16 * MIB)])
        assert (found, status) == ([], NO_MEMORY)
        assert MIB // 2 <= received < 8 * MIB
        assert message.split([framed(b"small")])[2] == 1
    finally:
        memory.set_body_limit(0)
    with pytest.raises(ValueError, match="must be >= 0"):
        memory.set_body_limit(-1)
