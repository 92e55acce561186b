"""Protobuf wire bytes by hand, and what a ModelInferRequest means according to protobuf itself."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from triton_fast import protos

# datatype -> (field of InferTensorContents, numpy type)
TYPED = {
    "BOOL": ("bool_contents", np.bool_),
    "INT8": ("int_contents", np.int8),
    "INT16": ("int_contents", np.int16),
    "INT32": ("int_contents", np.int32),
    "INT64": ("int64_contents", np.int64),
    "UINT8": ("uint_contents", np.uint8),
    "UINT16": ("uint_contents", np.uint16),
    "UINT32": ("uint_contents", np.uint32),
    "UINT64": ("uint64_contents", np.uint64),
    "FP32": ("fp32_contents", np.float32),
    "FP64": ("fp64_contents", np.float64),
    "BYTES": ("bytes_contents", None),
}
OWN_FIELD = {
    "sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "binary_data_output",
    "triton_enable_empty_final_response",
}


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def tag(number: int, wire_type: int) -> bytes:
    return varint(number << 3 | wire_type)


def integer(number: int, value: int) -> bytes:
    return tag(number, 0) + varint(value)


def span(number: int, data: bytes) -> bytes:
    return tag(number, 2) + varint(len(data)) + data


def entry(number: int, key: bytes, value: bytes | None) -> bytes:
    """One entry of a map<string, InferParameter>; value None leaves the field out."""
    return span(number, span(1, key) + (b"" if value is None else span(2, value)))


def elements(texts: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def data_of(tensor: Any) -> bytes:
    """The memory that the typed contents of a protobuf input stand for."""
    if tensor.datatype not in TYPED:
        return b""
    field, kind = TYPED[tensor.datatype]
    values = getattr(tensor.contents, field)
    if kind is None:
        return elements(list(values))
    if field in ("int_contents", "uint_contents"):
        return np.array(list(values), np.int64).astype(kind).tobytes()
    if field in ("fp32_contents", "fp64_contents"):
        # Their bits are the tail of the packed field; as Python floats, signalling NaNs would turn quiet.
        packed = type(tensor.contents)()
        packed.CopyFrom(tensor.contents)
        packed.DiscardUnknownFields()
        size = len(values) * np.dtype(kind).itemsize
        return bytes(packed.SerializeToString()[-size:]) if size else b""
    return np.array(list(values), kind).tobytes()


def value_of(parameter: Any) -> Any:
    return getattr(parameter, parameter.WhichOneof("parameter_choice"))


def meaning(message: bytes) -> dict[str, Any]:
    """What pb_infer.decode must return for an acceptable message, but for order of parameters and `borrowed`."""
    m = protos.ModelInferRequest.FromString(message)
    of = m.parameters
    flags = [of[key].bool_param if key in of else False for key in
             ("sequence_start", "sequence_end", "triton_enable_empty_final_response")]
    return {
        "id": m.id,
        "inputs": [
            {
                "name": t.name,
                "datatype": t.datatype if t.datatype in {*TYPED, "FP16", "BF16"} else "<invalid>",
                "shape": list(t.shape),
                "data": data_of(t) if t.HasField("contents") else m.raw_input_contents[i],
            }
            for i, t in enumerate(m.inputs)
        ],
        "outputs": [
            {"name": o.name, "binary": 1, "classes": min(o.parameters["classification"].int64_param, 2**32 - 1)
             if "classification" in o.parameters else 0}
            for o in m.outputs
        ],
        "parameters": sorted((k, repr(value_of(v))) for k, v in of.items() if k not in OWN_FIELD),
        "sequence_id": (value_of(of["sequence_id"]) if of["sequence_id"].WhichOneof("parameter_choice") ==
                        "string_param" else of["sequence_id"].int64_param % 2**64) if "sequence_id" in of else 0,
        "flags": sum(1 << i for i, flag in enumerate(flags) if flag),
        "priority": value_of(of["priority"]) if "priority" in of else 0,
        "timeout": of["timeout"].int64_param % 2**64 if "timeout" in of else 0,
        "binary_data_output": True,
    }


def comparable(decoded: dict[str, Any]) -> dict[str, Any]:
    inputs = [{key: value for key, value in t.items() if key != "borrowed"} for t in decoded["inputs"]]
    return {**decoded, "inputs": inputs, "parameters": sorted((k, repr(v)) for k, v in decoded["parameters"])}
