"""The JSON reply against numpy and the json module: keys in order, every datatype, binary sections, errors."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.wire_io import Io, nothing_leaks, strings  # noqa: F401
from triton_fast._native.core.model import ModelHandle
from triton_fast._native.wire import json_reply, json_text
from triton_fast.errors import Internal, InvalidArg
from triton_fast.types import TYPES, DataType

FP32, FP64, STRING = DataType.FP32, DataType.FP64, DataType.STRING
NUMPY: dict[DataType, Any] = {
    DataType.BOOL: np.bool_, DataType.UINT8: np.uint8, DataType.UINT16: np.uint16, DataType.UINT32: np.uint32,
    DataType.UINT64: np.uint64, DataType.INT8: np.int8, DataType.INT16: np.int16, DataType.INT32: np.int32,
    DataType.INT64: np.int64, DataType.FP32: np.float32, DataType.FP64: np.float64,
}  # fmt: skip


MODEL = ModelHandle("m", 3, 0, [], [Io("Y", FP32, [-1]), Io("Z", FP32, [-1])])


def data_text(dtype: DataType, array: np.ndarray[Any, Any]) -> str:
    text, sections = json_reply.encode(MODEL, [(0, dtype, array.shape, array.tobytes())])
    assert sections == []
    head, _, rest = text.decode().partition('"data":[')
    assert json.loads(head + '"data":[]}]}')["outputs"][0]["shape"] == list(array.shape)
    assert rest.endswith("]}]}")
    return rest[:-4]


# --- the whole reply --------------------------------------------------------------------------------------------------


def test_bytes_of_a_reply() -> None:
    one = np.array([1.0, 2.5], np.float32).tobytes()
    text, sections = json_reply.encode(
        MODEL,
        [(1, FP32, [1, 2], one), (0, STRING, [2], strings(b"a", b'"'))],
        id='x"y\n',
        parameters={"i": -1, "b": True, "f": False, "s": "é", "d": 0.5, "u": 2**64 - 1},
    )
    assert text.decode() == (
        '{"id":"x\\"y\\n","model_name":"m","model_version":"3",'
        '"parameters":{"i":-1,"b":true,"f":false,"s":"é","d":0.5,"u":18446744073709551615},'
        '"outputs":[{"name":"Z","datatype":"FP32","shape":[1,2],"data":[1.0,2.5]},'
        '{"name":"Y","datatype":"BYTES","shape":[2],"data":["a","\\""]}]}'
    )
    assert sections == []


def test_no_outputs() -> None:
    assert json_reply.encode(MODEL, []) == (b'{"model_name":"m","model_version":"3","outputs":[]}', [])


def test_binary_outputs_follow_in_order_and_empty_ones_do_not() -> None:
    outputs = [(0, FP32, [1], b"abcd"), (1, FP32, [0], b""), (0, STRING, [1], strings(b"hey"))]
    text, sections = json_reply.encode(MODEL, outputs, binary_default=1)
    assert sections == [b"abcd", strings(b"hey")]
    assert [o["parameters"] for o in json.loads(text)["outputs"]] == [{"binary_data_size": n} for n in (4, 0, 7)]
    assert b'"shape":[1],"parameters":{"binary_data_size":4}}' in text


@pytest.mark.parametrize("default", [0, 1])
@pytest.mark.parametrize("said", [-1, 0, 1])
def test_what_the_client_said_beats_the_default(default: int, said: int) -> None:
    data = np.float32([1]).tobytes()
    text, sections = json_reply.encode(
        MODEL, [(1, FP32, [1], data), (0, FP32, [1], data)], wanted=[(0, said, 0)], binary_default=default
    )
    z, y = json.loads(text)["outputs"]
    binary = default if said < 0 else said
    assert ("parameters" in y, "data" in y) == (bool(binary), not binary)
    assert ("parameters" in z, "data" in z) == (bool(default), not default)
    assert len(sections) == binary + default


def test_fp16_goes_binary_only() -> None:
    for dtype, name in ((DataType.FP16, "FP16"), (DataType.BF16, "BF16")):
        assert json_reply.encode(MODEL, [(0, dtype, [1], b"ab")], binary_default=1)[1] == [b"ab"]
        with pytest.raises(InvalidArg) as e:
            json_reply.encode(MODEL, [(0, dtype, [1], b"ab")])
        assert e.value.message == (
            f"sending {name} data via JSON is not supported. Please use the binary data format for output"
        )


@pytest.mark.parametrize(
    ("dtype", "shape", "data"),
    [
        (FP32, [2], bytes(4)), (FP32, [1], bytes(5)), (FP32, [-1], bytes(4)), (FP32, [2**62], b""),
        (FP32, [2**62, 2**62, 0], b""), (STRING, [1], b""), (STRING, [0], strings(b"a")), (STRING, [2], strings(b"a")),
        (STRING, [1], b"\xff\xff\xff\xffa"), (STRING, [1], b"\0\0"), (STRING, [-1], b""),
        (STRING, [2**62], strings(b"a")),
    ],
)  # fmt: skip
def test_a_shape_that_lies_about_its_bytes(dtype: DataType, shape: list[int], data: bytes) -> None:
    with pytest.raises(Internal, match="output tensor shape does not match size of output for 'Y'"):
        json_reply.encode(MODEL, [(0, dtype, shape, data)])


def test_unknown_datatype() -> None:
    with pytest.raises(InvalidArg, match="Invalid data type for output tensor"):
        json_reply.encode(MODEL, [(0, 99, [1], b"a")])


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [d for d in NUMPY if d not in (FP32, FP64, DataType.BOOL)])
def test_integers_of_every_length(dtype: DataType) -> None:
    info = np.iinfo(NUMPY[dtype])
    values = {info.min, info.max, 0}
    values |= {s * (10**k + d) for k in range(20) for d in (-1, 0, 1) for s in (1, -1)}
    values |= {s * (2**k + d) for k in range(65) for d in (-1, 0, 1) for s in (1, -1)}
    array = np.array([v for v in sorted(values) if info.min <= v <= info.max], NUMPY[dtype])
    assert data_text(dtype, array) == ",".join(str(v) for v in array.tolist())


def test_bools() -> None:
    array = np.random.default_rng(0).random(1000) < 0.5
    assert data_text(DataType.BOOL, array) == json.dumps(array.tolist(), separators=(",", ":"))[1:-1]


@pytest.mark.parametrize("dtype", list(NUMPY))
@pytest.mark.parametrize("n", [0, 1, 255, 256, 257, 1000])
def test_every_count_around_the_run_length(dtype: DataType, n: int) -> None:
    array = (np.arange(n) % 100).astype(NUMPY[dtype])
    assert json.loads("[" + data_text(dtype, array) + "]") == array.tolist()


LAYOUT = [
    (0.0, "0.0"), (-0.0, "-0.0"), (1.0, "1.0"), (-1.5, "-1.5"), (0.1, "0.1"), (100.0, "100.0"), (123.456, "123.456"),
    (1e-5, "0.00001"), (1e-6, "0.000001"), (1e-7, "1e-7"), (1.5e-7, "1.5e-7"), (1e7, "10000000.0"),
    (1e20, "100000000000000000000.0"), (1e21, "1e21"), (-1e22, "-1e22"), (1.25e-30, "1.25e-30"),
    (float("nan"), "NaN"), (-float("nan"), "NaN"), (float("inf"), "Infinity"), (-float("inf"), "-Infinity"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "text"), LAYOUT)
def test_floats_are_laid_out_as_the_real_server_does(value: float, text: str) -> None:
    assert data_text(FP64, np.array([value])) == text
    assert data_text(FP32, np.array([value], np.float32)) == text


def test_extreme_doubles() -> None:
    values = [5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 2**53 + 0.0, 12345678901234567890.0, 1 / 3]
    assert data_text(FP64, np.array(values)) == (
        "5e-324,2.2250738585072014e-308,1.7976931348623157e308,9007199254740992.0,12345678901234567000.0,0.3333333333333333"
    )


def plain_digits(text: str) -> tuple[str, int]:
    """Significant digits and the power of ten of the first."""
    mantissa, _, exponent = text.lstrip("-").partition("e")
    whole, _, part = mantissa.partition(".")
    digits = whole + part
    lead = len(digits) - len(digits.lstrip("0"))
    return digits.strip("0"), int(exponent or 0) + len(whole) - lead


def check_floats(dtype: DataType, array: np.ndarray[Any, Any]) -> None:
    texts = data_text(dtype, array).split(",")
    assert len(texts) == len(array)
    back = np.array([float(t) for t in texts]).astype(NUMPY[dtype])
    if dtype is FP64:
        assert (back.view(np.uint64) == array.view(np.uint64)).all()
    for text, value in zip(texts, array, strict=True):
        # numpy's repr is the shortest, and the nearest among the shortest.
        assert plain_digits(text) == plain_digits(np.format_float_scientific(value, unique=True, trim="-"))


def test_float32_over_all_exponents() -> None:
    fractions = [0, 1, 2, 3, 0x7FFFFF, 0x7FFFFE, 0x400000, 0x2AAAAA, 0x555555]
    rng = np.random.default_rng(1)
    fractions += [int(f) for f in rng.integers(0, 1 << 23, 12)]
    bits = np.array([e << 23 | f for e in range(255) for f in fractions], np.uint32)
    check_floats(FP32, bits[bits != 0].view(np.float32))


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False).filter(bool), min_size=1))
def test_float32_shortest(values: list[float]) -> None:
    check_floats(FP32, np.array(values, np.float32))


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False).filter(bool), min_size=1))
def test_float64_shortest(values: list[float]) -> None:
    check_floats(FP64, np.array(values))


@given(dtype=st.sampled_from(list(NUMPY)), data=st.data())
def test_random_tensors_come_back(dtype: DataType, data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(0, 4), max_size=4))
    n = int(np.prod(shape))
    raw = data.draw(st.binary(min_size=n * TYPES[dtype].size, max_size=n * TYPES[dtype].size))
    if dtype is DataType.BOOL:
        raw = bytes(b & 1 for b in raw)
    array = np.frombuffer(raw, NUMPY[dtype]).reshape(shape)
    back = np.array(json.loads("[" + data_text(dtype, array) + "]"), NUMPY[dtype]).reshape(shape)
    assert np.array_equal(back, array, equal_nan=dtype in (FP32, FP64))


# --- strings ----------------------------------------------------------------------------------------------------------


def test_escapes_are_those_of_the_real_server() -> None:
    assert json_text.quote(b'\x00\x1f\x7f"\\/\b\f\n\r\t') == b'"\\u0000\\u001F\x7f\\"\\\\/\\b\\f\\n\\r\\t"'


@pytest.mark.parametrize("at", range(20))
@pytest.mark.parametrize("c", [b'"', b"\\", b"\n", b"\x01", b"\x1f", b"\x80", "€".encode(), "😀".encode()])
def test_a_special_character_at_every_offset(at: int, c: bytes) -> None:
    text = b"abcdefghijklmnopqrst"
    text = text[:at] + c + text[at:]
    assert json.loads(json_text.quote(text)) == text.decode(errors="replace")


@given(st.text())
def test_text_comes_back(text: str) -> None:
    assert json.loads(json_text.quote(text.encode())) == text


def replaced(raw: bytes) -> str:
    """Well-formed sequences kept, every other byte U+FFFD."""
    out, at = "", 0
    while at < len(raw):
        for n in (1, 2, 3, 4):
            try:
                out += raw[at : at + n].decode()
            except UnicodeDecodeError:
                continue
            break
        else:
            out, n = out + "�", 1
        at += n
    return out


NEARLY_UTF8 = st.lists(
    st.sampled_from([b"a", b"\x80", b"\xbf", b"\xc0", b"\xc2", b"\xe0", b"\xa0", b"\x9f", b"\xed", b"\xf0", b"\x90",
                     b"\xf4", b"\x8f", b"\xff", "é".encode(), "€".encode(), "😀".encode()]), max_size=20
).map(b"".join)  # fmt: skip


@given(st.one_of(st.binary(), NEARLY_UTF8))
def test_bytes_that_are_no_utf8_are_replaced_one_by_one(raw: bytes) -> None:
    quoted = json_text.quote(raw)
    assert json.loads(quoted.decode()) == replaced(raw)


@given(st.lists(st.binary(max_size=12), max_size=8))
def test_string_tensors(texts: list[bytes]) -> None:
    text, _ = json_reply.encode(MODEL, [(0, STRING, [len(texts)], strings(*texts))])
    assert json.loads(text)["outputs"][0]["data"] == [replaced(t) for t in texts]
