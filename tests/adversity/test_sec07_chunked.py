"""Chunked bodies meant to exhaust memory or confuse: every route, every port, before any route is even looked at."""

from __future__ import annotations

import json

import pytest

from tests.helpers.raw import Client, Closed, chunk, chunked, fp32, get, infer_object, infer_path, post, values_of
from tests.helpers.server import ServerProcess

MIB = 1 << 20
JSON = json.dumps(infer_object([1.5])).encode()
LENGTH = "Inference-Header-Content-Length: 50"
ROUTES = [
    infer_path("m"), infer_path("absent"), "/v2/models/m/versions/1/infer", "/v2/models/m/generate",
    "/v2/models/m/generate_stream", "/v2/repository/index", "/v2/repository/models/m/load", "/v2/models/m/config",
    "/v2/logging", "/v2/trace/setting", "/v2/systemsharedmemory/region/r/register", "/v2/health/live", "/nothing",
]  # fmt: skip
LIMIT_TEXT = "Chunked request body exceeds maximum of 65536 non-empty chunks. Send fewer or larger HTTP chunks."


def targets(server: ServerProcess) -> list[tuple[tuple[str, int], str]]:
    return [*((server.http, route) for route in ROUTES), (server.metrics, "/metrics")]


def head(path: str, *headers: str) -> bytes:
    return get(path, "Transfer-Encoding: chunked", *headers, method="POST")


def refused(client: Client) -> tuple[int, str]:
    answer = client.answer()
    assert answer.closes
    with pytest.raises(Closed):
        client.answer()
    return answer.status, answer.error


def test_three_million_one_byte_chunks_to_every_route(server: ServerProcess) -> None:
    """18 MB of wire for 3 MB of body: refused at chunk 65537, whatever the route; the rest is not kept."""
    one = chunk(b"x") * 10000
    for address, route in targets(server):
        before = server.rss()
        with Client(address) as client:
            client.send_until_refused([head(route), *([one] * 300)])
            try:
                answer = client.answer()
                assert (answer.status, answer.error) == (400, LIMIT_TEXT), route
            except Closed as closed:
                assert closed.got == b"", route  # reset while we still wrote: the answer may be lost
        assert server.rss() < before + 20 * MIB, route


def test_the_last_allowed_chunk_count(server: ServerProcess) -> None:
    """65536 chunks serve, 65537 do not; the text reaches a client that stops in time."""
    body = JSON + b" " * (65536 - len(JSON))
    with Client(server.http) as client:
        client.send(head(infer_path("m")) + b"".join(chunk(body[i : i + 1]) for i in range(65536)) + b"0\r\n\r\n")
        assert values_of(client.answer()) == [1.5]
        client.send(head(infer_path("m")) + chunk(b"x") * 65537)
        assert refused(client) == (400, LIMIT_TEXT)


def test_endless_extensions(server: ServerProcess) -> None:
    """Extensions are of no use to us: a few kilobytes of them in a body are enough."""
    for address, route in targets(server):
        before = server.rss()
        with Client(address) as client:
            client.send_until_refused([head(route), b"1;a=" + b"b" * 8192])
            assert refused(client)[0] in {400, 413, 431}, route
        with Client(address) as client:
            client.send_until_refused([head(route), chunk(b"x", b";e=1") * 10000])
            assert refused(client)[0] in {400, 413, 431}, route
        assert server.rss() < before + 20 * MIB


def test_endless_trailers(server: ServerProcess) -> None:
    for address, route in targets(server):
        for trailer in (b"A: b\r\n" * 4000, b"A: " + b"b" * 20000):
            with Client(address) as client:
                client.send_until_refused([head(route), b"0\r\n", trailer])
                assert refused(client)[0] in {400, 413, 431}, route


@pytest.mark.parametrize("size", [
    b"", b"g", b"-1", b"+1", b"0x1", b" 1", b"1 ", b"1\t", b"\x00", b"1\x00", b"1,1", b"1.0", b"\xef\xbc\x91",
    b"10000000000000000", b"ffffffffffffffff", b"8000000000000000", b"7fffffffffffffff", b"f" * 15, b"0" * 17 + b"1",
    b"f" * 4000, b"1;a\x00b", b"1\r", b"1;\r",
])  # fmt: skip
def test_bad_sizes(server: ServerProcess, size: bytes) -> None:
    for address, route in (
        (server.http, infer_path("m")),
        (server.http, "/v2/repository/index"),
        (server.metrics, "/x"),
    ):
        before = server.rss()
        with Client(address) as client:
            client.send_until_refused([head(route), size + b"\r\nx\r\n0\r\n\r\n"])
            status, text = refused(client)
            assert status in {400, 413, 431}
            assert text
        assert server.rss() < before + 20 * MIB


@pytest.mark.parametrize("end", [b"y", b"\n", b"\rx", b"\r\r\n", b"\n\r"])
def test_data_without_its_end(server: ServerProcess, end: bytes) -> None:
    with Client(server.http) as client:
        client.send_until_refused([head(infer_path("m")), b"1\r\nx" + end + b"0\r\n\r\n"])
        assert refused(client)[0] == 400


def test_a_size_that_lies_reserves_nothing(server: ServerProcess) -> None:
    """Chunks are announced by the client; memory is taken for what came."""
    before = server.rss()
    clients = [Client(server.http) for _ in range(50)]
    try:
        for client in clients:
            client.send(head(infer_path("m"), LENGTH) + b"fffffffff\r\n" + b"x" * 10000)
        with Client(server.http) as other:
            assert values_of(other.ask(post(infer_path("m"), JSON))) == [1.5]
        assert server.rss() < before + 20 * MIB
    finally:
        for client in clients:
            client.close()


@pytest.mark.parametrize(("path", "headers", "status"), [
    (infer_path("m"), [], 413),
    (infer_path("m"), ["Inference-Header-Content-Length: 0"], 413),
    (infer_path("m"), [LENGTH, "Content-Encoding: gzip"], 413),
    ("/v2/repository/index", [], 413),
    ("/nothing", [], 413),
])  # fmt: skip
def test_the_size_limit_counts_chunks_together(
    server: ServerProcess, path: str, headers: list[str], status: int
) -> None:
    """What --http-max-input-size bounds is bounded without a Content-Length too, when a chunk only announces it."""
    before = server.rss()
    with Client(server.http) as client:
        client.send_until_refused([head(path, *headers), chunk(b"x" * MIB), b"4000000\r\nx"])
        got, text = refused(client)
        assert got == status
        assert "67108864" in text
    assert server.rss() < before + 20 * MIB


def test_binary_tensors_may_be_larger(server: ServerProcess) -> None:
    """The limit is on JSON and raw bodies; a tensor that follows its JSON may exceed it, in chunks as well."""
    size = 65 * MIB
    tensor = {"name": "INPUT0", "datatype": "UINT8", "shape": [size], "parameters": {"binary_data_size": size}}
    text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    with Client(server.http) as client:
        client.send(head(infer_path("big"), f"Inference-Header-Content-Length: {len(text)}") + chunk(text))
        piece = chunk(bytes(MIB))
        for _ in range(65):
            client.send(piece)
        client.send(b"0\r\n\r\n")
        answer = client.answer()
        assert answer.status == 200
        assert len(answer.body) == int(answer.headers["inference-header-content-length"]) + size


def test_chunks_of_other_requests_do_not_add_up(server: ServerProcess) -> None:
    """Limits are per request, also on one connection."""
    data = fp32([1.0])
    body = JSON + b" " * 40000
    with Client(server.http) as client:
        for _ in range(3):
            client.send(chunked(infer_path("m"), [body[i : i + 1] for i in range(len(body))]))
            assert values_of(client.answer()) == [1.5]
        client.send(chunked(infer_path("flat"), [data, data, data], "Inference-Header-Content-Length: 0"))
        assert values_of(client.answer()) == [1, 1, 1]
