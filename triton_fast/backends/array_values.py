"""Tensors of a batch as numpy arrays and back. Knows datatypes and memory; no model, no batching.

numpy is imported when the first model needs it: the server itself does without.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from triton_fast.errors import Internal, InvalidArg, Unavailable
from triton_fast.types import TYPES, DataType

if TYPE_CHECKING:
    from triton_fast._native.arrays.pyarrays import Input, Output

# Numbers as numpy and torch call them; BF16, which numpy has from elsewhere, apart.
NUMBERS = {
    DataType.BOOL: "bool", DataType.UINT8: "uint8", DataType.UINT16: "uint16", DataType.UINT32: "uint32",
    DataType.UINT64: "uint64", DataType.INT8: "int8", DataType.INT16: "int16", DataType.INT32: "int32",
    DataType.INT64: "int64", DataType.FP16: "float16", DataType.FP32: "float32", DataType.FP64: "float64",
}  # fmt: skip
# Smaller outputs are copied by whoever takes them.
LENT = 32768


@cache
def numpy() -> Any:
    try:
        import numpy as np
    except ImportError as error:
        raise Unavailable(f"a backend over arrays needs numpy ({error}): pip install numpy") from None
    return np


@cache
def kind_of(dtype: int) -> Any:
    """Return the numpy dtype of a datatype: object for STRING, ml_dtypes' bfloat16 for BF16.

    Raises
    ------
    InvalidArg
        There is none.
    """
    np = numpy()
    if dtype == DataType.BF16:
        try:
            import ml_dtypes
        except ImportError:
            raise InvalidArg("TYPE_BF16 as a numpy array needs the package ml_dtypes") from None
        return np.dtype(ml_dtypes.bfloat16)
    if dtype == DataType.STRING:
        return np.dtype(object)
    name = NUMBERS.get(DataType(dtype))
    if name is None:
        raise InvalidArg("TYPE_INVALID is no type of an array")
    return np.dtype(name)


def has_kind(dtype: int) -> bool:
    """Tell whether there is a numpy dtype of a datatype, as it is installed."""
    try:
        kind_of(dtype)
    except InvalidArg:
        return False
    return True


def to_array(given: Input) -> Any:
    """Return an input as an array that may not be written to: others may have the same memory.

    STRING becomes an array of ``bytes`` objects; a byte of BOOL that is neither 0 nor 1 is true.
    """
    np = numpy()
    dtype, shape, view = given
    assert not isinstance(view, list)  # those are of instances that take device memory
    if dtype == DataType.STRING:
        return _texts(np, bytes(view), shape)
    if not len(view):
        return np.empty(shape, kind_of(dtype))
    if dtype == DataType.BOOL:
        return (np.frombuffer(view, np.uint8) != 0).reshape(shape)
    return np.frombuffer(memoryview(view).toreadonly(), kind_of(dtype)).reshape(shape)


def split_texts(data: bytes) -> list[bytes]:
    """Return the elements of STRING data, which was checked when it came."""
    texts = []
    at = 0
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        texts.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return texts


def join_texts(texts: Iterable[bytes]) -> bytearray:
    pieces = bytearray()
    for text in texts:
        pieces += struct.pack("<I", len(text)) + text
    return pieces


def _texts(np: Any, data: bytes, shape: Sequence[int]) -> Any:
    texts = split_texts(data)
    array = np.empty(len(texts), object)
    array[:] = texts
    return array.reshape(shape)


def from_array(made: Any, name: str, dtype: DataType, dims: tuple[int, ...], *, batched: bool, lend: bool) -> Output:
    """Return what a backend made as an output.

    ``dims``: of the config, without the batch dimension, which is checked by whoever cuts the output. ``lend``: the
    array's memory will not be written again, so a large one need not be copied.

    Raises
    ------
    Internal
        It is no array of this datatype and shape.
    """
    np = numpy()
    array = made if isinstance(made, np.ndarray) else _listed(np, made, name, dtype)
    shape = tuple(array.shape)
    if not batched and not shape and dims == (1,):
        array, shape = array.reshape(1), (1,)
    own = shape[1:] if batched else shape
    if (batched and not shape) or (own != dims and not _fits(own, dims)):
        raise Internal(
            f"output '{name}' has shape {list(shape)}, the model configuration says "
            f"{[-1, *dims] if batched else list(dims)}"
        )
    if dtype == DataType.STRING:
        return _packed(np, array, name, shape)
    kind = kind_of(dtype)
    if array.dtype != kind:
        if not np.can_cast(array.dtype, kind, "equiv"):
            raise Internal(
                f"output '{name}' is {array.dtype}, the model configuration says {TYPES[dtype].config} ({kind})"
            )
        array = array.astype(kind)
    elif not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    elif not lend and array.nbytes > LENT:
        array = array.copy()
    return int(dtype), shape, array.__array_interface__["data"][0], array.nbytes, array


def _fits(shape: tuple[int, ...], dims: tuple[int, ...]) -> bool:
    return len(shape) == len(dims) and all(want in (-1, got) for want, got in zip(dims, shape, strict=True))


def _listed(np: Any, made: Any, name: str, dtype: DataType) -> Any:
    """Return a list or a number as an array of the datatype, if nothing is lost by it."""
    if made is None or isinstance(made, (dict, set)):
        raise Internal(f"output '{name}' is {type(made).__name__}, not an array")
    try:
        if dtype == DataType.STRING:
            return np.asarray(made, object)
        array, kind = np.asarray(made), kind_of(dtype)
        return array if array.size and not np.can_cast(array.dtype, kind, "same_kind") else array.astype(kind)
    except (ValueError, TypeError) as error:
        raise Internal(f"output '{name}' is {type(made).__name__} that makes no array: {error}") from None


def _packed(np: Any, array: Any, name: str, shape: tuple[int, ...]) -> Output:
    if array.dtype.kind not in "OSU":
        raise Internal(f"output '{name}' is {array.dtype}, the model configuration says TYPE_STRING (bytes or str)")
    pieces = join_texts(_bytes_of(item, name) for item in array.reshape(-1))
    packed = np.frombuffer(pieces, np.uint8) if pieces else np.empty(0, np.uint8)
    return int(DataType.STRING), shape, packed.__array_interface__["data"][0], len(pieces), packed


def _bytes_of(item: Any, name: str) -> bytes:
    if isinstance(item, str):
        return item.encode("utf-8", "surrogateescape")
    if isinstance(item, (bytes, bytearray)):
        return bytes(item)
    raise Internal(f"output '{name}' has an element that is {type(item).__name__}, not bytes or str")
