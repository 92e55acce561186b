"""SEC-16: what the server itself says in parameters, a client cannot: reserved names are refused by every way in.

Beside it: tests/conformance/test_restricted.py, for each name alone. As in Triton the names of gRPC, and the prefix in
JSON, are taken by the letter; headers in any case.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import raw
from tests.helpers.grpc_channel import Channel, infer_request
from tests.helpers.python_models import model_of
from tests.helpers.server import Model, ServerProcess, repository

# Each comes back as the model got it.
ECHO = """
import json
class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor(
            "OUTPUT0", np.array([r.parameters()], dtype=object))]) for r in requests]
"""
CONFIG = """
input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [-1, -1] }]
output [{ name: "OUTPUT0" data_type: TYPE_STRING dims: [1] }]
"""
TEXT = "parameter keys starting with 'triton_' are reserved for Triton usage"
NAMES = ["triton_", "triton_x", "triton_final_response", "triton_grpc_error", "triton_" + "x" * 500, "triton_\u00e9",
         "triton_enable_empty_final_response2"]  # fmt: skip
# Not the prefix: of any use to nobody, and passed on.
OTHERS = ["Triton_x", "TRITON_X", " triton_x", "xtriton_", "triton-x", "triton", "\u0442riton_x"]
HEADERS = ["sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers", "binary_data_output",
           "triton_", "triton_final_response"]  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root: Path = repository(tmp_path_factory.mktemp("reserved"), Model("m"))
    model_of(root, "echo", ECHO, CONFIG)
    pattern = "_|^priority$|^timeout$|^headers$"
    with ServerProcess(
        root, f"--http-header-forward-pattern={pattern}", f"--grpc-header-forward-pattern={pattern}"
    ) as s:
        yield s


def body(model: str, parameters: dict[str, Any], binary: bool) -> bytes:
    if not binary:
        return raw.infer_json(model, [1], parameters=parameters)
    tensor = {"name": "INPUT0", "datatype": "FP32", "shape": [1, 1], "parameters": {"binary_data_size": 4}}
    head = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    return raw.post(raw.infer_path(model), head + raw.fp32([1]), f"Inference-Header-Content-Length: {len(head)}")


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_json(served: ServerProcess, name: str, binary: bool) -> None:
    for value in (1, True, "x", 1.5):
        for parameters in ({name: value}, {"a": 1, name: value}, {name: value, "a": 1}):
            answer = raw.ask(served.http, body("m", parameters, binary))
            assert (answer.status, answer.error) == (400, f"{TEXT} and should not be specified.")


def test_json_escapes_are_read_before(served: ServerProcess) -> None:
    """The name may be spelled by escapes."""
    plain = raw.infer_json("m", [1], parameters={"triton_x": 1}).partition(b"\r\n\r\n")[2]
    for spelled in (b"\\u0074riton_x", b"triton\\u005fx", b"\\u0074\\u0072\\u0069\\u0074\\u006f\\u006e\\u005f"):
        answer = raw.ask(served.http, raw.post("/v2/models/m/infer", plain.replace(b"triton_x", spelled)))
        assert (answer.status, answer.error) == (400, f"{TEXT} and should not be specified.")


@pytest.mark.parametrize("name", NAMES)
def test_grpc(served: ServerProcess, name: str) -> None:
    text = f"{TEXT}. Only the following keys starting with 'triton_' are allowed: triton_enable_empty_final_response"
    with Channel(served.grpc) as channel:
        for value in (1, True, "x", 1.5):
            request = infer_request("m", parameters={"a": 1, name: value})
            assert channel.infer(request).outcome == (3, text)
            reply = channel.stream([request, infer_request("m")])
            assert [message.error_message for message in reply.messages] == [text, ""]


@pytest.mark.parametrize("name", HEADERS)
def test_headers(served: ServerProcess, name: str) -> None:
    for spelled in (name, name.upper(), name.title()):
        text = f"Header '{spelled}' is reserved for Triton usage and cannot be forwarded."
        for more in ((), ("x_before: 1",), (f"{spelled}: 2",)):
            answer = raw.ask(served.http, raw.infer_json("m", [1], *more, f"{spelled}: 1"))
            assert (answer.status, answer.error) == (400, text)
    with Channel(served.grpc) as channel:
        text = f"Header '{name}' is reserved for Triton usage and cannot be forwarded."
        assert channel.infer(infer_request("m"), metadata={name: "1"}).outcome == (3, text)
        assert channel.stream([infer_request("m")], metadata={name: "1"}).outcome == (3, text)


def test_what_is_not_reserved_reaches_the_model(served: ServerProcess) -> None:
    given = dict.fromkeys(OTHERS, "v")
    answer = raw.ask(served.http, raw.infer_json("echo", [1], "x_head: h", parameters=given))
    assert json.loads(raw.values_of(answer)[0]) == {**given, "x_head": "h"}
    with Channel(served.grpc) as channel:
        message = channel.infer(infer_request("echo", parameters=given), metadata={"x_head": "h"}).message
        assert json.loads(message.raw_output_contents[0][4:]) == {**given, "x_head": "h"}


def test_generate_gives_them_no_meaning(served: ServerProcess) -> None:
    """There every name that is no input is a parameter of the model's, as in Triton; the server acts on none."""
    for name in ("sequence_id", "priority", "timeout", "triton_enable_empty_final_response", "triton_final_response"):
        answer = raw.ask(served.http, raw.generate("echo", {"INPUT0": 1.0, "parameters": {name: "v"}}))
        assert answer.status == 200
        assert json.loads(answer.json()["OUTPUT0"]) == {name: "v"}
