"""What the native decoder makes of good ModelInferRequests, against protobuf and numpy."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import pb
from triton_fast import protos
from triton_fast._native.core import memory, request
from triton_fast._native.wire.pb_infer import bench, decode, head

PACKABLE = {"BOOL": 1, "INT8": 2, "INT16": 2, "INT32": 2, "INT64": 3, "UINT8": 4, "UINT16": 4, "UINT32": 4, "UINT64": 5}


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    before = (memory.stats()["live_blocks"], request.stats()["live_requests"])
    yield
    assert (memory.stats()["live_blocks"], request.stats()["live_requests"]) == before


def small() -> Any:
    m = protos.ModelInferRequest(model_name="mlp", model_version="3", id="42")
    m.inputs.add(name="INPUT", datatype="FP32", shape=[1, 16])
    m.outputs.add(name="OUTPUT")
    m.raw_input_contents.append(np.arange(16, dtype=np.float32).tobytes())
    return m


def input_part(*parts: bytes) -> bytes:
    return pb.span(5, b"".join(parts))


def typed(datatype: str, *contents: bytes) -> bytes:
    """The data that one input with these pieces of contents gets."""
    parts = [pb.span(1, b"x"), pb.span(2, datatype.encode()), *(pb.span(5, piece) for piece in contents)]
    (tensor,) = decode(input_part(*parts))["inputs"]
    assert tensor["datatype"] == datatype
    return tensor["data"]


def test_the_usual_request() -> None:
    m = small()
    got = decode(m.SerializeToString())
    assert head(m.SerializeToString()) == ("mlp", "3", "42")
    assert got == {
        "id": "42",
        "inputs": [{"name": "INPUT", "datatype": "FP32", "shape": [1, 16], "data": m.raw_input_contents[0],
                    "borrowed": True}],
        "outputs": [{"name": "OUTPUT", "binary": 1, "classes": 0}],
        "parameters": [], "sequence_id": 0, "flags": 0, "priority": 0, "timeout": 0, "binary_data_output": True,
    }


def test_an_empty_message() -> None:
    assert head(b"") == ("", "", "")
    got = decode(b"")
    assert (got["id"], got["inputs"], got["outputs"], got["parameters"]) == ("", [], [], [])


def test_bench_counts_successes() -> None:
    assert bench(small().SerializeToString(), 5) == 5
    assert bench(b"\x0a", 5) == 0


@pytest.mark.parametrize("datatype", [*pb.TYPED, "FP16", "BF16", "fp32", "", "FP320", "INT", "\0\0\0\0"])
def test_datatypes(datatype: str) -> None:
    m = protos.ModelInferRequest(raw_input_contents=[b"1"])
    m.inputs.add(datatype=datatype)
    known = {*pb.TYPED, "FP16", "BF16"}
    assert decode(m.SerializeToString())["inputs"][0]["datatype"] == (datatype if datatype in known else "<invalid>")


def test_shapes_packed_and_not() -> None:
    dims = [1, 0, -1, 2**63 - 1, -(2**63), 300]
    packed = b"".join(pb.varint(d) for d in dims)
    for parts in (
        [pb.span(3, packed)],
        [pb.integer(3, d) for d in dims],
        [pb.integer(3, 1), pb.span(3, packed[1:2]), pb.span(3, b""), pb.span(3, packed[2:])],
    ):
        raw = pb.span(7, b"")
        (tensor,) = decode(raw + input_part(*parts))["inputs"]
        assert tensor["shape"] == dims


def test_raw_contents_may_come_first_and_in_surplus() -> None:
    raw = [b"one", b"", b"three", b"surplus"]
    parts = [pb.span(7, data) for data in raw] + [input_part(pb.span(1, name)) for name in (b"a", b"b", b"c")]
    got = decode(b"".join(parts))["inputs"]
    assert [(t["name"], t["data"], t["borrowed"]) for t in got] == [
        ("a", b"one", True), ("b", b"", False), ("c", b"three", True)
    ]


def test_many_inputs_outputs_and_raw_contents() -> None:
    m = protos.ModelInferRequest()
    for i in range(1000):
        m.inputs.add(name=f"i{i}", datatype="INT8", shape=[i] * (i % 65))
        m.outputs.add(name=f"o{i}")
        m.raw_input_contents.append(str(i).encode())
    text = m.SerializeToString()
    assert pb.comparable(decode(text)) == pb.meaning(text)


@pytest.mark.parametrize("count", [1, 7, 64, 3000])
@pytest.mark.parametrize("datatype", PACKABLE)
def test_integers_packed_unpacked_and_mixed(datatype: str, count: int) -> None:
    field, kind = PACKABLE[datatype], pb.TYPED[datatype][1]
    rng = np.random.default_rng(count)
    if kind is np.bool_:
        values = [int(v) for v in rng.integers(0, 2, count)]
    else:
        info = np.iinfo(kind)
        values = [int(v) for v in rng.integers(info.min, info.max, count, dtype=kind, endpoint=True)]
        values[0], values[-1] = info.max, info.min
    packed = pb.span(field, b"".join(map(pb.varint, values)))
    unpacked = b"".join(pb.integer(field, v) for v in values)
    half = count // 2
    mixed = pb.span(field, b"".join(map(pb.varint, values[:half]))) + b"".join(
        pb.integer(field, v) for v in values[half:]
    )
    want = np.array(values, kind).tobytes()
    assert typed(datatype, packed) == want
    assert typed(datatype, unpacked) == want
    assert typed(datatype, mixed) == want
    # Contents in two pieces are merged.
    first = pb.span(field, b"".join(map(pb.varint, values[:half])))
    rest = b"".join(pb.integer(field, v) for v in values[half:])
    assert typed(datatype, first, b"", rest) == want


@pytest.mark.parametrize(("datatype", "field", "code", "wire_type"), [("FP32", 6, "f", 5), ("FP64", 7, "d", 1)])
def test_floats(datatype: str, field: int, code: str, wire_type: int) -> None:
    values = [0.0, -0.0, 1.5, float("inf"), -1e30] * 60
    want = struct.pack(f"<{len(values)}{code}", *values)
    size = struct.calcsize(code)
    singles = b"".join(pb.tag(field, wire_type) + want[i : i + size] for i in range(0, len(want), size))
    assert typed(datatype, pb.span(field, want)) == want
    assert typed(datatype, singles) == want
    assert typed(datatype, pb.span(field, want[: 2 * size]) + singles[2 * (size + 1) :]) == want
    assert typed(datatype, pb.span(field, want[: 2 * size]), pb.span(field, want[2 * size :])) == want
    (tensor,) = decode(input_part(pb.span(2, datatype.encode()), pb.span(5, pb.span(field, want))))["inputs"]
    assert tensor["borrowed"]


def test_bytes() -> None:
    texts = [b"", b"a", b"\xff\0", b"x" * 1000]
    assert typed("BYTES", *(pb.span(8, t) for t in texts)) == pb.elements(texts)
    assert typed("BYTES", b"".join(pb.span(8, t) for t in texts)) == pb.elements(texts)
    assert typed("BYTES", b"".join(pb.span(8, b"") for _ in range(1000))) == bytes(4000)


@pytest.mark.parametrize("datatype", [*pb.TYPED, "FP16", "BF16"])
def test_contents_without_elements(datatype: str) -> None:
    assert typed(datatype, b"") == b""
    assert typed(datatype, *(pb.span(n, b"") for n in range(1, 8))) == b""


def test_narrow_integers_are_cut_silently() -> None:
    assert typed("INT8", pb.span(2, pb.varint(300) + pb.varint(-129))) == bytes([44, 127])
    assert typed("UINT16", pb.span(4, pb.varint(65536 + 7))) == b"\7\0"
    assert typed("INT32", pb.span(2, pb.varint(2**32 + 1))) == b"\1\0\0\0"
    assert typed("BOOL", pb.span(1, pb.varint(2**40) + b"\0")) == b"\1\0"


def test_parameters_with_fields_of_their_own() -> None:
    m = small()
    of = m.parameters
    of["sequence_id"].int64_param = -1
    of["sequence_start"].bool_param = True
    of["sequence_end"].bool_param = True
    of["priority"].uint64_param = 2**64 - 1
    of["timeout"].int64_param = 10**6
    of["triton_enable_empty_final_response"].bool_param = True
    of["binary_data_output"].string_param = "whatever"
    got = decode(m.SerializeToString())
    assert got["flags"] == 7
    assert (got["sequence_id"], got["priority"], got["timeout"]) == (2**64 - 1, 2**64 - 1, 10**6)
    assert got["parameters"] == []
    of["sequence_id"].string_param = "é" * 64
    of["priority"].int64_param = 5
    of["sequence_start"].bool_param = of["triton_enable_empty_final_response"].bool_param = False
    got = decode(m.SerializeToString())
    assert (got["sequence_id"], got["priority"], got["flags"]) == ("é" * 64, 5, 2)
    of["sequence_id"].string_param = ""
    assert decode(m.SerializeToString())["sequence_id"] == ""


def test_parameters_of_the_model() -> None:
    m = small()
    m.parameters["i"].int64_param = -(2**63)
    m.parameters["b"].bool_param = False
    m.parameters["s"].string_param = "text"
    m.parameters["d"].double_param = 0.1
    m.parameters[""].string_param = ""
    m.parameters["triton"].int64_param = 1
    text = m.SerializeToString()
    assert dict(decode(text)["parameters"]) == {
        "i": -(2**63), "b": False, "s": "text", "d": 0.1, "": "", "triton": 1
    }
    assert pb.comparable(decode(text)) == pb.meaning(text)


@pytest.mark.parametrize("others", [0, 20])
def test_of_equal_keys_the_last_counts(others: int) -> None:
    fill = b"".join(pb.entry(4, f"o{i}".encode(), pb.integer(2, i)) for i in range(others))
    text = (
        pb.entry(4, b"k", pb.integer(2, 1)) + pb.entry(4, b"sequence_id", pb.integer(1, 1)) + fill
        + pb.entry(4, b"k", pb.span(3, b"last")) + pb.entry(4, b"sequence_id", pb.integer(2, 9))
    )
    got = decode(text)
    assert dict(got["parameters"])["k"] == "last"
    assert len(got["parameters"]) == 1 + others
    assert got["sequence_id"] == 9
    assert pb.comparable(got) == pb.meaning(text)


def test_the_pieces_of_an_entry_are_merged() -> None:
    # Twice a key, a oneof set twice, and a value in two pieces of which the second is empty.
    inner = pb.span(1, b"a") + pb.span(2, pb.integer(2, 1) + pb.integer(1, 1)) + pb.span(2, b"") + pb.span(1, b"b")
    assert decode(pb.span(4, inner))["parameters"] == [("b", True)]
    assert pb.meaning(pb.span(4, inner))["parameters"] == [("b", "True")]


def test_unknown_fields_are_skipped_everywhere() -> None:
    group = pb.tag(9, 3) + pb.integer(1, 5) + pb.tag(10, 3) + pb.tag(10, 4) + pb.tag(9, 4)
    odd = [pb.integer(99, 2**64 - 1), pb.tag(98, 1) + bytes(8), pb.tag(97, 5) + bytes(4), pb.span(96, b"x"), group,
           pb.tag(2**29 - 1, 0) + b"\0"]
    # A known field of another wire type is unknown too.
    wrong = [pb.integer(n, 7) for n in (1, 2, 4, 5, 6, 7)] + [pb.tag(3, 5) + bytes(4)]
    noise = b"".join(odd + wrong)
    inner = b"".join(odd) + pb.tag(3, 5) + bytes(4)
    contents = pb.span(5, inner + pb.span(2, b"\1\2") + pb.integer(8, 1) + pb.integer(7, 1))
    tensor = input_part(inner, pb.span(1, b"x"), pb.span(2, b"INT8"), contents, inner)
    output = pb.span(6, inner + pb.span(1, b"o") + pb.entry(2, b"k", inner) + inner)
    text = noise + pb.span(1, b"m") + tensor + noise + output + noise
    got = decode(text)
    assert got["inputs"][0]["data"] == b"\1\2"
    assert got["outputs"] == [{"name": "o", "binary": 1, "classes": 0}]
    assert head(text) == ("m", "", "")
    assert pb.comparable(got) == pb.meaning(text)


def test_of_repeated_scalars_the_last_counts() -> None:
    text = b"".join(pb.span(n, t) for n, t in ((1, b"m"), (3, b"a"), (2, b"1"), (1, b"n"), (3, b""), (2, b"2")))
    assert head(text) == ("n", "2", "")
    assert decode(text)["id"] == ""
    text = input_part(pb.span(1, b"a"), pb.span(2, b"INT8"), pb.span(1, b"b"), pb.span(2, b"FP16")) + pb.span(7, b"")
    assert [(t["name"], t["datatype"]) for t in decode(text)["inputs"]] == [("b", "FP16")]


def test_classification() -> None:
    m = small()
    m.outputs[0].parameters["classification"].int64_param = 3
    m.outputs.add(name="P").parameters["classification"].int64_param = 2**40
    assert [o["classes"] for o in decode(m.SerializeToString())["outputs"]] == [3, 2**32 - 1]


def parts_of(m: Any) -> list[bytes]:
    """The message as one serialized piece for each element of its fields."""
    pieces = [pb.span(1, m.model_name.encode()), pb.span(3, m.id.encode())]
    pieces += [pb.span(5, t.SerializeToString()) for t in m.inputs]
    pieces += [pb.span(6, o.SerializeToString()) for o in m.outputs]
    pieces += [pb.span(7, raw) for raw in m.raw_input_contents]
    pieces += [pb.entry(4, key.encode(), value.SerializeToString()) for key, value in m.parameters.items()]
    return pieces


@st.composite
def messages(draw: st.DrawFn) -> Any:
    text = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
    m = protos.ModelInferRequest(model_name=draw(text), id=draw(text))
    raw = draw(st.booleans())
    for _ in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from(list(pb.TYPED)))
        t = m.inputs.add(name=draw(text), datatype=kind, shape=draw(st.lists(st.integers(-(2**63), 2**63 - 1))))
        if raw:
            m.raw_input_contents.append(draw(st.binary(max_size=300)))
            continue
        field = pb.TYPED[kind][0]
        one = {
            "bool_contents": st.booleans(),
            "int_contents": st.integers(-(2**31), 2**31 - 1),
            "int64_contents": st.integers(-(2**63), 2**63 - 1),
            "uint_contents": st.integers(0, 2**32 - 1),
            "uint64_contents": st.integers(0, 2**64 - 1),
            "fp32_contents": st.floats(width=32, allow_nan=False),
            "fp64_contents": st.floats(allow_nan=False),
            "bytes_contents": st.binary(max_size=40),
        }[field]
        t.contents.SetInParent()
        getattr(t.contents, field).extend(draw(st.lists(one, max_size=100)))
    for _ in range(draw(st.integers(0, 4))):
        m.outputs.add(name=draw(text))
    values = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), text, st.floats(allow_nan=False))
    for key, value in draw(st.dictionaries(text.filter(lambda k: not k.startswith("triton_")), values)).items():
        names = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
        if key not in pb.OWN_FIELD:
            setattr(m.parameters[key], names[type(value)], value)
    return m


@settings(max_examples=150, deadline=None)
@given(messages(), st.randoms(use_true_random=False))
def test_any_message_in_any_order(m: Any, rng: random.Random) -> None:
    whole = m.SerializeToString()
    assert pb.comparable(decode(whole)) == pb.meaning(whole)
    pieces = parts_of(m)
    rng.shuffle(pieces)
    # Repeating scalars changes which one counts; both sides must agree.
    pieces += rng.choices([pb.span(1, b"again"), pb.span(3, b"x"), pb.span(2, b"")], k=2)
    shuffled = b"".join(pieces)
    assert pb.comparable(decode(shuffled)) == pb.meaning(shuffled)
    view = protos.ModelInferRequest.FromString(shuffled)
    assert head(shuffled) == (view.model_name, view.model_version, view.id)
