"""Refusals of the native ModelInferRequest decoder: codes and texts of the real server, and hostile bytes."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.message import DecodeError

from tests.helpers import pb
from triton_fast import errors, protos
from triton_fast._native.core import memory, request
from triton_fast._native.core.model import ModelHandle
from triton_fast._native.wire.pb_infer import decode, head

BROKEN = "the request message is not a valid ModelInferRequest: "
RESERVED = (
    "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys starting with "
    "'triton_' are allowed: triton_enable_empty_final_response"
)
SHORT, LONG = "it ends too early", "a varint of more than 10 bytes"
LENGTH, TAG = "a length past the end", "an invalid tag"
GROUP, DEEP = "an end of a group that was not started", "groups nested deeper than 64"
UTF8, PACKED = "a string that is not UTF-8", "a packed field of a wrong size"
BOOL, INT, TEXT, DOUBLE, UINT = (
    pb.integer(1, 1), pb.integer(2, 1), pb.span(3, b"r"), pb.tag(4, 1) + bytes(8), pb.integer(5, 1)
)
CHOICES = {"bool": BOOL, "int64": INT, "string": TEXT, "double": DOUBLE, "uint64": UINT, "none": b"", "absent": None}


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    before = (memory.stats()["live_blocks"], request.stats()["live_requests"])
    yield
    assert (memory.stats()["live_blocks"], request.stats()["live_requests"]) == before


@pytest.fixture(scope="module")
def model() -> ModelHandle:
    spec = SimpleNamespace(name="x", dtype=11, dims=(1,), reshape=None, optional=False, ragged=False)
    return ModelHandle("mlp", 1, 0, [spec], [spec])


def refused(text: bytes, kind: type[errors.ServerError], model: ModelHandle | None = None, **limits: int) -> str:
    with pytest.raises(errors.ServerError) as e:
        decode(text, model=model, **limits)
    assert type(e.value) is kind, e.value
    return e.value.message


def one(*parts: bytes, raw: bytes | None = None, name: bytes = b"x", datatype: bytes = b"INT8") -> bytes:
    """A request of one input."""
    tensor = pb.span(5, pb.span(1, name) + pb.span(2, datatype) + b"".join(parts))
    return tensor if raw is None else tensor + pb.span(7, raw)


# ---- broken messages ----


@pytest.mark.parametrize(
    ("text", "why", "at"),
    [
        (b"\x0a", SHORT, 1),
        (b"\x0a\x05mlp", LENGTH, 1),
        (b"\x08", SHORT, 1),
        (b"\x08" + b"\xff" * 9, SHORT, 1),
        (b"\x08" + b"\xff" * 10 + b"\x01", LONG, 1),
        (b"\x00\x00", TAG, 0),
        (b"\x07", TAG, 0),
        (b"\x0e", TAG, 1),
        (b"\xff\xff\xff\xff\x7f\x00", TAG, 0),
        (b"\x80\x80\x80\x80\x80\x01\x00", TAG, 0),
        (b"\x80", SHORT, 0),
        (b"\x0c", GROUP, 1),
        (b"\x7b", SHORT, 1),
        (b"\x7b\x74", GROUP, 2),
        (b"\x7b" * 65, DEEP, 65),
        (b"\x09" + bytes(7), SHORT, 1),
        (b"\x0d" + bytes(3), SHORT, 1),
        (b"\x0a" + pb.varint(2**31 - 1), LENGTH, 1),
        (b"\x0a" + pb.varint(2**31), LENGTH, 1),
        (b"\x0a" + pb.varint(2**32), LENGTH, 1),
        (b"\x0a" + pb.varint(2**63), LENGTH, 1),
        (b"\x0a" + pb.varint(2**64 - 1), LENGTH, 1),
        (b"\x0a" + b"\x80" * 10 + b"\x00", LENGTH, 1),
        (b"\x0a\x01\xff", UTF8, 2),
        (b"\x12\x02\xc3(", UTF8, 2),
        (b"\x1a\x03\xed\xa0\x80", UTF8, 2),
    ],
)
def test_broken_at_the_top(text: bytes, why: str, at: int) -> None:
    message = f"{BROKEN}{why} at byte {at}"
    assert refused(text, errors.Internal) == message
    with pytest.raises(errors.Internal) as e:
        head(text)
    assert e.value.message == message
    with pytest.raises(DecodeError):
        protos.ModelInferRequest.FromString(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (one(pb.tag(3, 2) + b"\x05"), LENGTH),
        (one(pb.span(3, b"\x80")), SHORT),
        (one(pb.span(3, b"\xff" * 11)), LONG),
        (one(pb.tag(3, 0)), SHORT),
        (one(name=b"\xff"), UTF8),
        (one(datatype=b"\xc0\x80"), UTF8),
        (one(pb.span(5, pb.span(6, b"abc"))), PACKED),
        (one(pb.span(5, pb.span(7, b"abcd"))), PACKED),
        (one(pb.span(5, pb.span(1, b"\1\1\1\x80"))), SHORT),
        (one(pb.span(5, pb.span(2, b"\1" * 20 + b"\xff" * 10 + b"\1"))), LONG),
        (one(pb.span(5, pb.tag(8, 2) + b"\x09")), LENGTH),
        (one(pb.span(5, pb.tag(6, 5) + b"abc")), SHORT),
        (one(pb.span(5, pb.tag(3, 0) + b"\x80")), SHORT),
        (one(pb.entry(4, b"k\xff", INT)), UTF8),
        (pb.span(4, pb.tag(1, 2) + b"\x02k"), LENGTH),
        (pb.entry(4, b"k", pb.span(3, b"\x80")), UTF8),
        (pb.entry(4, b"k", pb.tag(4, 1) + b"1234567"), SHORT),
        (pb.entry(4, b"k", pb.tag(2, 0)), SHORT),
        (pb.span(6, pb.span(1, b"\xf5\x80\x80\x80")), UTF8),
        (pb.span(6, pb.entry(2, b"k", pb.tag(1, 0))), SHORT),
        (pb.span(6, pb.span(2, b"\x0c")), GROUP),
    ],
)
def test_broken_inside(text: bytes, why: str) -> None:
    with pytest.raises(DecodeError):
        protos.ModelInferRequest.FromString(text)
    assert head(text) == ("", "", "")
    assert refused(text, errors.Internal).startswith(f"{BROKEN}{why} at byte ")
    # Whatever is wrong with its meaning, a broken message is broken.
    meant = pb.entry(4, b"timeout", TEXT) + pb.span(6, pb.entry(2, b"classification", TEXT)) + one()
    assert refused(meant + text, errors.Internal).startswith(f"{BROKEN}{why} at byte ")


def test_every_truncation() -> None:
    m = protos.ModelInferRequest(model_name="mlp", id="é" * 20, model_version="1")
    t = m.inputs.add(name="a", datatype="INT32", shape=[300, 1])
    t.contents.int_contents.extend([1, -1, 300])
    t.parameters["k"].double_param = 1.0
    m.inputs.add(name="b", datatype="FP64").contents.fp64_contents.extend([1.0, 2.0])
    m.inputs.add(name="c", datatype="BYTES").contents.bytes_contents.extend([b"x" * 200, b""])
    m.outputs.add(name="o").parameters["classification"].int64_param = 300
    m.parameters["sequence_id"].string_param = "s" * 10
    m.parameters["p"].int64_param = -5
    text = m.SerializeToString() + b"\x7b\x08\x01\x7c"
    assert pb.comparable(decode(text)) == pb.meaning(text)
    broken = 0
    for n in range(len(text)):
        try:
            protos.ModelInferRequest.FromString(text[:n])
        except DecodeError:
            broken += 1
            assert refused(text[:n], errors.Internal).startswith(BROKEN)
        else:
            assert pb.comparable(decode(text[:n])) == pb.meaning(text[:n])
    assert broken > 250


@pytest.mark.parametrize(
    "text", ["", "ascii", "é", "\u0800", "\uffff", "\U00010000", "\U0010ffff", "x" * 40 + "é", "\0"]
)
def test_every_utf8_is_taken(text: str) -> None:
    for pad in range(18):
        name = "a" * pad + text
        assert decode(pb.span(3, name.encode()))["id"] == name


def test_what_is_not_utf8_is_refused() -> None:
    bad = [b"\x80", b"\xc1\x81", b"\xe0\x9f\xbf", b"\xed\xbf\xbf", b"\xf0\x8f\xbf\xbf", b"\xf4\x90\x80\x80", b"\xc3",
           b"\xe2\x82", b"\xf0\x9f\x98", b"\xf8\x88\x80\x80\x80", b"\xc3\xc3", b"\xe2\x82\xe2"]
    for one_bad in bad:
        for pad in range(18):
            for text in (b"a" * pad + one_bad, one_bad + b"a" * pad):
                assert UTF8 in refused(pb.span(3, text), errors.Internal)


# ---- parameters ----


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize(
    ("key", "good", "expected"),
    [
        ("sequence_id", ("int64", "string"), "int64_param or string_param"),
        ("sequence_start", ("bool",), "bool_param"),
        ("sequence_end", ("bool",), "bool_param"),
        ("priority", ("int64", "uint64"), "int64_param or uint64_param"),
        ("timeout", ("int64",), "int64_param"),
        ("triton_enable_empty_final_response", ("bool",), "bool_param"),
        ("binary_data_output", tuple(CHOICES), ""),
        ("other", ("int64", "bool", "string", "double"), "int64_param, bool_param, or string_param"),
        ("", ("int64", "bool", "string", "double"), "int64_param, bool_param, or string_param"),
    ],
)
def test_parameter_types(key: str, good: tuple[str, ...], expected: str, choice: str) -> None:
    text = pb.entry(4, key.encode(), CHOICES[choice])
    if choice in good:
        assert pb.comparable(decode(text)) == pb.meaning(text)
    else:
        message = refused(text, errors.InvalidArg)
        assert message == f"invalid value type for '{key}' parameter, expected {expected}."


def test_parameter_values() -> None:
    negative = pb.entry(4, b"priority", pb.integer(2, -1))
    assert refused(negative, errors.InvalidArg) == "invalid value for 'priority', expected value >= 0."
    for key in (b"triton_", b"triton_x", b"triton_enable_empty_final_respons"):
        assert refused(pb.entry(4, key, INT), errors.InvalidArg) == RESERVED
    long = pb.entry(4, b"sequence_id", pb.span(3, b"s" * 129))
    assert refused(long, errors.Unsupported) == "string correlation ID cannot be longer than 128 characters"


# ---- inputs ----


def region(*keys: str, **wrong: bytes) -> list[bytes]:
    good = {"region": TEXT, "offset": INT, "byte_size": INT}
    return [pb.entry(4, f"shared_memory_{key}".encode(), wrong.get(key, good[key])) for key in keys]


def test_shared_memory_of_an_input(model: ModelHandle) -> None:
    def said(*parts: bytes, kind: type[errors.ServerError] = errors.InvalidArg) -> str:
        return refused(one(*parts), kind, model)

    for key, value in (("region", INT), ("offset", TEXT), ("byte_size", UINT)):
        name = "string_param" if key == "region" else "int64_param"
        parts = region("region", "offset", "byte_size", **{key: value})
        assert said(*parts) == (
            f"invalid value type for 'shared_memory_{key}' parameter for tensor 'x', expected {name}."
        )
    for key in ("offset", "byte_size"):
        text = f"'shared_memory_{key}' can not be specified without 'shared_memory_region' parameter for tensor 'x'"
        assert said(*region(key)) == text
    assert said(*region("region", "offset")) == (
        "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor 'x'"
    )
    whole = region("region", "byte_size")
    assert said(*whole, kind=errors.NotFound) == "Unable to find shared memory region: 'r'"
    assert said(*whole, pb.span(5, b"")) == (
        "unexpected 'content' provided when using shared memory for input tensor 'x' for model 'mlp'"
    )
    # The last of equal keys counts here too.
    assert "'r'" in said(*region("region", region=INT), *whole, kind=errors.NotFound)


def test_data_of_an_input(model: ModelHandle) -> None:
    contents = pb.span(5, pb.span(2, b"\1"))
    assert refused(one(contents, raw=b"1"), errors.InvalidArg, model) == (
        "contents field must not be specified when using raw_input_contents for 'x' for model 'mlp'"
    )
    assert refused(one(pb.span(5, b""), raw=b"1"), errors.InvalidArg).endswith("_contents for 'x' for model ''")
    missing = "unable to find data for input tensor 'x' for model 'mlp' in request."
    assert refused(one(), errors.InvalidArg, model) == missing
    assert refused(one(name=b"a", raw=b"1") + one(), errors.InvalidArg, model) == missing
    twice = pb.span(5, pb.span(2, b"\1") + pb.span(5, b"\1"))
    assert refused(one(twice), errors.InvalidArg, model) == (
        "unexpected explicit tensor data for input tensor 'x' for model 'mlp', binary data was already supplied."
    )


FIELDS = {
    "BOOL": pb.span(1, b"\1"), "INT32": pb.span(2, b"\1"), "INT64": pb.span(3, b"\1"), "UINT32": pb.span(4, b"\1"),
    "UINT64": pb.span(5, b"\1"), "FP32": pb.span(6, bytes(4)), "FP64": pb.span(7, bytes(8)), "BYTES": pb.span(8, b""),
}


@pytest.mark.parametrize("held", FIELDS)
@pytest.mark.parametrize("datatype", [*pb.TYPED, "FP16", "BF16", "XYZ"])
def test_contents_of_another_datatype(held: str, datatype: str, model: ModelHandle) -> None:
    text = one(pb.span(5, FIELDS[held]), datatype=datatype.encode())
    if datatype == held or (held in ("INT32", "UINT32") and datatype in (held[:-2] + "8", held[:-2] + "16")):
        assert pb.comparable(decode(text)) == pb.meaning(text)
        return
    known = "<invalid>" if datatype == "XYZ" else datatype
    assert refused(text, errors.InvalidArg, model) == (
        f"unexpected explicit tensor data for input tensor 'x' for model 'mlp' of type '{held}', "
        f"expected datatype '{known}'"
    )


# ---- outputs ----


def test_parameters_of_an_output() -> None:
    def said(*entries: tuple[str, bytes], kind: type[errors.ServerError] = errors.InvalidArg) -> str:
        parts = [pb.entry(2, key.encode(), value) for key, value in entries]
        return refused(pb.span(6, pb.span(1, b"o") + b"".join(parts)), kind)

    place = ("shared_memory_region", TEXT), ("shared_memory_byte_size", INT)
    assert said(*place, kind=errors.NotFound) == "Unable to find shared memory region: 'r'"
    assert said(*place, ("classification", INT)) == "output can't set both 'shared_memory_region' and 'classification'"
    assert said(("classification", TEXT)) == (
        "invalid value type for 'classification' parameter, expected int64_param"
    )
    for value in (0, -5):
        assert said(("classification", pb.integer(2, value))) == (
            "invalid value for 'classification' parameter, expected >= 0"
        )
    assert said(place[0]) == (
        "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor 'o'"
    )
    assert said(("shared_memory_offset", INT)) == (
        "'shared_memory_offset' can not be specified without 'shared_memory_region' parameter for tensor 'o'"
    )


def test_order_of_the_checks() -> None:
    bad_output = pb.span(6, pb.entry(2, b"classification", TEXT))
    bad_input, next_input = one(name=b"first"), one(name=b"second")
    bad_param = pb.entry(4, b"timeout", TEXT)
    everything = bad_output + bad_input + next_input + bad_param
    assert "'timeout'" in refused(everything, errors.InvalidArg)
    assert "'first'" in refused(bad_output + bad_input + next_input, errors.InvalidArg)
    assert "'classification'" in refused(bad_output + one(raw=b"1"), errors.InvalidArg)


# ---- limits ----


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (pb.span(5, pb.span(5, b"")), "inputs"),
        (pb.span(6, b""), "outputs"),
        (pb.entry(4, b"k", INT), "parameters"),
    ],
)
def test_counts(text: bytes, what: str) -> None:
    got = decode(text * 65536)
    assert len(got[what]) == (1 if what == "parameters" else 65536)  # type: ignore[literal-required]
    assert refused(text * 65537, errors.InvalidArg) == f"the request has more than 65536 {what}"


def test_surplus_raw_contents_cost_nothing() -> None:
    assert decode(one() + pb.span(7, b"1") + pb.span(7, b"") * 10**6)["inputs"][0]["data"] == b"1"


def test_dimensions() -> None:
    for dims in (pb.span(3, bytes(65)), pb.integer(3, 0) * 65, pb.span(3, bytes(10**6))):
        assert refused(one(dims), errors.InvalidArg) == "invalid shape for input 'x': it has more than 64 dimensions"
    assert decode(one(pb.span(3, bytes(64)), raw=b""))["inputs"][0]["shape"] == [0] * 64


def test_contents_that_decode_to_too_much() -> None:
    first = one(pb.span(5, pb.span(3, bytes(10))), datatype=b"INT64")
    second = one(pb.span(5, pb.span(8, b"")), name=b"y", datatype=b"BYTES")
    assert len(decode(first + second, max_input=84)["inputs"]) == 2
    assert refused(first + second, errors.InvalidArg, max_input=83) == (
        "the contents of input 'y' have a byte_size (84 bytes with the inputs before it) that exceeds the maximum "
        "allowed value of 83 bytes."
    )
    # Raw contents are in memory already.
    assert decode(one(raw=bytes(100)), max_input=0)["inputs"][0]["data"] == bytes(100)


@pytest.mark.parametrize("place", [lambda t: t, one, lambda t: pb.entry(4, b"k", t), lambda t: one(pb.span(5, t))])
def test_deep_groups(place: Callable[[bytes], Any]) -> None:
    deep = pb.tag(15, 3) * 10**6
    assert DEEP in refused(place(deep), errors.Internal)
    assert DEEP in refused(place(deep + pb.tag(15, 4) * 10**6), errors.Internal)
    level = pb.tag(15, 3) * 64 + pb.tag(15, 4) * 64
    assert decode(level)["inputs"] == []


def test_many_parameters_with_equal_keys() -> None:
    keys = [b"k%d" % (i % 100) for i in range(65536)]
    text = b"".join(pb.entry(4, key, pb.integer(2, i)) for i, key in enumerate(keys))
    got = dict(decode(text)["parameters"])
    assert len(got) == 100
    assert {key.encode(): i for key, i in got.items()} == {key: i for i, key in enumerate(keys)}


def test_repeated_empty_contents_of_many_inputs_stay_small() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    text = pb.span(5, pb.span(5, b"")) * 65536
    assert len(decode(text)["inputs"]) == 65536
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 * 1024


def test_long_texts_are_cut() -> None:
    message = refused(one(name=b"n" * 100_000), errors.InvalidArg)
    assert message == f"unable to find data for input tensor '{'n' * 256}' for model '' in request."
    assert len(refused(pb.entry(4, b"k" * 100_000, UINT), errors.InvalidArg)) < 400
