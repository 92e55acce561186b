"""Server reflection, v1 and v1alpha: a client can rebuild every service from the answers alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from tests.helpers.grpc_calls import FakeCall, Front
from tests.helpers.server import Model, repository
from triton_fast import protos
from triton_fast.frontends.grpc import calls, reflection

SERVICES = [
    "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection",
    "inference.GRPCInferenceService",
]  # fmt: skip
NOT_FOUND = 5


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with Front(repository(tmp_path_factory.mktemp("models"), Model("m"))) as front:
        yield front


@pytest.fixture(params=reflection.PACKAGES)
def package(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def question(package: str, **fields: Any) -> Any:
    return protos.message_class(f"{package}.ServerReflectionRequest")(**fields)


def ask(front: Front, package: str, *requests: Any) -> list[Any]:
    call = front.ask(reflection.path(package), *(request.SerializeToString() for request in requests))
    assert call.outcome == (0, "")
    response = protos.message_class(f"{package}.ServerReflectionResponse")
    return [response.FromString(data) for data in call.sent]


def files(response: Any) -> dict[str, Any]:
    """The files of an answer by name; each comes once."""
    found = [
        descriptor_pb2.FileDescriptorProto.FromString(data)
        for data in response.file_descriptor_response.file_descriptor_proto
    ]
    assert len({file.name for file in found}) == len(found)
    return {file.name: file for file in found}


def test_services_are_listed(front: Front, package: str) -> None:
    (response,) = ask(front, package, question(package, host="h", list_services="*"))
    assert [service.name for service in response.list_services_response.service] == SERVICES
    assert response.valid_host == "h"
    assert response.original_request == question(package, host="h", list_services="*")


def test_one_stream_takes_many_questions_in_order(front: Front, package: str) -> None:
    requests = [question(package, file_containing_symbol=name) for name in SERVICES]
    requests.append(question(package, list_services=""))
    responses = ask(front, package, *requests)
    assert [response.original_request for response in responses] == requests
    assert [response.WhichOneof("message_response") for response in responses] == [
        *["file_descriptor_response"] * 4, "list_services_response",
    ]  # fmt: skip


def test_a_client_can_rebuild_every_service_from_the_answers(front: Front, package: str) -> None:
    """Symbol by symbol into a fresh pool, and then use the messages."""
    pool = descriptor_pool.DescriptorPool()
    for name in SERVICES:
        (response,) = ask(front, package, question(package, file_containing_symbol=name))
        for file in reversed(files(response).values()):
            pool.AddSerializedFile(file.SerializeToString())
    for name in SERVICES:
        service, ours = pool.FindServiceByName(name), protos.POOL.FindServiceByName(name)
        assert [(m.name, m.input_type.full_name) for m in service.methods] == [
            (m.name, m.input_type.full_name) for m in ours.methods
        ]
    message = message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfigResponse"))()
    message.config.max_batch_size = 4
    assert protos.ModelConfigResponse.FromString(message.SerializeToString()).config.max_batch_size == 4


@pytest.mark.parametrize(
    ("symbol", "file"),
    [
        ("inference.GRPCInferenceService", "grpc_service.proto"),
        ("inference.GRPCInferenceService.ModelInfer", "grpc_service.proto"),
        ("inference.ModelInferRequest.InferInputTensor", "grpc_service.proto"),
        ("inference.ModelInferRequest.InferInputTensor.shape", "grpc_service.proto"),
        ("inference.InferParameter.parameter_choice", "grpc_service.proto"),
        ("inference.ModelConfig", "model_config.proto"),
        ("inference.TYPE_BF16", "model_config.proto"),
        ("inference.ModelInstanceGroup.Kind", "model_config.proto"),
        ("inference.ModelInstanceGroup.KIND_GPU", "model_config.proto"),
        ("grpc.health.v1.Health.Watch", "grpc_health.proto"),
        ("grpc.reflection.v1.ServerReflection", "grpc_reflection_v1.proto"),
        ("grpc.reflection.v1alpha.ServerReflection", "grpc_reflection_v1alpha.proto"),
    ],
)
def test_files_of_symbols(front: Front, symbol: str, file: str) -> None:
    package = reflection.PACKAGES[0]
    (response,) = ask(front, package, question(package, file_containing_symbol=symbol))
    imports = ["model_config.proto"] if file == "grpc_service.proto" else []
    assert list(files(response)) == [file, *imports]
    (by_name,) = ask(front, package, question(package, file_by_filename=file))
    assert by_name.file_descriptor_response == response.file_descriptor_response


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"file_by_filename": "nope.proto"}, NOT_FOUND),
        ({"file_by_filename": ""}, NOT_FOUND),
        ({"file_by_filename": "../protos/grpc_service.proto"}, NOT_FOUND),
        ({"file_containing_symbol": "inference"}, NOT_FOUND),
        ({"file_containing_symbol": ".inference.ModelConfig"}, NOT_FOUND),
        ({"file_containing_symbol": "inference.ModelInstanceGroup.Kind.KIND_GPU"}, NOT_FOUND),
        ({"file_containing_symbol": "a\0b"}, NOT_FOUND),
        ({"all_extension_numbers_of_type": "inference.Nope"}, NOT_FOUND),
        ({"all_extension_numbers_of_type": "inference.GRPCInferenceService"}, NOT_FOUND),
        ({"file_containing_extension": {"containing_type": "inference.ModelConfig", "extension_number": 1}}, NOT_FOUND),
        ({}, 3),
    ],
)
def test_what_is_not_there(front: Front, package: str, fields: dict[str, Any], code: int) -> None:
    missing = question(package, host="h", **fields)
    first, second = ask(front, package, missing, question(package, list_services=""))
    assert first.error_response.error_code == code
    assert first.error_response.error_message
    assert first.original_request == missing
    # The stream goes on.
    assert len(second.list_services_response.service) == len(SERVICES)


def test_messages_have_no_extensions(front: Front, package: str) -> None:
    (response,) = ask(front, package, question(package, all_extension_numbers_of_type="inference.ModelConfig"))
    numbers = response.all_extension_numbers_response
    assert (numbers.base_type_name, list(numbers.extension_number)) == ("inference.ModelConfig", [])
    assert response.WhichOneof("message_response") == "all_extension_numbers_response"


def test_a_stream_without_questions(front: Front, package: str) -> None:
    assert ask(front, package) == []


def test_broken_and_large_questions_end_the_stream(front: Front, package: str) -> None:
    good = question(package, list_services="").SerializeToString()
    call = front.ask(reflection.path(package), good, b"\xff", good)
    assert (len(call.sent), call.outcome) == (1, (13, calls.BROKEN))
    large = question(package, host="h" * reflection.MAX_QUESTION).SerializeToString()
    call = front.ask(reflection.path(package), good, large, good)
    assert (len(call.sent), call.status) == (1, 8)


def test_a_reader_that_reads_nothing_is_let_go(front: Front, package: str) -> None:
    class Unread(FakeCall):
        def send(self, data: bytes) -> None:
            super().send(data)
            self.buffered += len(data)

    call = Unread(reflection.path(package))
    handler = front.app.start(call)
    assert handler is not None
    ask_all = question(package, file_containing_symbol=SERVICES[-1]).SerializeToString()
    sent = 0
    while call.status is None and sent < 10_000:
        handler.message(ask_all)
        sent += 1
    assert call.outcome == (8, calls.SLOW)
    assert calls.MAX_BUFFERED < call.buffered < calls.MAX_BUFFERED + (1 << 17)
    handler.end()
    assert call.status == 8


def test_a_cancelled_stream_says_nothing_more(front: Front, package: str) -> None:
    call = FakeCall(reflection.path(package))

    async def run() -> None:
        handler = front.app.start(call)
        assert handler is not None
        handler.cancel()
        handler.message(question(package, list_services="").SerializeToString())
        handler.end()

    asyncio.run(run())
    assert (call.sent, call.status) == ([], None)


def test_the_largest_answer_is_bounded(front: Front, package: str) -> None:
    """Each answer is a set of files and the question, which has a limit of its own."""
    everything = sum(len(file.SerializeToString()) for file in protos.FILES.values())
    pad = question(package, host="h" * (reflection.MAX_QUESTION - 200), file_containing_symbol=SERVICES[-1])
    (response,) = ask(front, package, pad)
    assert len(response.SerializeToString()) < 2 * reflection.MAX_QUESTION + everything
    assert everything < 65536


def test_the_reference_client_reads_it(front: Front) -> None:
    """grpcio's own messages, as its reflection client uses them."""
    theirs = pytest.importorskip("grpc_reflection.v1alpha.reflection_pb2")
    path = reflection.path("grpc.reflection.v1alpha")
    request = theirs.ServerReflectionRequest(file_containing_symbol="inference.ModelConfig")
    call = front.ask(path, request.SerializeToString())
    response = theirs.ServerReflectionResponse.FromString(call.sent[0])
    assert response.original_request == request
    file = descriptor_pb2.FileDescriptorProto.FromString(response.file_descriptor_response.file_descriptor_proto[0])
    assert file.name == "model_config.proto"
