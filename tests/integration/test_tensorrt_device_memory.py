"""TensorRT models whose clients' tensors lie in GPU memory: used where they lie, or copied on the GPU."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests.conformance.shm_clients import At, Client
from tests.helpers import standin_cuda, trt_plans
from tests.helpers.cuda_client import Memory
from tests.helpers.server import ServerProcess
from tests.helpers.trt_plans import add_sub, spread, whereabouts, write

BACKEND = 'backend: "tensorrt"\n'
ON_0 = f"{BACKEND}instance_group [{{ kind: KIND_GPU gpus: [0] }}]\n"
SIZE = 1 << 16


@pytest.fixture(scope="module")
def fake() -> Iterator[standin_cuda.StandIn]:
    with standin_cuda.opened() as made:
        yield made


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("models")
    write(root, whereabouts(), f"{ON_0}max_batch_size: 0\n", "where")
    write(root, whereabouts(), f"{ON_0}max_batch_size: 0\noptimization {{ cuda {{ graphs: true }} }}\n", "graphs")
    write(root, add_sub(), f"{ON_0}dynamic_batching {{ }}\n", "add")
    write(root, spread("INT64"), ON_0, "spread")
    with ServerProcess(root, "--allow-client-shm=true", env=trt_plans.environment()) as process:
        yield process


@pytest.fixture(params=["http", "grpc"])
def client(served: ServerProcess, request: pytest.FixtureRequest) -> Iterator[Client]:
    made = Client(request.param, served)
    yield made
    made.call("unregister_cuda_shared_memory")
    made.close()


@pytest.fixture(params=[0, 1])
def memory(fake: standin_cuda.StandIn, client: Client, request: pytest.FixtureRequest) -> Iterator[Memory]:
    with Memory(fake, SIZE, device=request.param) as made:
        client.call("register_cuda_shared_memory", "r", made.raw_handle, made.device, SIZE)
        yield made


def where(client: Client, memory: Memory, model: str, offset: int) -> int:
    """Run a model with its input and output in the region; return the address that TensorRT read at."""
    given = np.arange(offset, offset + 64, dtype=np.float32)
    memory.write(given.tobytes(), offset)
    place = At("r", 256, offset, "FP32", (64,))
    result = client.infer(model, {"IN": place}, {"OUT": At("r", 256, 8192), "WHERE": {}})
    assert memory.read(256, 8192) == given.tobytes()
    memory.write(bytes(256), 8192)
    return int(result.as_numpy("WHERE")[0])


def test_inputs_are_used_where_they_lie(client: Client, memory: Memory) -> None:
    first, next_, back = (where(client, memory, "where", offset) for offset in (0, 512, 0))
    if memory.device == 0:
        assert (next_ - first, back) == (512, first)
    else:
        assert first == next_ == back  # copied from the other GPU
    # TensorRT asks for 256 bytes: what lies otherwise is copied.
    assert where(client, memory, "where", 4) == where(client, memory, "where", 12) != first or memory.device == 1


def test_graphs_have_inputs_of_their_own(client: Client, memory: Memory) -> None:
    addresses = [where(client, memory, "graphs", offset) for offset in (0, 512, 0, 512, 0)]
    assert len(set(addresses[1:])) == 1


def test_host_and_device_inputs_share_batches(client: Client, memory: Memory) -> None:
    a = np.array([[1, 2, 3, 4]], np.float32)
    memory.write(a.tobytes(), 256)
    for _ in range(3):
        result = client.infer("add", {"A": At("r", 16, 256, "FP32", (1, 4)), "B": a}, {"SUM": {}, "DIFFERENCE": {}})
        assert result.as_numpy("SUM").tolist() == (2 * a).tolist()
        assert result.as_numpy("DIFFERENCE").tolist() == [[0, 0, 0, 0]]


def test_shape_tensors_must_be_the_hosts(client: Client, memory: Memory) -> None:
    memory.write(np.array([2, 2], np.int64).tobytes())
    given = {"IN": np.ones((1, 1), np.float32), "S": At("r", 16, 0, "INT64", (1, 2))}
    if memory.device == 1:  # the server brings it to the host
        assert client.infer("spread", given, {"OUT": {}}).as_numpy("OUT").shape == (1, 2, 2)
        return
    with pytest.raises(InferenceServerException) as caught:
        client.infer("spread", given, {"OUT": {}})
    assert caught.value.message() == "shape tensor for input 'S' must be in single contiguous buffer on CPU"
