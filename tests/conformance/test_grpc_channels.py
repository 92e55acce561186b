"""grpcio channels against the running server: health and reflection by the public clients, compression, sizes, many
connections. TLS is in test_grpc_tls.py.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.helpers.grpc_channel import SERVICE, Channel, Talk, end_of, infer_request, repeat_request, value_of
from tests.helpers.server import Address, Model, ServerProcess, repository, until
from triton_fast import protos

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = {
    SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection",
}  # fmt: skip


@pytest.fixture(scope="module")
def channel(served: ServerProcess) -> Iterator[Channel]:
    with Channel(served.grpc) as made:
        yield made


# ---- health


def test_health_of_any_service(channel: Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel.channel)
    for service in ("", SERVICE, "any"):
        assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == SERVING


def test_watch_tells_of_readiness_and_of_the_end(tmp_path: Path) -> None:
    """A model that was asked for and does not load makes the server unready; unloading it settles that."""
    root = repository(tmp_path, Model("m"))
    (root / "broken" / "1").mkdir(parents=True)
    (root / "broken" / "config.pbtxt").write_text("nonsense")
    load, unload = (
        (verb, getattr(protos, f"{verb}Request")(model_name="broken"))
        for verb in ("RepositoryModelLoad", "RepositoryModelUnload")
    )
    with ServerProcess(root, "--model-control-mode=explicit", "--load-model=m") as process:
        with Channel(process.grpc) as channel:
            stub = health_pb2_grpc.HealthStub(channel.channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == SERVING
            for _ in range(2):
                assert channel.ask(*load).status == 13
                assert next(watch).status == NOT_SERVING
                assert stub.Check(health_pb2.HealthCheckRequest()).status == NOT_SERVING
                assert channel.ask(*unload).outcome == (0, "")
                assert next(watch).status == SERVING
                assert stub.Check(health_pb2.HealthCheckRequest()).status == SERVING
            process.signal()
            with pytest.raises(grpc.RpcError) as caught:
                next(watch)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert process.wait() == 0


# ---- reflection


def test_reflection_lists_and_describes(channel: Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel.channel)
    assert set(database.get_services()) == SERVICES
    service = DescriptorPool(database).FindServiceByName(SERVICE)
    assert service.methods_by_name["ModelInfer"].input_type.full_name == "inference.ModelInferRequest"
    assert service.methods_by_name["ModelStreamInfer"].server_streaming
    ours = protos.ModelInferRequest.DESCRIPTOR
    theirs = service.methods_by_name["ModelInfer"].input_type
    assert {f.name: f.number for f in theirs.fields} == {f.name: f.number for f in ours.fields}


@pytest.mark.parametrize("package", ["grpc.reflection.v1", "grpc.reflection.v1alpha"])
def test_reflection_stream(channel: Channel, package: str) -> None:
    question, answer = (
        protos.message_class(f"{package}.ServerReflection{kind}") for kind in ("Request", "Response")
    )
    with Talk(channel, f"/{package}.ServerReflection/ServerReflectionInfo", answer) as talk:
        talk.send(question(list_services="*"))
        assert {row.name for row in talk.next().list_services_response.service} == SERVICES
        talk.send(question(file_containing_symbol=SERVICE))
        assert talk.next().file_descriptor_response.file_descriptor_proto
        talk.send(question(file_containing_symbol="no.such"))
        assert talk.next().error_response.error_code == 5
        talk.end()
        assert talk.rest().outcome == (0, "")


# ---- what is not there


@pytest.mark.parametrize("path", [f"/{SERVICE}/Nothing", "/other.Service/ModelInfer", "/", f"/{SERVICE}/modelinfer"])
def test_unknown_method(channel: Channel, path: str) -> None:
    assert channel.unary(path, b"").status == 12


# ---- many connections


def test_a_hundred_connections(served: ServerProcess) -> None:
    """Each channel has a connection; each makes several calls, two at a time."""
    count, calls = 100, 6

    def use(k: int) -> list[float]:
        with Channel(served.grpc) as channel:
            found: list[float] = []
            for i in range(0, calls, 2):
                pair = [channel.infer_later(infer_request("id_fp32", [k * calls + j])) for j in (i, i + 1)]
                found += [value_of(end_of(call).message, "OUTPUT0", "FP32")[0] for call in pair]
            return found

    with ThreadPoolExecutor(25) as threads:
        found = list(threads.map(use, range(count)))
    assert found == [[k * calls + i for i in range(calls)] for k in range(count)]


def test_a_hundred_connections_at_once(served: ServerProcess) -> None:
    """All open before any asks."""
    before = served.fds()
    channels = [Channel(served.grpc) for _ in range(100)]
    try:
        for channel in channels:
            assert channel.ask("ServerLive").message.live
        assert served.connections(served.grpc) >= 100
        calls = [channel.infer_later(infer_request("id_fp32", [k])) for k, channel in enumerate(channels)]
        assert [value_of(end_of(call).message, "OUTPUT0", "FP32") for call in calls] == [[k] for k in range(100)]
    finally:
        for channel in channels:
            channel.channel.close()
    assert until(lambda: served.fds() <= before + 2)


def test_many_calls_on_one_connection(channel: Channel) -> None:
    calls = [channel.infer_later(infer_request("id_fp32", [k])) for k in range(500)]
    assert [value_of(end_of(call).message, "OUTPUT0", "FP32") for call in calls] == [[k] for k in range(500)]


# ---- compression


class Relay:
    """Between one client and the server; counts the bytes that come back."""

    def __init__(self, target: Address) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._target = target
        self.address: Address = self._listening.getsockname()
        self.received = 0
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Relay:
        self._start(self._run)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        # A thread that waits on a socket is woken by its shutdown, not by its close.
        for one in (self._listening, *self._open):
            _shut(one)
        for thread in self._threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in self._threads)
        for one in (self._listening, *self._open):
            one.close()

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=target, args=arguments))
        self._threads[-1].start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            near, _ = self._listening.accept()
            far = socket.create_connection(self._target)
            self._open += [near, far]
            self._start(self._pump, near, far, False)
            self._pump(far, near, True)

    def _pump(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.received += len(data) if counts else 0
                target.sendall(data)
        _shut(source)
        _shut(target)


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module", params=["none", "low", "medium", "high"])
def packing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Address]]:
    root = repository(tmp_path_factory.mktemp("packing"), Model("m", dims=(-1,), max_batch=0))
    with ServerProcess(root, f"--grpc-infer-response-compression-level={request.param}") as process:
        yield request.param, process.grpc


WORDS = np.tile(np.arange(64, dtype=np.float32), 500)


@pytest.mark.parametrize("algorithm", [None, grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_both_ways(packing: tuple[str, Address], algorithm: grpc.Compression | None) -> None:
    level, address = packing
    request = infer_request("m", WORDS, shape=[len(WORDS)])
    with Relay(address) as relay, Channel(relay.address) as channel:
        answer = channel.infer(request, compression=algorithm).message
        assert answer.raw_output_contents[0] == WORDS.tobytes()
        assert (relay.received < WORDS.nbytes // 10) is (level != "none")
        before = relay.received
        stream = channel.stream([request] * 3, compression=algorithm)
        assert stream.outcome == (0, "")
        assert [one.infer_response.raw_output_contents[0] for one in stream.messages] == [WORDS.tobytes()] * 3
        assert (relay.received - before < WORDS.nbytes // 10) is (level != "none")


def test_small_and_incompressible_answers_of_a_compressing_server(packing: tuple[str, Address]) -> None:
    noise = np.frombuffer(np.random.default_rng(1).bytes(40_000), np.float32)
    with Channel(packing[1]) as channel:
        for values in (noise[:1], noise, WORDS[:0]):
            request = infer_request("m", values.tobytes(), shape=[len(values)])
            assert channel.infer(request).message.raw_output_contents[0] == values.tobytes()


def test_compressed_answers_keep_their_order(packing: tuple[str, Address]) -> None:
    """Large answers are compressed on other threads, small ones and errors are not."""
    sizes = [0, len(WORDS), 1, len(WORDS), 3, 0, len(WORDS), 2] * 5
    requests = [infer_request("m", WORDS[:n], shape=[n], id=str(k)) for k, n in enumerate(sizes)]
    requests.insert(5, infer_request("nobody", [1], id="lost"))
    with Channel(packing[1]) as channel:
        reply = channel.stream(requests, compression=grpc.Compression.Gzip)
        assert reply.outcome == (0, "")
        assert [one.infer_response.id for one in reply.messages] == [one.id for one in requests]
        found = [list(one.infer_response.raw_output_contents) for one in reply.messages]
        assert found == [[] if one.id == "lost" else list(one.raw_input_contents) for one in requests]


def test_cancel_while_answers_are_compressed(packing: tuple[str, Address]) -> None:
    request = infer_request("m", np.tile(WORDS, 10), shape=[len(WORDS) * 10])
    with Channel(packing[1]) as channel:
        for k in range(20):
            with channel.talk() as talk:
                for _ in range(4):
                    talk.send(request)
                if k % 2:
                    talk.next()
            channel.infer_later(request).cancel()
        assert channel.infer(request).message.raw_output_contents[0] == request.raw_input_contents[0]


def test_a_client_that_takes_no_compression_gets_none(packing: tuple[str, Address]) -> None:
    identity_only = (("grpc.compression_enabled_algorithms_bitset", 1),)
    request = infer_request("m", WORDS, shape=[len(WORDS)])
    with Relay(packing[1]) as relay, Channel(relay.address, options=identity_only) as channel:
        assert channel.infer(request).message.raw_output_contents[0] == WORDS.tobytes()
        assert relay.received > WORDS.nbytes


# ---- sizes


@pytest.mark.parametrize("count", [(1 << 20) + 5, 1 << 23])
def test_messages_larger_than_the_usual_limit(channel: Channel, count: int) -> None:
    """4 MiB is where gRPC libraries stop unless told otherwise, on either side."""
    values = np.arange(count, dtype=np.float32)
    reply = channel.infer(infer_request("wide", values, shape=[1, count]))
    assert reply.message.raw_output_contents[0] == values.tobytes()
    (message,) = channel.stream([infer_request("wide", values, shape=[1, count])]).messages
    assert message.infer_response.raw_output_contents[0] == values.tobytes()


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = repository(tmp_path_factory.mktemp("narrow"), Model("m"), Model("slow", delay_ms=200, max_batch=1))
    with ServerProcess(
        root, "--grpc-max-message-size=10000", "--grpc-max-metadata-size=2000", "--grpc-max-concurrent-streams=4",
        "--grpc-max-inflated-size=20000",
    ) as process:  # fmt: skip
        yield process


def test_message_size_limit(narrow: ServerProcess) -> None:
    fits, over = infer_request("m", [0] * 2400), infer_request("m", [0] * 2500)
    text = f"Received message larger than max ({over.ByteSize()} vs. 10000)"
    with Channel(narrow.grpc) as channel:
        assert channel.infer(fits).outcome == (0, "")
        assert channel.infer(over).outcome == (8, text)
        reply = channel.stream([fits, over, fits])
        assert reply.outcome == (8, text)
        assert channel.infer(fits).outcome == (0, "")


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_inflated_size_limit(narrow: ServerProcess, algorithm: grpc.Compression) -> None:
    with Channel(narrow.grpc) as channel:
        assert channel.infer(infer_request("m", [0] * 4000), compression=algorithm).outcome == (0, "")
        reply = channel.infer(infer_request("m", [0] * 400_000), compression=algorithm)
        assert reply.status in (3, 8)
        assert "--grpc-max-inflated-size" in reply.text
        assert channel.infer(infer_request("m", [0] * 4000), compression=algorithm).outcome == (0, "")


def test_metadata_size_limit(narrow: ServerProcess) -> None:
    with Channel(narrow.grpc) as channel:
        assert channel.infer(infer_request("m"), metadata={"x": "y" * 1000}).outcome == (0, "")
        for name in ("ServerLive", "ModelMetadata"):
            reply = channel.ask(name, metadata={"x": "y" * 4000})
            assert reply.status == 8
        assert channel.infer(infer_request("m"), metadata={"x": "y" * 4000}).status == 8
        assert channel.stream([infer_request("m")], metadata={"x": "y" * 4000}).status == 8
        assert channel.infer(infer_request("m")).outcome == (0, "")


def test_more_calls_than_streams_are_allowed(narrow: ServerProcess) -> None:
    """grpcio waits with the fifth until one is through; all are answered."""
    with Channel(narrow.grpc) as channel:
        calls = [channel.infer_later(infer_request("slow", [k])) for k in range(10)]
        assert [value_of(end_of(call).message, "OUTPUT0", "FP32") for call in calls] == [[k] for k in range(10)]


def test_a_response_over_the_clients_limit_is_the_clients_error(served: ServerProcess) -> None:
    with Channel(served.grpc, options=(("grpc.max_receive_message_length", 1000),)) as channel:
        reply = channel.infer(infer_request("id_fp32", [0] * 1000))
        assert reply.status == 8
        assert "Received message larger than max" in reply.text
        assert channel.infer(infer_request("id_fp32")).outcome == (0, "")


def test_decoupled_over_unary(channel: Channel) -> None:
    text = "ModelInfer RPC doesn't support models with decoupled transaction policy"
    assert channel.infer(repeat_request([1])).outcome == (12, text)
