"""SEC-04, shared memory of clients: no number reaches outside a region, no name reaches what is not the client's, and
no client can take the server down by what it does to its own files while they are read and written.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import socket
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import onnx_models, python_models, raw, shm
from tests.helpers.grpc_channel import Channel
from tests.helpers.server import Model, ServerProcess, repository
from tests.helpers.shm_requests import message, numbers_near, place, several
from triton_fast import protos

PAGE = mmap.PAGESIZE
SIZE = 8 * PAGE
THREADS = 24
ROUNDS = 100
CYCLES = 500
ADD = """
max_batch_size: 8
input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [-1] }]
output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [-1] }]
"""
PYTHON = """
class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0",
                pb_utils.get_input_tensor_by_name(r, "INPUT0").as_numpy())]) for r in requests]
"""
# A client that breaks its own region reads one of these, and nothing else.
EXPECTED = (
    "Unable to find shared memory region: 'r'", "Invalid offset for shared memory region: 'r'",
    "Invalid offset + byte size for shared memory region: 'r'", "shared memory region 'r' can not be used any more",
    "string elements for inference input", "incomplete string",
)  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root: Path = repository(tmp_path_factory.mktemp("models"), Model("native"), Model("text", "BYTES"))
    python_models.model_of(root, "python", PYTHON, 'backend: "python"' + ADD)
    (root / "onnx" / "1").mkdir(parents=True)
    config = ADD.replace("[-1]", "[1024]")
    (root / "onnx" / "config.pbtxt").write_text('backend: "onnxruntime" dynamic_batching { }' + config)
    (root / "onnx" / "1" / "model.onnx").write_bytes(onnx_models.identity("FP32", ("batch", 1024)))
    with ServerProcess(root, "--allow-client-shm=true") as process:
        yield process


@pytest.fixture(scope="module")
def channel(served: ServerProcess) -> Iterator[Channel]:
    with Channel(served.grpc) as made:
        yield made


@pytest.fixture(autouse=True)
def regions_go(served: ServerProcess) -> Iterator[None]:
    yield
    assert raw.ask(served.http, raw.post("/v2/systemsharedmemory/unregister")).status == 200
    assert raw.ask(served.http, raw.get("/v2/systemsharedmemory/status")).json() == []


def register(key: str, byte_size: int, offset: int = 0, name: str = "r") -> bytes:
    body = json.dumps({"key": key, "offset": offset, "byte_size": byte_size}).encode()
    return raw.post(f"/v2/systemsharedmemory/region/{name}/register", body)


def unregister(name: str = "r") -> bytes:
    return raw.post(f"/v2/systemsharedmemory/region/{name}/unregister")


def infer(
    model: str, given_: dict[str, Any] | None, wanted: dict[str, Any] | None, count: int, kind: str = "FP32"
) -> bytes:
    tensor: dict[str, Any] = {"name": "INPUT0", "shape": [1, count], "datatype": kind}
    tensor.update({"data": [0.0] * count} if given_ is None else {"parameters": given_})
    output = {"name": "OUTPUT0", **({"parameters": wanted} if wanted else {})}
    return raw.post(raw.infer_path(model), json.dumps({"inputs": [tensor], "outputs": [output]}).encode())


# ---- numbers

number = numbers_near(PAGE, SIZE)


def fits(offset: int, size: int, whole: int) -> bool:
    return offset + size <= whole


@several
@given(offset=number, size=number)
def test_no_number_registers_more_than_the_file(
    served: ServerProcess, channel: Channel, offset: int, size: int
) -> None:
    with shm.File(SIZE) as file:
        good = fits(offset, size, SIZE) and size > 0 and offset % PAGE == 0
        answer = raw.ask(served.http, register(file.key, size, offset))
        assert (answer.status == 200) == good, answer.body
        assert raw.ask(served.http, unregister()).status == 200
        reply = channel.ask(
            "SystemSharedMemoryRegister",
            protos.SystemSharedMemoryRegisterRequest(name="r", key=file.key, offset=offset, byte_size=size),
        )
        assert (reply.status == 0) == good, reply.text
        assert raw.ask(served.http, unregister()).status == 200
        assert shm.named_mappings(file.name, served.process.pid) == 0


@several
@given(numbers=st.tuples(number, number, st.sampled_from([4, PAGE - 4, PAGE, SIZE])), output=st.booleans())
def test_no_number_reaches_outside_a_region(
    served: ServerProcess, channel: Channel, numbers: tuple[int, int, int], output: bool
) -> None:
    offset, size, registered = numbers
    value = struct.pack("<f", 1.5)
    with shm.File(SIZE) as file:
        file.write(value * (SIZE // 4))
        assert raw.ask(served.http, register(file.key, registered)).status == 200
        within = offset < registered and fits(offset, size, registered)
        at = place(size, offset)
        answer = raw.ask(served.http, infer("native", None if output else at, at if output else None, 1))
        if output:
            assert (answer.status == 200) == (within and size >= 4), answer.body
            zeros = file.read(SIZE) != value * (SIZE // 4)
            assert zeros == (answer.status == 200)
            if zeros:
                assert file.read(SIZE) == _with_zeros(value * (SIZE // 4), offset)
        else:
            assert (answer.status == 200) == (within and size == 4), answer.body
        reply = channel.infer(message(at, output))
        assert (reply.status == 0) == (answer.status == 200), (reply.text, answer.body)
        assert raw.ask(served.http, unregister()).status == 200


def _with_zeros(data: bytes, offset: int) -> bytes:
    return data[:offset] + bytes(4) + data[offset + 4 :]


# ---- names


def _is_for_clients(path: Path) -> bool:
    """The rule of docs/shared_memory.md, from what the system says of the file."""
    try:
        info = path.lstat()
    except OSError:
        return False
    if not stat.S_ISREG(info.st_mode) or info.st_nlink != 1 or info.st_size == 0:
        return False
    if path.name.startswith(("sem.", "triton_python_backend_shm_region_")):
        return False
    if info.st_uid == os.geteuid():
        return True
    groups = {os.getegid(), *os.getgroups()}
    needed = 0o060 if info.st_gid in groups else 0o006
    return info.st_mode & needed == needed


def test_every_name_in_dev_shm(served: ServerProcess) -> None:
    mark = f"triton_fast_test_sec04_{os.getpid()}"
    made = [shm.DIRECTORY / name for name in (
        f"{mark}_link", f"{mark}_pipe", f"sem.{mark}", f"triton_python_backend_shm_region_{mark}", f"{mark}_foreign",
        f"{mark}_own", f"{mark}_twice", f"{mark}_again",
    )]  # fmt: skip
    link, pipe, semaphore, reserved, foreign, own, twice, again = made
    server_socket = shm.DIRECTORY / f"{mark}_socket"
    listening = socket.socket(socket.AF_UNIX)
    try:
        link.symlink_to("/etc/hostname")
        os.mkfifo(pipe)
        for path in (semaphore, reserved, foreign, own, twice):
            path.write_bytes(b"x" * PAGE)
            path.chmod(0o600)
        again.hardlink_to(twice)
        listening.bind(str(server_socket))
        if os.geteuid() == 0:
            os.chown(foreign, 12345, 12345)
        tried = 0
        for path in sorted(shm.DIRECTORY.iterdir()):
            expected = _is_for_clients(path)
            try:
                size = path.stat().st_size if expected else 1
            except FileNotFoundError:
                continue  # another's, gone meanwhile
            answer = raw.ask(served.http, register(path.name, size))
            if path in made or path.name.startswith(mark):
                assert (answer.status == 200) == expected, (path, answer.body)
                assert expected == (path == own or (path == foreign and os.geteuid() != 0))
                tried += 1
            elif not expected and path.exists():
                # Others come and go meanwhile, and grow; none that is not for clients may be had.
                assert answer.status != 200 or _is_for_clients(path), (path, answer.body)
            assert raw.ask(served.http, unregister()).status == 200
        assert tried == len(made) + 1
    finally:
        listening.close()
        for path in (*made, server_socket):
            path.unlink(missing_ok=True)


@pytest.mark.parametrize("key", [
    "../etc/passwd", "/../etc/passwd", "./x", "/proc/self/mem", "a/../../etc/passwd", "..", ".", "", "/", "x\0y",
    "%2e%2e/etc/passwd", "..\\etc\\passwd", "x" * 256, "x" * 5000, "\u202e/etc", f"{shm.DIRECTORY}/x",
])  # fmt: skip
def test_keys_that_lead_elsewhere(served: ServerProcess, channel: Channel, key: str) -> None:
    answer = raw.ask(served.http, register(key, 1))
    assert answer.status in {400, 500}
    assert answer.error.startswith(("cannot register shared memory region 'r' - invalid shm key", "Unable to open"))
    reply = channel.ask(
        "SystemSharedMemoryRegister", protos.SystemSharedMemoryRegisterRequest(name="r", key=key, byte_size=1)
    )
    assert reply.status in {3, 13}


def test_the_server_makes_no_names(served: ServerProcess) -> None:
    """Nothing of its own could be registered: its memory for workers has no name."""
    maps = Path(f"/proc/{served.process.pid}/maps").read_text()
    assert f"{shm.DIRECTORY}/" not in maps


# ---- life


def test_cycles_leave_no_descriptor_and_no_mapping(served: ServerProcess) -> None:
    with shm.File(SIZE) as file, raw.Client(served.http) as client:

        def cycle() -> None:
            assert client.ask(register(file.key, SIZE)).status == 200
            assert client.ask(infer("native", place(64, 0), place(64, PAGE), 16)).status == 200
            assert client.ask(unregister()).status == 200

        for _ in range(20):
            cycle()
        before = served.fds(), shm.mappings(served.process.pid)
        for _ in range(CYCLES):
            cycle()
        assert shm.named_mappings(file.name, served.process.pid) == 0
        fds, maps = served.fds(), shm.mappings(served.process.pid)
    assert fds == before[0]
    # The allocator may map a heap of its own meanwhile.
    assert abs(maps - before[1]) <= 4


def test_texts_count_as_memory_of_requests(tmp_path: Path) -> None:
    """Texts are copied out of a region: a region is no way around the limit of what requests may hold."""
    root = repository(tmp_path, Model("text", "BYTES"))
    with (
        shm.File(64 << 20) as file,
        ServerProcess(root, "--allow-client-shm=true", f"--request-memory-limit={16 << 20}") as process,
    ):
        assert raw.ask(process.http, register(file.key, 64 << 20)).status == 200
        process.reset_peak()
        before = process.peak_rss()
        for _ in range(4):
            answer = raw.ask(process.http, infer("text", place(64 << 20, 0), None, 16 << 20, "BYTES"))
            assert (answer.status, answer.error[:46]) == (503, "the request needs more memory than is left (--")
        assert process.peak_rss() - before < 8 << 20


MODELS = {"native": "FP32", "text": "BYTES", "python": "FP32", "onnx": "FP32"}
COUNT = 1024


def _requests(seed: int) -> Iterator[bytes]:
    dice = random.Random(seed)
    for _ in range(ROUNDS):
        model = dice.choice(list(MODELS))
        kind, count = MODELS[model], COUNT
        offsets = [dice.randrange(0, SIZE - PAGE, 4) for _ in range(2)]
        given_ = place(4 * count, offsets[0]) if dice.random() < 0.8 else None
        if kind == "BYTES":
            given_ = place(4 * count, offsets[0])  # all lengths 0, unless another request wrote there
        yield infer(model, given_, place(4 * count, offsets[1]) if dice.random() < 0.8 else None, count, kind)


def _ask(served: ServerProcess, seed: int, wrong: list[Any]) -> None:
    try:
        with raw.Client(served.http) as client:
            for request in _requests(seed):
                answer = client.ask(request)
                if answer.status != 200 and not any(text in answer.error for text in EXPECTED):
                    wrong.append(answer.body)
    except BaseException as error:
        wrong.append(error)


def test_regions_that_come_and_go_and_shrink_under_many_requests(served: ServerProcess) -> None:
    """The file is made smaller and larger, the region taken away and registered again, while every backend reads and
    writes it. What a request gets is an answer or an error of its own; the server and its workers live on."""
    workers = {child.pid for child in served.ps.children(recursive=True)}
    wrong: list[Any] = []
    with shm.File(SIZE) as file, raw.Client(served.http) as control:
        threads = [threading.Thread(target=_ask, args=(served, seed, wrong)) for seed in range(THREADS)]
        for thread in threads:
            thread.start()
        dice = random.Random(7)
        turns = 0
        while any(thread.is_alive() for thread in threads):
            file.resize(SIZE)
            answer = control.ask(register(file.key, SIZE))
            assert answer.status == 200 or "already in manager" in answer.error
            if dice.random() < 0.5:
                file.resize(dice.choice([0, PAGE, PAGE + 7, 3 * PAGE]))
            if dice.random() < 0.7:
                assert control.ask(unregister()).status == 200
            turns += 1
        for thread in threads:
            thread.join()
        assert not wrong, wrong[:3]
        assert turns > 1
        assert control.ask(unregister()).status == 200
        # The last requests' answers are out, so nothing holds the region any more.
        file.resize(SIZE)
        assert control.ask(register(file.key, SIZE)).status == 200
        file.write(struct.pack("<4f", 1, 2, 3, 4))
        answer = control.ask(infer("native", place(16, 0), None, 4))
        assert answer.json()["outputs"][0]["data"] == [1, 2, 3, 4]
    assert served.alive
    assert {child.pid for child in served.ps.children(recursive=True)} == workers
