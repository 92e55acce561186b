"""Ragged batches of an ONNX model: what the tensors of a batch look like, and how outputs are cut again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import onnx_models as models
from tests.helpers.onnx_repository import NUMPY, Opened, open_model, wire_strings
from triton_fast.errors import ServerError
from triton_fast.types import DataType

CONFIG = """
backend: "onnxruntime"
max_batch_size: 16
input [ {{ name: "X" data_type: TYPE_{kind} dims: [ {dims} ] allow_ragged_batch: true }} ]
output [ {{ name: "DOUBLE" data_type: TYPE_{kind} dims: [ {dims} ] }},
         {{ name: "ECHO" data_type: TYPE_{made} dims: [ -1 ] }} ]
batch_input [
  {{ kind: {batch_kind} target_name: "MADE" data_type: TYPE_{made} source_input: "X" }},
  {{ kind: BATCH_ITEM_SHAPE target_name: "SHAPES" data_type: TYPE_INT32 source_input: "X" }}
]
batch_output [ {{ target_name: "DOUBLE" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "X" }} ]
dynamic_batching {{ }}
"""


def opened(
    root: Path, batch_kind: str = "BATCH_ELEMENT_COUNT", kind: str = "FP32", made: str = "INT32", dims: str = "-1"
) -> Opened:
    blob = models.ragged(kind, made, flat=batch_kind != "BATCH_ITEM_SHAPE")
    return open_model(root, blob, CONFIG.format(batch_kind=batch_kind, kind=kind, made=made, dims=dims))


def numbers(*shape: int, kind: str = "FP32") -> np.ndarray:
    return np.arange(np.prod(shape), dtype=NUMPY[DataType[kind]]).reshape(shape)


@pytest.mark.parametrize("made", ["INT32", "FP32"])
@pytest.mark.parametrize(
    ("batch_kind", "expected"),
    [
        ("BATCH_ELEMENT_COUNT", [2, 3, 0]),
        ("BATCH_ACCUMULATED_ELEMENT_COUNT", [2, 5, 5]),
        ("BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO", [0, 2, 5, 5]),
        ("BATCH_MAX_ELEMENT_COUNT_AS_SHAPE", [0, 0, 0]),
        ("BATCH_ITEM_SHAPE", [2, 3, 0]),
        ("BATCH_ITEM_SHAPE_FLATTEN", [2, 3, 0]),
    ],
)
def test_every_kind_of_batch_input(tmp_path: Path, batch_kind: str, expected: list[int], made: str) -> None:
    model = opened(tmp_path, batch_kind, made=made)
    answers = model.run(*[{"X": numbers(1, n)} for n in (2, 3, 0)])
    for answer, n in zip(answers, (2, 3, 0), strict=True):
        assert answer["ECHO"].dtype == NUMPY[DataType[made]]
        np.testing.assert_array_equal(answer["ECHO"], [expected])
        np.testing.assert_array_equal(answer["DOUBLE"], numbers(1, n) * 2)


def test_requests_of_several_items(tmp_path: Path) -> None:
    """Counts are per request, shapes per item."""
    requests = [{"X": numbers(2, 3, 2)}, {"X": numbers(1, 1, 5)}]
    count = opened(tmp_path / "a", "BATCH_ELEMENT_COUNT", dims="-1, -1").run(*requests)
    assert count[0]["ECHO"].tolist() == [[12, 5]] * 2
    shape = opened(tmp_path / "b", "BATCH_ITEM_SHAPE_FLATTEN", dims="-1, -1").run(*requests)
    assert shape[0]["ECHO"].tolist() == [[3, 2, 3, 2, 1, 5]] * 2
    assert shape[1]["ECHO"].tolist() == [[3, 2, 3, 2, 1, 5]]
    for request, answer in zip(requests, shape, strict=True):
        np.testing.assert_array_equal(answer["DOUBLE"], request["X"] * 2)


def test_an_output_that_not_all_want(tmp_path: Path) -> None:
    model = opened(tmp_path)
    requests = [{"X": numbers(1, n)} for n in (4, 1, 2)]
    answers = model.run(*requests, wanted=[["ECHO"], ["DOUBLE"], ["DOUBLE", "ECHO"]])
    assert [sorted(answer) for answer in answers] == [["ECHO"], ["DOUBLE"], ["DOUBLE", "ECHO"]]
    np.testing.assert_array_equal(answers[1]["DOUBLE"], numbers(1, 1) * 2)
    np.testing.assert_array_equal(answers[2]["DOUBLE"], numbers(1, 2) * 2)


def test_strings(tmp_path: Path) -> None:
    model = opened(tmp_path, kind="STRING")
    items = [[b"a", b"", b"ccc"], [], [b"long" * 100]]
    requests = [{"X": (DataType.STRING, (1, len(words)), wire_strings(words))} for words in items]
    answers = model.raw(*requests)
    for words, answer in zip(items, answers, strict=True):
        assert answer["DOUBLE"][1:3] == ((1, len(words)), wire_strings(words))


def test_an_output_too_small_to_be_cut(tmp_path: Path) -> None:
    """The first requests get their parts, the one that goes past the end an error."""
    blob = models.ragged()
    config = CONFIG.format(batch_kind="BATCH_ELEMENT_COUNT", kind="FP32", made="INT32", dims="-1")
    model = open_model(
        tmp_path,
        blob,
        config.replace('"DOUBLE" data_type: TYPE_FP32 dims: [ -1 ]', '"DOUBLE" data_type: TYPE_FP32 dims: [ 3 ]'),
    )
    first, second = model.run({"X": numbers(1, 2)}, {"X": numbers(1, 3)})
    assert first["DOUBLE"].shape == (1, 3)
    assert isinstance(second, ServerError)
    assert str(second) == "output 'DOUBLE' has 5 elements, too few to be cut by the shapes of the input"


def test_any_shapes(tmp_path: Path) -> None:
    model = opened(tmp_path, "BATCH_ACCUMULATED_ELEMENT_COUNT", dims="-1, 2")

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 5)), min_size=1, max_size=5))
    def check(shapes: list[tuple[int, int]]) -> None:
        requests = [{"X": numbers(rows, n, 2)} for rows, n in shapes]
        answers = model.run(*requests)
        ends = np.cumsum([request["X"].size for request in requests])
        for request, answer in zip(requests, answers, strict=True):
            np.testing.assert_array_equal(answer["DOUBLE"], request["X"] * 2)
            assert answer["ECHO"].shape[0] == request["X"].shape[0]
            np.testing.assert_array_equal(answer["ECHO"][0], ends)

    check()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            ('MADE" data_type: TYPE_INT32', 'MADE" data_type: TYPE_FP32'),
            "configuration expects datatype TYPE_FP32 for batch input 'MADE', model provides TYPE_INT32",
        ),
        (
            ("kind: BATCH_ELEMENT_COUNT", "kind: BATCH_ITEM_SHAPE"),
            "batch input 'MADE' has 2 dimensions, model provides [-1]",
        ),
        (('target_name: "MADE"', 'target_name: "NONE"'), "batch input 'NONE' is not an input of the model"),
    ],
)
def test_a_model_that_does_not_fit(tmp_path: Path, change: tuple[str, str], text: str) -> None:
    config = CONFIG.format(batch_kind="BATCH_ELEMENT_COUNT", kind="FP32", made="INT32", dims="-1")
    with pytest.raises(ServerError, match=text.replace("[", r"\[")):
        open_model(tmp_path, models.ragged(), config.replace(*change))
