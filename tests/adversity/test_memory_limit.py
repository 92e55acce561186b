"""--request-memory-limit holds for both protocols together: what is over it is refused, and nothing else suffers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.helpers.raw import Client, chunk, get, infer_path, post
from tests.helpers.server import Model, ServerProcess, repository
from triton_fast.errors import NO_ROOM

MIB = 1 << 20
LIMIT = 16 * MIB
BINARY = "Inference-Header-Content-Length: 0"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root: Path = tmp_path_factory.mktemp("models")
    with ServerProcess(
        repository(root, Model(datatype="UINT8", dims=(-1,))), f"--request-memory-limit={LIMIT}",
        "--http-max-input-size=1073741824",
    ) as running:  # fmt: skip
        yield running


@pytest.fixture
def stub(server: ServerProcess) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    unlimited = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc[1]}", options=unlimited) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def message(size: int) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name="m", raw_input_contents=[bytes(size)])
    request.inputs.add(name="INPUT0", datatype="UINT8", shape=[1, size])
    return request


def small_requests_pass(server: ServerProcess, stub: service_pb2_grpc.GRPCInferenceServiceStub) -> None:
    with Client(server.http) as client:
        assert client.ask(post(infer_path("m"), bytes(1000), BINARY)).status == 200
    assert len(stub.ModelInfer(message(1000)).raw_output_contents[0]) == 1000


def test_http_body_over_the_limit(server: ServerProcess, stub: service_pb2_grpc.GRPCInferenceServiceStub) -> None:
    server.reset_peak()
    before = server.rss()
    for _ in range(3):
        with Client(server.http) as client:
            head = get(infer_path("m"), f"Content-Length: {8 * LIMIT}", BINARY, method="POST")
            client.send_until_refused([head, *[bytes(MIB)] * (8 * LIMIT // MIB)])
            answer = client.answer()
            assert (answer.status, answer.error) == (503, NO_ROOM)
    assert server.peak_rss() < before + 2 * LIMIT
    small_requests_pass(server, stub)


def test_http_chunks_over_the_limit(server: ServerProcess, stub: service_pb2_grpc.GRPCInferenceServiceStub) -> None:
    with Client(server.http) as client:
        head = get(infer_path("m"), BINARY, "Transfer-Encoding: chunked", method="POST")
        client.send_until_refused([head, *[chunk(bytes(MIB))] * (8 * LIMIT // MIB)])
        answer = client.answer()
        assert (answer.status, answer.error) == (503, NO_ROOM)
    small_requests_pass(server, stub)


def test_grpc_message_over_the_limit(server: ServerProcess, stub: service_pb2_grpc.GRPCInferenceServiceStub) -> None:
    server.reset_peak()
    before = server.rss()
    for _ in range(3):
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(message(8 * LIMIT))
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNAVAILABLE, NO_ROOM)
    assert server.peak_rss() < before + 2 * LIMIT
    small_requests_pass(server, stub)


def test_bodies_of_many_connections_together(
    server: ServerProcess, stub: service_pb2_grpc.GRPCInferenceServiceStub
) -> None:
    """Each is far below the limit; together they would pass it. Those that fit are answered when they are whole."""
    size = 3 * MIB
    request = post(infer_path("m"), bytes(size), BINARY)
    clients = [Client(server.http) for _ in range(12)]
    try:
        for client in clients:
            client.send(request[:-1])
        refused = 0
        for client in clients:
            client.send_until_refused([request[-1:]])
            status = client.answer().status
            assert status in {200, 503}
            refused += status == 503
        assert 0 < refused < len(clients)
    finally:
        for client in clients:
            client.close()
    small_requests_pass(server, stub)


def test_what_is_promised_and_not_sent_takes_little(
    server: ServerProcess, stub: service_pb2_grpc.GRPCInferenceServiceStub
) -> None:
    """Ten heads that promise a GiB each hold a MiB each, so there is room for others."""
    head = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nInference-Header-Content-Length: 0\r\n"
    waiting = []
    try:
        for _ in range(10):
            waiting.append(socket.create_connection(server.http))
            waiting[-1].sendall(head + b"Content-Length: 1000000000\r\n\r\nx")
        small_requests_pass(server, stub)
    finally:
        for connection in waiting:
            connection.close()
