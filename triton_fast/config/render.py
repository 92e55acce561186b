"""ModelConfig to the JSON object of ``GET /v2/models/M/config``, exactly as Triton prints it.

Known only here: which fields appear, their order, and where Triton leaves a 64-bit number as a string.
Source: observed on the real server; spec/http.md.
"""

from __future__ import annotations

import math
import struct
from typing import Any

# 64-bit numbers that Triton prints as protobuf's JSON does: as strings.
_AS_TEXT = frozenset({
    "inference.ModelSequenceBatching.InitialState.dims",
    "inference.ModelOptimizationPolicy.Cuda.GraphSpec.Shape.dim",
    "inference.ModelInstanceGroup.SecondaryDevice.device_id",
})  # fmt: skip


def to_json(config: Any) -> dict[str, Any]:
    """Return the config as Triton's JSON object: proto field names, every scalar, messages only when set."""
    return _message(config)


def _message(message: Any) -> dict[str, Any]:
    result: dict[str, Any] = {}
    choices: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if _is_map(field):
            item = field.message_type.fields_by_name["value"]
            result[field.name] = {_key(key): _scalar_or_message(item, value[key]) for key in sorted(value)}
        elif _is_repeated(field):
            result[field.name] = [_scalar_or_message(field, item) for item in value]
        elif field.message_type is not None:
            if message.HasField(field.name):
                result[field.name] = _message(value)
        elif field.containing_oneof is not None:
            # Triton prints the scalar members of a oneof after everything else.
            if message.HasField(field.name):
                choices[field.name] = _scalar_or_message(field, value)
        else:
            result[field.name] = _scalar_or_message(field, value)
    result.update(choices)
    return result


def _scalar_or_message(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return _message(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known is not None else value
    if field.full_name in _AS_TEXT:
        return str(value)
    if field.cpp_type == field.CPPTYPE_FLOAT:
        return _number(_shortest(value))
    if field.cpp_type == field.CPPTYPE_DOUBLE:
        return _number(value)
    return value


def _shortest(value: float) -> float:
    """Return the double with the fewest digits that is still the same 32-bit float: 0.3, not 0.30000001."""
    for digits in range(6, 9):
        short = float(f"{value:.{digits}g}")
        if struct.unpack("f", struct.pack("f", short))[0] == value:
            return short
    return value


def _number(value: float) -> Any:
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _key(key: Any) -> str:
    return ("true" if key else "false") if isinstance(key, bool) else str(key)


def _is_map(field: Any) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _is_repeated(field: Any) -> bool:
    # ``label`` went away when ``is_repeated`` came.
    repeated = getattr(field, "is_repeated", None)
    return bool(field.label == field.LABEL_REPEATED if repeated is None else repeated)
