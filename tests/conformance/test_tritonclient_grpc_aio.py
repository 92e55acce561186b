"""``tritonclient.grpc.aio`` against the running server: the same cases as the sync client, on one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc.aio as client_module

from tests.conformance.client_infer import Infer, fp32, same, tensor
from tests.conformance.client_tensors import Call, refused
from tests.conformance.client_verbs import Verbs
from tests.conformance.grpc_client import grpc_call, uncalled
from tests.helpers.server import ServerProcess

TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(served: ServerProcess, loop: asyncio.AbstractEventLoop) -> Iterator[client_module.InferenceServerClient]:
    async def make() -> client_module.InferenceServerClient:
        return client_module.InferenceServerClient(f"{served.grpc[0]}:{served.grpc[1]}")

    made = loop.run_until_complete(make())
    yield made
    loop.run_until_complete(made.close())


@pytest.fixture
def call(client: client_module.InferenceServerClient, loop: asyncio.AbstractEventLoop) -> Call:
    def invoke(method: str, *arguments: Any, **named: Any) -> Any:
        return loop.run_until_complete(getattr(client, method)(*arguments, **named))

    return grpc_call(invoke)


class TestVerbs(Verbs):
    pass


class TestInfer(Infer):
    pass


def test_many_at_once(client: client_module.InferenceServerClient, loop: asyncio.AbstractEventLoop) -> None:
    arrays = [np.full((1, 3), i, np.float32) for i in range(200)]

    async def ask(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return (await client.infer("id_fp32", [tensor(array, "FP32").grpc()])).as_numpy("OUTPUT0")

    async def all_of_them() -> list[np.ndarray[Any, Any]]:
        return await asyncio.gather(*map(ask, arrays))

    assert all(map(same, loop.run_until_complete(all_of_them()), arrays))


def test_options(call: Call) -> None:
    for algorithm in ("gzip", "deflate"):
        found = call("infer", "id_fp32", [fp32(3)], compression_algorithm=algorithm, client_timeout=TIMEOUT_S)
        assert found.as_numpy("OUTPUT0").tolist() == [[3]]
    inputs = [tensor(np.ones((1, 1), np.int32), "INT32")]
    assert refused(call, "infer", "slow", inputs, client_timeout=0.05) == (
        "StatusCode.DEADLINE_EXCEEDED", "Deadline Exceeded",
    )  # fmt: skip


@pytest.mark.parametrize("algorithm", [None, "gzip", "deflate"])
def test_stream_infer(
    client: client_module.InferenceServerClient, loop: asyncio.AbstractEventLoop, algorithm: str | None
) -> None:
    asked = [("id_fp32", i, str(i)) for i in range(50)] + [("nobody", 7, "lost"), ("id_fp32", 8, "last")]

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for model, value, request_id in asked:
            yield {"model_name": model, "inputs": [fp32(value).grpc()], "request_id": request_id}

    async def talk() -> list[Any]:
        return [answer async for answer in client.stream_infer(requests(), compression_algorithm=algorithm)]

    answers = loop.run_until_complete(asyncio.wait_for(talk(), TIMEOUT_S))
    assert len(answers) == len(asked)
    for (model, value, request_id), (result, error) in zip(asked, answers, strict=True):
        if model == "nobody":
            assert result is None
            assert error.message() == "Request for unknown model: 'nobody' is not found"
        else:
            assert error is None
            assert result.get_response().id == request_id
            assert result.as_numpy("OUTPUT0").tolist() == [[value]]


def test_cancelled_stream(client: client_module.InferenceServerClient, loop: asyncio.AbstractEventLoop) -> None:
    """Leaving the answers of a stream ends it; the connection goes on."""

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "id_fp32", "inputs": [fp32(1).grpc()]}
        await asyncio.Event().wait()

    async def talk() -> None:
        answers = client.stream_infer(requests())
        result, error = await anext(answers)
        assert error is None
        assert result.as_numpy("OUTPUT0").tolist() == [[1]]
        answers.cancel()
        with pytest.raises(asyncio.CancelledError):
            await anext(answers)
        assert await client.is_server_live()

    loop.run_until_complete(asyncio.wait_for(talk(), TIMEOUT_S))


def test_the_cases_leave_out_no_method() -> None:
    assert uncalled(client_module.InferenceServerClient, "stream_infer") == set()
