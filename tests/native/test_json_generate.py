"""The generate request: flat members to tensors and parameters, against json and numpy; errors; hostile texts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.wire_io import nothing_leaks  # noqa: F401
from triton_fast._native.core.model import ModelHandle
from triton_fast._native.wire.json_generate import decode
from triton_fast.errors import Internal, InvalidArg, ServerError
from triton_fast.types import DataType

NUMPY: dict[DataType, Any] = {
    DataType.UINT8: np.uint8, DataType.UINT16: np.uint16, DataType.UINT32: np.uint32, DataType.UINT64: np.uint64,
    DataType.INT8: np.int8, DataType.INT16: np.int16, DataType.INT32: np.int32, DataType.INT64: np.int64,
    DataType.FP32: np.float32, DataType.FP64: np.float64, DataType.BOOL: np.bool_,
}  # fmt: skip
DEEP = "JSON nesting depth exceeds maximum allowed limit (100)"
NO_SHAPE = "The schema can not convert input '{}' to tensor with proper shape"
NON_INT = "Unable to parse 'data': attempt to access JSON non-signed-integer as signed-integer"
KINDS = "It should be either 'int', 'bool', or 'string'."


class Io(NamedTuple):
    name: str
    dtype: int
    dims: Sequence[int]
    reshape: Sequence[int] | None = None
    optional: bool = True
    ragged: bool = False


def model(*inputs: Io, max_batch: int = 0) -> ModelHandle:
    return ModelHandle("m", 1, max_batch, inputs, [])


ANY = model(*(Io(dtype.name, dtype, [-1]) for dtype in DataType if dtype.name != "INVALID"))
TEXT = model(Io("text", DataType.STRING, [1]), Io("n", DataType.INT32, [1]), max_batch=8)


def decoded(body: Any, made_for: ModelHandle = ANY, **named: Any) -> Any:
    return decode(body if isinstance(body, bytes) else json.dumps(body).encode(), made_for, **named)


def error(body: Any, made_for: ModelHandle = ANY, **named: Any) -> str:
    with pytest.raises(ServerError) as caught:
        decoded(body, made_for, **named)
    return str(caught.value)


def strings(data: bytes) -> list[bytes]:
    found = []
    while data:
        size = int.from_bytes(data[:4], "little")
        found.append(data[4 : 4 + size])
        data = data[4 + size :]
    return found


# ---- tensors


@given(st.data(), st.sampled_from(sorted(NUMPY)))
def test_values(data: st.DataObject, dtype: DataType) -> None:
    kind = np.dtype(NUMPY[dtype])
    element: st.SearchStrategy[Any] = st.booleans()
    if kind.kind == "f":
        element = st.floats(width=kind.itemsize * 8)  # type: ignore[arg-type]
    elif kind.kind in "iu":
        element = st.integers(int(np.iinfo(kind).min), int(np.iinfo(kind).max))
    value = data.draw(st.one_of(element, st.lists(element, max_size=200)))
    (found,) = decoded({dtype.name: value})["inputs"]
    flat = value if isinstance(value, list) else [value]
    assert (found["name"], found["shape"]) == (dtype.name, [len(flat)])
    np.testing.assert_array_equal(np.frombuffer(found["data"], kind), np.array(flat, kind))


@given(st.one_of(st.text(), st.lists(st.text(), max_size=50)))
def test_texts(value: Any) -> None:
    flat = value if isinstance(value, list) else [value]
    # Half a pair stands for itself, as in the real server.
    wanted = [text.encode("utf-8", "surrogatepass") for text in flat]
    for escape in (True, False):
        body = json.dumps({"STRING": value}, ensure_ascii=escape).encode("utf-8", "surrogatepass")
        (found,) = decoded(body)["inputs"]
        assert (found["shape"], strings(found["data"])) == ([len(flat)], wanted)


def test_narrowing_is_silent() -> None:
    found = {one["name"]: one["data"] for one in decoded({"INT8": 300, "UINT8": [257], "INT32": 2**32 + 1})["inputs"]}
    assert found == {"INT8": b"\x2c", "UINT8": b"\1", "INT32": b"\1\0\0\0"}


def spread(dims: Sequence[int], n: int) -> list[int] | None:
    """The two passes over the shape that the metadata shows."""
    fixed = math.prod(dim for dim in dims if dim >= 0)
    if n % fixed:
        return None
    left = n // fixed
    made = []
    for dim in reversed(dims):
        made.append(left if dim < 0 else dim)
        left = 1 if dim < 0 else left
    return made[::-1] if left == 1 else None


@pytest.mark.parametrize("max_batch", [0, 4])
@pytest.mark.parametrize("dims", [[1], [-1], [2, 2], [-1, 3], [3, -1], [-1, -1], [2, -1, 2], [4, 1, 1]])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 6, 8, 12])
def test_shapes(dims: list[int], max_batch: int, n: int) -> None:
    for dtype, value in ((DataType.INT32, 1), (DataType.STRING, "a")):
        made_for = model(Io("X", dtype, dims), max_batch=max_batch)
        wanted = spread([-1, *dims] if max_batch else dims, n)
        if wanted is None:
            assert error({"X": [value] * n}, made_for) == NO_SHAPE.format("X")
        else:
            assert decoded({"X": [value] * n}, made_for)["inputs"][0]["shape"] == wanted


def test_nested_lists_hold_as_many_elements_as_the_outer_one() -> None:
    assert decoded({"INT32": [[1], [2]]})["inputs"][0]["shape"] == [2]
    assert decoded({"INT32": [[1, 2], []]})["inputs"][0]["data"] == b"\1\0\0\0\2\0\0\0"
    for value in ([[1, 2], [3, 4]], [[], []], [[[[]]]]):
        assert error({"INT32": value}) == "Unable to parse 'data': Shape does not match true shape of 'data' field"


# ---- parameters and keywords


def test_other_members_are_parameters() -> None:
    found = decoded(
        b'{"x": -1, "y": "t", "z": true, "w": 1.5, "big": 9223372036854775808, "sequence_id": 4, "priority": 3, '
        b'"triton_x": 1, "inputs": 1, "": 2, "\\u0061b": 3}'
    )
    assert found["parameters"] == [
        ("x", -1), ("y", "t"), ("z", True), ("w", 1.5), ("big", 9223372036854775808.0), ("sequence_id", 4),
        ("priority", 3), ("triton_x", 1), ("inputs", 1), ("", 2), ("ab", 3),
    ]  # fmt: skip
    assert (found["sequence_id"], found["priority"], found["timeout"], found["flags"]) == (0, 0, 0, 0)


def test_id_is_a_parameter_too() -> None:
    found = decoded({"id": "abc", "parameters": {"id": "inner"}})
    assert found["id"] == "abc"
    assert found["parameters"] == [("id", "abc"), ("id", "inner")]
    assert decoded({"parameters": {"id": "inner"}})["id"] == ""
    assert decoded(b'{"id": "a", "id": "b"}')["id"] == "a"


def test_nested_members_count_like_others() -> None:
    found = decoded({"x": 1, "parameters": {"INT32": [1, 2], "x": 2, "y": 3}, "z": 4})
    assert [one["name"] for one in found["inputs"]] == ["INT32"]
    assert found["parameters"] == [("x", 1), ("x", 2), ("y", 3), ("z", 4)]


def test_of_one_name_the_first_counts() -> None:
    assert decoded(b'{"x": 1, "x": {}, "parameters": {"y": 1, "y": []}}')["parameters"] == [("x", 1), ("y", 1)]
    assert decoded(b'{"parameters": {"x": 1}, "parameters": 5}')["parameters"] == [("x", 1)]


ERRORS = {
    b'{"INT32": 1, "INT32": 2}': "input 'INT32' already exists in request",
    b'{"INT32": 1, "parameters": {"INT32": 2}}':
        "Converting keyword: 'parameters': input 'INT32' already exists in request",
    b'{"parameters": {"INT32": 2}, "parameters": {}}':
        "Converting keyword: 'parameters': input 'INT32' already exists in request",
    b'{"parameters": {"INT32": "a"}}': "Converting keyword: 'parameters': " + NON_INT,
    b'{"parameters": {"parameters": {}}}':
        "Converting keyword: 'parameters': parameter 'parameters' has invalid type. " + KINDS,
    b'{"parameters": null}':
        "Expected JSON object for keyword: 'parameters': attempt to access JSON non-object as object",
    b'{"x": null}': "parameter 'x' has invalid type. " + KINDS,
    b'{"x": [1]}': "parameter 'x' has invalid type. " + KINDS,
    b'{"id": 5, "INT32": "a"}': "Unable to parse 'id': attempt to access JSON non-string as string",
    b'{"INT32": "a", "id": 5}': "Unable to parse 'id': attempt to access JSON non-string as string",
    b'{"INT32": "a", "x": null}': NON_INT,
    b'{"INT32": 1.5}': NON_INT, b'{"INT32": true}': NON_INT, b'{"INT32": null}': NON_INT, b'{"INT32": {}}': NON_INT,
    b'{"INT32": [1, "a"]}': NON_INT, b'{"INT64": 9223372036854775808}': NON_INT, b'{"INT32": NaN}': NON_INT,
    b'{"UINT8": -1}': "Unable to parse 'data': attempt to access JSON non-unsigned-integer as unsigned-integer",
    b'{"FP32": "1"}': "Unable to parse 'data': attempt to access JSON non-number as double",
    b'{"BOOL": 1}': "Unable to parse 'data': attempt to access JSON non-boolean as boolean",
    b'{"STRING": 1}': "Unable to parse JSON bytes array: attempt to access JSON non-string as string",
    b'{"STRING": ["a", 1]}': "Unable to parse JSON bytes array: attempt to access JSON non-string as string",
    b'{"FP16": []}':
        "receiving FP16 data via JSON is not supported. Please use the binary data format for input FP16",
    b"[]": "attempt to get members for non-object", b"5": "attempt to get members for non-object",
    b"": "failed to parse the request JSON buffer: The document is empty. at 0",
    b"   ": "failed to parse the request JSON buffer: The document is empty. at 3",
    b'{"INT32": "a",': "failed to parse the request JSON buffer: Missing a name for object member. at 14",
    b'{"INT32": 1,}': "failed to parse the request JSON buffer: Missing a name for object member. at 12",
    b"{} x": "failed to parse the request JSON buffer: The document root must not be followed by other values. at 3",
    b'{"z": 1e400}': "failed to parse the request JSON buffer: Number too big to be stored in double. at 6",
}  # fmt: skip


@pytest.mark.parametrize("body", ERRORS)
def test_errors(body: bytes) -> None:
    assert error(body) == ERRORS[body]


def test_strings_are_read_before_their_shape_and_numbers_after() -> None:
    assert error({"text": [1, 2]}, model(Io("text", DataType.STRING, [1]))).startswith("Unable to parse JSON bytes")
    assert error({"n": ["a", "b"]}, model(Io("n", DataType.INT32, [1]))) == NO_SHAPE.format("n")


def test_the_keyword_as_an_input() -> None:
    named = model(Io("parameters", DataType.INT32, [1]), Io("A", DataType.INT32, [1]))
    assert error({"parameters": 1}, named) == "Keyword 'parameters' for nested schema also given as input tensor name"
    assert len(decoded({"A": 1}, named)["inputs"]) == 1


def test_trailing_nul_and_byte_order_mark() -> None:
    assert decoded(b'\xef\xbb\xbf {"INT32": 1}\0\n')["inputs"][0]["shape"] == [1]


# ---- limits


def test_the_limit_counts_all_inputs_and_levels() -> None:
    body = {"INT64": [1] * 10, "parameters": {"UINT64": [1] * 10}}
    assert len(decoded(body, max_input=160)["inputs"]) == 2
    assert error(body, max_input=159) == (
        "Converting keyword: 'parameters': request size of 160 bytes with input 'UINT64' of size 80 bytes exceeds the "
        "maximum allowed input size of 159. Use --http-max-input-size to increase the limit."
    )
    # The text itself is larger than what it holds.
    assert error(body, max_input=90).startswith("request JSON size of ")
    padded = json.dumps({"STRING": ["", ""] * 40}, separators=(",", ":")).encode()
    assert error(padded, max_input=len(padded)).startswith("request size of 320 bytes with input 'STRING' of size 320 ")
    assert error(b'{"INT64": 1}', max_input=7).startswith("request JSON size of 12 bytes exceeds")


def test_nesting() -> None:
    def nested(n: int) -> bytes:
        return b'{"INT32": ' + b"[" * n + b"1" + b"]" * n + b"}"

    assert decoded(nested(99))["inputs"][0]["shape"] == [1]
    assert error(nested(101)) == "Unable to parse 'data': " + DEEP
    for n in (102, 1000, 1_000_000):
        assert error(nested(n)) == DEEP
    for opening in (b"[", b'{"a":', b'{"parameters":'):
        assert error(b'{"x":' + opening * 500_000) in (DEEP, "failed to parse the request JSON buffer: Invalid value.")


def test_many_members() -> None:
    many = {f"p{i}": i for i in range(65536)}
    assert len(decoded(many)["parameters"]) == 65536
    assert error({**many, "q": 1}) == "the request has more than 65536 parameters"
    again = b'{"parameters": {"x": 1}' + b', "parameters": {"x": 1}' * 100_000 + b"}"
    assert decoded(again)["parameters"] == [("x", 1)]


@pytest.mark.parametrize("text", ["1" * 5000, "1." + "0" * 5000 + "1", "1e308", "-0", "0." + "1" * 400, "1e-99999"])
def test_huge_numbers(text: str) -> None:
    for name in ("INT32", "UINT64", "FP32", "FP64", "x"):
        body = f'{{"{name}": {text}, "INT8": [{text}]}}'.encode()
        try:
            found = decoded(body)
        except (Internal, InvalidArg):
            continue
        assert len(found["inputs"]) + len(found["parameters"]) == 2


WHOLE = (
    b'\xef\xbb\xbf{"id": "a\\u00e9", "INT32": [1, -2], "FP64": 1.5e3, "BOOL": [true, false], "STRING": ["x\\n", "y"], '
    b'"p": "v", "parameters": {"UINT8": 7, "q": 0.5, "STRING2": null}, "n": 18446744073709551615} '
)


def test_cut_at_every_byte() -> None:
    """Each beginning of a body is an error, never a crash, and each body with one byte changed has an answer."""
    good = WHOLE.replace(b', "STRING2": null', b"")
    assert len(decoded(good)["inputs"]) == 5
    for n in range(len(good) - 1):
        assert error(good[:n])
    for n in range(len(WHOLE)):
        for byte in (0, 0x22, 0x5B, 0x7D, 0x80, 0xFF):
            try:
                decoded(WHOLE[:n] + bytes([byte]) + WHOLE[n + 1 :])
            except ServerError as caught:
                assert str(caught)


@given(st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-(2**70), 2**70) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["id", "parameters", "INT32", "STRING", "FP32", "x"]), inner, max_size=4), max_leaves=20,
))  # fmt: skip
def test_any_json_has_an_answer(value: Any) -> None:
    try:
        found = decoded(value)
    except ServerError as caught:
        assert str(caught)
        return
    assert isinstance(value, dict)
    given_inputs = {name for name in value if name in ("INT32", "STRING", "FP32")}
    assert {one["name"] for one in found["inputs"]} >= given_inputs
