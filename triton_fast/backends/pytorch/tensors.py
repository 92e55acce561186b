"""Arrays of a batch as tensors and back, without a copy where that is safe; lists of texts as STRING.

Knows datatypes and memory, no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from triton_fast._native.arrays.pyarrays import DeviceView
from triton_fast.backends.array_values import LENT, NUMBERS, join_texts, split_texts
from triton_fast.types import DataType

if TYPE_CHECKING:
    from triton_fast._native.arrays.pyarrays import Input, Output
    from triton_fast.backends.pytorch.device import Gpu

_NAMES = {**NUMBERS, DataType.BF16: "bfloat16"}


@cache
def _tables(torch: Any) -> tuple[dict[int, Any], dict[Any, int]]:
    known = {int(dtype): getattr(torch, name) for dtype, name in _NAMES.items() if hasattr(torch, name)}
    return known, {kind: dtype for dtype, kind in known.items()}


def kinds(torch: Any) -> dict[int, Any]:
    """Return torch's dtypes by DataType number, as far as this torch has them."""
    return _tables(torch)[0]


def dtype_of(torch: Any, kind: Any) -> DataType:
    """Return the datatype of a torch dtype; INVALID for one that the protocol does not have."""
    return DataType(_tables(torch)[1].get(kind, 0))


def to_tensor(torch: Any, given: Input, kind: Any, *, own: bool) -> Any:
    """Return a tensor over an input's memory.

    ``own``: the model may write to it, so it gets a copy: others may have the same memory, as steps of an ensemble do.
    BOOL is always copied: a byte that is neither 0 nor 1 would make torch's kernels read and write past their ends.
    """
    dtype, shape, view = given
    assert not isinstance(view, list)
    if not len(view):
        return torch.empty(shape, dtype=kind)
    if dtype == DataType.BOOL:
        return torch.frombuffer(view, dtype=torch.uint8).ne(0).reshape(shape)
    tensor = torch.frombuffer(view, dtype=kind)
    if own:
        tensor = tensor.clone()
    return tensor.reshape(shape)


def to_device(torch: Any, gpu: Gpu, given: Input, kind: Any, *, own: bool) -> Any:
    """Return a tensor on a GPU: over an input's memory where that lies there already, else a copy that is queued."""
    dtype, shape, view = given
    pieces = view if isinstance(view, list) else [view]
    parts = []
    for piece in pieces:
        if not len(piece):
            continue
        if isinstance(piece, DeviceView):
            part = gpu.wrap(piece)
            # A client may have laid it anywhere; kernels read whole elements.
            if piece.address % kind.itemsize or (own and len(pieces) == 1):
                part = part.clone()
        else:
            part = gpu.upload(torch.frombuffer(piece, dtype=torch.uint8))
        parts.append(part)
    if not parts:
        return torch.empty(shape, dtype=kind, device=gpu.device)
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    # For BOOL see to_tensor.
    return whole.ne(0).reshape(shape) if dtype == DataType.BOOL else whole.view(kind).reshape(shape)


def to_texts(given: Input) -> list[str]:
    """Return an input of strings as torch takes them. Bytes that are not UTF-8 become U+FFFD: a str has no others."""
    view = given[2]
    assert not isinstance(view, list)
    return [text.decode("utf-8", "replace") for text in split_texts(bytes(view))]


def from_texts(torch: Any, texts: Sequence[str]) -> Output:
    pieces = join_texts(text.encode("utf-8", "replace") for text in texts)
    if not pieces:
        return int(DataType.STRING), (len(texts),), 0, 0, None
    tensor = torch.frombuffer(pieces, dtype=torch.uint8)
    return int(DataType.STRING), (len(texts),), tensor.data_ptr(), len(pieces), tensor


def from_tensor(torch: Any, tensor: Any, dtype: int, *, lend: bool, scalar: bool) -> Output:
    """Return a tensor of the model as an output.

    ``lend``: its memory will not be written again, so no copy is needed; ``scalar``: one without dimensions becomes
    [1].
    """
    tensor = _plain(torch, tensor)
    if tensor.device.type != "cpu":
        tensor = tensor.cpu()
    elif not tensor.is_contiguous():
        tensor = tensor.contiguous()
    elif not lend and tensor.nbytes > LENT:
        tensor = tensor.clone()
    shape = tuple(tensor.shape) or ((1,) if scalar else ())
    return dtype, shape, tensor.data_ptr(), tensor.nbytes, tensor


def from_device(torch: Any, gpu: Gpu, tensor: Any, dtype: int, *, scalar: bool) -> Output:
    """Return a tensor on a GPU as an output, whose bytes are there after ``gpu.wait()``."""
    made, view = gpu.download(_plain(torch, tensor).contiguous())
    shape = tuple(made.shape) or ((1,) if scalar else ())
    return dtype, shape, made.data_ptr(), made.nbytes, view


def _plain(torch: Any, tensor: Any) -> Any:
    """Return a tensor whose elements lie in memory as they are."""
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    return tensor.resolve_neg() if tensor.is_neg() else tensor
