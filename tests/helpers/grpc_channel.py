"""gRPC over real grpcio channels, call by call: every method by its name, with status, text and metadata of the answer.

Knows the messages of the v2 service (``triton_fast.protos``); knows nothing of how a server is started.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from queue import Queue
from types import TracebackType
from typing import Any

import grpc
import numpy as np

from tests.helpers.pb import elements
from triton_fast import protos

TIMEOUT_S = 30.0
SERVICE = "inference.GRPCInferenceService"
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
Metadata = Mapping[str, str]
_TYPES = {"BF16": "<u2", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "BOOL": "?", "INT8": "i1", "INT16": "<i2",
          "INT32": "<i4", "INT64": "<i8", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8"}  # fmt: skip


@dataclass
class Reply:
    """How a call ended. ``messages``: what came before that, one unless the call streams."""

    status: int
    text: str
    messages: list[Any] = field(default_factory=list)
    headers: dict[str, Any] = field(default_factory=dict)
    trailers: dict[str, Any] = field(default_factory=dict)

    @property
    def message(self) -> Any:
        assert (self.status, self.text) == (0, ""), (self.status, self.text)
        (message,) = self.messages
        return message

    @property
    def outcome(self) -> tuple[int, str]:
        return self.status, self.text


class Channel:
    """One channel with a connection of its own. ``options`` and ``credentials`` are grpcio's."""

    def __init__(
        self, address: tuple[str, int], credentials: grpc.ChannelCredentials | None = None,
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:  # fmt: skip
        target = f"{address[0]}:{address[1]}"
        settings = tuple({**dict(OWN_CONNECTION), **dict(UNLIMITED), **dict(options)}.items())
        if credentials is None:
            self.channel = grpc.insecure_channel(target, settings)
        else:
            self.channel = grpc.secure_channel(target, credentials, settings)

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.channel.close()

    def ask(self, name: str, request: Any = None, **named: Any) -> Reply:
        """Call a unary method of the v2 service by its name; without a request with an empty one."""
        if request is None:
            request = getattr(protos, f"{name}Request")()
        return self.unary(f"/{SERVICE}/{name}", request, getattr(protos, f"{name}Response"), **named)

    def unary(self, path: str, request: Any, response: Any = None, **named: Any) -> Reply:
        return end_of(self.future(path, request, response, **named))

    def future(
        self, path: str, request: Any, response: Any = None, *, timeout: float | None = TIMEOUT_S,
        metadata: Metadata | None = None, compression: grpc.Compression | None = None,
    ) -> Any:  # fmt: skip
        """Begin a unary call; ``request`` is a message or its bytes, ``response`` its class, None for bytes."""
        call = self.channel.unary_unary(path, bytes_of, response.FromString if response else None)
        return call.future(
            request, timeout=timeout, metadata=tuple((metadata or {}).items()), compression=compression
        )

    def infer_later(self, request: Any, **named: Any) -> Any:
        return self.future(f"/{SERVICE}/ModelInfer", request, protos.ModelInferResponse, **named)

    def infer(self, request: Any, **named: Any) -> Reply:
        return self.ask("ModelInfer", request, **named)

    def talk(self, **named: Any) -> Talk:
        """Open a ModelStreamInfer."""
        return Talk(self, f"/{SERVICE}/ModelStreamInfer", protos.ModelStreamInferResponse, **named)

    def stream(self, requests: Iterable[Any], **named: Any) -> Reply:
        """Make a whole ModelStreamInfer: send all, end, read all."""
        with self.talk(**named) as talk:
            for request in requests:
                talk.send(request)
            talk.end()
            return talk.rest()


class Talk:
    """A call that streams both ways, driven from one thread."""

    def __init__(
        self, channel: Channel, path: str, response: Any = None, *, timeout: float | None = TIMEOUT_S,
        metadata: Metadata | None = None, compression: grpc.Compression | None = None,
    ) -> None:  # fmt: skip
        self._queue: Queue[Any] = Queue()
        call = channel.channel.stream_stream(path, bytes_of, response.FromString if response else None)
        self.call = call(
            iter(self._queue.get, None), timeout=timeout, metadata=tuple((metadata or {}).items()),
            compression=compression,
        )  # fmt: skip

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.call.cancel()
        self._queue.put(None)

    def send(self, request: Any) -> None:
        self._queue.put(request)

    def end(self) -> None:
        """Half-close."""
        self._queue.put(None)

    def next(self) -> Any:
        """The next message. Raises grpc.RpcError or StopIteration at the end."""
        return next(self.call)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.call)

    def rest(self) -> Reply:
        """Read to the end of the call."""
        messages = []
        try:
            for message in self.call:
                messages.append(message)
        except grpc.RpcError:
            pass
        return end_of(self.call, messages)


def bytes_of(request: Any) -> bytes:
    return request if isinstance(request, bytes) else bytes(request.SerializeToString())


def end_of(call: Any, messages: list[Any] | None = None) -> Reply:
    """Wait for the end of a call and return how it ended."""
    made = Reply(call.code().value[0], call.details() or "", messages or [])
    made.headers, made.trailers = dict(call.initial_metadata() or ()), dict(call.trailing_metadata() or ())
    if messages is None and made.status == 0:
        made.messages.append(call.result())
    return made


# ---- messages


def packed(values: Any, datatype: str) -> bytes:
    """Raw bytes of a tensor; BYTES from a list of bytes."""
    if datatype == "BYTES":
        return elements(list(values))
    return np.asarray(values, _TYPES[datatype]).tobytes()


def unpacked(data: bytes, datatype: str) -> list[Any]:
    return list(np.frombuffer(data, _TYPES[datatype]).tolist())


def infer_request(
    model: str, values: Any = (1.0, 2.0), datatype: str = "FP32", shape: Sequence[int] | None = None, **more: Any
) -> Any:
    """One raw input INPUT0; ``more``: fields of the message, ``parameters`` as a dictionary."""
    made = protos.ModelInferRequest(model_name=model)
    set_parameters(made.parameters, more.pop("parameters", {}))
    for name, value in more.items():
        setattr(made, name, value)
    add_input(made, "INPUT0", values, datatype, shape or [1, len(values)])
    return made


def add_input(request: Any, name: str, values: Any, datatype: str, shape: Sequence[int]) -> None:
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    request.raw_input_contents.append(values if isinstance(values, bytes) else packed(values, datatype))


def set_parameters(parameters: Any, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[type(value)]
        setattr(parameters[key], kind, value)


def repeat_request(values: Sequence[int], delays_ms: Sequence[int] | None = None, wait_ms: int = 0, **more: Any) -> Any:
    """A request of the model ``repeat``: each value comes back after its delay."""
    model = more.pop("model", "repeat")
    made = infer_request(model, **more)
    del made.inputs[:], made.raw_input_contents[:]
    delays = [0] * len(values) if delays_ms is None else list(delays_ms)
    add_input(made, "IN", list(values), "INT32", [len(values)])
    add_input(made, "DELAY", delays, "UINT32", [len(delays)])
    add_input(made, "WAIT", [wait_ms], "UINT32", [1])
    return made


def value_of(message: Any, name: str, datatype: str = "INT32") -> list[Any]:
    """One output of an infer response."""
    response = getattr(message, "infer_response", message)
    names = [output.name for output in response.outputs]
    return unpacked(response.raw_output_contents[names.index(name)], datatype)
