"""The same shared memory verbs and requests, in the same order, to this server and to the reference; what differs
stands, with its reason, in docs/shared_memory.md.

Needs TRITON_REFERENCE (see reference.py); without it only the document is checked. The reference has client shared
memory switched on always. Each server has a file of its own: <key> in texts is its key.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conformance import models, reference
from tests.conformance.differences import Known, row
from tests.helpers import raw, shm
from tests.helpers.grpc_channel import Channel
from tests.helpers.server import ServerProcess
from triton_fast import protos

PAGE = 4096
SIZE = 4 * PAGE
TOP = (1 << 64) - 1
FLAGS = ("--model-control-mode=explicit", "--load-model=*")
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "shared_memory.md"
TEXT = struct.pack("<I3sI1s", 3, b"abc", 1, b"x")

NEWER = "2.73 answers so"
NO_FILE = "a key that names no file is told apart"
NO_WRAP = "sums do not wrap"
SECOND = "2.51 maps a file once only"
UNOPENED = "Unable to open shared memory region: '{}'"
BAD_KEY = "cannot register shared memory region 'x' - invalid shm key '{}'"
RESERVED = "triton_python_backend_shm_region_"
FAILED = "failed to register shared memory region 'x': "
TOO_FAR = "Invalid offset + byte size for shared memory region: 'r'"
ANON = "[request id: <id_unknown>] "
MISMATCH = f"{ANON}input byte size mismatch for input 'INPUT0' for model 'id_fp32'. Expected 16, got "


def wraps(byte_size: int, offset: int) -> str:
    return (f"Integer overflow detected: byte_size ({byte_size}) + offset ({offset}) exceeds maximum value ({TOP}) for "
            "region 'r'")  # fmt: skip


def too_small(size: int) -> str:
    return (f"shared memory size specified with the request for output 'OUTPUT0' ({size} bytes) should be at least 16 "
            "bytes to hold the results")  # fmt: skip


KNOWN = {
    "register an empty key": Known(500, UNOPENED.format(""), 400, BAD_KEY.format(""), NO_FILE),
    "register a slash": Known(500, UNOPENED.format("/"), 400, BAD_KEY.format("/"), NO_FILE),
    "register a path": Known(500, UNOPENED.format("/a/b"), 400, BAD_KEY.format("/a/b"), NO_FILE),
    "register a way up": Known(500, UNOPENED.format("/../x"), 400, BAD_KEY.format("/../x"), NO_FILE),
    "register a reserved key": Known(
        500, UNOPENED.format(f"/{RESERVED}1"),
        400, f"cannot register shared memory region 'x' with key '/{RESERVED}1' as the key contains the reserved "
        f"prefix '{RESERVED}'", NEWER,
    ),
    "register from the last byte": Known(
        400, f"{FAILED}unable to process address spaceInvalid argument", 400, f"{FAILED}invalid args", NO_WRAP,
    ),
    "register around the end": Known(
        400, f"{FAILED}unable to process address spaceValue too large for defined data type",
        400, f"{FAILED}invalid args", NO_WRAP,
    ),
    "register the same file again": Known(500, "Invalid shared memory region: '<key>'", 200, "", SECOND),
    "status of two": Known(404, "Unable to find system shared memory region: 'y'", 200, "", SECOND),
    "input without a size": Known(400, TOO_FAR, 400, MISMATCH + "0", NEWER),
    "input of size 0": Known(400, TOO_FAR, 400, MISMATCH + "0", NEWER),
    "input that wraps": Known(400, MISMATCH + str(TOP), 400, wraps(TOP, 8), NEWER),
    "output of size 0": Known(400, TOO_FAR, 500, too_small(0), NEWER),
    "grpc: register an empty key": Known(13, UNOPENED.format(""), 3, BAD_KEY.format(""), NO_FILE),
    "grpc: register CUDA": Known(
        3, "failed to register shared memory region: invalid args",
        3, "failed to register CUDA shared memory region: 'c', GPUs not supported", "2.51 was built for GPUs",
    ),
    "grpc: input of size 0": Known(3, TOO_FAR, 3, MISMATCH + "0", NEWER),
    "grpc: input of a negative size": Known(3, TOO_FAR, 3, wraps(TOP - 7, 8), NEWER),
    "grpc: output of a negative size": Known(3, TOO_FAR, 3, wraps(TOP - 7, 8), NEWER),
}  # fmt: skip


class Side(NamedTuple):
    http: tuple[str, int]
    channel: Channel
    file: shm.File


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Side, Side]]:
    if reference.VARIABLE not in os.environ:
        pytest.skip(f"{reference.VARIABLE} is not set: the path of the reference server")
    base = tmp_path_factory.mktemp("differential")
    ours = models.write(base / "ours")
    for folder in ours.iterdir():
        if folder.name not in {"id_fp32", "id_bytes", "two"}:
            shutil.rmtree(folder)
    theirs = reference.python_models(ours, base / "theirs", ("id_fp32", "id_bytes", "two"))
    with (
        reference.Reference(theirs, base / "log") as other,
        ServerProcess(ours, "--allow-client-shm=true", *FLAGS) as process,
        Channel(process.grpc) as near, Channel(other.grpc) as far,
        shm.File(SIZE) as mine, shm.File(SIZE) as its,
    ):  # fmt: skip
        yield Side(process.http, near, mine), Side(other.http, far, its)


def register(name: str, body: Any, memory: str = "system") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return raw.post(f"/v2/{memory}sharedmemory/region/{name}/register", data)


def at(region: Any = "r", **numbers: Any) -> dict[str, Any]:
    return {"shared_memory_region": region, **{f"shared_memory_{name}": value for name, value in numbers.items()}}


def infer(given: Any, wanted: Any = None, model: str = "id_fp32", kind: str = "FP32", shape: Any = (1, 4),
          **more: Any) -> bytes:  # fmt: skip
    tensor = {"name": "INPUT0", "shape": shape, "datatype": kind}
    parameters = {"parameters": given} if isinstance(given, dict) else {}
    body: dict[str, Any] = {"inputs": [{**tensor, **parameters, **more}]}
    if wanted is not None:
        body["outputs"] = [{"name": "OUTPUT0", "parameters": wanted}]
    return raw.post(raw.infer_path(model), json.dumps(body).encode())


def http_steps(key: str) -> dict[str, bytes]:
    good = at(byte_size=16)
    cuda = {"raw_handle": {"b64": "AAAA"}, "device_id": 0, "byte_size": 8}
    return {
        "status of none": raw.get("/v2/systemsharedmemory/status"),
        "status of an unknown one": raw.get("/v2/systemsharedmemory/region/x/status"),
        "CUDA status of an unknown one": raw.get("/v2/cudasharedmemory/region/x/status"),
        "CUDA status": raw.get("/v2/cudasharedmemory/status"),
        "register without a name": raw.post("/v2/systemsharedmemory/register", b"{}"),
        "register CUDA without a name": raw.post("/v2/cudasharedmemory/register", b"{}"),
        "register nothing": register("x", b""),
        "register without a key": register("x", {"byte_size": 8}),
        "register without a size": register("x", {"key": key}),
        "register a number as key": register("x", {"key": 3, "byte_size": 8}),
        "register a text as size": register("x", {"key": key, "byte_size": "8"}),
        "register a negative size": register("x", {"key": key, "byte_size": -8}),
        "register a fraction": register("x", {"key": key, "byte_size": 8.5}),
        "register a bool": register("x", {"key": key, "byte_size": True}),
        "register a text as offset": register("x", {"key": key, "byte_size": 8, "offset": "8"}),
        "register an unknown file": register("x", {"key": "/nowhere", "byte_size": 8}),
        "register an empty key": register("x", {"key": "", "byte_size": 8}),
        "register a slash": register("x", {"key": "/", "byte_size": 8}),
        "register a path": register("x", {"key": "/a/b", "byte_size": 8}),
        "register a way up": register("x", {"key": "/../x", "byte_size": 8}),
        "register a reserved key": register("x", {"key": f"/{RESERVED}1", "byte_size": 8}),
        "register no bytes": register("x", {"key": key, "byte_size": 0}),
        "register too many": register("x", {"key": key, "byte_size": SIZE + 1}),
        "register past the end": register("x", {"key": key, "byte_size": SIZE, "offset": PAGE}),
        "register between pages": register("x", {"key": key, "byte_size": 8, "offset": 4}),
        "register from 2^63": register("x", {"key": key, "byte_size": 8, "offset": 1 << 63}),
        "register from the last byte": register("x", {"key": key, "byte_size": 100, "offset": TOP}),
        "register around the end": register("x", {"key": key, "byte_size": 8192, "offset": TOP - 4095}),
        "register 2^63 bytes": register("x", {"key": key, "byte_size": 1 << 63}),
        "register 2^64 bytes": register("x", {"key": key, "byte_size": 1 << 64}),
        "register": register("r", {"key": key, "byte_size": SIZE}),
        "register a name again": register("r", {"key": key, "byte_size": 8}),
        "register a name again elsewhere": register("r", {"key": "/nowhere", "byte_size": 8}),
        "status of one": raw.get("/v2/systemsharedmemory/region/r/status"),
        "CUDA status of a system region": raw.get("/v2/cudasharedmemory/region/r/status"),
        "CUDA unregister of a system region": raw.post("/v2/cudasharedmemory/region/r/unregister"),
        "register CUDA nothing": register("c", b"", "cuda"),
        "register CUDA without a handle": register("c", {}, "cuda"),
        "register CUDA without a text": register("c", {**cuda, "raw_handle": {}}, "cuda"),
        "register CUDA without a device": register("c", {k: cuda[k] for k in ("raw_handle", "byte_size")}, "cuda"),
        "register CUDA without a size": register("c", {k: cuda[k] for k in ("raw_handle", "device_id")}, "cuda"),
        "register CUDA with a short handle": register("c", cuda, "cuda"),
        "register CUDA with no base64": register("c", {**cuda, "raw_handle": {"b64": "!"}}, "cuda"),
        "a wrong method": raw.post("/v2/systemsharedmemory/region/r/status"),
        "input": infer(good),
        "input at an offset": infer(at(byte_size=16, offset=8)),
        "input at the end": infer(at(byte_size=16, offset=SIZE - 16)),
        "input past the end": infer(at(byte_size=16, offset=SIZE - 15)),
        "input behind the end": infer(at(byte_size=16, offset=SIZE)),
        "input at 2^63": infer(at(byte_size=16, offset=1 << 63)),
        "input without a size": infer(at()),
        "input of size 0": infer(at(byte_size=0)),
        "input that is too short": infer(at(byte_size=12)),
        "input that is too long": infer(at(byte_size=20)),
        "input that wraps": infer(at(byte_size=TOP, offset=8)),
        "input of a negative offset": infer(at(byte_size=16, offset=-1)),
        "input of an unknown region": infer(at("q", byte_size=16)),
        "input of a region without a name": infer(at("", byte_size=16)),
        "input of a region that is a number": infer(at(4, byte_size=16)),
        "input with data": infer(good, data=[1, 2, 3, 4]),
        "data with a size of shared memory": infer({"shared_memory_byte_size": 3}, data=[1, 2, 3, 4]),
        "texts": infer(at(byte_size=12, offset=PAGE), None, "id_bytes", "BYTES", (1, 2)),
        "texts with a wrong count": infer(at(byte_size=12, offset=PAGE), None, "id_bytes", "BYTES", (1, 3)),
        "texts that are cut": infer(at(byte_size=11, offset=PAGE), None, "id_bytes", "BYTES", (1, 2)),
        "output": infer(good, at(byte_size=16, offset=2 * PAGE)),
        "output with room to spare": infer(good, at(byte_size=64, offset=2 * PAGE)),
        "output of data": infer(None, at(byte_size=16, offset=2 * PAGE), data=[5, 6, 7, 8]),
        "output that is too small": infer(good, at(byte_size=8, offset=2 * PAGE)),
        "output without a size": infer(good, at(offset=2 * PAGE)),
        "output of size 0": infer(good, at(byte_size=0)),
        "output past the end": infer(good, at(byte_size=16, offset=SIZE - 15)),
        "output of an unknown region": infer(good, at("q", byte_size=16)),
        "output classified": infer(good, {**at(byte_size=64), "classification": 2}),
        "output as binary": infer(good, {**at(byte_size=64), "binary_data": True}),
        "output not as binary": infer(good, {**at(byte_size=64, offset=2 * PAGE), "binary_data": False}),
        "output of a region that is a number": infer(good, at(4, byte_size=16)),
        "register the same file again": register("y", {"key": key, "byte_size": PAGE, "offset": PAGE}),
        "status of two": raw.get("/v2/systemsharedmemory/region/y/status"),
        "unregister an unknown one": raw.post("/v2/systemsharedmemory/region/z/unregister"),
        "unregister the second": raw.post("/v2/systemsharedmemory/region/y/unregister", b"no JSON"),
        "unregister": raw.post("/v2/systemsharedmemory/region/r/unregister"),
        "input of a region that is gone": infer(good),
        "unregister all": raw.post("/v2/systemsharedmemory/unregister"),
    }  # fmt: skip


def message(given: dict[str, Any], wanted: dict[str, Any] | None = None) -> Any:
    made = protos.ModelInferRequest(model_name="id_fp32")
    tensor = made.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 4])
    for parameters, values in ((tensor.parameters, given),
                               (made.outputs.add(name="OUTPUT0").parameters, wanted or {})):  # fmt: skip
        for key, value in values.items():
            setattr(parameters[key], "string_param" if isinstance(value, str) else "int64_param", value)
    return made


def grpc_steps(key: str) -> dict[str, tuple[str, Any]]:
    good = at(byte_size=16)
    verb, status = protos.SystemSharedMemoryRegisterRequest, protos.SystemSharedMemoryStatusRequest
    return {
        "register": ("SystemSharedMemoryRegister", verb(name="r", key=key, byte_size=SIZE)),
        "register again": ("SystemSharedMemoryRegister", verb(name="r", key=key, byte_size=SIZE)),
        "register an unknown file": ("SystemSharedMemoryRegister", verb(name="x", key="/nowhere", byte_size=8)),
        "register an empty key": ("SystemSharedMemoryRegister", verb(name="x", byte_size=8)),
        "status": ("SystemSharedMemoryStatus", status()),
        "status of one": ("SystemSharedMemoryStatus", status(name="r")),
        "status of an unknown one": ("SystemSharedMemoryStatus", status(name="x")),
        "CUDA status": ("CudaSharedMemoryStatus", protos.CudaSharedMemoryStatusRequest()),
        "CUDA status of a system region": ("CudaSharedMemoryStatus", protos.CudaSharedMemoryStatusRequest(name="r")),
        "register CUDA": ("CudaSharedMemoryRegister", protos.CudaSharedMemoryRegisterRequest(
            name="c", raw_handle=b"x" * 64, byte_size=8)),
        "unregister CUDA": ("CudaSharedMemoryUnregister", protos.CudaSharedMemoryUnregisterRequest(name="r")),
        "input": ("ModelInfer", message(good)),
        "input behind the end": ("ModelInfer", message(at(byte_size=16, offset=SIZE))),
        "input past the end": ("ModelInfer", message(at(byte_size=16, offset=SIZE - 15))),
        "input of size 0": ("ModelInfer", message(at(byte_size=0))),
        "input that is too short": ("ModelInfer", message(at(byte_size=12))),
        "input of a negative offset": ("ModelInfer", message(at(byte_size=16, offset=-8))),
        "input of a negative size": ("ModelInfer", message(at(byte_size=-8, offset=8))),
        "input without a size": ("ModelInfer", message(at())),
        "input of an unknown region": ("ModelInfer", message(at("q", byte_size=16))),
        "offset without a region": ("ModelInfer", message({"shared_memory_offset": 8})),
        "output": ("ModelInfer", message(good, at(byte_size=16, offset=2 * PAGE))),
        "output that is too small": ("ModelInfer", message(good, at(byte_size=8, offset=2 * PAGE))),
        "output past the end": ("ModelInfer", message(good, at(byte_size=16, offset=SIZE - 15))),
        "output of a negative size": ("ModelInfer", message(good, at(byte_size=-8, offset=8))),
        "output of an unknown region": ("ModelInfer", message(good, at("q", byte_size=16))),
        "output classified": ("ModelInfer", message(good, {**at(byte_size=16), "classification": 2})),
        "unregister": ("SystemSharedMemoryUnregister", protos.SystemSharedMemoryUnregisterRequest()),
    }  # fmt: skip


def prepare(side: Side) -> None:
    side.file.write(struct.pack("<8f", *range(8)) + bytes(SIZE - 32))
    side.file.write(TEXT, PAGE)


def compare(name: str, ours: tuple[int, str, Any], theirs: tuple[int, str, Any]) -> str:
    """What is wrong with a pair of (status, error, content); "" for nothing."""
    known = KNOWN.get(name)
    if known is None:
        return "" if ours == theirs else f"{name}: {ours} != {theirs}"
    if ours[:2] != (known.status, known.text):
        return f"{name}: ours is {ours}"
    return "" if theirs[:2] == (known.reference_status, known.reference) else f"{name}: theirs is {theirs}"


def test_same_answers_over_http(sides: tuple[Side, Side]) -> None:
    found: dict[str, list[tuple[int, str, Any]]] = {}
    for side in sides:
        prepare(side)
        for name, request in http_steps(side.file.key).items():
            side.file.write(bytes(64), 2 * PAGE)
            answer = raw.ask(side.http, request)
            error = answer.error if answer.status != 200 else ""
            content = answer.body.replace(side.file.key.encode(), b"<key>") if not error else b""
            found.setdefault(name, []).append(
                (answer.status, error.replace(side.file.key, "<key>"), (content, side.file.read(64, 2 * PAGE)))
            )
    wrong = list(filter(None, (compare(name, *pair) for name, pair in found.items())))
    assert not wrong, "\n".join(wrong)


def test_same_answers_over_grpc(sides: tuple[Side, Side]) -> None:
    found: dict[str, list[tuple[int, str, Any]]] = {}
    for side in sides:
        prepare(side)
        for name, (verb, request) in grpc_steps(side.file.key).items():
            side.file.write(bytes(64), 2 * PAGE)
            reply = side.channel.infer(request) if verb == "ModelInfer" else side.channel.ask(verb, request)
            shown = [str(one).replace(side.file.key, "<key>") for one in reply.messages]
            found.setdefault(f"grpc: {name}", []).append(
                (reply.status, reply.text.replace(side.file.key, "<key>"), (shown, side.file.read(64, 2 * PAGE)))
            )
    wrong = list(filter(None, (compare(name, *pair) for name, pair in found.items())))
    assert not wrong, "\n".join(wrong)


def test_the_document_lists_the_known_differences() -> None:
    section = DOCUMENT.read_text().partition("## Answers that differ\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if re.match(r"\| (?!Request|---)", line)]
    assert rows == [row(known, name) for name, known in KNOWN.items()]
    assert set(KNOWN) <= {*http_steps(""), *(f"grpc: {name}" for name in grpc_steps(""))}
