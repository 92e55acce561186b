"""Hostile sizes, depths and counts for the native v2 JSON decoder (SEC-08, SEC-10, SEC-11, SEC-12)."""

from __future__ import annotations

import json
import resource
import struct
from collections.abc import Iterator

import pytest

from triton_fast import errors
from triton_fast._native.core import memory, request
from triton_fast._native.wire.json_infer import decode

DEEP = 10**6


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    before = (memory.stats()["live_blocks"], request.stats()["live_requests"])
    yield
    assert (memory.stats()["live_blocks"], request.stats()["live_requests"]) == before


def refused(text: bytes, **limits: int) -> str:
    with pytest.raises(errors.InvalidArg) as e:
        decode(text, **limits)  # type: ignore[arg-type]
    return e.value.message


def head(datatype: str) -> bytes:
    return b'{"inputs":[{"name":"x","shape":[1],"datatype":"%s","data":' % datatype.encode()


@pytest.mark.parametrize(
    "text",
    [
        b"[" * DEEP,
        b"[" * DEEP + b"]" * DEEP,
        b'{"a":' * DEEP + b"1" + b"}" * DEEP,
        b'{"inputs":' + b"[" * DEEP,
        b'{"inputs":[' + b'{"a":' * DEEP,
        b'{"inputs":[],"x":' + b"[" * DEEP + b"]" * DEEP + b"}",
        b'{"inputs":[],"x":' + b'[{"a":' * DEEP,
        b'{"parameters":{"a":' + b"[" * DEEP,
        b'{"inputs":[{"parameters":' + b'{"a":' * DEEP,
        b'{"outputs":[{"parameters":{"binary_data":' + b'{"a":' * DEEP,
        b'{"id":' + b"[" * DEEP,
    ],
)
def test_deep_nesting_outside_data(text: bytes) -> None:
    assert refused(text) == "JSON nesting depth exceeds maximum allowed limit (64)"


@pytest.mark.parametrize("closed", [b"", b"]" * DEEP + b"}]}"])
def test_deep_nesting_in_data(closed: bytes) -> None:
    text = "Unable to parse 'data': JSON nesting depth exceeds maximum allowed limit (100)"
    assert refused(head("FP32") + b"[" * DEEP + closed) == text
    assert refused(head("BYTES") + b"[" * DEEP + closed) == text.removeprefix("Unable to parse 'data': ")
    late = b'{"inputs":[{"data":' + b"[" * DEEP + closed
    assert refused(late) == text
    assert refused(head("FP32").replace(b"[1]", b"[0]") + b"[" * DEEP + closed) == text


def test_depth_at_the_limit() -> None:
    def nested(levels: int) -> bytes:
        return b"[" * levels + b"1" + b"]" * levels + b"}]}"

    assert decode(head("INT8") + nested(99))["inputs"][0]["data"] == b"\x01"
    assert "(100)" in refused(head("INT8") + nested(100))
    assert decode(head("INT8") + b"[1," + b"[" * 99 + b"]" * 100 + b"}]}")["inputs"][0]["data"] == b"\x01"
    assert "(100)" in refused(head("INT8") + b"[1," + b"[" * 100 + b"]" * 101 + b"}]}")
    for levels, good in ((64, True), (65, False)):
        text = b'{"inputs":[],"x":' + b"[" * levels + b"]" * levels + b"}"
        if good:
            assert decode(text)["inputs"] == []
        else:
            assert "(64)" in refused(text)


def test_max_input_counts_all_inputs_together() -> None:
    one = {"shape": [99], "datatype": "UINT8", "data": [1] * 99}
    text = json.dumps({"inputs": [{"name": f"i{n}", **one} for n in range(100)]}).encode()
    assert len(decode(text)["inputs"]) == 100
    # The text itself is limited too, so that the limit of the data is tried with room for the text.
    assert refused(text, max_input=len(text) - 1) == (
        f"request JSON size of {len(text)} bytes exceeds the maximum allowed input size of {len(text) - 1} bytes. "
        "Use --http-max-input-size to increase the limit."
    )
    wide = {"shape": [1000], "datatype": "FP64", "data": [1] * 1000}
    text = json.dumps({"inputs": [{"name": f"i{n}", **wide} for n in range(10)]}, separators=(",", ":")).encode()
    assert len(text) < 40_000
    assert refused(text, max_input=79_999) == (
        "JSON input 'i9' has a byte_size (80000 bytes) that exceeds the maximum allowed value of 79999 bytes. "
        "Use --http-max-input-size to increase the limit."
    )
    assert len(decode(text, max_input=80_000)["inputs"]) == 10


def test_max_input_of_strings() -> None:
    text = json.dumps({"inputs": [{"name": "x", "shape": [1000], "datatype": "BYTES", "data": [""] * 1000}]}).encode()
    compact = text.replace(b", ", b",")
    assert len(compact) < 3100
    assert decode(compact, max_input=4000)["inputs"][0]["shape"] == [1000]
    assert "has a byte_size (4000 bytes)" in refused(compact, max_input=3999)


def test_a_great_shape_with_little_data_takes_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kept = memory.stats()["cached_bytes"]
    for _ in range(50):
        with pytest.raises(errors.Internal, match="shape does not match true shape"):
            decode(head("FP64").replace(b"[1]", b"[134217728]") + b"[1]}]}", max_input=1 << 40)
        with pytest.raises(errors.InvalidArg, match="expected 134217728 string elements"):
            decode(head("BYTES").replace(b"[1]", b"[134217728]") + b'["a"]}]}', max_input=1 << 40)
    assert memory.stats()["cached_bytes"] - kept < 1 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * 1024


DIMS = [0, 1, 2**31 - 1, 2**31, 2**32 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -1, -(2**63)]


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("other", [1, 2**32, 2**63 - 1])
@pytest.mark.parametrize("datatype", ["FP64", "UINT8", "BYTES"])
def test_shapes_that_overflow(dim: int, other: int, datatype: str) -> None:
    text = json.dumps({"inputs": [{"name": "x", "shape": [dim, other], "datatype": datatype, "data": []}]}).encode()
    if dim == 0:
        assert decode(text)["inputs"][0]["data"] == b""
    else:
        with pytest.raises(errors.ServerError):
            decode(text)


@pytest.mark.parametrize("sizes", [(2**64 - 1, 2), (2**63, 2**63), (1, 2**64 - 1), (2**64 - 4, 8)])
def test_binary_sizes_that_wrap_round(sizes: tuple[int, int]) -> None:
    inputs = [
        {"name": f"i{n}", "shape": [1], "datatype": "INT8", "parameters": {"binary_data_size": size}}
        for n, size in enumerate(sizes)
    ]
    with pytest.raises(errors.InvalidArg, match="additional bytes"):
        decode(json.dumps({"inputs": inputs}).encode(), b"1234")


@pytest.mark.parametrize("kind", ["input", "output", "parameter"])
def test_counts_are_capped(kind: str) -> None:
    def text(n: int) -> bytes:
        if kind == "input":
            row = b'{"name":"%d","shape":[0],"datatype":"INT8","data":[]}'
            return b'{"inputs":[' + b",".join(row % i for i in range(n)) + b"]}"
        if kind == "output":
            return b'{"inputs":[],"outputs":[' + b",".join(b'{"name":"%d"}' % i for i in range(n)) + b"]}"
        return b'{"inputs":[],"parameters":{' + b",".join(b'"%d":1' % i for i in range(n)) + b"}}"

    got = decode(text(65536))
    assert len(got[kind + "s"]) == 65536  # type: ignore[literal-required]
    assert refused(text(65537)) == f"the request has more than 65536 {kind}s"


def test_a_name_given_twice_is_found_among_many() -> None:
    names = [f"{n:x}" for n in range(20_000)]
    for extra in (names[0], names[15], names[16], names[17], names[-1]):
        rows = [{"name": n, "shape": [0], "datatype": "INT8", "data": []} for n in [*names, extra]]
        assert refused(json.dumps({"inputs": rows}).encode()) == f"input '{extra}' already exists in request"
        wanted = [{"name": n} for n in [*names, extra]]
        text = json.dumps({"inputs": [], "outputs": wanted}).encode()
        assert refused(text) == f"output '{extra}' already exists in request"


def test_very_long_numbers_and_strings() -> None:
    digits = "7" * 200_000
    text = head("FP64") + f"[0.{digits}]".encode() + b"}]}"
    assert decode(text)["inputs"][0]["data"] == struct.pack("<d", 7 / 9)
    with pytest.raises(errors.Internal, match="Number too big"):
        decode(head("FP64") + f"[{digits}]".encode() + b"}]}")
    escaped = "\\u0041" * 100_000
    assert decode(f'{{"inputs":[],"id":"{escaped}"}}'.encode())["id"] == "A" * 100_000
