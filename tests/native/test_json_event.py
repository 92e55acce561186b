"""Responses of generate requests against the json module: members, their order, scalars and lists, frames, errors."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.wire_io import Io, nothing_leaks, strings  # noqa: F401
from triton_fast._native.core.model import ModelHandle
from triton_fast._native.wire import json_event
from triton_fast.errors import Internal, InvalidArg
from triton_fast.types import DataType

INT32, STRING = DataType.INT32, DataType.STRING
EVENT, CHUNK = 1, 2
ONE = np.array([7], np.int32).tobytes()


def model(*names: str) -> ModelHandle:
    return ModelHandle("m", 3, 0, [], [Io(name, INT32, [-1]) for name in names])


YZ = model("Y", "Z")


def test_bytes_of_an_object() -> None:
    outputs = [(1, INT32, [1, 1], ONE), (0, STRING, [2], strings(b"a", b'"\n'))]
    text = json_event.encode(YZ, outputs, id='x"', parameters={"b": True, "Z1": 0.5, "A": "é", "n": -1, "u": 2**64 - 1})
    assert text.decode() == (
        '{"A":"é","Y":["a","\\"\\n"],"Z":7,"Z1":0.5,"b":true,"id":"x\\"","model_name":"m","model_version":"3","n":-1,'
        '"u":18446744073709551615}'
    )


def test_without_an_id_there_is_none() -> None:
    assert json_event.encode(YZ, []) == b'{"model_name":"m","model_version":"3"}'


@pytest.mark.parametrize(
    ("dims", "n", "wanted"),
    [([], 1, 7), ([1], 1, 7), ([1, 1, 1], 1, 7), ([2], 2, [7, 7]), ([2, 2], 4, [7] * 4), ([0], 0, []), ([3, 0], 0, [])],
)
def test_scalars_and_lists(dims: list[int], n: int, wanted: Any) -> None:
    assert json.loads(json_event.encode(YZ, [(0, INT32, dims, ONE * n)]))["Y"] == wanted


@pytest.mark.parametrize(
    ("dtype", "value", "text"),
    [(DataType.BOOL, np.bool_(True), "true"), (DataType.UINT64, np.uint64(2**64 - 1), "18446744073709551615"),
     (DataType.INT8, np.int8(-128), "-128"), (DataType.FP32, np.float32(0.1), "0.1"),
     (DataType.FP64, np.float64("nan"), "NaN"), (DataType.FP64, np.float64("-inf"), "-Infinity")],
)  # fmt: skip
def test_datatypes(dtype: DataType, value: Any, text: str) -> None:
    assert json_event.encode(YZ, [(0, dtype, [1], value.tobytes())]).startswith(f'{{"Y":{text},'.encode())


def test_of_one_name_the_first_origin_counts() -> None:
    named = model("model_name", "id", "both")
    outputs = [(i, INT32, [1], ONE) for i in range(3)]
    found = json.loads(
        json_event.encode(named, outputs, id="q", parameters={"both": "p", "model_version": "p"}),
        object_pairs_hook=lambda pairs: pairs,
    )
    assert found == [("both", "p"), ("id", "q"), ("model_name", "m"), ("model_version", "3")]
    assert json.loads(json_event.encode(named, outputs))["id"] == 7


@given(st.lists(st.text(max_size=6), unique=True, max_size=40), st.lists(st.text(max_size=3), unique=True, max_size=8))
def test_members_are_sorted_by_bytes(outputs: list[str], parameters: list[str]) -> None:
    text = json_event.encode(
        model(*outputs), [(i, INT32, [1], ONE) for i in range(len(outputs))], parameters=dict.fromkeys(parameters, 1)
    )
    names = [name for name, _ in json.loads(text, object_pairs_hook=list)]
    wanted = {*outputs, *parameters, "model_name", "model_version"}
    assert names == sorted(wanted, key=lambda name: name.encode())


@given(st.lists(st.text(), max_size=3), st.sampled_from([0, EVENT, CHUNK, EVENT | CHUNK]), st.integers(1, 4))
def test_frames(texts: list[str], form: int, repeat: int) -> None:
    data = strings(*(text.encode("utf-8", "replace") for text in texts))
    plain = json_event.encode(YZ, [(0, STRING, [len(texts)], data)])
    event = b"data: " + plain + b"\n\n" if form & EVENT else plain
    frame = b"%x\r\n%s\r\n" % (len(event), event) if form & CHUNK else event
    assert json_event.encode(YZ, [(0, STRING, [len(texts)], data)], form=form, repeat=repeat) == frame * repeat
    # An event is one line: a line break in a text would end it.
    assert plain.count(b"\n") == 0


@pytest.mark.parametrize("size", [0, 1, 9, 10, 200, 4000, 70000, 1 << 20])
def test_chunk_sizes_of_every_length(size: int) -> None:
    text = json_event.encode(YZ, [(0, STRING, [1], strings(b"a" * size))], form=CHUNK)
    digits, _, rest = text.partition(b"\r\n")
    assert digits == b"%x" % (len(rest) - 2)


@pytest.mark.parametrize("form", [0, EVENT, CHUNK, EVENT | CHUNK])
def test_errors(form: int) -> None:
    plain = b'{"error":"a \\"b\\"\\n\xef\xbf\xbd"}'
    event = b"data: " + plain + b"\n\n" if form & EVENT else plain
    frame = b"%x\r\n%s\r\n" % (len(event), event) if form & CHUNK else event
    assert json_event.encode_error(b'a "b"\n\xff', form) == frame


def test_what_can_not_be_printed() -> None:
    for dtype in (DataType.FP16, DataType.BF16):
        with pytest.raises(InvalidArg, match=r"sending .*16 data via JSON is not supported"):
            json_event.encode(YZ, [(0, dtype, [1], b"\0\0")])
    with pytest.raises(Internal, match="shape does not match size of output for 'Y'"):
        json_event.encode(YZ, [(0, INT32, [2], ONE)])
    with pytest.raises(Internal, match="output tensor shape does not match"):
        json_event.encode(YZ, [(0, STRING, [1], b"\xff\0\0\0a")])
