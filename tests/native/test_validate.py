"""Validation of requests against a model: texts and codes of the real server, order of checks, hostile shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.wire_io import Io, nothing_leaks, strings  # noqa: F401
from triton_fast._native.core import validate
from triton_fast._native.core.model import ModelHandle
from triton_fast.errors import InvalidArg, ServerError
from triton_fast.types import TYPES, DataType

FP32, INT32, STRING = DataType.FP32, DataType.INT32, DataType.STRING
I64 = 2**63 - 1
NOTE = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each "
    "input shape. If you want to specify the full shape including the batch dim in your input dims config, try setting "
    "max_batch_size to zero. See the model configuration docs for more info on max_batch_size."
)
ANON = "[request id: <id_unknown>] "


OUT = [Io("Y", FP32, [1]), Io("Z", FP32, [1])]


def model(max_batch: int, *inputs: Io, name: str = "m") -> ModelHandle:
    return ModelHandle(name, 1, max_batch, inputs, OUT)


def zeros(name: str, shape: Sequence[int], dtype: DataType = FP32) -> tuple[str, int, list[int], bytes]:
    return name, dtype, list(shape), bytes(int(np.prod(shape, dtype=object)) * TYPES[dtype].size)


def refused(m: ModelHandle, inputs: Sequence[Any], outputs: Sequence[str] = (), id: str = "") -> str:
    with pytest.raises(InvalidArg) as e:
        validate.check(m, inputs, outputs, id)
    return e.value.message


PLAIN = model(0, Io("A", FP32, [-1, 2]), Io("S", STRING, [-1]), Io("O", INT32, [1], optional=True))
BATCHED = model(4, Io("A", FP32, [2]), Io("B", INT32, [-1]))
A, B = zeros("A", [1, 2]), zeros("B", [1, 1], INT32)
S = ("S", STRING, [1], strings(b"x"))
O = zeros("O", [1], INT32)  # noqa: E741


# --- accepted ---------------------------------------------------------------------------------------------------------


def test_names_are_resolved_in_any_order() -> None:
    got = validate.check(PLAIN, [O, S, A], ["Z", "Y"])
    assert got["order"] == [2, 1, 0]
    assert got["wanted"] == [1, 0]
    assert got["batch"] == 1


def test_an_optional_input_may_be_missing() -> None:
    assert validate.check(PLAIN, [S, A])["order"] == [1, 0, None]


def test_the_leading_dimension_is_the_batch() -> None:
    assert validate.check(BATCHED, [zeros("A", [3, 2]), zeros("B", [3, 7], INT32)])["batch"] == 3


def test_all_inputs_optional_and_absent() -> None:
    m = model(4, Io("A", FP32, [2], optional=True))
    assert validate.check(m, []) | {"shape_key": 0} == {"batch": 1, "shape_key": 0, "order": [None], "wanted": []}


def test_empty_tensors_are_tensors() -> None:
    assert validate.check(PLAIN, [zeros("A", [0, 2]), ("S", STRING, [0], b"")])["batch"] == 1
    assert validate.check(BATCHED, [zeros("A", [2, 2]), zeros("B", [2, 0], INT32)])["batch"] == 2


def test_a_scalar_input_has_one_element() -> None:
    assert validate.check(model(0, Io("A", FP32, [])), [zeros("A", [])])["batch"] == 1
    assert validate.check(model(2, Io("A", FP32, [])), [zeros("A", [2])])["batch"] == 2


def test_the_client_sends_dims_not_the_reshape() -> None:
    m = model(4, Io("A", FP32, [2], reshape=[1, 2]), Io("B", INT32, [1], reshape=[]))
    assert validate.check(m, [A, B])["batch"] == 1
    assert "Expected [-1,2], got [1,1,2]" in refused(m, [zeros("A", [1, 1, 2]), B])


@pytest.mark.parametrize("dtype", [d for d in TYPES if d is not STRING])
def test_every_fixed_size_datatype(dtype: DataType) -> None:
    m = model(0, Io("A", dtype, [3]))
    assert validate.check(m, [zeros("A", [3], dtype)])["order"] == [0]
    for n in (3 * TYPES[dtype].size - 1, 3 * TYPES[dtype].size + 1, 0):
        assert refused(m, [("A", dtype, [3], bytes(n))]).endswith(f"Expected {3 * TYPES[dtype].size}, got {n}")


# --- count and names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("m", "inputs", "text"),
    [
        (BATCHED, [A], "expected 2 inputs but got 1 inputs for model 'm'. Got input(s) ['A'], but missing required "
                       "input(s) ['B']. Please provide all required input(s)."),
        (BATCHED, [], "expected 2 inputs but got 0 inputs for model 'm'. Got input(s) [], but missing required "
                      "input(s) ['A','B']. Please provide all required input(s)."),
        (BATCHED, [B, A, O], "expected 2 inputs but got 3 inputs for model 'm'. Got input(s) ['B','A','O'], but "
                             "missing required input(s) []. Please provide all required input(s)."),
        (PLAIN, [A], "expected number of inputs between 2 and 3 but got 1 inputs for model 'm'. Got input(s) ['A'], "
                     "but missing required input(s) ['S']. Please provide all required input(s)."),
        # The count is right, the set is not: the real server lets this through to the backend.
        (PLAIN, [A, O], "expected number of inputs between 2 and 3 but got 2 inputs for model 'm'. Got input(s) "
                        "['A','O'], but missing required input(s) ['S']. Please provide all required input(s)."),
    ],
)  # fmt: skip
def test_wrong_number_of_inputs(m: ModelHandle, inputs: list[Any], text: str) -> None:
    assert refused(m, inputs) == ANON + text
    assert refused(m, inputs, id="r-1") == "[request id: r-1] " + text


def test_unknown_and_repeated_names() -> None:
    assert refused(BATCHED, [A, O]) == "unexpected inference input 'O' for model 'm'"
    assert refused(BATCHED, [A, B], ["Q"]) == "unexpected inference output 'Q' for model 'm'"
    assert refused(BATCHED, [A, A], id="7") == "[request id: 7] input 'A' already exists in request"
    assert refused(BATCHED, [A, B], ["Y", "Z", "Y"]) == ANON + "output 'Y' already exists in request"


def test_which_error_wins() -> None:
    """In the order the real server finds them."""
    bad_a = zeros("A", [5, 3], INT32)
    assert "already exists" in refused(BATCHED, [A, A, A], ["Q", "Q"])
    assert "output 'Q' already exists" in refused(BATCHED, [A], ["Q", "Q"])
    assert "unexpected inference output" in refused(BATCHED, [A], ["Q"])
    assert "expected 2 inputs" in refused(BATCHED, [zeros("Q", [5, 2])])
    assert "unexpected inference input 'Q'" in refused(BATCHED, [bad_a, zeros("Q", [9, 1])])
    assert "batch size does not match" in refused(BATCHED, [bad_a, B])
    assert "batch-size must be <= 4" in refused(BATCHED, [bad_a, zeros("B", [5, 1], INT32)])
    assert "data-type is 'INT32'" in refused(BATCHED, [zeros("A", [1, 3], INT32), B])
    assert "unexpected shape for input 'A'" in refused(BATCHED, [("A", FP32, [1, 3], b""), B])
    assert "byte size mismatch for input 'A'" in refused(BATCHED, [("A", FP32, [1, 2], b""), B])


@pytest.mark.parametrize("n", [33, 1000])
def test_many_inputs_by_sorting(n: int) -> None:
    names = [f"in_{k}" for k in range(n)]
    m = ModelHandle("m", 1, 0, [Io(name, FP32, [1]) for name in names], [Io(x, FP32, [1]) for x in names])
    rng = np.random.default_rng(n)
    order = [int(k) for k in rng.permutation(n)]
    got = validate.check(m, [zeros(names[k], [1]) for k in order], [names[k] for k in order[:50]])
    assert got["order"] == [order.index(k) for k in range(n)]
    assert got["wanted"] == order[:50]
    assert "input 'in_3' already exists" in refused(m, [zeros(names[k], [1]) for k in [*order[1:], 3]])
    assert refused(m, [zeros(names[k], [1]) for k in order[1:]] + [zeros("zz", [1])]) == (
        "unexpected inference input 'zz' for model 'm'"
    )
    assert "output 'in_3' already exists" in refused(m, [zeros(x, [1]) for x in names], [*names, "in_3"])


def test_names_that_differ_in_length_or_hold_zeros() -> None:
    m = ModelHandle("m", 1, 0, [Io("a", FP32, [1]), Io("ab", FP32, [1]), Io("a\0b", FP32, [1])], [])
    got = validate.check(m, [zeros("a\0b", [1]), zeros("ab", [1]), zeros("a", [1])])
    assert got["order"] == [2, 1, 0]


def test_65536_names_are_answered() -> None:
    flood = [("x" * 20 + str(k), FP32, [1], b"\0" * 4) for k in range(65536)]
    text = refused(BATCHED, flood)
    assert text.startswith(ANON + "expected 2 inputs but got 65536 inputs for model 'm'. Got input(s) ['xxx")
    assert len(text) < 2048
    assert "at most 65536 inputs" in refused(BATCHED, [*flood, A])
    assert "output 'q' already exists" in refused(BATCHED, [A, B], ["q"] * 65536)


# --- batch, datatype, shape -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "text"),
    [
        ([5, 2], [5, 1], "inference request batch-size must be <= 4 for 'm'"),
        ([1, 2], [2, 1], "input 'B' batch size does not match other inputs for 'm'"),
        ([0, 2], [0, 1], "input byte size mismatch for input 'A' for model 'm'. Expected 8, got 0"),
        ([], [1, 1], "input 'A' has no shape but model requires batch dimension for 'm'"),
        ([2, 3], [2, 1], f"unexpected shape for input 'A' for model 'm'. Expected [-1,2], got [2,3]. {NOTE}"),
        ([2], [2, 1], f"unexpected shape for input 'A' for model 'm'. Expected [-1,2], got [2]. {NOTE}"),
        ([1, 2], [1, 2, 1], f"unexpected shape for input 'B' for model 'm'. Expected [-1,-1], got [1,2,1]. {NOTE}"),
    ],
)
def test_batch_and_shape_texts(a: list[int], b: list[int], text: str) -> None:
    assert refused(BATCHED, [zeros("A", a), zeros("B", b, INT32)]) == ANON + text


def test_a_batch_of_no_rows_is_refused_even_when_its_bytes_agree() -> None:
    m = model(4, Io("A", FP32, [-1]))
    assert refused(m, [zeros("A", [0, 0])]) == ANON + "inference request batch-size must be >= 1 for 'm'"
    assert refused(m, [("A", FP32, [0, 2], bytes(8))]) == ANON + "inference request batch-size must be >= 1 for 'm'"


def test_shape_text_without_batching_has_no_note() -> None:
    assert refused(PLAIN, [zeros("A", [2, 2, 2]), S]) == (
        ANON + "unexpected shape for input 'A' for model 'm'. Expected [-1,2], got [2,2,2]. "
    )
    assert refused(PLAIN, [zeros("A", []), S]).endswith("Expected [-1,2], got []. ")


def test_datatype_text() -> None:
    assert refused(BATCHED, [A, zeros("B", [1, 1])]) == (
        ANON + "inference input 'B' data-type is 'FP32', but model 'm' expects 'INT32'"
    )
    assert "'S' data-type is 'INT32', but model 'm' expects 'BYTES'" in refused(PLAIN, [A, zeros("S", [1], INT32)])
    assert "'A' data-type is '<invalid>'" in refused(BATCHED, [("A", 99, [1, 2], b""), B])


# --- hostile shapes (SEC-12) ------------------------------------------------------------------------------------------

WILD = model(0, Io("A", FP32, [-1, -1]))
WILD_BATCH = model(8, Io("A", FP32, [-1, -1]))


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ([1, -1], ANON + "All input dimensions should be specified for input 'A' for model 'm', got [1,-1]"),
        ([1, -2], "invalid shape for input 'A': shape [1,-2] contains one or more invalid dimensions"),
        ([-(2**63), 1], f"invalid shape for input 'A': shape [{-(2**63)},1] contains one or more invalid dimensions"),
        ([2**62, 2**62], f"invalid shape for input 'A': shape [{2**62},{2**62}] causes total element count to exceed "
                         f"maximum size of {I64}"),
        ([I64, 2], f"invalid shape for input 'A': shape [{I64},2] causes total element count to exceed maximum size of "
                   f"{I64}"),
        ([2**32 + 1, 2**32], f"invalid shape for input 'A': shape [{2**32 + 1},{2**32}] causes total element count to "
                             f"exceed maximum size of {I64}"),
        ([2**62, 1], f"byte size overflow for input 'A': element count ({2**62}) * data type size (4) exceeds maximum "
                     f"allowed size ({I64})"),
        ([2**31, 1], ANON + f"input byte size mismatch for input 'A' for model 'm'. Expected {2**33}, got 8"),
        ([0, 5], ANON + "input byte size mismatch for input 'A' for model 'm'. Expected 0, got 8"),
    ],
)  # fmt: skip
def test_hostile_dimensions(shape: list[int], text: str) -> None:
    assert refused(WILD, [("A", FP32, shape, bytes(8))]) == text


@pytest.mark.parametrize("batch", [-1, -2, 2**31, 2**32 + 1, 2**63 - 1, -(2**63)])
def test_hostile_batch(batch: int) -> None:
    text = refused(WILD_BATCH, [("A", FP32, [batch, 1, 1], bytes(4))])
    if batch == -1:
        assert text.startswith(ANON + "All input dimensions should be specified")
    elif batch < 0:
        assert "contains one or more invalid dimensions" in text
    else:
        assert text == ANON + "inference request batch-size must be <= 8 for 'm'"


def test_a_zero_does_not_hide_a_product_that_wraps() -> None:
    assert "exceed maximum size" in refused(model(0, Io("A", FP32, [-1, -1, -1])), [("A", FP32, [2**62, 0, 4], b"")])


def test_rank_past_the_limit() -> None:
    text = refused(WILD, [("A", FP32, [1] * 5000, bytes(4))])
    assert text.startswith(ANON + "unexpected shape for input 'A' for model 'm'. Expected [-1,-1], got [1,1,")
    assert len(text) < 2048


DIMS = st.one_of(
    st.integers(0, 5), st.sampled_from([-1, -2, 2**16, 2**31, 2**32, 2**32 + 1, 2**61, 2**62, I64, -(2**63)])
)


@given(
    shape=st.lists(DIMS, max_size=6), n=st.integers(0, 200), batched=st.booleans(), dtype=st.sampled_from(list(TYPES))
)
def test_any_shape_is_accepted_exactly_when_the_bytes_agree(
    shape: list[int], n: int, batched: bool, dtype: DataType
) -> None:
    m = model(3 if batched else 0, Io("A", dtype, [-1] * 3))
    rank = 4 if batched else 3
    size = TYPES[dtype].size
    data = bytes(n) if size else bytes(n // 4 * 4)
    count = int(np.prod(np.array(shape, dtype=object))) if shape else 1
    fits = len(shape) == rank and min(shape) >= 0
    batch = shape[0] if batched and fits else 1
    if fits:
        whole = int(np.prod(np.array([d for d in shape if d], dtype=object)))
        fits = whole * max(size, 1) <= I64 and 1 <= batch <= (3 if batched else 1)
        fits = fits and (count * size == len(data) if size else count * 4 == len(data))
    try:
        got = validate.check(m, [("A", dtype, shape, data)])
    except ServerError:
        assert not fits
    else:
        assert fits
        assert got["batch"] == batch


# --- strings ----------------------------------------------------------------------------------------------------------


FOR_S = "for inference input 'S' for model 'm'"
CUT = "incomplete string data for inference input 'S', expecting string of length"


def short(n: int) -> str:
    return (
        f"{ANON}incomplete string length indicator {FOR_S}, expecting 4 bytes but only {n} bytes available. Please "
        "make sure the string length indicator is in one buffer."
    )


@pytest.mark.parametrize(
    ("count", "data", "text"),
    [
        (1, strings(b"abc", b"d"), f"{ANON}unexpected number of string elements 2 {FOR_S}, expecting 1"),
        (0, strings(b"abc"), f"{ANON}unexpected number of string elements 1 {FOR_S}, expecting 0"),
        (2, strings(b"abc"), f"{ANON}expected 2 string elements {FOR_S}, got 1"),
        (1, b"", f"{ANON}expected 1 string elements {FOR_S}, got 0"),
        (2**62, strings(b"a"), f"{ANON}expected {2**62} string elements {FOR_S}, got 1"),
        (1, b"ab", short(2)),
        (1, strings(b"abc") + b"x", short(1)),
        (2, strings(b"abc") + b"xyz", short(3)),
        (1, strings(b"abc")[:-1], f"{CUT} 3 but only 2 bytes available"),
        (1, b"\xff\xff\xff\xffab", f"{CUT} 4294967295 but only 2 bytes available"),
        (2, b"\xff\xff\xff\xffab", f"{ANON}expected 2 string elements {FOR_S}, got 1"),
    ],
)  # fmt: skip
def test_string_texts(count: int, data: bytes, text: str) -> None:
    assert refused(PLAIN, [A, ("S", STRING, [count], data)]) == text


def walks(data: bytes, count: int) -> bool:
    at = seen = 0
    while at < len(data):
        if len(data) - at < 4:
            return False
        at += 4 + int.from_bytes(data[at : at + 4], "little")
        seen += 1
    return at == len(data) and seen == count


@given(
    texts=st.lists(st.binary(max_size=9), max_size=6),
    count=st.integers(0, 7),
    at=st.integers(0, 60),
    lie=st.one_of(st.none(), st.binary(min_size=1, max_size=4)),
    cut=st.integers(0, 5),
)
def test_string_data_with_lies(texts: list[bytes], count: int, at: int, lie: bytes | None, cut: int) -> None:
    data = strings(*texts)
    if lie is not None:
        data = (data[:at] + lie + data[at + len(lie) :])[: len(data)]
    data = data[: len(data) - cut] if cut else data
    m = model(0, Io("S", STRING, [-1]))
    # An exact copy in its own allocation, so that a sanitizer sees a read past the end.
    try:
        validate.check(m, [("S", STRING, [count], bytes(bytearray(data)))])
    except ServerError:
        assert not walks(data, count)
    else:
        assert walks(data, count)


# --- shape key --------------------------------------------------------------------------------------------------------


def test_shape_key_is_zero_when_all_shapes_are_fixed() -> None:
    assert validate.check(model(4, Io("A", FP32, [2])), [zeros("A", [3, 2])])["shape_key"] == 0


def test_shape_key_says_who_may_share_a_batch() -> None:
    m = model(4, Io("A", FP32, [-1, -1]), Io("R", FP32, [-1], ragged=True), Io("C", INT32, [-1], optional=True))

    def key(batch: int, a: list[int], r: int, c: int | None = None) -> int:
        inputs = [zeros("A", [batch, *a]), zeros("R", [batch, r])]
        if c is not None:
            inputs.insert(0, zeros("C", [batch, c], INT32))
        return validate.check(m, inputs)["shape_key"]

    base = key(1, [2, 3], 4)
    assert base != 0
    assert key(3, [2, 3], 4) == base, "the batch dimension does not count"
    assert key(1, [2, 3], 9) == base, "a ragged input does not count"
    others = [key(1, [3, 2], 4), key(1, [6, 1], 4), key(1, [2, 3], 4, 0), key(1, [2, 3], 4, 2), key(1, [0, 3], 4)]
    assert len({base, *others}) == 6


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=12, unique=True))
def test_shape_keys_of_different_shapes_differ(shapes: list[tuple[int, int]]) -> None:
    keys = {validate.check(WILD, [zeros("A", s)])["shape_key"] for s in shapes}
    assert len(keys) == len(shapes)


# --- raw binary mode --------------------------------------------------------------------------------------------------

ONE = "Raw request must only have 1 input (found 1) to be deduced"
SIZE = "input byte size mismatch for input 'A' for model 'm'."


@pytest.mark.parametrize(
    ("max_batch", "dims", "n", "shape"),
    [
        (0, [2, -1], 24, [2, 3]),
        (4, [2, -1], 24, [1, 2, 3]),
        (4, [2, 2], 16, [1, 2, 2]),
        (0, [2, -1], 0, [2, 0]),
        (0, [-1], 4, [1]),
    ],
)
def test_raw_shape_is_deduced(max_batch: int, dims: list[int], n: int, shape: list[int]) -> None:
    data = bytes(range(n))
    got = validate.check_raw(model(max_batch, Io("A", FP32, dims)), data)
    assert (got["shape"], got["data"], got["batch"], got["binary_default"]) == (shape, data, 1, 1)


@pytest.mark.parametrize("text", [b"", b"hello", b"\0" * 1000])
@pytest.mark.parametrize("max_batch", [0, 4])
def test_raw_string_gets_its_length_prefix(max_batch: int, text: bytes) -> None:
    got = validate.check_raw(model(max_batch, Io("S", STRING, [1])), text)
    assert got["data"] == strings(text)
    assert got["shape"] == ([1, 1] if max_batch else [1])


@pytest.mark.parametrize(
    ("inputs", "data", "text"),
    [
        ([Io("A", FP32, [1]), Io("B", FP32, [1])], b"", f"{ONE} but got 2 inputs in 'm' model configuration"),
        ([], b"", f"{ONE} but got 0 inputs in 'm' model configuration"),
        ([Io("A", FP32, [-1, -1])], bytes(16), "The shape of the raw input 'A' can not be deduced because there are "
                                               "more than one variable-sized dimension"),
        ([Io("S", STRING, [2])], b"a", "For BYTE datatype raw input 'S', the model must have input shape [1]"),
        ([Io("S", STRING, [-1])], b"a", "For BYTE datatype raw input 'S', the model must have input shape [1]"),
        ([Io("A", FP32, [2, -1])], bytes(12), f"{SIZE} Expected 8, got 12"),
        ([Io("A", FP32, [2, 2])], bytes(12), f"{SIZE} Expected 16, got 12"),
        ([Io("A", FP32, [-1])], bytes(3), f"{SIZE} Expected 0, got 3"),
    ],
)  # fmt: skip
def test_raw_texts(inputs: list[Io], data: bytes, text: str) -> None:
    with pytest.raises(InvalidArg) as e:
        validate.check_raw(model(0, *inputs), data, id="q")
    assert e.value.message == "[request id: q] " + text


@pytest.mark.parametrize(("dims", "reshape"), [((1,) * 65, None), ((1,), (1,) * 65)])
def test_a_model_of_more_dimensions_than_backends_have_room_for(dims, reshape):
    """They write them, reshaped for clients or for the model, to room of this size."""
    most = Io("X", FP32, dims[:64], None if reshape is None else reshape[:64])
    ModelHandle("m", 1, 8, [most], [most])
    for tensors in (([Io("X", FP32, dims, reshape)], []), ([], [Io("X", FP32, dims, reshape)])):
        with pytest.raises(InvalidArg, match="'X' has 65 dimensions, the limit is 64"):
            ModelHandle("m", 1, 8, *tensors)
