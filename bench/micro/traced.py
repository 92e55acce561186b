"""An infer request over HTTP or gRPC, from the bytes of its socket to those of its answer, with and without tracing.

No sockets and no threads: the model answers within its submit. What a trace costs includes that it is printed; a second
connection has the same request untraced, so that nothing but tracing differs.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench.micro.cases import SIXTEEN, infer_json
from bench.micro.grpc_client import DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, frame, header_blocks

GATHERED = 500  # requests between two looks of the writer, which makes some 5 traces of 100
STEP = 50


class Transport:
    """Takes what is written, as the transport of a TLS connection does."""

    def __init__(self) -> None:
        self.out = bytearray()

    def is_closing(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        pass

    def get_extra_info(self, name: str) -> object:
        return object() if name == "sslcontext" else None

    def write(self, data: Any) -> None:
        self.out += data

    def get_write_buffer_size(self) -> int:
        return 0


def feed(connection: Any, data: bytes) -> None:
    with memoryview(connection.get_buffer(-1)) as window:
        window[: len(data)] = data
    connection.buffer_updated(len(data))


def served() -> Any:
    from triton_fast._native.sched.inline import InlineEcho
    from triton_fast._native.sched.model import NativeModel
    from triton_fast.config import IoSpec
    from triton_fast.types import DataType

    model = NativeModel("mlp", 1, 64, *([IoSpec(name, DataType.FP32, (16,))] for name in ("INPUT", "OUTPUT")))
    model.use(InlineEcho())
    return model


def application(model: Any) -> Any:
    def failed(error: BaseException) -> None:
        raise error

    return SimpleNamespace(resolve=lambda name, version: model, failed=failed, choose_encoding=lambda accept: 0)


def over_http(n: int, rate: int) -> None:
    from triton_fast._native.http.connection import HttpServer
    from triton_fast._native.sched.model import Epoch

    head = infer_json(binary=True, count=16)
    request = (
        b"POST /v2/models/mlp/infer HTTP/1.1\r\nHost: localhost\r\nInference-Header-Content-Length: %d\r\n"
        b"Content-Length: %d\r\n\r\n" % (len(head), len(head) + len(SIXTEEN))
    ) + head + SIXTEEN  # fmt: skip
    model = served()
    server = HttpServer(application(model), SimpleNamespace(call_soon=lambda call: call()), Epoch())
    transport = Transport()
    connection = server()
    connection.connection_made(transport)

    def one() -> None:
        feed(connection, request)
        server.on_completions()
        assert transport.out.endswith(SIXTEEN)
        transport.out.clear()

    run(n, rate, model, one)
    connection.connection_lost(None)


def over_grpc(n: int, rate: int) -> None:
    from triton_fast import protos
    from triton_fast._native.grpc.connection import GrpcServer
    from triton_fast._native.sched.model import Epoch

    message = protos.ModelInferRequest(model_name="mlp", raw_input_contents=[SIXTEEN])
    message.inputs.add(name="INPUT", datatype="FP32", shape=[1, 16])
    data = message.SerializeToString()
    body = b"\0" + len(data).to_bytes(4, "big") + data
    blocks = header_blocks({
        ":method": "POST", ":scheme": "http", ":path": "/inference.GRPCInferenceService/ModelInfer",
        ":authority": "localhost", "te": "trailers", "content-type": "application/grpc",
    })
    model = served()
    server = GrpcServer(application(model), SimpleNamespace(call_soon=lambda call: call()), Epoch())
    transport = Transport()
    connection = server()
    connection.connection_made(transport)
    feed(connection, PREFACE + frame(SETTINGS, 0, 0, b""))
    stream = 1

    def one() -> None:
        nonlocal stream
        head = frame(HEADERS, END_HEADERS, stream, blocks[stream > 1])
        feed(connection, head + frame(DATA, END_STREAM, stream, body))
        server.on_completions()
        assert SIXTEEN in transport.out
        # The windows of a client that reads, given back as often as one does.
        if stream % (2 * STEP) == 1:
            feed(connection, frame(8, 0, 0, (1 << 14).to_bytes(4, "big")))
        transport.out.clear()
        stream += 2

    run(n, rate, model, one)
    connection.connection_lost(None)


def run(n: int, rate: int, model: Any, one: Any) -> None:
    """Make n requests, a multiple of GATHERED; with a rate one of so many is traced and written to a file."""
    from triton_fast.observability.tracing import TraceOptions, Tracing

    with tempfile.TemporaryDirectory(prefix="triton_fast-traces-") as folder:
        file = Path(folder) / "traces"
        level = ("TIMESTAMPS",) if rate else ()
        tracing = Tracing(TraceOptions(level=level, rate=rate or 1, file=str(file)))
        tracing.attach("mlp", model)
        for _ in range(n // GATHERED):
            for _ in range(GATHERED):
                one()
            if rate:
                tracing.collector.hurry()
                tracing._write(0.0)
        tracing.close()
        assert file.exists() == (rate > 0)
