"""``tritonclient.http`` against the running server: every verb, infer in every form, and ``async_infer``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
import tritonclient.http as client_module
from tritonclient.utils import InferenceServerException

from tests.conformance.client_infer import InferHttp, fp32, post_raw, same, tensor
from tests.conformance.client_tensors import Call, http_call
from tests.conformance.client_verbs import Verbs
from tests.helpers.server import ServerProcess


@pytest.fixture(scope="module")
def client(served: ServerProcess) -> Iterator[client_module.InferenceServerClient]:
    with client_module.InferenceServerClient(f"{served.http[0]}:{served.http[1]}", concurrency=4) as made:
        yield made


@pytest.fixture
def call(client: client_module.InferenceServerClient) -> Call:
    return http_call(lambda method, *arguments, **named: getattr(client, method)(*arguments, **named))


@pytest.fixture
def client_class() -> type[client_module.InferenceServerClient]:
    return client_module.InferenceServerClient


@pytest.fixture
def post(served: ServerProcess) -> Callable[..., tuple[bytes, dict[str, str]]]:
    return partial(post_raw, served.http)


class TestVerbs(Verbs):
    pass


class TestInfer(InferHttp):
    pass


class TestAsyncInfer:
    def test_one(self, client: client_module.InferenceServerClient) -> None:
        result = client.async_infer("id_fp32", [fp32(1, 2).http()], request_id="x").get_result()
        assert result.as_numpy("OUTPUT0").tolist() == [[1, 2]]
        assert result.get_response()["id"] == "x"

    def test_many_at_once(self, client: client_module.InferenceServerClient) -> None:
        arrays = [np.full((1, 3), i, np.float32) for i in range(50)]
        sent = [client.async_infer("id_fp32", [tensor(array, "FP32").http()]) for array in arrays]
        for array, handle in zip(arrays, sent, strict=True):
            assert same(handle.get_result(timeout=30).as_numpy("OUTPUT0"), array)

    def test_error(self, client: client_module.InferenceServerClient) -> None:
        handle = client.async_infer("nobody", [fp32(1).http()])
        with pytest.raises(InferenceServerException, match="Request for unknown model: 'nobody' is not found"):
            handle.get_result()

    def test_compressed(self, client: client_module.InferenceServerClient) -> None:
        handle = client.async_infer(
            "id_fp32", [fp32(3).http()], request_compression_algorithm="gzip", response_compression_algorithm="deflate"
        )
        assert handle.get_result().as_numpy("OUTPUT0").tolist() == [[3]]


def test_nothing_listens() -> None:
    with (
        client_module.InferenceServerClient("127.0.0.1:9", connection_timeout=2) as lost,
        pytest.raises(ConnectionRefusedError),
    ):
        lost.is_server_live()
