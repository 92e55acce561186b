"""SEC-04, memory of GPUs: no number reaches outside what a client registered, and none registers more than there is.

The server and this process have the stand-in for the driver, which refuses every copy that leaves an allocation.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import raw, standin_cuda
from tests.helpers.cuda_client import Memory
from tests.helpers.grpc_channel import Channel
from tests.helpers.server import Model, ServerProcess, repository
from tests.helpers.shm_requests import message, numbers_near, place, several
from triton_fast import protos

SIZE = 1 << 15
VALUE = struct.pack("<f", 1.5)

number = numbers_near(4096, SIZE)


@pytest.fixture(scope="module")
def memory() -> Iterator[Memory]:
    with standin_cuda.opened() as fake, Memory(fake, SIZE) as made:
        yield made


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, memory: Memory) -> Iterator[ServerProcess]:
    root = repository(tmp_path_factory.mktemp("models"), Model("native"), Model("text", "BYTES"))
    with ServerProcess(root, "--allow-client-shm=true", env=standin_cuda.environment()) as process:
        yield process


@pytest.fixture(scope="module")
def channel(served: ServerProcess) -> Iterator[Channel]:
    with Channel(served.grpc) as made:
        yield made


@pytest.fixture(autouse=True)
def regions_go(served: ServerProcess) -> Iterator[None]:
    yield
    assert raw.ask(served.http, unregister()).status == 200
    assert raw.ask(served.http, raw.get("/v2/cudasharedmemory/status")).json() == []


def unregister() -> bytes:
    return raw.post("/v2/cudasharedmemory/unregister")


def register(handle: bytes, byte_size: int, device: int = 0) -> bytes:
    body = {"raw_handle": {"b64": base64.b64encode(handle).decode()}, "device_id": device, "byte_size": byte_size}
    return raw.post("/v2/cudasharedmemory/region/r/register", json.dumps(body).encode())


def infer(at: dict[str, Any], output: bool, model: str = "native", kind: str = "FP32", count: int = 1) -> bytes:
    tensor: dict[str, Any] = {"name": "INPUT0", "shape": [1, count], "datatype": kind}
    tensor.update({"data": [0.0]} if output else {"parameters": at})
    wanted = {"name": "OUTPUT0", **({"parameters": at} if output else {})}
    return raw.post(raw.infer_path(model), json.dumps({"inputs": [tensor], "outputs": [wanted]}).encode())


@several
@given(
    size=number, device=st.one_of(st.integers(-2, 3), st.sampled_from([-(1 << 63), 1 << 31, 1 << 32, (1 << 63) - 1]))
)
def test_no_number_registers_more_than_there_is(
    served: ServerProcess, channel: Channel, memory: Memory, size: int, device: int
) -> None:
    good = size <= memory.size and device == 0
    answer = raw.ask(served.http, register(memory.handle, size, device))
    assert (answer.status == 200) == good, answer.body
    assert answer.status in (200, 400)
    assert raw.ask(served.http, unregister()).status == 200
    asked = protos.CudaSharedMemoryRegisterRequest(name="r", raw_handle=memory.handle, byte_size=size, device_id=device)
    reply = channel.ask("CudaSharedMemoryRegister", asked)
    assert (reply.status == 0) == good, reply.text
    assert reply.status in (0, 3)
    assert raw.ask(served.http, unregister()).status == 200


@several
@given(handle=st.binary(min_size=0, max_size=80))
def test_bytes_that_are_no_handle(served: ServerProcess, channel: Channel, handle: bytes) -> None:
    answer = raw.ask(served.http, register(handle, 4))
    assert answer.status == 400, answer.body
    reply = channel.ask(
        "CudaSharedMemoryRegister", protos.CudaSharedMemoryRegisterRequest(name="r", raw_handle=handle, byte_size=4)
    )
    assert (reply.status, reply.text) == (3, "failed to register shared memory region: invalid args")


@several
@given(numbers=st.tuples(number, number, st.sampled_from([0, 4, 4096, SIZE])), output=st.booleans())
def test_no_number_reaches_outside_a_region(
    served: ServerProcess, channel: Channel, memory: Memory, numbers: tuple[int, int, int], output: bool
) -> None:
    offset, size, registered = numbers
    memory.write(VALUE * (memory.size // 4))
    assert raw.ask(served.http, register(memory.handle, registered)).status == 200
    within = offset < registered and offset + size <= registered
    at = place(size, offset)
    answer = raw.ask(served.http, infer(at, output))
    if output:
        assert (answer.status == 200) == (within and size >= 4), answer.body
        whole = VALUE * (memory.size // 4)
        if answer.status == 200:
            whole = whole[:offset] + bytes(4) + whole[offset + 4 :]
        assert memory.read(memory.size) == whole
    else:
        assert (answer.status == 200) == (within and size == 4), answer.body
    reply = channel.infer(message(at, output))
    assert (reply.status == 0) == (answer.status == 200), (reply.text, answer.body)
    assert raw.ask(served.http, unregister()).status == 200


@pytest.mark.parametrize("count", [2, 1 << 20, 1 << 60, (1 << 63) - 1])
def test_more_texts_than_there_is_room_for(served: ServerProcess, memory: Memory, count: int) -> None:
    memory.write(bytes(64))
    assert raw.ask(served.http, register(memory.handle, SIZE)).status == 200
    answer = raw.ask(served.http, infer(place(7, 0), False, "text", "BYTES", count))
    assert answer.status == 400, answer.body
    assert raw.ask(served.http, infer(place(4, 0), False, "text", "BYTES", 1)).status == 200


def test_disabled_by_default(tmp_path_factory: pytest.TempPathFactory, memory: Memory) -> None:
    root = repository(tmp_path_factory.mktemp("models"), Model("native"))
    with ServerProcess(root, env=standin_cuda.environment()) as process:
        answer = raw.ask(process.http, register(memory.handle, SIZE))
        assert answer.status == 501 and answer.error.startswith("Client shared memory is disabled.")
        assert raw.ask(process.http, infer(place(4, 0), False)).status == 404
