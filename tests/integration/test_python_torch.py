"""PyTorch in a Python model: tensors go to it and come back through DLPack without a copy, BF16 and FP16 included.

Needs PyTorch: in the environment of the tests, or in a venv that TF_TORCH_ENV names.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator

import numpy as np
import pytest

from tests.helpers import python_models, raw
from tests.helpers.server import ServerProcess

ENVIRONMENT = os.environ.get("TF_TORCH_ENV", "")
if not ENVIRONMENT and importlib.util.find_spec("torch") is None:
    pytest.skip("PyTorch is not installed, and TF_TORCH_ENV names no venv with it", allow_module_level=True)

# Triton's name, Python's for the bytes of one element of 1 and of 2.
TYPES = {
    "BOOL": (b"\1", b"\1"), "UINT8": (b"\1", b"\2"), "INT8": (b"\1", b"\2"), "INT16": (b"\1\0", b"\2\0"),
    "INT32": (b"\1\0\0\0", b"\2\0\0\0"), "INT64": (b"\1" + bytes(7), b"\2" + bytes(7)), "FP16": (b"\0\x3c", b"\0\x40"),
    "BF16": (b"\x80\x3f", b"\0\x40"), "FP32": (b"\0\0\x80\x3f", b"\0\0\0\x40"),
    "FP64": (bytes(6) + b"\xf0\x3f", bytes(7) + b"\x40"),
}  # fmt: skip
CODE = """
import gc
import json

import torch


def through(tensor, how):
    return torch.from_dlpack(tensor) if how == "object" else torch.utils.dlpack.from_dlpack(tensor.to_dlpack())


def refused():
    sources = (torch.ones(3, 4).T, torch.ones(3, requires_grad=True), torch.ones(2, dtype=torch.complex64))
    found = []
    for source in sources:
        try:
            found.append(str(pb_utils.Tensor.from_dlpack("OUT", source).shape()))
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


def address(tensor):
    # BF16 is none of numpy's types.
    bits = tensor._raw() if tensor.triton_dtype() == 14 else tensor.as_numpy()
    return bits.__array_interface__["data"][0]


class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            how = json.loads(request.parameters())["how"]
            if how == "refused":
                facts = pb_utils.Tensor("FACTS", np.array([refused()], dtype=object))
                answers.append(pb_utils.InferenceResponse([facts]))
                continue
            [given] = request.inputs()
            name = given.name().replace("IN_", "OUT_")
            array = through(given, how)
            shares = array.numel() == 0 or array.data_ptr() == address(given)
            del given, request
            gc.collect()
            made = array | array if array.dtype is torch.bool else array + array
            if how == "part":
                made = torch.cat([made, made])[len(made):]
            out = pb_utils.Tensor.from_dlpack(name, torch.utils.dlpack.to_dlpack(made) if how == "capsule" else made)
            same = made.numel() == 0 or made.data_ptr() == address(out)
            del made, array
            gc.collect()
            facts = np.array([[str(shares), str(same)]], dtype=object)
            answers.append(pb_utils.InferenceResponse([out, pb_utils.Tensor("FACTS", facts)]))
        return answers
"""


def config() -> str:
    """One model for all types: importing PyTorch takes long."""
    inputs = [f'{{ name: "IN_{kind}" data_type: TYPE_{kind} dims: [-1] optional: true }}' for kind in TYPES]
    outputs = [f'{{ name: "OUT_{kind}" data_type: TYPE_{kind} dims: [-1] }}' for kind in TYPES]
    given = f'parameters {{ key: "EXECUTION_ENV_PATH" value {{ string_value: "{ENVIRONMENT}" }} }}'
    return (
        f'backend: "python" max_batch_size: 8 input [{", ".join(inputs)}] output [{", ".join(outputs)}, '
        f'{{ name: "FACTS" data_type: TYPE_STRING dims: [-1] }}] {given if ENVIRONMENT else ""}'
    )


@pytest.fixture(scope="module", params=["yes", "no"], ids=["compiled", "pure"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("torch")
    python_models.model_of(root, "torch", CODE, config())
    client = f"--backend-config=python,native-client={request.param}"
    with ServerProcess(root, "--disable-auto-complete-config", client) as process:
        yield process


def ask(server: ServerProcess, kind: str, shape: list[int], data: bytes, how: str) -> tuple[bytes, list[str]]:
    tensor = {"name": f"IN_{kind}", "datatype": kind, "shape": shape, "parameters": {"binary_data_size": len(data)}}
    outputs = [{"name": f"OUT_{kind}", "parameters": {"binary_data": True}}, {"name": "FACTS"}]
    head = json.dumps({"inputs": [tensor], "outputs": outputs, "parameters": {"how": how}}).encode()
    length = f"Inference-Header-Content-Length: {len(head)}"
    answer = raw.ask(server.http, raw.post(raw.infer_path("torch"), head + data, length))
    assert answer.status == 200, answer.error
    size = int(answer.headers.get("inference-header-content-length", len(answer.body)))
    found = {one["name"]: one for one in json.loads(answer.body[:size])["outputs"]}
    assert f"OUT_{kind}" not in found or found[f"OUT_{kind}"]["shape"] == shape
    return answer.body[size:], found["FACTS"]["data"]


@pytest.mark.parametrize("how", ["object", "capsule", "part"])
@pytest.mark.parametrize("kind", TYPES)
def test_a_tensor_goes_and_comes_back(server: ServerProcess, kind: str, how: str) -> None:
    one, two = TYPES[kind]
    for shape in ([1, 1], [2, 3], [8, 100_000], [1, 0]):
        count = int(np.prod(shape))
        data, facts = ask(server, kind, shape, one * count, how)
        assert data == two * count
        assert facts == ["True", "True"]


def test_what_can_not_be_taken_is_said(server: ServerProcess) -> None:
    _, (turned, learns, numbers) = ask(server, "INT32", [1, 1], bytes(4), "refused")
    assert "DLPack tensor is not contiguous" in turned
    assert learns.startswith(("BufferError: ", "RuntimeError: "))
    assert "Dtype is invalid" in numbers
