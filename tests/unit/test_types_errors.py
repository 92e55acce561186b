"""The tables that everything else relies on: datatypes, error codes and their status numbers."""

from __future__ import annotations

import pytest

from triton_fast import errors, protos
from triton_fast.errors import STATUS, Code
from triton_fast.types import BY_WIRE, TYPES, DataType


def test_datatypes_are_those_of_the_protocol() -> None:
    values = protos.POOL.FindEnumTypeByName("inference.DataType").values
    assert {value.number: value.name for value in values if value.number} == {
        int(dtype): info.config for dtype, info in TYPES.items()
    }
    assert set(TYPES) == set(DataType) - {DataType.INVALID}
    assert {BY_WIRE[info.wire] for info in TYPES.values()} == set(TYPES)


def test_sizes_follow_the_names() -> None:
    for dtype, info in TYPES.items():
        bits = "".join(c for c in info.config if c.isdigit())
        assert info.size == (int(bits) // 8 if bits else {DataType.BOOL: 1, DataType.STRING: 0}[dtype])


@pytest.mark.parametrize(
    ("code", "label", "http", "grpc"),
    [
        (Code.UNKNOWN, "Unknown", 400, 2),
        (Code.INTERNAL, "Internal", 500, 13),
        (Code.NOT_FOUND, "Not found", 404, 5),
        (Code.INVALID_ARG, "Invalid argument", 400, 3),
        (Code.UNAVAILABLE, "Unavailable", 503, 14),
        (Code.UNSUPPORTED, "Unsupported", 501, 12),
        (Code.ALREADY_EXISTS, "Already exists", 400, 6),
        (Code.CANCELLED, "Cancelled", 400, 1),
        (Code.RESOURCE_EXHAUSTED, "Resource exhausted", 429, 8),
    ],
)
def test_every_code(code: Code, label: str, http: int, grpc: int) -> None:
    assert STATUS[code] == (label, http, grpc)
    error = errors.make(code, "why")
    assert type(error).code is code
    assert error.message == "why"
    assert errors.describe(error) == f"{label}: why"


def test_codes_without_a_class_and_foreign_exceptions() -> None:
    assert isinstance(errors.make(99, "x"), errors.Unknown)
    assert errors.Unknown().message == ""
    assert errors.describe(KeyError("k")) == "Internal: KeyError: 'k'"
