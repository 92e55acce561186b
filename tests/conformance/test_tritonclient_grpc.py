"""``tritonclient.grpc`` against the running server: every verb, infer in every form, ``async_infer`` and streams."""

from __future__ import annotations

from collections.abc import Iterator
from queue import Queue
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as client_module
from tritonclient.utils import InferenceServerException

from tests.conformance.client_infer import VALUES, Classification, Datatypes, Infer, Requests, fp32, same, tensor
from tests.conformance.client_tensors import INVALID, NOT_FOUND, UNAVAILABLE, Call, Wanted, refused
from tests.conformance.client_verbs import Verbs
from tests.conformance.grpc_client import grpc_call, uncalled
from tests.helpers.server import ServerProcess

TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def client(served: ServerProcess) -> Iterator[client_module.InferenceServerClient]:
    with client_module.InferenceServerClient(f"{served.grpc[0]}:{served.grpc[1]}") as made:
        yield made


@pytest.fixture
def call(client: client_module.InferenceServerClient) -> Call:
    def invoke(method: str, *arguments: Any, **named: Any) -> Any:
        return getattr(client, method)(*arguments, **named)

    return grpc_call(invoke)


class TestVerbs(Verbs):
    pass


class TestInfer(Infer):
    pass


class Stream:
    """``infer`` by way of a stream: the one result, or the error, of each request."""

    def __init__(self, address: str) -> None:
        self.client = client_module.InferenceServerClient(address)
        self.answers: Queue[tuple[Any, InferenceServerException | None]] = Queue()
        self.client.start_stream(lambda result, error: self.answers.put((result, error)))

    def invoke(self, method: str, *arguments: Any, **named: Any) -> Any:
        assert method == "infer"
        named.pop("headers", None)  # of the stream, not of a request
        self.client.async_stream_infer(*arguments, **named)
        result, error = self.answers.get(timeout=TIMEOUT_S)
        if error is not None:
            raise error
        return result


@pytest.fixture(scope="module")
def stream(served: ServerProcess) -> Iterator[Stream]:
    made = Stream(f"{served.grpc[0]}:{served.grpc[1]}")
    yield made
    made.client.stop_stream()
    assert made.answers.empty()
    made.client.close()


class TestStreamInfer(Datatypes, Requests, Classification):
    """All on one stream."""

    @pytest.fixture
    def call(self, stream: Stream) -> Call:
        return grpc_call(stream.invoke)

    def test_refused(self, call: Call) -> None:  # type: ignore[override]
        """An error on a stream has a text and no status; the stream goes on."""
        outputs = [Wanted("OUTPUT0", class_count=1)]
        text = "class result not available for output due to unsupported type 'BOOL'"
        inputs = [tensor(VALUES["BOOL"], "BOOL")]
        assert refused(call, "infer", "id_bool", inputs, outputs=outputs) == (None, text)
        assert refused(call, "infer", "nobody", inputs) == (None, "Request for unknown model: 'nobody' is not found")
        assert same(call("infer", "id_bool", inputs).as_numpy("OUTPUT0"), VALUES["BOOL"])


class TestAsyncInfer:
    def ask(self, client: client_module.InferenceServerClient, *arguments: Any, **named: Any) -> Queue[Any]:
        answers: Queue[Any] = Queue()
        client.async_infer(*arguments, callback=lambda result, error: answers.put((result, error)), **named)
        return answers

    def test_one(self, client: client_module.InferenceServerClient) -> None:
        answers = self.ask(client, "id_fp32", [fp32(1, 2).grpc()], request_id="x")
        result, error = answers.get(timeout=TIMEOUT_S)
        assert error is None
        assert result.as_numpy("OUTPUT0").tolist() == [[1, 2]]
        assert result.get_response().id == "x"

    def test_many_at_once(self, client: client_module.InferenceServerClient) -> None:
        arrays = [np.full((1, 3), i, np.float32) for i in range(200)]
        sent = [self.ask(client, "id_fp32", [tensor(array, "FP32").grpc()]) for array in arrays]
        for array, answers in zip(arrays, sent, strict=True):
            result, error = answers.get(timeout=TIMEOUT_S)
            assert error is None
            assert same(result.as_numpy("OUTPUT0"), array)

    def test_error(self, client: client_module.InferenceServerClient) -> None:
        result, error = self.ask(client, "nobody", [fp32(1).grpc()]).get(timeout=TIMEOUT_S)
        assert result is None
        assert (error.status(), error.message()) == (NOT_FOUND, "Request for unknown model: 'nobody' is not found")

    def test_cancel(self, client: client_module.InferenceServerClient) -> None:
        answers: Queue[Any] = Queue()
        context = client.async_infer(
            "slow", [tensor(np.ones((1, 1), np.int32), "INT32").grpc()],
            callback=lambda result, error: answers.put((result, error)),
        )  # fmt: skip
        context.cancel()
        _, error = answers.get(timeout=TIMEOUT_S)
        assert error.status() == "StatusCode.CANCELLED"


class TestOptions:
    @pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
    @pytest.mark.parametrize("count", [1, 10_000])
    def test_compressed_request(self, call: Call, algorithm: str, count: int) -> None:
        array = np.arange(count, dtype=np.float32)[None]
        result = call("infer", "id_fp32", [tensor(array, "FP32")], compression_algorithm=algorithm)
        assert same(result.as_numpy("OUTPUT0"), array)

    @pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
    def test_compressed_stream(self, served: ServerProcess, algorithm: str) -> None:
        answers: Queue[Any] = Queue()
        array = np.arange(5000, dtype=np.float32)[None]
        with client_module.InferenceServerClient(f"{served.grpc[0]}:{served.grpc[1]}") as client:
            client.start_stream(lambda result, error: answers.put((result, error)), compression_algorithm=algorithm)
            for count in (1, 5000, 2):
                client.async_stream_infer("id_fp32", [tensor(array[:, :count], "FP32").grpc()])
            client.stop_stream()
        for count in (1, 5000, 2):
            result, error = answers.get_nowait()
            assert error is None
            assert same(result.as_numpy("OUTPUT0"), array[:, :count])

    def test_client_timeout(self, call: Call) -> None:
        assert call("infer", "id_fp32", [fp32(1)], client_timeout=TIMEOUT_S).as_numpy("OUTPUT0").tolist() == [[1]]
        inputs = [tensor(np.ones((1, 1), np.int32), "INT32")]
        assert refused(call, "infer", "slow", inputs, client_timeout=0.05) == (
            "StatusCode.DEADLINE_EXCEEDED", "Deadline Exceeded",
        )  # fmt: skip

    def test_stream_timeout(self, served: ServerProcess) -> None:
        answers: Queue[Any] = Queue()
        with client_module.InferenceServerClient(f"{served.grpc[0]}:{served.grpc[1]}") as client:
            client.start_stream(lambda result, error: answers.put((result, error)), stream_timeout=0.1)
            _, error = answers.get(timeout=TIMEOUT_S)
            assert error.status() == "StatusCode.DEADLINE_EXCEEDED"

    def test_not_ready_is_an_error(self, client: client_module.InferenceServerClient) -> None:
        for arguments, text in (
            (("nobody",), "Request for unknown model: 'nobody' is not found"),
            (("versions", "9"), "Request for unknown model: 'versions' version 9 is not found"),
        ):
            assert refused(client.is_model_ready, *arguments) == (NOT_FOUND, text)

    def test_version_that_is_no_number(self, call: Call) -> None:
        status, text = refused(call, "infer", "versions", [fp32(1)], model_version="x")
        assert status == INVALID
        assert text == (
            "failed to get model version from specified version string 'x' (details: stol), version should be an "
            "integral value > 0"
        )

    def test_version_below_zero(self, call: Call) -> None:
        text = "invalid model version specified '-1' , version should be an integral value > 0"
        assert refused(call, "infer", "versions", [fp32(1)], model_version="-1") == (INVALID, text)
        assert refused(call, "get_model_config", "versions", "-1") == (INVALID, text)

    def test_as_json(self, client: client_module.InferenceServerClient) -> None:
        assert client.get_model_metadata("two", as_json=True)["inputs"][0]["shape"] == ["-1", "4"]
        assert client.get_server_metadata(as_json=True)["name"] == "triton"
        assert client.get_inference_statistics("versions", "2", as_json=True)["model_stats"][0]["version"] == "2"
        assert client.get_model_repository_index(as_json=True)["models"]


def test_the_cases_leave_out_no_method() -> None:
    elsewhere = ("start_stream", "stop_stream", "async_stream_infer", "async_infer")
    assert uncalled(client_module.InferenceServerClient, *elsewhere) == set()


def test_nothing_listens() -> None:
    with client_module.InferenceServerClient("127.0.0.1:9") as lost:
        assert refused(lost.is_server_live, client_timeout=TIMEOUT_S)[0] == UNAVAILABLE
