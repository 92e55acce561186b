"""What the native v2 JSON decoder makes of good requests, against json and numpy."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triton_fast import errors
from triton_fast._native.core import memory, request
from triton_fast._native.wire.json_infer import bench, decode

NUMPY = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP32": np.float32,
    "FP64": np.float64,
}
SHAPES = [(1,), (7,), (1, 16), (2, 3), (3, 1, 2), (2, 2, 2, 2), (300,), (1, 1, 1, 1, 1, 1)]


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    before = (memory.stats()["live_blocks"], request.stats()["live_requests"])
    yield
    assert (memory.stats()["live_blocks"], request.stats()["live_requests"]) == before


def wire(elements: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(e)) + e for e in elements)


def body(datatype: str, shape: Any, data: str, tail: str = "") -> bytes:
    dims = json.dumps(list(shape))
    text = f'{{"inputs":[{{"name":"x","shape":{dims},"datatype":"{datatype}","data":{data}}}]{tail}}}'
    return text.encode()


def data_of(datatype: str, shape: Any, data: str) -> bytes:
    (tensor,) = decode(body(datatype, shape, data))["inputs"]
    assert tensor["datatype"] == datatype
    assert tensor["shape"] == list(shape)
    return tensor["data"]


def sample(datatype: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    kind = NUMPY[datatype]
    if datatype == "BOOL":
        return rng.integers(0, 2, shape).astype(np.bool_)
    if issubclass(kind, np.floating):
        return (rng.standard_normal(shape) * 10.0 ** rng.integers(-12, 12, shape)).astype(kind)
    info = np.iinfo(kind)
    array = rng.integers(info.min, info.max, shape, dtype=kind, endpoint=True)
    array.flat[0] = info.max
    array.flat[-1] = info.min
    return array


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("datatype", NUMPY)
def test_every_datatype_nested_flat_and_spaced(datatype: str, shape: tuple[int, ...]) -> None:
    array = sample(datatype, shape, np.random.default_rng(len(shape)))
    nested, flat = array.tolist(), array.ravel().tolist()
    for data in (nested, flat, [flat], [[], flat]):
        for text in (json.dumps(data), json.dumps(data, separators=(",", ":")), json.dumps(data, indent=1)):
            assert data_of(datatype, shape, text) == array.tobytes()
    assert data_of(datatype, shape, orjson.dumps(nested).decode()) == array.tobytes()


@pytest.mark.parametrize("shape", SHAPES)
def test_bytes(shape: tuple[int, ...]) -> None:
    rng = random.Random(5)
    letters = ["", "a", 'q"\\/', "\b\f\n\r\t", "é", "\u20ac", "\U0001f600", "\0", "x" * 700]
    flat = [rng.choice(letters) for _ in range(math.prod(shape))]
    nested = np.array(flat, dtype=object).reshape(shape).tolist()
    for text in (json.dumps(nested), json.dumps(nested, ensure_ascii=False), json.dumps(flat, indent=2)):
        assert data_of("BYTES", shape, text) == wire([s.encode() for s in flat])


def test_bytes_grow_far_past_the_first_guess() -> None:
    big = ["y" * n for n in (1, 5000, 3, 200_000, 0)]
    assert data_of("BYTES", [5], json.dumps(big)) == wire([s.encode() for s in big])
    small = ["z"] * 50_000
    assert data_of("BYTES", [50_000], json.dumps(small)) == wire([b"z"] * 50_000)


def test_strings_that_are_no_utf8_pass_as_they_are() -> None:
    # As in the real server: raw bytes are not checked, and a lone low surrogate becomes three bytes.
    text = body("BYTES", [2], '["?","\\udc00"]').replace(b"?", b"\xff\xfe")
    assert decode(text)["inputs"][0]["data"] == wire([b"\xff\xfe", b"\xed\xb0\x80"])


@pytest.mark.parametrize(
    ("datatype", "text", "value"),
    [
        # Narrowing and odd numbers as the real server takes them.
        ("INT8", "300", 44),
        ("INT8", "-129", 127),
        ("UINT8", "256", 0),
        ("UINT8", "-0", 0),
        ("INT32", "4294967297", 1),
        ("INT64", "-9223372036854775808", -(2**63)),
        ("UINT64", "18446744073709551615", 2**64 - 1),
        ("UINT64", "10000000000000000000", 10**19),
        ("FP32", "1e39", math.inf),
        ("FP32", "Infinity", math.inf),
        ("FP32", "-Inf", -math.inf),
        ("FP64", "1e-400", 0.0),
        ("FP64", "-1e-400", -0.0),
        ("FP64", "123456789012345678901234567890", 123456789012345678901234567890.0),
        ("FP64", "18446744073709551615", 18446744073709551616.0),
        ("FP64", "-18446744073709551615", -18446744073709551616.0),
        ("FP64", "0.1", 0.1),
        ("FP64", "5e-324", 5e-324),
        ("FP64", "2.2250738585072014e-308", 2.2250738585072014e-308),
        ("FP64", "1.7976931348623157e308", 1.7976931348623157e308),
        ("FP64", "99e307", 99e307),
        ("FP64", "9007199254740993.0", 9007199254740992.0),
        ("FP64", "9007199254740995.0", 9007199254740996.0),
        ("FP64", "0." + "0" * 30 + "123456789012345678", float("0." + "0" * 30 + "123456789012345678")),
        ("FP64", "1" * 40 + ".5", float("1" * 40)),
        ("FP32", "16777217", 16777216.0),
    ],
)
def test_numbers(datatype: str, text: str, value: float) -> None:
    # The value stands last, first, and far from the end, where the readers have different room.
    for data in (f"[{text}]", f"[{text}, 1, 1]", f"[{text},1,1,1,1,1,1,1,1,1,1]"):
        count = data.count(",") + 1
        got = np.frombuffer(data_of(datatype, [count], data), NUMPY[datatype])
        assert got[0] == value
        if value == 0:
            assert math.copysign(1, got[0]) == math.copysign(1, value)


def test_nan_and_the_two_zeros() -> None:
    for text in ("NaN", "-NaN"):
        assert np.isnan(np.frombuffer(data_of("FP32", [1], f"[{text}]"), np.float32))[0]
    zeros = np.frombuffer(data_of("FP32", [4], "[-0,-0.0,0,0.0]"), np.float32)
    assert [math.copysign(1, z) for z in zeros] == [1, -1, 1, 1]    # -0 is an integer


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
def test_doubles_round_trip(values: list[float]) -> None:
    assert data_of("FP64", [len(values)], json.dumps(values)) == np.array(values, np.float64).tobytes()
    with np.errstate(over="ignore"):
        narrow = np.array(values, np.float64).astype(np.float32)
    assert data_of("FP32", [len(values)], json.dumps(values)) == narrow.tobytes()


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 10**22), st.text("0123456789", max_size=25), st.integers(-330, 300), st.booleans()
        ),
        min_size=1,
        max_size=20,
    )
)
def test_written_decimals_round_as_python_does(parts: list[tuple[int, str, int, bool]]) -> None:
    texts = []
    for whole, fraction, exponent, with_exponent in parts:
        text = str(whole) + ("." + fraction if fraction else "")
        if with_exponent and abs(float(f"{text}e{exponent}")) < 1e300:
            text += f"e{exponent}"
        texts.append("-" + text if len(fraction) % 2 else text)
    want = np.array([float(t) for t in texts], np.float64)
    got = np.frombuffer(data_of("FP64", [len(texts)], "[" + ",".join(texts) + "]"), np.float64)
    assert (got == want).all()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=60))
def test_integers_round_trip_and_narrow(values: list[int]) -> None:
    text = json.dumps(values)
    array = np.array(values, np.int64)
    for kind in ("INT64", "INT32", "INT16", "INT8"):
        assert data_of(kind, [len(values)], text) == array.astype(NUMPY[kind]).tobytes()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=30), min_size=1), st.booleans())
def test_texts_round_trip(values: list[str], ascii_only: bool) -> None:
    text = json.dumps(values, ensure_ascii=ascii_only)
    assert data_of("BYTES", [len(values)], text) == wire([v.encode() for v in values])


def test_members_in_any_order() -> None:
    members = ['"name":"x"', '"shape":[2]', '"datatype":"FP32"', '"data":[1.5,2]', '"more":{"a":[1,{"b":null}]}']
    rng = random.Random(1)
    for _ in range(40):
        rng.shuffle(members)
        parts = ['"inputs":[{' + ",".join(members) + "}]", '"id":"7"', '"zz":[[],{},"\\n"]', '"outputs":[{"name":"o"}]']
        rng.shuffle(parts)
        got = decode(("{" + " , ".join(parts) + "}").encode())
        assert got["id"] == "7"
        assert got["inputs"][0]["data"] == np.array([1.5, 2], np.float32).tobytes()
        assert got["outputs"] == [{"name": "o", "binary": 0, "classes": 0}]


def test_of_equal_members_the_first_counts() -> None:
    got = decode(
        b'{"id":"a","id":5,"inputs":[{"name":"x","name":"y","shape":[1],"shape":5,"datatype":"INT8","datatype":"FP16",'
        b'"data":[1],"data":[2,3],"parameters":{},"parameters":{"binary_data_size":9}}],"inputs":[{}],'
        b'"parameters":{"k":1,"k":2,"timeout":3,"timeout":"x"},"parameters":5}'
    )
    assert (got["id"], got["timeout"], got["parameters"]) == ("a", 3, [("k", 1)])
    assert [(t["name"], t["shape"], t["data"]) for t in got["inputs"]] == [("x", [1], b"\x01")]


def test_escaped_keys_and_names() -> None:
    got = decode(
        b'{"\\u0069nputs":[{"n\\u0061me":"x\\n\\"","sh\\u0061pe":[1],"datatype":"\\u0049NT8","data":[3]}],'
        b'"id":"\\u00e9"}'
    )
    assert got["inputs"][0]["name"] == 'x\n"'
    assert got["inputs"][0]["data"] == b"\x03"
    assert got["id"] == "é"


def test_binary_inputs_are_borrowed_in_order() -> None:
    text = (
        b'{"inputs":[{"name":"a","shape":[2],"datatype":"FP32","parameters":{"binary_data_size":8}},'
        b'{"parameters":{"binary_data_size":0},"name":"e","shape":[0],"datatype":"FP16"},'
        b'{"name":"j","shape":[1],"datatype":"UINT8","data":[9]},'
        b'{"name":"b","shape":[3],"datatype":"INT8","parameters":{"binary_data_size":3,"other":[1]}}]}'
    )
    got = decode(text, b"01234567abc")["inputs"]
    assert [(t["name"], t["data"], t["borrowed"]) for t in got] == [
        ("a", b"01234567", True),
        ("e", b"", False),
        ("j", b"\x09", False),
        ("b", b"abc", True),
    ]


def test_unknown_datatype_of_binary_input_is_left_to_validation() -> None:
    text = b'{"inputs":[{"name":"a","shape":[2],"datatype":"fp32","parameters":{"binary_data_size":1}}]}'
    assert decode(text, b"x")["inputs"][0]["datatype"] == "<invalid>"


def test_request_parameters() -> None:
    got = decode(
        b'{"inputs":[],"parameters":{"sequence_id":18446744073709551615,"sequence_start":true,"sequence_end":true,'
        b'"priority":2,"timeout":100,"binary_data_output":true,"s":"t\\t","i":-5,"b":false,"d":1.5,'
        b'"u":18446744073709551615,"":1,"headers":"x"}}'
    )
    assert got["sequence_id"] == 2**64 - 1
    assert (got["flags"], got["priority"], got["timeout"], got["binary_data_output"]) == (3, 2, 100, True)
    assert got["parameters"] == [
        ("s", "t\t"), ("i", -5), ("b", False), ("d", 1.5), ("u", 1.8446744073709552e19), ("", 1), ("headers", "x")
    ]
    assert decode(b'{"inputs":[],"parameters":{"sequence_id":"abc"}}')["sequence_id"] == "abc"
    assert decode(b'{"inputs":[],"parameters":{"sequence_id":"' + b"x" * 128 + b'"}}')["sequence_id"] == "x" * 128


def test_outputs() -> None:
    got = decode(
        b'{"inputs":[],"parameters":{"binary_data_output":true},"outputs":[{"name":"a"},{"name":"b","parameters":'
        b'{"binary_data":true}},{"name":"c","parameters":{"binary_data":false,"classification":3}},'
        b'{"parameters":{"classification":18446744073709551615},"name":"d"},{"name":"e","parameters":5}]}'
    )["outputs"]
    # Without binary_data an output is JSON, whatever binary_data_output says: so does the real server.
    assert [(o["name"], o["binary"], o["classes"]) for o in got] == [
        ("a", 0, 0), ("b", 1, 0), ("c", 0, 3), ("d", 0, 2**32 - 1), ("e", 0, 0)
    ]


def test_white_space_bom_and_a_closing_nul() -> None:
    for text in (b" \t\r\n{ }".replace(b" }", b'"inputs" : [ ] }'), b'\xef\xbb\xbf{"inputs":[]}', b'{"inputs":[]}\n\0'):
        assert decode(text)["inputs"] == []


def test_empty_shapes_take_no_data() -> None:
    for shape, data in (("[0]", "[]"), ("[2,0]", '["anything"]'), ("[]", "[1]"), ("[0]", "5")):
        text = f'{{"inputs":[{{"name":"x","shape":{shape},"datatype":"FP32","data":{data}}}]}}'
        assert decode(text.encode())["inputs"][0]["data"] == b""


def test_many_inputs_and_outputs() -> None:
    count = 3000
    inputs = [{"name": f"i{n}", "shape": [2], "datatype": "INT32", "data": [n, -n]} for n in range(count)]
    outputs = [{"name": f"o{n}"} for n in range(count)]
    got = decode(json.dumps({"inputs": inputs, "outputs": outputs}).encode())
    assert [t["name"] for t in got["inputs"]] == [t["name"] for t in inputs]
    assert all(np.frombuffer(t["data"], np.int32).tolist() == [n, -n] for n, t in enumerate(got["inputs"]))
    assert len(got["outputs"]) == count


def test_long_string_at_every_alignment() -> None:
    for n in range(40):
        text = b'{"inputs":[],"id":"' + b"x" * n + b'"}'
        assert decode(text)["id"] == "x" * n
        with pytest.raises(errors.Internal, match=rf"Invalid escape character in string. at {19 + n}$"):
            decode(b'{"inputs":[],"id":"' + b"x" * n + b"\x1f" + b"y" * 20 + b'"}')


def test_bench_counts_successes() -> None:
    assert bench(body("FP32", [2], "[1,2]"), b"", 10) == 10
    assert bench(b"{", b"", 3) == 0
