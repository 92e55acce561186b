"""Records of the wire: executions and answers into objects, responses and calls into records (docs/python_worker.md)."""

from __future__ import annotations

from typing import Any, Callable, Optional

import numpy as np

from triton_fast_worker import layout
from triton_fast_worker.errors import TritonError
from triton_fast_worker.layout import padding
from triton_fast_worker.region import Lease, OutOfMemory, Region
from triton_fast_worker.request import InferenceRequest, InferenceTrace
from triton_fast_worker.response import InferenceResponse
from triton_fast_worker.strings import encode_bytes
from triton_fast_worker.tensor import NUMPY, STRING, Tensor

NO_MEMORY = (
    "Failed to send the response: not enough memory shared with the server for its outputs; raise "
    "--backend-config=python,shm-max-byte-size"
)


def _text(lease: Lease, at: int, size: int) -> tuple[str, int]:
    if not size:
        return "", at
    return bytes(lease[at : at + size]).decode("utf-8", "replace"), at + size + (-size % 8)


def _tensors(
    region: Region, lease: Lease, base: int, at: int, count: int, names: Optional[list[str]]
) -> tuple[list[Tensor], int]:
    found = []
    record = layout.TENSOR
    longs = region.longs
    for _ in range(count):
        dtype, ndim, name, off, nbytes = record.unpack_from(region.map, base + at)
        at += record.size
        first = (base + at) >> 3
        shape = tuple(longs[first : first + ndim])
        at += 8 * ndim
        if name >= 0:
            assert names is not None
            text = names[name]
        else:
            text, at = _text(lease, at, -1 - name)
        start = off - base
        data: Any = lease[start : start + nbytes]
        if dtype != STRING:
            # Straight over the lease: no slice between it and the array.
            data = np.ndarray(shape, NUMPY[dtype], lease, start) if nbytes else np.empty(shape, NUMPY[dtype])
            tensor = Tensor._from_buffer(text, dtype, shape, None)
            tensor._array = data
        else:
            tensor = Tensor._from_buffer(text, dtype, shape, data)
        found.append(tensor)
    return found, at


def decode_batch(
    region: Region, off: int, nbytes: int, inputs: list[str], outputs: list[str], model: tuple[str, int],
    origin: Callable[[int, int], Any],
) -> list[InferenceRequest]:
    """Return the requests of an execution; ``origin(slot, generation)`` makes what each came from."""
    lease = region.lease(off, nbytes)
    count = int.from_bytes(lease[:4], "little")
    found = []
    at = 8
    longs = region.longs
    for _ in range(count):
        start = at
        (
            size, slot, generation, flags, correlation, timeout, _priority, id_len, correlation_len, params_len,
            trace_len, n_inputs, n_wanted,
        ) = layout.REQUEST.unpack_from(region.map, off + at)  # fmt: skip
        tensors, at = _tensors(region, lease, off, at + layout.REQUEST.size, n_inputs, inputs)
        wanted = [outputs[i] for i in region.words[(off + at) >> 2 : ((off + at) >> 2) + n_wanted]]
        at += 4 * (n_wanted + n_wanted % 2)
        request = InferenceRequest.__new__(InferenceRequest)
        request._inputs = tensors
        request._wanted = wanted
        request._flags = flags
        request._timeout = timeout
        request._id, at = _text(lease, at, id_len)
        correlation_text, at = _text(lease, at, correlation_len)
        request._correlation = correlation_text if correlation_len else correlation
        request._parameters, at = _text(lease, at, params_len)
        trace, at = _text(lease, at, trace_len)
        request._trace = InferenceTrace(trace) if trace else None
        request._model_name, request._model_version = model
        request._preferred = None
        request._origin = origin(slot, generation)
        found.append(request)
        at = start + size
    return found


def decode_answer(region: Region, off: int, nbytes: int) -> tuple[Optional[InferenceResponse], bool]:
    """Return the response of a call (None when it is only the end of a stream), and whether it is the last."""
    lease = region.lease(off, nbytes)
    _size, kind, _slot, _generation, code, error_len, params_len, count, flags, _ = layout.RESPONSE.unpack_from(
        region.map, off
    )
    tensors, at = _tensors(region, lease, off, layout.RESPONSE.size, count, None)
    message, at = _text(lease, at, error_len)
    parameters, at = _text(lease, at, params_len)
    final = bool(flags & layout.RECORD_FINAL)
    if kind == layout.RECORD_NONE:
        return None, final
    response = InferenceResponse(tensors, None if code == layout.NO_ERROR else TritonError(message, code))
    response._parameters = parameters
    return response, final


def _params(parameters: Any) -> bytes:
    if not parameters or isinstance(parameters, str):
        return b""
    parts = [layout.PAIR.pack(len(parameters), 0)]
    for key, value in parameters.items():
        name = key.encode("utf-8")
        text = b""
        if isinstance(value, bool):
            kind, number = 2, int(value)
        elif isinstance(value, int):
            kind, number = 1, value & 0xFFFFFFFFFFFFFFFF
        else:
            text = value.encode("utf-8")
            kind, number = 0, len(text)
        parts += (layout.PARAM.pack(kind, len(name), number), name, padding(len(name)), text, padding(len(text)))
    return b"".join(parts)


class Message:
    """Records with their tensors, on the way into one allocation."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self._parts: list[bytes] = []
        self._size = 0
        # Tensors to be copied: where their record is among the parts, its fields, their bytes.
        self._pieces: list[tuple[int, tuple[int, int, int, int], Any]] = []
        self._data = 0
        self.held: list[Any] = []

    def put(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)

    def put_text(self, data: bytes) -> None:
        if data:
            self.put(data)
            self.put(padding(len(data)))

    def put_tensor(self, tensor: Tensor, index: int) -> None:
        """Add a tensor; ``index`` -1: its name goes as text."""
        dtype = tensor._dtype
        name = b"" if index >= 0 else tensor._name.encode("utf-8")
        shape = tensor._shape
        number = index if index >= 0 else -1 - len(name)
        place = len(self._parts)
        if dtype == STRING:
            array = tensor._array
            data = encode_bytes(array) if array is not None else bytes(tensor._buffer)
            nbytes = len(data)
        else:
            array = tensor._numpy()
            nbytes = array.nbytes
            held = self._region.lease_of(array) if nbytes else None
            if held is not None:
                self.held.append(held[0])
                self.put(layout.TENSOR.pack(dtype, len(shape), number, held[1], nbytes))
                data = None
            else:
                data = array.reshape(-1).view(np.uint8).data if nbytes else b""
        if data is not None:
            self._pieces.append((place, (dtype, len(shape), number, self._data), data))
            self.put(b"\0" * layout.TENSOR.size)
            self._data += -(-nbytes // 64) * 64
        self.put(_shape(shape))
        self.put_text(name)

    def begin(self) -> int:
        """Leave a place for a record's head, which ``end`` fills; return what end needs."""
        self._parts.append(b"")
        return len(self._parts) - 1

    def size_of_rest(self, place: int) -> int:
        """Return the bytes put since ``begin``."""
        return sum(map(len, self._parts[place + 1 :]))

    def end(self, place: int, head: bytes) -> None:
        self._parts[place] = head
        self._size += len(head)

    def write(self) -> tuple[int, int]:
        """Lay everything into the region; return (off, bytes of the records). Raises OutOfMemory."""
        region = self._region
        first = -(-self._size // 64) * 64
        off = region.allocate(first + self._data)
        start = off + first
        for place, (dtype, ndim, number, at), data in self._pieces:
            n = len(data)
            self._parts[place] = layout.TENSOR.pack(dtype, ndim, number, start + at, n)
            region.view[start + at : start + at + n] = data
        region.view[off : off + self._size] = b"".join(self._parts)
        return off, self._size


def _shape(shape: tuple[int, ...]) -> bytes:
    return b"".join([n.to_bytes(8, "little", signed=True) for n in shape])


def put_response(
    message: Message, kind: int, slot: int, generation: int, response: Optional[InferenceResponse],
    outputs: dict[str, int], wanted: Optional[list[str]], final: bool,
) -> None:
    """Add a response record. Outputs that are not wanted are dropped; None for ``wanted``: all are."""
    code, text, parameters, count = layout.NO_ERROR, b"", b"", 0
    place = message.begin()
    if response is not None:
        error = response._error
        if error is not None:
            code, text = error.code(), error.message().encode("utf-8", "replace")
        else:
            for tensor in response._tensors:
                index = outputs.get(tensor._name, -1)
                if index >= 0 and wanted is not None and tensor._name not in wanted:
                    continue
                message.put_tensor(tensor, index)
                count += 1
            parameters = _params(response._parameters)
    message.put_text(text)
    if parameters:
        message.put(parameters)
    size = layout.RESPONSE.size + message.size_of_rest(place)
    message.end(
        place,
        layout.RESPONSE.pack(
            size, kind, slot, generation, code, len(text), len(parameters), count, layout.RECORD_FINAL if final else 0, 0
        ),
    )


def put_call(message: Message, request: InferenceRequest, options: int) -> None:
    """Add the BLS record of a request."""
    place = message.begin()
    for tensor in request._inputs:
        message.put_tensor(tensor, -1)
    for name in request._wanted:
        data = name.encode("utf-8")
        message.put_text(len(data).to_bytes(4, "little") + data)
    correlation = request._correlation
    correlation_text = correlation.encode("utf-8") if isinstance(correlation, str) else b""
    model, number = request._model_name.encode("utf-8"), request._id.encode("utf-8")
    parameters = _params(request._parameters)
    for data in (model, number, correlation_text, parameters):
        message.put_text(data)
    message.end(
        place,
        layout.BLS.pack(
            layout.BLS.size + message.size_of_rest(place), options, request._flags & 3, len(request._inputs),
            0 if isinstance(correlation, str) else correlation & 0xFFFFFFFFFFFFFFFF, request._timeout & 0xFFFFFFFFFFFFFFFF,
            request._model_version, len(request._wanted), len(model), len(number), len(correlation_text),
            len(parameters), 0, 0, 0,
        ),
    )  # fmt: skip


__all__ = ["NO_MEMORY", "Message", "OutOfMemory", "decode_answer", "decode_batch", "put_call", "put_response"]
