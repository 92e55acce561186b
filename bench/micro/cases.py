"""The registry of micro benchmarks: name -> number of calls. As a program: python -m bench.micro.cases NAME N.

A case is a function that sets up and then makes N calls of one native entry point, with real requests as data.
"""

from __future__ import annotations

import gc
import json
import struct
import sys
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

# The head that tritonclient sends for a small binary request.
HEAD = (
    b"POST /v2/models/mlp/infer HTTP/1.1\r\n"
    b"Host: 127.0.0.1:8000\r\n"
    b"User-Agent: geventhttpclient-2.3.1\r\n"
    b"Accept: */*\r\n"
    b"Content-Type: application/octet-stream\r\n"
    b"Inference-Header-Content-Length: 165\r\n"
    b"Content-Length: 229\r\n"
    b"\r\n"
)
# A browser's GET with long values, to see the cost per byte.
LONG_HEAD = (
    b"GET /v2/models/mlp/config HTTP/1.1\r\n"
    b"Host: inference.example.com\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0 Safari/537.36\r\n"
    b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n"
    b"Accept-Language: de-CH,de;q=0.9,en;q=0.8\r\n"
    b"Accept-Encoding: gzip, deflate, br, zstd\r\n"
    b"Cookie: session=" + b"0123456789abcdef" * 16 + b"\r\n"
    b"Connection: keep-alive\r\n"
    b"\r\n"
)


def parse_small(n: int) -> None:
    from triton_fast._native.wire.http1 import repeat_parse

    assert repeat_parse(HEAD, n) == n * len(HEAD)


def parse_long(n: int) -> None:
    from triton_fast._native.wire.http1 import repeat_parse

    assert repeat_parse(LONG_HEAD, n) == n * len(LONG_HEAD)


def parse_to_dict(n: int) -> None:
    from triton_fast._native.wire.http1 import parse_head

    for _ in range(n):
        parse_head(HEAD)


SIXTEEN = struct.pack("<16f", *(i / 7 - 1 for i in range(16)))


def infer_json(*, binary: bool, count: int) -> bytes:
    tensor: dict[str, object] = {"name": "INPUT", "shape": [1, count], "datatype": "FP32"}
    if binary:
        tensor["parameters"] = {"binary_data_size": 4 * count}
    else:
        tensor["data"] = [float(f"{i / 7 - 1:.6g}") for i in range(count)]
    outputs = [{"name": "OUTPUT", "parameters": {"binary_data": binary}}]
    return json.dumps({"inputs": [tensor], "outputs": outputs}, separators=(",", ":")).encode()


def model():
    """A native model of one input and one output of 16 floats and a batch dimension."""
    from triton_fast._native.core.model import ModelHandle
    from triton_fast.types import DataType

    # What ModelHandle reads of config.IoSpec, without the imports of config.
    fixed = {"dtype": DataType.FP32, "dims": (16,), "reshape": None, "optional": False, "ragged": False}
    specs = [[SimpleNamespace(name=name, **fixed)] for name in ("INPUT", "OUTPUT")]
    return ModelHandle("mlp", 1, 64, *specs)


def decode(n: int, *, binary: bool, count: int) -> None:
    from triton_fast._native.wire.json_infer import bench

    assert bench(infer_json(binary=binary, count=count), SIXTEEN if binary else b"", n) == n


def validate(n: int) -> None:
    from triton_fast._native.core.validate import check
    from triton_fast.types import DataType

    check(model(), [("INPUT", DataType.FP32, (1, 16), SIXTEEN)], ["OUTPUT"], repeat=n)


def reply(n: int, *, binary: int) -> None:
    from triton_fast._native.wire.json_reply import encode
    from triton_fast.types import DataType

    outputs = [(0, DataType.FP32, (1, 16), SIXTEEN)]
    _, sections = encode(model(), outputs, binary_default=binary, repeat=n)
    assert len(sections) == binary


def generate_event(n: int) -> None:
    from triton_fast._native.wire.json_event import encode
    from triton_fast.types import DataType

    token = struct.pack("<I", 6) + b" token"
    text = encode(model(), [(0, DataType.STRING, (1,), token)], id="7", form=3, repeat=n)
    assert text.count(b"\n\n\r\n") == n


def pb_decode(n: int) -> None:
    from triton_fast import protos
    from triton_fast._native.wire.pb_infer import bench

    message = protos.ModelInferRequest(model_name="mlp", raw_input_contents=[SIXTEEN])
    message.inputs.add(name="INPUT", datatype="FP32", shape=[1, 16])
    message.outputs.add(name="OUTPUT")
    assert bench(message.SerializeToString(), n) == n


def pb_reply(n: int, *, stream: bool) -> None:
    from triton_fast._native.wire.pb_reply import encode_reply
    from triton_fast.types import DataType

    outputs = [(0, DataType.FP32, (1, 16), SIXTEEN)]
    _, cuts, _ = encode_reply(model(), outputs, stream=stream, final=1 if stream else -1, repeat=n)
    assert len(cuts) == 1


def carriers(n: int) -> None:
    from triton_fast._native.core.respond import bench

    assert bench(n, 1) == n


def queue(n: int) -> None:
    from triton_fast._native.sched.queue_driver import bench

    assert bench(n) == n


def counting(n: int, *, summaries: bool) -> None:
    from triton_fast._native.core.stats import bench

    assert bench(n, summaries=summaries) == n


def worker_batches(n: int) -> None:
    """What a Python model's worker does with n executions of 8 requests of an identity model."""
    from tests.helpers.pyworker_peer import DONE, Peer
    from triton_fast._native.pyworker import client

    class Tensor(client.TensorCore):
        __slots__ = ()

    class Request(client.RequestCore):
        __slots__ = ()

    class Response(client.ResponseCore):
        __slots__ = ()

    with Peer() as peer:
        transport = client.Transport(*peer.worker_fds, spin_us=0)
        transport.bind(Tensor, Request, Response, None, ["INPUT"], ["OUTPUT"])
        off, size = peer.execution(*(peer.request([(0, 11, (1, 16), SIXTEEN)], slot=k) for k in range(8)))
        for k in range(n):
            peer.put32(off - 64, 1)
            requests = client.decode_batch(transport, off, size)
            arrays = [client.get_input_tensor_by_name(r, "INPUT").as_numpy() for r in requests]
            transport.answer(k, requests, [Response([Tensor("OUTPUT", array)]) for array in arrays])
            message = peer.take(DONE)
            assert message
            peer.release(message[2])


def ensemble(n: int) -> None:
    """Three steps whose models answer within submit: what an ensemble adds, without threads."""
    from triton_fast._native.sched.ensemble import NativeEnsemble, Step
    from triton_fast._native.sched.inline import InlineEcho
    from triton_fast._native.sched.inprocess import infer
    from triton_fast._native.sched.model import Epoch, NativeModel
    from triton_fast.config import IoSpec
    from triton_fast.types import DataType

    def made(name: str, given: str, answered: str) -> NativeModel:
        inputs, outputs = ((IoSpec(tensor, DataType.FP32, (16,)),) for tensor in (given, answered))
        return NativeModel(name, 1, 8, inputs, outputs)

    echo = made("echo", "IN", "OUT")
    echo.use(InlineEcho())
    three = made("three", "X", "Y")
    tensors = ("X", "t", "u", "Y")
    steps = [Step("echo", -1, (("IN", tensors[k]),), (("OUT", tensors[k + 1]),)) for k in range(3)]
    three.use(NativeEnsemble(three, steps, lambda name, version: echo, epoch=Epoch()))
    for _ in range(n):
        assert infer(three, [("X", DataType.FP32, (1, 16), SIXTEEN)])["Y"][2] == SIXTEEN


def traced(n: int, *, protocol: str, rate: int) -> None:
    """A request from its bytes to those of its answer; one of ``rate`` is traced, none with 0."""
    from bench.micro import traced as case

    (case.over_http if protocol == "http" else case.over_grpc)(n, rate)


def access_log(what: str, n: int) -> None:
    from triton_fast._native.net import access

    log = access.AccessLog(1 << 16)
    log.set_share(1)
    getattr(access, what)(log, n)


_RUN: dict[str, tuple[Callable[[int], None], int]] = {
    "http1-head-infer": (parse_small, 20_000),
    "http1-head-browser": (parse_long, 20_000),
    "access-record": (partial(access_log, "repeat_record"), 20_000),
    "access-line": (partial(access_log, "repeat_lines"), 5_000),
    "http1-parse_head-dict": (parse_to_dict, 2_000),
    "json-decode-binary": (partial(decode, binary=True, count=16), 10_000),
    "json-decode-16-floats": (partial(decode, binary=False, count=16), 10_000),
    "json-decode-1000-floats": (partial(decode, binary=False, count=1000), 500),
    "validate-one-input": (validate, 20_000),
    "carrier-fork-send-free": (carriers, 20_000),
    "queue-submit-take": (queue, 20_000),
    "stats-request": (partial(counting, summaries=False), 20_000),
    "stats-request-summaries": (partial(counting, summaries=True), 20_000),
    "json-reply-binary": (partial(reply, binary=1), 10_000),
    "json-reply-16-floats": (partial(reply, binary=0), 10_000),
    "generate-event": (generate_event, 10_000),
    "pb-decode-binary": (pb_decode, 10_000),
    "pb-reply-binary": (partial(pb_reply, stream=False), 10_000),
    "ensemble-3-steps": (ensemble, 2_000),
    "pyworker-8-requests": (worker_batches, 500),
    "request-http": (partial(traced, protocol="http", rate=0), 5_000),
    "request-http-1%-traced": (partial(traced, protocol="http", rate=100), 5_000),
    "request-grpc": (partial(traced, protocol="grpc", rate=0), 5_000),
    "request-grpc-1%-traced": (partial(traced, protocol="grpc", rate=100), 5_000),
    "pb-reply-stream": (partial(pb_reply, stream=True), 10_000),
}
CASES = {name: calls for name, (_, calls) in _RUN.items()}


def main() -> None:
    name, calls = sys.argv[1], int(sys.argv[2])
    # When the collector runs depends on all that was imported, and once is thousands of instructions a call.
    gc.disable()
    _RUN[name][0](calls)


if __name__ == "__main__":
    main()
