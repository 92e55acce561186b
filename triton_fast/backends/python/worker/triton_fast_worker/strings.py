"""BYTES tensors: elements with their lengths, as Triton serializes them."""

from __future__ import annotations

import struct
from typing import Any, Optional, Union

import numpy as np

_LENGTH = struct.Struct("<I")


def decode_bytes(buffer: Any, count: Optional[int] = None) -> np.ndarray:
    """Return a 1-D object array of ``bytes``.

    Raises ValueError when the lengths do not add up, or to other than ``count`` elements.
    """
    view = memoryview(buffer).cast("B")
    size, at = len(view), 0
    found = []
    unpack = _LENGTH.unpack_from
    while at < size:
        if size - at < 4:
            raise ValueError("incomplete string length indicator")
        (n,) = unpack(view, at)
        at += 4
        if n > size - at:
            raise ValueError("incomplete string data")
        found.append(bytes(view[at : at + n]))
        at += n
    if count is not None and len(found) != count:
        raise ValueError(f"expected {count} string elements, got {len(found)}")
    array = np.empty(len(found), dtype=object)
    array[:] = found
    return array


def encode_bytes(array: np.ndarray) -> bytes:
    """Return the serialized form, in C order; elements that are not bytes are written as their text."""
    parts = []
    pack = _LENGTH.pack
    for item in array.reshape(-1).tolist():
        data = item if isinstance(item, bytes) else str(item).encode("utf-8")
        parts.append(pack(len(data)))
        parts.append(data)
    return b"".join(parts)


def serialize_byte_tensor(array: np.ndarray) -> Union[bytes, tuple[()], None]:
    """As of triton_python_backend_utils: None for arrays that are not of strings, ``()`` for an empty one."""
    if array.size == 0:
        return ()
    if array.dtype == np.object_ or array.dtype.type == np.bytes_:
        return encode_bytes(array)
    return None


def deserialize_bytes_tensor(buffer: Any) -> np.ndarray:
    """Return a 1-D object array of ``bytes``."""
    return decode_bytes(buffer)
