"""Classification outputs: order, ties, NaN, labels, formats of the real server, limits."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.wire_io import Io, nothing_leaks  # noqa: F401
from triton_fast._native.core.model import ModelHandle
from triton_fast._native.wire import json_reply
from triton_fast.errors import Internal, InvalidArg
from triton_fast.types import DataType

FP32, FP64 = DataType.FP32, DataType.FP64
NUMPY: dict[DataType, Any] = {
    DataType.UINT8: np.uint8, DataType.UINT16: np.uint16, DataType.UINT32: np.uint32, DataType.UINT64: np.uint64,
    DataType.INT8: np.int8, DataType.INT16: np.int16, DataType.INT32: np.int32, DataType.INT64: np.int64,
    FP32: np.float32, FP64: np.float64,
}  # fmt: skip


OUTPUTS = [Io("Y", FP32, [-1]), Io("Z", FP32, [-1])]
PLAIN = ModelHandle("m", 1, 0, [], OUTPUTS)
BATCHED = ModelHandle("m", 1, 8, [], OUTPUTS)


def classify(array: np.ndarray[Any, Any], dtype: DataType, k: int, model: ModelHandle = PLAIN, **more: Any) -> Any:
    text, _ = json_reply.encode(model, [(0, dtype, array.shape, array.tobytes())], wanted=[(0, 0, k)], **more)
    out = json.loads(text)["outputs"][0]
    assert (out["name"], out["datatype"]) == ("Y", "BYTES")
    return out["shape"], out["data"]


def test_values_labels_and_order_as_the_real_server_writes_them() -> None:
    array = np.array([1.0, 2.5, 0.1, 2.5, -1], np.float32)
    labels = {0: ["zero", "one", "", '"thr\\ee']}
    assert classify(array, FP32, 10, labels=labels) == (
        [5],
        ["2.500000:1:one", '2.500000:3:"thr\\ee', "1.000000:0:zero", "0.100000:2", "-1.000000:4"],
    )


def test_special_values() -> None:
    array = np.array([np.nan, 1.0, np.inf, -np.inf, 1e20, 1e-9, 3e38, np.nan], np.float32)
    assert classify(array, FP32, 8)[1] == [
        "inf:2", "300000000549775575777803994281145270272.000000:6", "100000002004087734272.000000:4", "1.000000:1",
        "0.000000:5", "-inf:3", "nan:0", "nan:7",
    ]  # fmt: skip
    big = classify(np.array([1.0, 1.7976931348623157e308, -1.7976931348623157e308, -0.0]), FP64, 4)[1]
    assert big == [f"{1.7976931348623157e308:f}:1", "1.000000:0", "-0.000000:3", f"{-1.7976931348623157e308:f}:2"]


def test_each_row_of_a_batch_is_its_own_classification() -> None:
    array = np.array([[1, 2, 3], [6, 5, 4]], np.float32)
    assert classify(array, FP32, 2, BATCHED) == ([2, 2], ["3.000000:2", "2.000000:1", "6.000000:0", "5.000000:1"])
    # Without a batch dimension the same tensor is one list, flattened.
    assert classify(array, FP32, 2) == ([2], ["6.000000:3", "5.000000:4"])
    assert classify(array.reshape(2, 1, 3), FP32, 1, BATCHED) == ([2, 1], ["3.000000:2", "6.000000:0"])


@pytest.mark.parametrize(
    ("model", "shape", "want"), [(PLAIN, (0,), [0]), (BATCHED, (2, 0), [2, 0]), (BATCHED, (0, 3), [0, 3])]
)
def test_empty_outputs(model: ModelHandle, shape: tuple[int, ...], want: list[int]) -> None:
    assert classify(np.zeros(shape, np.float32), FP32, 3, model) == (want, [])


def test_binary_classification_and_the_block_it_lives_in() -> None:
    array = np.array([1, 3, 2], np.float32)
    outputs = [(0, FP32, [3], array.tobytes())]
    text, sections = json_reply.encode(PLAIN, outputs, wanted=[(0, 1, 2)], labels={0: ["a", "b"]})
    want = b"".join(struct.pack("<I", len(t)) + t for t in (b"3.000000:1:b", b"2.000000:2"))
    assert sections == [want]
    assert json.loads(text)["outputs"] == [
        {"name": "Y", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(want)}}
    ]


def test_only_the_output_that_was_asked_is_classified() -> None:
    array = np.array([1, 2], np.float32).tobytes()
    text, _ = json_reply.encode(PLAIN, [(0, FP32, [2], array), (1, FP32, [2], array)], wanted=[(1, 0, 1), (0, 0, 0)])
    y, z = json.loads(text)["outputs"]
    assert y["data"] == [1.0, 2.0]
    assert z["data"] == ["2.000000:1"]


@pytest.mark.parametrize("dtype", [DataType.FP16, DataType.BF16, DataType.BOOL, DataType.STRING])
def test_unsupported_datatypes(dtype: DataType) -> None:
    name = "BYTES" if dtype is DataType.STRING else dtype.name
    with pytest.raises(InvalidArg) as e:
        json_reply.encode(PLAIN, [(0, dtype, [1], bytes(4))], wanted=[(0, 0, 1)])
    assert e.value.message == f"class result not available for output due to unsupported type '{name}'"


def test_a_failure_after_a_success_frees_both() -> None:
    outputs = [(0, FP32, [1], bytes(4)), (1, DataType.BOOL, [1], b"a")]
    with pytest.raises(InvalidArg, match="unsupported type 'BOOL'"):
        json_reply.encode(PLAIN, outputs, wanted=[(0, 0, 1), (1, 0, 1)])


@pytest.mark.parametrize("shape", [[2], [-1], [2**62], [2**62, 2**62], [0, 2**62]])
def test_a_shape_that_lies(shape: list[int]) -> None:
    for model in (PLAIN, BATCHED):
        if shape[0] == 0 and model is BATCHED:
            continue
        with pytest.raises((Internal, InvalidArg)):
            json_reply.encode(model, [(0, FP32, shape, bytes(4))], wanted=[(0, 0, 1)])


def test_the_limit_of_one_row() -> None:
    row = np.zeros(1_000_000, np.uint8)
    row[77] = 1
    assert classify(row, DataType.UINT8, 2) == ([2], ["1:77", "0:0"])
    assert classify(np.zeros((2, 600_000), np.uint8), DataType.UINT8, 1, BATCHED)[0] == [2, 1]
    with pytest.raises(InvalidArg) as e:
        classify(np.zeros(1_000_001, np.uint8), DataType.UINT8, 1)
    assert e.value.message == "classification output tensor too large"


@pytest.mark.parametrize("k", [3, 4, 2**31 - 1, 2**31, 2**32 - 1])
def test_k_past_the_row_is_clipped(k: int) -> None:
    assert classify(np.arange(3, dtype=np.int32), DataType.INT32, k) == ([3], ["2:2", "1:1", "0:0"])


@given(dtype=st.sampled_from(list(NUMPY)), data=st.data())
def test_against_a_stable_sort(dtype: DataType, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 60))
    k = data.draw(st.integers(1, 70))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    kind = NUMPY[dtype]
    if data.draw(st.booleans()):
        array = rng.integers(0, 4, n).astype(kind)  # many ties
    else:
        array = np.frombuffer(rng.bytes(n * np.dtype(kind).itemsize), kind).copy()
    values = array.tolist()
    nan = np.isnan(array).tolist()
    order = sorted(range(n), key=lambda i: (nan[i], 0 if nan[i] else -values[i], i))
    _, got = classify(array, dtype, k)
    assert [int(text.split(":")[1]) for text in got] == order[: min(k, n)]
    for text, i in zip(got, order, strict=False):
        value = text.split(":")[0]
        want = f"{values[i]:f}" if dtype in (FP32, FP64) else str(values[i])
        assert value == want or (nan[i] and value == "-nan")
