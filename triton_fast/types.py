"""Datatypes and memory kinds, named once.

The numbers of ``DataType`` are those of ``inference.DataType`` in model_config.proto and of the native engine.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class DataType(IntEnum):
    INVALID = 0
    BOOL = 1
    UINT8 = 2
    UINT16 = 3
    UINT32 = 4
    UINT64 = 5
    INT8 = 6
    INT16 = 7
    INT32 = 8
    INT64 = 9
    FP16 = 10
    FP32 = 11
    FP64 = 12
    STRING = 13
    BF16 = 14


class TypeInfo(NamedTuple):
    """``wire`` is the v2 protocol's name, ``config`` the name in config.pbtxt, ``size`` bytes (0: variable)."""

    wire: str
    config: str
    size: int


TYPES: dict[DataType, TypeInfo] = {
    DataType.BOOL: TypeInfo("BOOL", "TYPE_BOOL", 1),
    DataType.UINT8: TypeInfo("UINT8", "TYPE_UINT8", 1),
    DataType.UINT16: TypeInfo("UINT16", "TYPE_UINT16", 2),
    DataType.UINT32: TypeInfo("UINT32", "TYPE_UINT32", 4),
    DataType.UINT64: TypeInfo("UINT64", "TYPE_UINT64", 8),
    DataType.INT8: TypeInfo("INT8", "TYPE_INT8", 1),
    DataType.INT16: TypeInfo("INT16", "TYPE_INT16", 2),
    DataType.INT32: TypeInfo("INT32", "TYPE_INT32", 4),
    DataType.INT64: TypeInfo("INT64", "TYPE_INT64", 8),
    DataType.FP16: TypeInfo("FP16", "TYPE_FP16", 2),
    DataType.FP32: TypeInfo("FP32", "TYPE_FP32", 4),
    DataType.FP64: TypeInfo("FP64", "TYPE_FP64", 8),
    DataType.STRING: TypeInfo("BYTES", "TYPE_STRING", 0),
    DataType.BF16: TypeInfo("BF16", "TYPE_BF16", 2),
}

BY_WIRE: dict[str, DataType] = {info.wire: dtype for dtype, info in TYPES.items()}
