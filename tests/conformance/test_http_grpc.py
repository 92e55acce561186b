"""The same requests over HTTP and over gRPC to one server: equal outputs, equal errors. What the protocols word or
decide differently stands in ``DIFFERENT`` with its reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from google.protobuf import json_format

from tests.conformance import both_cases
from tests.conformance.grpc_client import plain
from tests.helpers import raw
from tests.helpers.grpc_channel import Channel, packed, repeat_request
from tests.helpers.server import ServerProcess
from triton_fast import protos
from triton_fast.errors import STATUS

REQUESTS = both_cases.requests()
# HTTP status -> the gRPC statuses of its codes.
STATUSES = {200: {0}} | {
    row.http: {other.grpc for other in STATUS.values() if other.http == row.http} for row in STATUS.values()
}


class Pair(NamedTuple):
    http: ServerProcess
    grpc: Channel


@pytest.fixture(scope="module")
def pair(served: ServerProcess) -> Iterator[Pair]:
    with Channel(served.grpc) as channel:
        yield Pair(served, channel)


class Difference(NamedTuple):
    """Two texts, an empty one for success, and why."""

    http: str
    grpc: str
    why: str


# Why they differ.
JSON = "JSON can say what a message can not"
TYPED = "typed contents have a type, and protobuf converts to it"
ENCODING = "only HTTP has two encodings of a tensor, and parameters that choose"
WORDS = "Triton's words of that protocol"
SIGNED = "a dimension and a time-out are signed in a message, unsigned in JSON"
CLASSES = "Triton's gRPC refuses 0 classes, its HTTP takes it for none"
READ = "HTTP finds it while it reads the JSON, gRPC when the request is checked"
DIFFERENT: dict[str, Difference] = {
    "number past double": Difference(
        "failed to parse the request JSON buffer: Number too big to be stored in double. at 68",
        "",
        JSON,
    ),
    "number in a boolean tensor": Difference(
        "Unable to parse 'data': attempt to access JSON non-boolean as boolean",
        "",
        TYPED,
    ),
    "boolean in a float tensor": Difference(
        "Unable to parse 'data': attempt to access JSON non-number as double",
        "",
        TYPED,
    ),
    "data is no array": Difference(
        "Unable to parse 'data': attempt to access JSON non-array as array",
        "",
        JSON,
    ),
    "no classes": Difference(
        "",
        "invalid value for 'classification' parameter, expected >= 0",
        CLASSES,
    ),
    "negative classes": Difference(
        "Unable to set 'classification': attempt to access JSON non-unsigned-integer as unsigned-integer",
        "invalid value for 'classification' parameter, expected >= 0",
        WORDS,
    ),
    "sequence id of another type": Difference(
        "Unable to parse 'sequence_id': attempt to access JSON non-string as string",
        "invalid value type for 'sequence_id' parameter, expected int64_param or string_param.",
        WORDS,
    ),
    "sequence start of another type": Difference(
        "Unable to parse 'sequence_start': attempt to access JSON non-boolean as boolean",
        "invalid value type for 'sequence_start' parameter, expected bool_param.",
        WORDS,
    ),
    "#6 a negative dimension": Difference(
        "Unable to parse 'shape': attempt to access JSON non-unsigned-integer as unsigned-integer",
        "invalid shape for input 'INPUT0': shape [1,-2] contains one or more invalid dimensions",
        SIGNED,
    ),
    "#6 binary_data is no boolean": Difference(
        "Unable to parse 'binary_data': attempt to access JSON non-boolean as boolean",
        "",
        ENCODING,
    ),
    "#6 classification is no number": Difference(
        "Unable to set 'classification': attempt to access JSON non-unsigned-integer as unsigned-integer",
        "invalid value type for 'classification' parameter, expected int64_param",
        WORDS,
    ),
    "#6 priority is no number": Difference(
        "Unable to parse 'priority': attempt to access JSON non-unsigned-integer as unsigned-integer",
        "invalid value type for 'priority' parameter, expected int64_param or uint64_param.",
        WORDS,
    ),
    "#6 timeout is negative": Difference(
        "Unable to parse 'timeout': attempt to access JSON non-unsigned-integer as unsigned-integer",
        "",
        SIGNED,
    ),
    "#6 binary_data_output is no boolean": Difference(
        "Unable to parse 'binary_data_output': attempt to access JSON non-boolean as boolean",
        "",
        ENCODING,
    ),
    "#7 no data": Difference(
        "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', "
        "'shared_memory_region' in 'parameters'. But no field is set",
        "unable to find data for input tensor 'INPUT0' for model 'id_fp32' in request.",
        WORDS,
    ),
    "#7 both": Difference(
        "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', "
        "'shared_memory_region' in 'parameters'. But set 'data' 'binary_data_size'",
        "",
        ENCODING,
    ),
    "#12 region and classification": Difference(
        "Output can't set both 'shared_memory_region' and 'classification'",
        "output can't set both 'shared_memory_region' and 'classification'",
        WORDS,
    ),
    "#12 region and binary": Difference(
        "Output can't set both 'shared_memory_region' and 'binary_data'",
        "Unable to find shared memory region: 'r'",
        ENCODING,
    ),
    "#13 FP16 out as JSON": Difference(
        "sending FP16 data via JSON is not supported. Please use the binary data format for output",
        "",
        ENCODING,
    ),
    "#14 too few elements": Difference(
        "Failed to parse 'data' field: shape does not match true shape",
        "[request id: <id_unknown>] input byte size mismatch for input 'INPUT0' for model 'id_fp32'. Expected"
        " 8, got 4",
        READ,
    ),
    "#14 too many elements": Difference(
        "Unable to parse 'data': Shape does not match true shape of 'data' field",
        "[request id: <id_unknown>] input byte size mismatch for input 'INPUT0' for model 'id_fp32'. Expected"
        " 8, got 12",
        READ,
    ),
    "#14 too deep": Difference(
        "Unable to parse 'data': JSON nesting depth exceeds maximum allowed limit (100)",
        "",
        JSON,
    ),
    "#15 negative dimension": Difference(
        "invalid shape for input 'INPUT0': shape [1,-2] contains one or more invalid dimensions",
        "[request id: <id_unknown>] unexpected shape for input 'INPUT0' for model 'plain'. Expected [2,2], "
        "got [1,-2]. ",
        READ,
    ),
    "#16 reserved parameter": Difference(
        "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified.",
        "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys "
        "starting with 'triton_' are allowed: triton_enable_empty_final_response",
        WORDS,
    ),
    "#29 input twice": Difference(
        "input 'INPUT0' already exists in request",
        "[request id: <id_unknown>] input 'INPUT0' already exists in request",
        READ,
    ),
    "#29 output twice": Difference(
        "output 'OUTPUT0' already exists in request",
        "[request id: <id_unknown>] output 'OUTPUT0' already exists in request",
        READ,
    ),
    "#32 a dimension left open": Difference(
        "invalid shape for input 'INPUT0': shape [2,-1] contains one or more invalid dimensions",
        "[request id: <id_unknown>] All input dimensions should be specified for input 'INPUT0' for model "
        "'plain', got [2,-1]",
        READ,
    ),
}  # fmt: skip


def outputs_of_http(answer: raw.Answer) -> Any:
    """Everything an infer response says, the data as bytes."""
    size = int(answer.headers.get("inference-header-content-length", len(answer.body)))
    value, rest = json.loads(answer.body[:size]), answer.body[size:]
    outputs = []
    for one in value["outputs"]:
        if "data" in one:
            data = one["data"]
            if one["datatype"] == "BYTES":
                data = [text.encode() for text in data]
            made = packed(data, one["datatype"])
        else:
            n = one["parameters"]["binary_data_size"]
            made, rest = rest[:n], rest[n:]
        outputs.append((one["name"], one["datatype"], one["shape"], made))
    assert rest == b""
    return value["model_name"], value["model_version"], value.get("id", ""), outputs


def outputs_of_grpc(message: Any) -> Any:
    outputs = [
        (one.name, one.datatype, list(one.shape), data)
        for one, data in zip(message.outputs, message.raw_output_contents, strict=True)
    ]
    return message.model_name, message.model_version, message.id, outputs


def test_there_are_many() -> None:
    assert len(REQUESTS) >= 200
    assert set(DIFFERENT) <= set(REQUESTS)


@pytest.mark.parametrize("name", REQUESTS)
def test_infer(pair: Pair, name: str) -> None:
    request, message = REQUESTS[name]
    over_http, over_grpc = raw.ask(pair.http.http, request), pair.grpc.infer(message)
    text = "" if over_http.status == 200 else over_http.error
    if name in DIFFERENT:
        known = DIFFERENT[name]
        assert (text, over_grpc.text) == (known.http, known.grpc)
        return
    assert over_grpc.text == text
    assert over_grpc.status in STATUSES[over_http.status]
    if over_http.status == 200:
        assert outputs_of_grpc(over_grpc.message) == outputs_of_http(over_http)
    # A stream says the same, without the status.
    stream = pair.grpc.stream([message])
    assert stream.outcome == (0, "")
    (one,) = stream.messages
    assert one.error_message == text
    if not text:
        assert outputs_of_grpc(one.infer_response) == outputs_of_http(over_http)


# ---- verbs


def _verb(name: str, /, **fields: Any) -> tuple[str, Any]:
    return name, getattr(protos, f"{name}Request")(**fields)


INDEX = "/v2/repository/index"
CONTROL = "/v2/repository/models/control"
VERBS: dict[str, tuple[bytes, tuple[str, Any]]] = {
    "metadata": (raw.get("/v2"), _verb("ServerMetadata")),
    "live": (raw.get("/v2/health/live"), _verb("ServerLive")),
    "ready": (raw.get("/v2/health/ready"), _verb("ServerReady")),
    "index": (raw.post(INDEX), _verb("RepositoryIndex")),
    "index of what is ready": (raw.post(INDEX, b'{"ready": true}'), _verb("RepositoryIndex", ready=True)),
    "load in a repository": (raw.post("/v2/repository/r/models/control/load"),
                             _verb("RepositoryModelLoad", repository_name="r", model_name="control")),
    "unload in a repository": (raw.post("/v2/repository/r/models/control/unload"),
                               _verb("RepositoryModelUnload", repository_name="r", model_name="control")),
    "load": (raw.post(f"{CONTROL}/load"), _verb("RepositoryModelLoad", model_name="control")),
    "load of an unknown model": (raw.post("/v2/repository/models/nobody/load"),
                                 _verb("RepositoryModelLoad", model_name="nobody")),
    "unload of an unknown model": (raw.post("/v2/repository/models/nobody/unload"),
                                   _verb("RepositoryModelUnload", model_name="nobody")),
    "broken override": (raw.post(f"{CONTROL}/load", b'{"parameters":{"config":"{"}}'),
                        _verb("RepositoryModelLoad", model_name="control",
                              parameters={"config": {"string_param": "{"}})),
    "statistics of an unknown model": (raw.get("/v2/models/nobody/stats"), _verb("ModelStatistics", name="nobody")),
    "statistics of an unknown version": (raw.get("/v2/models/versions/versions/9/stats"),
                                         _verb("ModelStatistics", name="versions", version="9")),
    "regions": (raw.get("/v2/systemsharedmemory/status"), _verb("SystemSharedMemoryStatus")),
    "an unknown region": (raw.get("/v2/systemsharedmemory/region/r/status"),
                          _verb("SystemSharedMemoryStatus", name="r")),
    "an unknown CUDA region": (raw.get("/v2/cudasharedmemory/region/r/status"),
                               _verb("CudaSharedMemoryStatus", name="r")),
    "registering a region": (raw.post("/v2/systemsharedmemory/region/r/register", b'{"key":"/k","byte_size":8}'),
                             _verb("SystemSharedMemoryRegister", name="r", key="/k", byte_size=8)),
    "unregistering": (raw.post("/v2/cudasharedmemory/unregister"), _verb("CudaSharedMemoryUnregister")),
    **{
        f"{name} of {model} {version}": (
            raw.get(f"/v2/models/{model}{f'/versions/{version}' if version else ''}{path}"),
            _verb(f"Model{name}", name=model, version=version),
        )
        for name, path in (("Metadata", ""), ("Config", "/config"), ("Ready", "/ready"))
        for model, version in (
            ("two", ""), ("two", "1"), ("versions", ""), ("versions", "2"), ("versions", "9"), ("versions", "0"),
            ("labelled", ""), ("optional", ""), ("repeat", ""), ("id_bf16", ""), ("plain", ""), ("nobody", ""),
        )
    },
}  # fmt: skip
# HTTP answers with a status and no body; what the message then says.
SAYS = {"live": {"live": True}, "ready": {"ready": True}}


@pytest.mark.parametrize("name", VERBS)
def test_verb(pair: Pair, name: str) -> None:
    request, (verb, message) = VERBS[name]
    over_http, over_grpc = raw.ask(pair.http.http, request), pair.grpc.ask(verb, message)
    if over_http.status != 200:
        assert over_grpc.text == over_http.error
        assert over_grpc.status in STATUSES[over_http.status]
        return
    found = plain(over_grpc.message)
    if not over_http.body:
        assert found == ({"ready": True} if name.startswith("Ready") else SAYS.get(name, {}))
    elif verb == "RepositoryIndex":
        assert [{key: value for key, value in row.items() if value} for row in found["models"]] == over_http.json()
    elif verb == "SystemSharedMemoryStatus":
        assert (found, over_http.json()) == ({"regions": {}}, [])
    elif verb == "ModelConfig":
        assert _full(over_http.json()) == found["config"]
    else:
        assert found == over_http.json()


def _full(config: Any) -> Any:
    """A config read back from JSON: int64 and enums may be spelled in several ways there."""
    return plain(json_format.ParseDict(config, protos.ModelConfig()))


def test_decoupled_models_are_for_streams(pair: Pair) -> None:
    message = repeat_request([1])
    body = json.dumps({"inputs": [
        {"name": name, "datatype": datatype, "shape": [1], "data": [1]}
        for name, datatype in (("IN", "INT32"), ("DELAY", "UINT32"), ("WAIT", "UINT32"))
    ]})  # fmt: skip
    over_http = raw.ask(pair.http.http, raw.post(raw.infer_path("repeat"), body.encode()))
    over_grpc = pair.grpc.infer(message)
    rest = "doesn't support models with decoupled transaction policy"
    assert (over_http.status, over_http.error) == (501, f"HTTP end point {rest}")
    assert over_grpc.outcome == (12, f"ModelInfer RPC {rest}")


def test_the_index_of_a_repository_is_refused_over_grpc_only(pair: Pair) -> None:
    """As Triton has it."""
    assert raw.ask(pair.http.http, raw.post("/v2/repository/r/index")).status == 200
    verb, message = _verb("RepositoryIndex", repository_name="r")
    assert pair.grpc.ask(verb, message).outcome == (12, "'repository_name' specification is not supported")
