"""Serialized BYTES tensors: each element is u32 length, then its bytes. The compiled client has its own."""

from __future__ import annotations

from itertools import chain
from struct import Struct, iter_unpack
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
        items = []
        append, length_at, at = items.append, _LENGTH.unpack_from, 0
        while at < size:
            if size - at < 4:
                raise TritonModelException("Invalid bytes tensor data: incomplete length field")
            end = at + 4 + length_at(data, at)[0]
            if end > size:
                raise TritonModelException("Invalid bytes tensor data: string extends beyond buffer")
            append(data[at + 4 : end])
            at = end
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


def encode_bytes(array: Any) -> bytes:
    """The serialized form of an object or bytes_ array, in C order; what is not bytes goes through str()."""
    items = array.ravel().tolist()
    if array.dtype == np.object_:
        for index, item in enumerate(items):
            if type(item) is not bytes:
                items[index] = str(item).encode()
    if len(items) < 64:
        pack = _LENGTH.pack
        return b"".join([piece for item in items for piece in (pack(len(item)), item)])
    lengths = np.fromiter(map(len, items), "<u4", len(items)).tobytes()
    return b"".join(chain.from_iterable(zip(chain.from_iterable(iter_unpack("4s", lengths)), items)))
