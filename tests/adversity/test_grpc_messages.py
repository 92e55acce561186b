"""gRPC messages that lie, lack, overflow or do not end: what the call is told, and what it costs."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.helpers import pb
from tests.helpers.bombs import GZIP, MIB, RAW, packed
from tests.helpers.h2raw import (
    INFER,
    LIVE,
    STREAM,
    STREAM_CALL,
    Answer,
    Http2,
    block,
    bytes_message,
    data,
    head,
    infer_message,
    message,
    request_fields,
    rst,
)  # fmt: skip
from tests.helpers.server import ServerProcess
from triton_fast import protos

INVALID, EXHAUSTED, UNIMPLEMENTED, INTERNAL = 3, 8, 12, 13
LIMIT = 64 * MIB  # --grpc-max-inflated-size of the shared server
BOMB = (
    INVALID, f"Decompressed data size exceeds the maximum allowed value of {LIMIT} bytes. "
    "Use --grpc-max-inflated-size to increase the limit.",
)  # fmt: skip
VERB_LIMIT = MIB  # of the message of a verb that needs no more
LIVE_CALL = block(request_fields(LIVE))
GZIP_CALL = block(request_fields(INFER, ("grpc-encoding", "gzip")))
GZIP_STREAM = block(request_fields(STREAM, ("grpc-encoding", "gzip")))
DEFLATE_CALL = block(request_fields(INFER, ("grpc-encoding", "deflate")))
WHOLE = message(infer_message())


def ask_bytes(client: Http2, body: bytes, fields: bytes, *, end: bool = True) -> Answer:
    return client.answer(client.open(fields, body, end=end))


# ---- prefixes


@pytest.mark.parametrize("path", [INFER, STREAM, LIVE])
@pytest.mark.parametrize("flag", [2, 3, 127, 128, 129, 254, 255])
def test_flags_that_are_none(grpc: ServerProcess, path: str, flag: int) -> None:
    with Http2(grpc.grpc) as client:
        for end in (True, False):
            answer = ask_bytes(client, message(infer_message(), flag), block(request_fields(path)), end=end)
            assert answer.outcome == (INTERNAL, "invalid message prefix: its first byte must be 0 or 1")


@pytest.mark.parametrize("path", [INFER, STREAM, LIVE])
@pytest.mark.parametrize("length", [2**31, 2**31 + 1, 2**32 - 1])
def test_lengths_over_the_limit(grpc: ServerProcess, path: str, length: int) -> None:
    with Http2(grpc.grpc) as client:
        for flag in (0, 1):
            raw = message(b"0123456789", flag, length)
            answer = ask_bytes(client, raw, block(request_fields(path, ("grpc-encoding", "gzip"))), end=False)
            limit = VERB_LIMIT if path == LIVE else 2**31 - 1
            assert answer.outcome == (EXHAUSTED, f"Received message larger than max ({length} vs. {limit})")


def test_promised_lengths_reserve_nothing(grpc: ServerProcess) -> None:
    """200 streams that promise 2 GB each and send ten bytes."""
    before = grpc.ps.memory_info()
    with Http2(grpc.grpc) as client:
        ids = [client.open(STREAM_CALL if k % 2 else GZIP_CALL, message(b"x" * 10, k % 4 == 0, 2**31 - 1))
               for k in range(200)]  # fmt: skip
        client.sync()
        during = grpc.ps.memory_info()
        assert during.rss < before.rss + 8 * MIB
        # A megabyte of address space each, which is not memory.
        assert during.vms < before.vms + 256 * MIB
        client.send(b"".join(map(rst, ids[:100])))
        for i in ids[100:]:
            client.send(data(i, end=True))
            assert client.answer(i).outcome == (INTERNAL, "the call ended in the middle of a message")


@pytest.mark.parametrize("path", [INFER, STREAM, LIVE])
def test_messages_cut_short(grpc: ServerProcess, path: str) -> None:
    with Http2(grpc.grpc) as client:
        for n in range(1, len(WHOLE)):
            answer = ask_bytes(client, WHOLE[:n], block(request_fields(path)))
            assert answer.outcome == (INTERNAL, "the call ended in the middle of a message")


def test_no_message(grpc: ServerProcess) -> None:
    with Http2(grpc.grpc) as client:
        for body in (b"", None):
            for path, outcome in (
                (INFER, (INTERNAL, "the call ended without a request message")), (STREAM, (0, "")),
                (LIVE, (INTERNAL, "Unable to parse request")),
            ):  # fmt: skip
                i = client.new_id()
                fields = block(request_fields(path))
                client.send(head(i, fields, end=True) if body is None else head(i, fields) + data(i, end=True))
                assert client.answer(i).outcome == outcome


def test_messages_too_many(grpc: ServerProcess) -> None:
    with Http2(grpc.grpc) as client:
        for extra in (WHOLE, b"\0", message(b"")):
            answer = ask_bytes(client, WHOLE + extra, block(request_fields()))
            assert answer.outcome == (INTERNAL, "a unary call has one request message, got more")
        answer = ask_bytes(client, message(b"") * 2, LIVE_CALL)
        assert answer.outcome == (INTERNAL, "the call takes one request message, more than one came")
        # A message longer than what is still read of a call that is over.
        answer = ask_bytes(client, WHOLE + bytes(2 * MIB), block(request_fields()), end=False)
        assert answer.status == INTERNAL


@pytest.mark.parametrize("between", [b"", None])
def test_messages_in_single_bytes(grpc: ServerProcess, between: bytes | None) -> None:
    """Each byte in a frame of its own, and empty frames between them."""
    with Http2(grpc.grpc) as client:
        i = client.new_id()
        frames = (data(i, WHOLE[k : k + 1]) + (b"" if between is None else data(i) * 3) for k in range(len(WHOLE)))
        client.send(head(i) + b"".join(frames) + data(i, end=True))
        assert client.answer(i).values() == [1.0]


def test_streams_of_many_small_messages(grpc: ServerProcess) -> None:
    """All at once, unread until the end: what waits is bounded, and everything is answered in order."""
    with Http2(grpc.grpc) as client:
        n = 20_000
        answer = client.ask_large(b"".join(message(infer_message([float(k % 100)])) for k in range(n)), STREAM_CALL)
        assert answer.outcome == (0, "")
        got = [protos.ModelStreamInferResponse.FromString(m).infer_response for m in answer.messages]
        assert [struct.unpack("<f", r.raw_output_contents[0])[0] for r in got] == [float(k % 100) for k in range(n)]


# ---- compression


@pytest.mark.parametrize("fields", [GZIP_CALL, GZIP_STREAM])
def test_bombs(grpc: ServerProcess, fields: bytes) -> None:
    """1 MB that is 1 GB, and 10 MB that are 10 GB: refused at the limit."""
    grpc.reset_peak()
    before = grpc.rss()
    with Http2(grpc.grpc) as client:
        for times in (1, 10):
            assert client.ask_large(message(packed(GZIP, 1024 * MIB) * times, 1), fields).outcome == BOMB
    assert grpc.peak_rss() < before + 3 * LIMIT


def test_bombs_by_the_dozen_leave_memory_flat(grpc: ServerProcess) -> None:
    small = message(packed(GZIP, LIMIT + MIB), 1)
    with Http2(grpc.grpc) as client:
        rss = []
        for _ in range(12):
            assert ask_bytes(client, small, GZIP_CALL).outcome == BOMB
            rss.append(grpc.rss())
        # The lowest: a look may come before the memory of the call is back. What leaks stays.
        assert min(rss[6:]) < max(rss[:6]) + 4 * MIB


PLAIN = infer_message([1.5])
PACKED = gzip.compress(PLAIN, mtime=0)
BROKEN: dict[str, tuple[bytes, bytes]] = {
    "truncated": (PACKED[:-1], GZIP_CALL),
    "only a header": (PACKED[:10], GZIP_CALL),
    "one byte": (PACKED[:1], GZIP_CALL),
    "nothing": (b"", GZIP_CALL),
    "wrong checksum": (PACKED[:-8] + bytes([PACKED[-8] ^ 1]) + PACKED[-7:], GZIP_CALL),
    "wrong length": (PACKED[:-1] + b"\x01", GZIP_CALL),
    "no gzip": (PLAIN, GZIP_CALL),
    "garbage behind": (PACKED + b"xxxx", GZIP_CALL),
    "zlib as gzip": (zlib.compress(PLAIN), GZIP_CALL),
    "gzip as deflate": (PACKED, DEFLATE_CALL),
    "raw deflate": (packed(RAW, 0, PLAIN), DEFLATE_CALL),
    "large and truncated": (packed(GZIP, 8 * MIB)[:-5], GZIP_CALL),
    "large and random": (bytes(range(256)) * 100, GZIP_CALL),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_compression(grpc: ServerProcess, name: str) -> None:
    body, fields = BROKEN[name]
    with Http2(grpc.grpc) as client:
        for end in (True, False):
            answer = ask_bytes(client, message(body, 1), fields, end=end or len(body) <= 4096)
            if end:
                assert answer.status == INVALID, answer
                assert "compressed" in answer.text
        assert ask_bytes(client, message(PACKED, 1), GZIP_CALL).values() == [1.5]


def test_compression_as_it_should_be(grpc: ServerProcess) -> None:
    with Http2(grpc.grpc) as client:
        assert ask_bytes(client, message(PACKED, 1), GZIP_CALL).values() == [1.5]
        assert ask_bytes(client, message(zlib.compress(PLAIN), 1), DEFLATE_CALL).values() == [1.5]
        # A message need not be compressed because the call may be.
        assert ask_bytes(client, message(PLAIN), GZIP_CALL).values() == [1.5]
        for fields in (block(request_fields()), block(request_fields(INFER, ("grpc-encoding", "identity")))):
            answer = ask_bytes(client, message(PACKED, 1), fields)
            assert answer.outcome == (INTERNAL, "a compressed message needs the header grpc-encoding")


# ---- protobuf


def nested_groups(n: int) -> bytes:
    return pb.tag(99, 3) * n + pb.tag(99, 4) * n


def nested_spans(n: int, number: int = 5) -> bytes:
    """n length-delimited fields, each the content of the one before; their lengths are four bytes long."""
    inner = 5 * np.arange(n - 1, -1, -1, dtype=np.int64)
    columns = [np.full(n, number << 3 | 2), *((inner >> shift & 127 | 128) for shift in (0, 7, 14)), inner >> 21]
    return np.stack(columns, axis=1).astype(np.uint8).tobytes()


HOSTILE: dict[str, Callable[[], bytes]] = {
    "a million groups": lambda: nested_groups(1_000_000),
    "groups without an end": lambda: pb.tag(99, 3) * 1_000_000,
    "ends without a group": lambda: pb.tag(99, 4) * 1_000_000,
    "a million nested fields": lambda: nested_spans(1_000_000),
    "nested unknown fields": lambda: nested_spans(1_000_000, 15),
    "wire type 6": lambda: b"\x0e" * 1000,
    "field 0": lambda: b"\x00\x01",
    "a tag of ten bytes": lambda: b"\xff" * 10,
    "a length of 2^31": lambda: pb.tag(1, 2) + pb.varint(2**31) + b"m",
    "a length of 2^63": lambda: pb.tag(1, 2) + pb.varint(2**63) + b"m",
    "a length of 2^64 - 1": lambda: pb.tag(7, 2) + pb.varint(2**64 - 1) + b"m",
    "a name that is no utf-8": lambda: pb.span(1, b"\xff\xfe"),
    "zeros": lambda: bytes(100_000),
    "text": lambda: b'{"inputs": []}',
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_protobuf(grpc: ServerProcess, name: str) -> None:
    """Alone and behind a message that is good but for that; what protobuf itself skips may be skipped."""
    hostile = HOSTILE[name]()
    before = grpc.rss()
    with Http2(grpc.grpc) as client:
        for raw in (hostile, infer_message() + hostile):
            for path in (INFER, STREAM, LIVE):
                answer = client.ask_large(message(raw), block(request_fields(path)))
                if path == STREAM:
                    assert answer.status == 0
                    assert len(answer.messages) == 1
                elif path == LIVE:
                    # A verb's message has its limit; a message without known fields is a good one.
                    assert answer.status in {0, EXHAUSTED, INTERNAL}, answer
                else:
                    assert answer.status in {0, INVALID, INTERNAL, 5}, answer
                    assert len(answer.text) < 1000
    assert grpc.rss() < before + 32 * MIB


def test_truncated_at_every_byte(grpc: ServerProcess) -> None:
    """Every beginning of a message: protobuf says what is one, ours may be stricter but never laxer."""
    whole = infer_message([1.0, 2.0], id="id", parameters={"p": protos.InferParameter(int64_param=5)})
    with Http2(grpc.grpc) as client:
        for n in range(len(whole)):
            answer = client.ask(whole[:n])
            try:
                protos.ModelInferRequest.FromString(whole[:n])
            except Exception:
                assert answer.status in {INVALID, INTERNAL}, (n, answer)
            assert answer.status != 0, n
        assert client.ask(whole).values() == [1.0, 2.0]


# ---- counts


def request(**parts: Any) -> Any:
    made = protos.ModelInferRequest(model_name="m", **parts)
    made.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 1])
    made.raw_input_contents.append(struct.pack("<f", 1.0))
    return made


def many_inputs(n: int) -> bytes:
    return pb.span(1, b"m") + pb.span(5, pb.span(1, b"I") + pb.span(2, b"FP32") + pb.span(3, b"\1\1")) * n


def many_outputs(n: int) -> bytes:
    return bytes(request().SerializeToString()) + pb.span(6, pb.span(1, b"OUTPUT0")) * n


def many_raw(n: int) -> bytes:
    return bytes(request().SerializeToString()) + pb.span(7, b"") * n


def many_parameters(n: int) -> bytes:
    each = (pb.entry(4, b"p%d" % k, pb.integer(2, k)) for k in range(n))
    return bytes(request().SerializeToString()) + b"".join(each)


def same_parameter(n: int) -> bytes:
    return bytes(request().SerializeToString()) + pb.entry(4, b"p", pb.integer(2, 1)) * n


def input_parameters(n: int) -> bytes:
    one = pb.span(1, b"INPUT0") + pb.span(2, b"FP32") + pb.span(3, b"\1\1") + pb.entry(4, b"p", pb.integer(2, 1)) * n
    return pb.span(1, b"m") + pb.span(5, one) + pb.span(7, bytes(4))


def many_dims(n: int) -> bytes:
    one = pb.span(1, b"INPUT0") + pb.span(2, b"FP32") + pb.span(3, b"\1" * n)
    return pb.span(1, b"m") + pb.span(5, one) + pb.span(7, bytes(4))


def unpacked_contents(n: int) -> bytes:
    one = pb.span(1, b"INPUT0") + pb.span(2, b"FP32") + pb.span(3, b"\1" + pb.varint(n))
    return pb.span(1, b"m") + pb.span(5, one + pb.span(5, (pb.tag(6, 5) + bytes(4)) * n))


def split_contents(n: int) -> bytes:
    one = pb.span(1, b"INPUT0") + pb.span(2, b"FP32") + pb.span(3, b"\1" + pb.varint(n))
    return pb.span(1, b"m") + pb.span(5, one + pb.span(5, pb.span(6, bytes(4))) * n)


def name_again(n: int) -> bytes:
    return bytes(request().SerializeToString()) + pb.span(1, b"m") * n


def long_id(n: int) -> bytes:
    return bytes(request(id="i" * n).SerializeToString())


GROWING: dict[str, tuple[Callable[[int], bytes], set[int]]] = {
    "inputs": (many_inputs, {INVALID}), "outputs": (many_outputs, {INVALID}), "raw contents": (many_raw, {0, INVALID}),
    "parameters": (many_parameters, {0, INVALID}), "the same parameter": (same_parameter, {0, INVALID}),
    "input parameters": (input_parameters, {0, INVALID}), "dims": (many_dims, {INVALID}),
    "unpacked contents": (unpacked_contents, {0}), "split contents": (split_contents, {0, INVALID}),
    "names": (name_again, {0}), "id": (long_id, {0, INVALID}),
}  # fmt: skip


@pytest.mark.parametrize("name", GROWING)
def test_work_grows_with_the_message(grpc: ServerProcess, name: str) -> None:
    """Around the limit of 65536, and four times the count for at most some ten times the work."""
    make, statuses = GROWING[name]
    before = grpc.rss()
    with Http2(grpc.grpc) as client:
        for n in (65535, 65536, 65537):
            answer = client.ask_large(message(make(n)), block(request_fields()))
            assert answer.status in statuses, answer.outcome
            assert len(answer.text) < 4096
        spent = []
        for n, repeat in ((15_000, 40), (60_000, 10)):
            body = message(make(n))
            start = grpc.ps.cpu_times()
            for _ in range(repeat):
                client.ask_large(body, block(request_fields()))
            end = grpc.ps.cpu_times()
            spent.append(end.user + end.system - start.user - start.system)
        assert spent[1] < 2.5 * spent[0] + 0.15, f"{spent}: more than linear"
    assert grpc.rss() < before + 48 * MIB


@pytest.mark.parametrize("count", [0, 1, 2, 3, 100])
def test_raw_contents_that_do_not_match(grpc: ServerProcess, count: int) -> None:
    made = protos.ModelInferRequest(model_name="pair")
    for k in range(2):
        made.inputs.add(name=f"INPUT{k}", datatype="FP32", shape=[1, 1])
    made.raw_input_contents.extend([bytes(4)] * count)
    with Http2(grpc.grpc) as client:
        answer = client.ask(made.SerializeToString())
        # As in Triton: what is too much is ignored.
        assert (answer.status == 0) == (count >= 2), answer


@pytest.mark.parametrize("shape", [[2**31], [2**32 + 1], [2**63 - 1], [-1], [-(2**63)], [0], [2**32, 2**32], [1, 2**62],
                                   [2**21] * 3, [3], [1] * 65])  # fmt: skip
def test_shapes_that_lie(grpc: ServerProcess, shape: list[int]) -> None:
    before = grpc.rss()
    with Http2(grpc.grpc) as client:
        for datatype, model in (("UINT8", "big"), ("FP32", "square"), ("BYTES", "text")):
            for raw in (True, False):
                made = protos.ModelInferRequest(model_name=model)
                tensor = made.inputs.add(name="INPUT0", datatype=datatype, shape=shape)
                if raw:
                    made.raw_input_contents.append(bytes(8))
                elif datatype == "BYTES":
                    tensor.contents.bytes_contents.extend([b"x"] * 2)
                elif datatype == "FP32":
                    tensor.contents.fp32_contents.extend([1.0] * 2)
                else:
                    tensor.contents.uint_contents.extend([1] * 2)
                answer = client.ask(made.SerializeToString())
                assert answer.status in {INVALID, INTERNAL}, answer
    assert grpc.rss() < before + 8 * MIB


@pytest.mark.parametrize("length", [1, 3, 5, 2**31 - 1, 2**31, 2**32 - 1])
def test_string_lengths_that_lie(grpc: ServerProcess, length: int) -> None:
    made = protos.ModelInferRequest(model_name="text")
    made.inputs.add(name="INPUT0", datatype="BYTES", shape=[1, 1])
    made.raw_input_contents.append(struct.pack("<I", length) + b"abcd")
    with Http2(grpc.grpc) as client:
        assert client.ask(made.SerializeToString()).status == INVALID


def test_large_messages_that_are_refused_at_their_end(grpc: ServerProcess) -> None:
    """Each megabyte is read before its shape turns out wrong; nothing of it is kept."""
    good = protos.ModelInferRequest.FromString(bytes_message(bytes(MIB)))
    good.inputs[0].shape[0] += 1
    with Http2(grpc.grpc) as client:
        rss = []
        for _ in range(40):
            assert client.ask_large(message(good.SerializeToString()), block(request_fields())).status == INVALID
            rss.append(grpc.rss())
        assert max(rss[20:]) < max(rss[:20]) + 4 * MIB
