"""The same requests to this server and to the reference; what differs stands, with its reason, in differences.py.

Needs TRITON_REFERENCE (see reference.py); without it only the document is checked.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conformance import differences, differential_cases, models, reference
from tests.helpers import onnx_models, raw
from tests.helpers.server import ServerProcess

FLAGS = ("--model-control-mode=explicit", "--load-model=*")
REQUESTS = {
    name: request for name, request in differential_cases.requests().items()
    if not name.startswith(differences.FATAL)
}  # fmt: skip
# What an identity model and a Python model with the same config must differ in.
OF_THE_BACKEND = ("platform", "backend", "default_model_filename")
ADD = """
import triton_python_backend_utils as utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        a, b = (utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("INPUT0", "INPUT1"))
        made = {"OUTPUT0": a + b, "OUTPUT1": a - b}
        wanted = request.requested_output_names()
        return utils.InferenceResponse([utils.Tensor(name, made[name]) for name in made if name in wanted])
"""
ADD_CONFIG = """
max_batch_size: 8
input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [16] }, { name: "INPUT1" data_type: TYPE_FP32 dims: [16] }]
output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [16] }, { name: "OUTPUT1" data_type: TYPE_FP32 dims: [16] }]
instance_group [{ count: 1 kind: KIND_CPU }]
"""


class Pair(NamedTuple):
    ours: tuple[str, int]
    theirs: tuple[str, int]


def write_add(root: Path, config: str, filename: str, content: bytes) -> None:
    (root / "add_sub" / "1").mkdir(parents=True)
    (root / "add_sub" / "config.pbtxt").write_text(config + ADD_CONFIG)
    (root / "add_sub" / "1" / filename).write_bytes(content)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    if reference.VARIABLE not in os.environ:
        pytest.skip(f"{reference.VARIABLE} is not set: the path of the reference server")
    base = tmp_path_factory.mktemp("differential")
    ours = models.write(base / "ours")
    for folder in ours.iterdir():
        if folder.name not in differential_cases.REFERENCE_MODELS:
            shutil.rmtree(folder)
    theirs = reference.python_models(ours, base / "theirs", differential_cases.REFERENCE_MODELS)
    write_add(ours, 'backend: "onnxruntime"', "model.onnx", onnx_models.add_sub("FP32"))
    write_add(theirs, 'backend: "python"', "model.py", ADD.encode())
    with reference.Reference(theirs, base / "log") as other, ServerProcess(ours, *FLAGS) as process:
        yield Pair(process.http, other.http)


def parts(answer: raw.Answer) -> tuple[Any, bytes]:
    """JSON (floats as float32, without what the backend decides) and binary data of an answer."""
    size = int(answer.headers.get("inference-header-content-length", len(answer.body)))
    head = answer.body[:size]
    if not head or "content-encoding" in answer.headers:
        return None, answer.body
    return comparable(json.loads(head.decode("utf-8", "surrogateescape"))), answer.body[size:]


def comparable(value: Any) -> Any:
    if isinstance(value, float) and abs(value) < 3.5e38:
        return struct.pack("<f", value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items() if key not in OF_THE_BACKEND}
    return [comparable(item) for item in value] if isinstance(value, list) else value


def error(answer: raw.Answer) -> str:
    return answer.error if answer.status != 200 else ""


@pytest.mark.parametrize("name", REQUESTS)
def test_same_answer(pair: Pair, name: str) -> None:
    ours, theirs = (raw.ask(address, REQUESTS[name]) for address in pair)
    if name in differences.KNOWN:
        known = differences.KNOWN[name]
        assert (ours.status, error(ours)) == (known.status, known.text)
        assert (theirs.status, error(theirs)) == (known.reference_status, known.reference)
        assert (ours.status, ours.body) != (theirs.status, theirs.body), "this is no difference any more"
        return
    assert (ours.status, error(ours)) == (theirs.status, error(theirs))
    if name == "/v2":
        assert {**ours.json(), "version": ""} == {**theirs.json(), "version": ""}
        return
    if name in ("gzip out", "deflate out", "compressed binary"):
        assert ours.headers["content-encoding"] == theirs.headers["content-encoding"]
        return
    assert ours.headers.get("content-encoding") == theirs.headers.get("content-encoding")
    assert ours.headers.get("accept-encoding") == theirs.headers.get("accept-encoding")
    if ours.status == 200 and ours.body:
        assert ours.headers["content-type"] == theirs.headers["content-type"]
    assert parts(ours) == parts(theirs)


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("outputs", [["OUTPUT0", "OUTPUT1"], ["OUTPUT1"]])
def test_onnx_and_python_compute_the_same(pair: Pair, batch: int, binary: bool, outputs: list[str]) -> None:
    values = [[k * 0.37 - 3 for k in range(batch * 16)], [5 - k * 0.11 for k in range(batch * 16)]]
    tensors: list[dict[str, Any]] = []
    for i in range(2):
        data = {"parameters": {"binary_data_size": batch * 64}} if binary else {"data": values[i]}
        tensors.append({"name": f"INPUT{i}", "datatype": "FP32", "shape": [batch, 16], **data})
    wanted = [{"name": name, "parameters": {"binary_data": binary}} for name in outputs]
    head = json.dumps({"inputs": tensors, "outputs": wanted}).encode()
    body = head + (raw.fp32(values[0]) + raw.fp32(values[1]) if binary else b"")
    request = raw.post(raw.infer_path("add_sub"), body, f"Inference-Header-Content-Length: {len(head)}")
    ours, theirs = (raw.ask(address, request) for address in pair)
    assert ours.status == theirs.status == 200
    assert parts(ours) == parts(theirs)


@pytest.mark.parametrize("path", ["/v2/models/add_sub", "/v2/models/add_sub/config"])
def test_onnx_and_python_config(pair: Pair, path: str) -> None:
    ours, theirs = (raw.ask(address, raw.get(path)).json() for address in pair)
    # The platform follows from the backend; dynamic batching is what the ONNX Runtime backend adds.
    assert ours.pop("platform") == "onnxruntime_onnx"
    ours.pop("dynamic_batching", None)
    theirs.pop("platform")
    assert comparable(ours) == comparable(theirs)


def test_statistics_have_the_same_shape(pair: Pair) -> None:
    def shape(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shape(item) for key, item in value.items()}
        return [shape(item) for item in value] if isinstance(value, list) else type(value).__name__

    for address in pair:
        assert raw.ask(address, raw.infer_json("id_fp32", [1])).status == 200
    ours, theirs = (raw.ask(address, raw.get("/v2/models/id_fp32/stats")).json()["model_stats"] for address in pair)
    assert [list(row) for row in ours] == [list(row) for row in theirs]
    assert shape(ours) == shape(theirs)


def test_the_document_lists_the_known_differences() -> None:
    rows = differences.documented("Answers that differ over HTTP")
    assert rows == [differences.row(known, name) for name, known in differences.KNOWN.items()]
    assert set(differences.KNOWN) <= set(REQUESTS)
