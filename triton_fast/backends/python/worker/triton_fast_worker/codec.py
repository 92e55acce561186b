"""Records of docs/python_worker.md to objects and back, for the pure-Python transport.

The server's records are trusted to be well-formed; everything is copied out at once but the tensors, which stay views.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any

import numpy as np

from .dtypes import BYTES
from .errors import ErrorCode, TritonError, TritonModelException
from .layout import (
    ANSWERED,
    BLS,
    COUNTED,
    DONE,
    FLAG_FINAL,
    FLAGS_ONLY,
    PARAM,
    PARAM_BOOL,
    PARAM_INT,
    PARAM_STRING,
    REPLY,
    REQUEST,
    RESCHEDULED,
    RESPONSE,
    TENSOR,
    aligned,
    padded,
)  # fmt: skip
from .region import Region, leased
from .request import InferenceRequest
from .response import REQUEUED, InferenceResponse, NoResponse
from .tensor import Tensor

if TYPE_CHECKING:
    from .transport import Transport

_DIMS = [Struct(f"<{ndim}q") for ndim in range(33)]
# Above this a copy through bytes costs more than making a view of the target.
_BY_BYTES = 32768
_new_array = np.ndarray


def _text(region: Region, at: int, length: int) -> str:
    return str(region.map[at : at + length], "utf-8", "replace") if length else ""


def _tensors(region: Region, at: int, count: int, off: int, lease: Any, names: list[str]) -> tuple[list[Tensor], int]:
    memory, over, unpack = region.map, Tensor.over, TENSOR.unpack_from
    tensors = []
    for _ in range(count):
        dtype, ndim, name, where, nbytes = unpack(memory, at)
        dims = _DIMS[ndim].unpack_from(memory, at + 24)
        at += 24 + 8 * ndim
        if name >= 0:
            label = names[name]
        else:
            label = _text(region, at, -1 - name)
            at += padded(-1 - name)
        tensors.append(over(label, dtype, dims, lease, where - off, nbytes))
    return tensors, at


def decode_batch(transport: Transport, off: int, length: int) -> list[InferenceRequest]:
    region, runtime = transport.region, transport.runtime
    memory = region.map
    lease = region.lease(off)
    count, _ = COUNTED.unpack_from(memory, off)
    at = off + 8
    requests = []
    for _ in range(count):
        (size, slot, generation, flags, correlation, timeout, _priority, id_bytes, correlation_bytes, params_bytes,
         trace_bytes, inputs, outputs) = REQUEST.unpack_from(memory, at)  # fmt: skip
        tensors, here = _tensors(region, at + 64, inputs, off, lease, transport.inputs)
        key = memory[here : here + 4 * outputs]
        wanted = transport.wanted.get(key)
        if wanted is None:
            numbers = Struct(f"<{outputs}i").unpack(key)
            wanted = transport.wanted[key] = frozenset([transport.outputs[number] for number in numbers])
        texts = ["", "", "", ""]
        if id_bytes or correlation_bytes or params_bytes or trace_bytes:
            here += padded(4 * outputs)
            for index, text_bytes in enumerate((id_bytes, correlation_bytes, params_bytes, trace_bytes)):
                texts[index] = _text(region, here, text_bytes)
                here += padded(text_bytes)
        requests.append(
            InferenceRequest.received(
                runtime, (slot, generation), tensors, wanted, texts[0], texts[1] if correlation_bytes else correlation,
                flags, timeout, texts[2], texts[3],
            )
        )  # fmt: skip
        at += size
    return requests


def decode_answer(transport: Transport, off: int, length: int) -> tuple[int, InferenceResponse]:
    """Kind of the record and the response of a BLS request."""
    region = transport.region
    _, kind, _, _, code, error_bytes, params_bytes, outputs, flags, _ = REPLY.unpack_from(region.map, off)
    lease = region.lease(off)
    tensors, at = _tensors(region, off + REPLY.size, outputs, off, lease, [])
    error = None
    if code >= 0:
        error = TritonError(_text(region, at, error_bytes), ErrorCode.of(code))
    params = _text(region, at + padded(error_bytes), params_bytes)
    return kind, InferenceResponse.received(tensors, error, params, bool(flags & FLAG_FINAL))


def encode_parameters(parameters: dict[str, Any] | None) -> bytes:
    if not parameters:
        return b""
    pieces = [COUNTED.pack(len(parameters), 0)]
    for key, value in parameters.items():
        name, text = key.encode(), b""
        if isinstance(value, str):
            text = value.encode()
            kind, number = PARAM_STRING, len(text)
        elif isinstance(value, bool):
            kind, number = PARAM_BOOL, int(value)
        else:
            kind, number = PARAM_INT, int(value)
            if not -(1 << 63) <= number < 1 << 63:
                raise TritonModelException("Unsupported value type on parameters")
        pieces += (PARAM.pack(kind, len(name), number & (1 << 64) - 1), _pad(name), _pad(text))
    return b"".join(pieces)


def _pad(text: bytes) -> bytes:
    return text + bytes(-len(text) & 7)


class _Writer:
    """Puts one message together: first sizes, then an allocation, then everything into it.

    A record is a list of byte strings and of tensor entries, whose offsets are known only when the allocation is.
    """

    __slots__ = ("_bytes", "_copies", "_pieces", "_region", "_transport", "held")

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._region = transport.region
        self._pieces: list[Any] = []
        self._bytes = 0
        self._copies: list[tuple[int, Any, int]] = []  # piece, data, bytes
        self.held: list[Any] = []

    def put(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._bytes += len(piece)

    def tensor(self, tensor: Tensor, name: int, label: bytes, by_reference: bool) -> int:
        """Append a tensor's record; returns its bytes."""
        dims, dtype = tensor._dims, tensor._dtype
        where = 0
        if dtype == BYTES:
            data: Any = tensor.serialized()
            if data is None:
                data = self._transport.encode_bytes(tensor.as_numpy())
        else:
            data = tensor.bits()
        nbytes = len(data) if isinstance(data, bytes) else data.nbytes
        if by_reference and nbytes and not isinstance(data, bytes):
            found = leased(data, self._region)
            if found is not None:
                where, lease = found
                self.held.append(lease)
        if nbytes and not where:
            self._copies.append((len(self._pieces), data, nbytes))
        record = TENSOR.pack(dtype, len(dims), name, where, nbytes) + _DIMS[len(dims)].pack(*dims)
        if label:
            record += _pad(label)
        self.put(record)
        return len(record)

    def response(self, ticket: tuple[int, int], response: Any, wanted: frozenset[str], kind: int, flags: int) -> None:
        slot, generation = ticket
        if response is None or response._error is not None:
            code, text = -1, b""
            if response is not None:
                code, text = int(response._error.code()), response._error.message().encode("utf-8", "replace")
            size = REPLY.size + padded(len(text))
            self.put(REPLY.pack(size, kind, slot, generation, code, len(text), 0, 0, flags, 0))
            self.put(_pad(text))
            return
        params = encode_parameters(response._parameters if not isinstance(response._parameters, str) else None)
        at = len(self._pieces)
        self.put(bytes(REPLY.size))
        size, outputs = REPLY.size + len(params), 0
        index = self._transport.output_index
        # Before the last response the model may well go on writing where the output lies.
        by_reference = bool(flags & FLAG_FINAL)
        for tensor in response._outputs:
            name = tensor._name
            if name in wanted:
                size += self.tensor(tensor, index[name], b"", by_reference)
                outputs += 1
            elif name not in index:
                # The model has no such output: the server says so to the client.
                text = name.encode()
                size += self.tensor(tensor, -1 - len(text), text, by_reference)
                outputs += 1
        self._pieces[at] = REPLY.pack(size, kind, slot, generation, -1, 0, len(params), outputs, flags, 0)
        self.put(params)

    def finish(self, *tickets: tuple[int, int]) -> tuple[int, int]:
        """Allocate and write; offset and length of the payload, which belongs to these requests."""
        total = self._bytes
        for _, _, nbytes in self._copies:
            total = aligned(total) + nbytes
        off = self._transport.allocate(total, tickets)
        return self.fill(off)

    def fill(self, off: int) -> tuple[int, int]:
        memory, at = self._region.map, aligned(self._bytes)
        for piece, data, nbytes in self._copies:
            where = off + at
            record = self._pieces[piece]
            self._pieces[piece] = record[:8] + where.to_bytes(8, "little") + record[16:]
            if isinstance(data, bytes):
                memory[where : where + nbytes] = data
            elif nbytes <= _BY_BYTES:
                memory[where : where + nbytes] = data.tobytes()
            else:
                _new_array(data.shape, data.dtype, memory, where)[...] = data
            at = aligned(at + nbytes)
        memory[off : off + self._bytes] = b"".join(self._pieces)
        return off, self._bytes


Encoded = tuple[int, int, list[Any]]  # offset, length, leases to hold until the server has taken the message


def encode_done(transport: Transport, requests: list[InferenceRequest], results: list[Any]) -> Encoded:
    writer = _Writer(transport)
    writer.put(DONE.pack(len(requests), -1, 0, 0))
    for request, result in zip(requests, results):
        if type(result) is NoResponse:
            kind = RESCHEDULED if result is REQUEUED else ANSWERED
            writer.response(request._ticket, None, frozenset(), kind, 0)
        else:
            writer.response(request._ticket, result, request._wanted, RESPONSE, FLAG_FINAL)
    return (*writer.finish(*[request._ticket for request in requests]), writer.held)


def encode_failure(transport: Transport, text: str) -> Encoded:
    """A done message that fails all of the batch that is unanswered."""
    writer = _Writer(transport)
    data = text.encode("utf-8", "replace")
    writer.put(DONE.pack(0, int(ErrorCode.INTERNAL), len(data), 0))
    writer.put(_pad(data))
    return (*writer.finish(), [])


def encode_response(
    transport: Transport, ticket: tuple[int, int], response: Any, wanted: frozenset[str], flags: int
) -> Encoded:
    writer = _Writer(transport)
    writer.response(ticket, response, wanted, FLAGS_ONLY if response is None else RESPONSE, flags)
    return (*writer.finish(ticket), writer.held)


def encode_end(transport: Transport, ticket: tuple[int, int], error: TritonError | None) -> tuple[int, int]:
    """The final record of a request whose sender is gone. The gate is held."""
    writer = _Writer(transport)
    response = None if error is None else InferenceResponse([], error)
    writer.response(ticket, response, frozenset(), FLAGS_ONLY if error is None else RESPONSE, FLAG_FINAL)
    return writer.fill(transport.heap.allocate(writer._bytes))


def encode_bls(
    transport: Transport, request: InferenceRequest, options: int, parent: tuple[int, int]
) -> tuple[int, int]:
    writer = _Writer(transport)
    writer.put(bytes(BLS.size))
    for tensor in request._inputs:
        label = tensor._name.encode()
        writer.tensor(tensor, -1 - len(label), label, False)
    for name in request._wanted:
        text = name.encode()
        writer.put(_pad(len(text).to_bytes(4, "little") + text))
    number: Any = request._correlation
    correlation = b""
    if isinstance(number, str):
        number, correlation = 0, number.encode()
    params = request._parameters
    # Those of a received request are text of the server's, which keeps to what a model may say.
    if isinstance(params, str):
        params = transport.parse_parameters(params)
    texts = [
        getattr(request, "_model", "").encode(), request._id.encode(), correlation, encode_parameters(params),
        request._trace_text().encode(),
    ]  # fmt: skip
    for text in texts:
        writer.put(_pad(text))
    writer._pieces[0] = BLS.pack(
        writer._bytes, options, request._flags, len(request._inputs), number, request._timeout,
        getattr(request, "_version", -1), len(request._wanted), *map(len, texts), *parent,
    )  # fmt: skip
    # Outside of an execution it belongs to none.
    return writer.finish(*([parent] if parent[1] else []))
