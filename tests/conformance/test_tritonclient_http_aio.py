"""``tritonclient.http.aio`` against the running server: the same cases as the sync client, on one event loop."""

from __future__ import annotations

import asyncio
import base64
import gzip
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import tritonclient.http.aio as client_module

from tests.conformance.client_infer import InferHttp, post_raw, same, tensor
from tests.conformance.client_tensors import Call, http_call
from tests.conformance.client_verbs import Verbs
from tests.helpers.server import ServerProcess


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(served: ServerProcess, loop: asyncio.AbstractEventLoop) -> Iterator[client_module.InferenceServerClient]:
    async def make() -> client_module.InferenceServerClient:
        made = client_module.InferenceServerClient(f"{served.http[0]}:{served.http[1]}")
        # aiohttp would decompress the answer, and the client then would once more.
        made._stub._auto_decompress = False
        return made

    with pytest.MonkeyPatch.context() as patch:
        # Modules that this client uses for files and compression, and in some versions does not import.
        for module in (base64, gzip, zlib):
            patch.setattr(client_module, module.__name__, module, raising=False)
        made = loop.run_until_complete(make())
        yield made
        loop.run_until_complete(made.close())


@pytest.fixture
def call(client: client_module.InferenceServerClient, loop: asyncio.AbstractEventLoop) -> Call:
    return http_call(
        lambda method, *arguments, **named: loop.run_until_complete(getattr(client, method)(*arguments, **named))
    )


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


def test_many_at_once(client: client_module.InferenceServerClient, loop: asyncio.AbstractEventLoop) -> None:
    arrays = [np.full((1, 3), i, np.float32) for i in range(100)]

    async def ask(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return (await client.infer("id_fp32", [tensor(array, "FP32").http()])).as_numpy("OUTPUT0")

    async def all_of_them() -> list[np.ndarray[Any, Any]]:
        return await asyncio.gather(*map(ask, arrays))

    assert all(map(same, loop.run_until_complete(all_of_them()), arrays))
