"""Serialized BYTES tensors: each element is u32 length, then its bytes. The compiled client has its own."""

from __future__ import annotations

from itertools import chain
from struct import Struct
from struct import error as StructError
from typing import Any

import numpy as np

from .errors import TritonModelException

_LENGTH = Struct("<I")


def decode_bytes(buffer: Any, count: int) -> Any:
    """A 1-D object array of bytes. ``buffer`` is the whole tensor; ``count``, its shape's, is a hint only."""
    data = bytes(buffer)
    size = len(data)
    if size < 4:
        if size:
            raise TritonModelException("Invalid bytes tensor data: incomplete length field")
        return np.empty(0, object)
    items = _equal_lengths(data, size, count)
    if items is None:
        items = _cut(data, size)
    result = np.empty(len(items), object)
    result[:] = items
    return result


def _equal_lengths(data: bytes, size: int, count: int) -> Any:
    """The elements when all have one length (numpy cuts them then), else None."""
    length = _LENGTH.unpack_from(data)[0]
    if count < 2 or length == 0 or count * (4 + length) != size:
        return None
    table = np.frombuffer(data, [("length", "<u4"), ("data", f"V{length}")])
    return table["data"].tolist() if bool((table["length"] == length).all()) else None


def _cut(data: bytes, size: int) -> list[bytes]:
    items: list[bytes] = []
    append, length_at, at = items.append, _LENGTH.unpack_from, 0
    try:
        while at < size:
            (length,) = length_at(data, at)
            at += 4
            end = at + length
            append(data[at:end])
            at = end
    except StructError:
        raise TritonModelException("Invalid bytes tensor data: incomplete length field") from None
    # A length that reaches too far can only be the last one: it ends the loop.
    if at != size:
        raise TritonModelException("Invalid bytes tensor data: string extends beyond buffer")
    return items


def encode_bytes(array: Any) -> bytes:
    """The serialized form of an object or bytes_ array, in C order; what is not bytes goes through str()."""
    items = array.ravel().tolist()
    if array.dtype == np.object_ and set(map(type, items)) != {bytes}:
        items = [item if type(item) is bytes else str(item).encode() for item in items]
    lengths = list(map(len, items))
    heads = {length: _LENGTH.pack(length) for length in set(lengths)}
    return b"".join(chain.from_iterable(zip(map(heads.__getitem__, lengths), items)))
