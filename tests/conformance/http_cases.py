"""Requests over HTTP with the status and the exact error text that the protocol gives them, as data.

Built for the models of tests/conformance/models.py and a server with an input limit of ``LIMIT`` bytes.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

from tests.helpers import raw

LIMIT = 4194304
NOTE = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each "
    "input shape. If you want to specify the full shape including the batch dim in your input dims config, try setting "
    "max_batch_size to zero. See the model configuration docs for more info on max_batch_size."
)
ANON = "[request id: <id_unknown>] "
SHM_OFF = "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."
RESERVED = "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified."
INPUT_LIMIT = "Use --http-max-input-size to increase the limit."
I64_MAX = 9223372036854775807


@dataclass(frozen=True)
class Case:
    """``error``: the whole text, or its beginning where it ends with an ellipsis; None for an empty body."""

    name: str
    request: bytes
    status: int
    error: str | None


def tensor(name: str = "INPUT0", datatype: Any = "FP32", shape: Any = (1, 2), **more: Any) -> dict[str, Any]:
    """One input; ``data`` [1, 2] unless ``more`` says where the data are."""
    made = {"name": name, "datatype": datatype, "shape": shape, **(more or {"data": [1, 2]})}
    return {key: value for key, value in made.items() if value is not None}


def infer(model: str, value: Any, *headers: str, version: str = "") -> bytes:
    path = f"/v2/models/{model}{f'/versions/{version}' if version else ''}/infer"
    return raw.post(path, value if isinstance(value, bytes) else json.dumps(value).encode(), *headers)


def with_binary(model: str, value: Any, data: bytes, *headers: str, size: str | None = None) -> bytes:
    head = json.dumps(value).encode()
    length = f"Inference-Header-Content-Length: {len(head) if size is None else size}"
    return infer(model, head + data, length, *headers)


def one(**more: Any) -> dict[str, Any]:
    return {"inputs": [tensor()], **more}


def inputs(*tensors: dict[str, Any]) -> dict[str, Any]:
    return {"inputs": list(tensors)}


def two(**more: Any) -> dict[str, Any]:
    return tensor(datatype="INT32", shape=[1, 4], data=[1, 2, 3, 4], **more)


def texts(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def binary(size: int) -> dict[str, Any]:
    return {"parameters": {"binary_data_size": size}}


INT32_INPUT = {"datatype": "INT32", "shape": [1, 4], "data": [1, 2, 3, 4]}

ROUTES = [
    Case("unknown path", raw.get("/v3"), 404, "Not Found"),
    Case("root", raw.get("/"), 404, "Not Found"),
    Case("slash at the end", raw.get("/v2/"), 404, "Not Found"),
    Case("empty model name", raw.get("/v2/models//ready"), 404, "Not Found"),
    Case("unknown kind", raw.get("/v2/models/two/other"), 404, "Not Found"),
    Case("version that is no number", raw.get("/v2/models/two/versions/x/ready"), 404, "Not Found"),
    Case("trace of a version", raw.get("/v2/models/two/versions/1/trace/setting"), 404, "Not Found"),
    Case("no decoding of percent", raw.get("/v2/models/tw%6f"), 404,
         "Request for unknown model: 'tw%6f' is not found"),
    Case("health of an unknown kind", raw.get("/v2/health/dead"), 404, "Not Found"),
    Case("unknown model: ready", raw.get("/v2/models/nobody/ready"), 404,
         "Request for unknown model: 'nobody' is not found"),
    Case("unknown model: metadata", raw.get("/v2/models/nobody"), 404,
         "Request for unknown model: 'nobody' is not found"),
    Case("unknown model: config", raw.get("/v2/models/nobody/config"), 404,
         "Request for unknown model: 'nobody' is not found"),
    Case("unknown model: stats", raw.get("/v2/models/nobody/stats"), 400, "requested model 'nobody' is not available"),
    Case("unknown model: infer", infer("nobody", one()), 404, "Request for unknown model: 'nobody' is not found"),
    Case("unknown version: ready", raw.get("/v2/models/versions/versions/7/ready"), 404,
         "Request for unknown model: 'versions' version 7 is not found"),
    Case("unknown version: metadata", raw.get("/v2/models/versions/versions/7"), 404,
         "Request for unknown model: 'versions' version 7 is not found"),
    Case("unknown version: config", raw.get("/v2/models/versions/versions/7/config"), 404,
         "Request for unknown model: 'versions' version 7 is not found"),
    Case("unknown version: stats", raw.get("/v2/models/versions/versions/7/stats"), 400,
         "requested model version is not available for model 'versions'"),
    Case("unknown version: infer", infer("versions", one(), version="7"), 404,
         "Request for unknown model: 'versions' version 7 is not found"),
    Case("version 0", raw.get("/v2/models/versions/versions/0"), 404,
         "Request for unknown model: 'versions' version 0 is not found"),
    Case("version 0: infer", infer("versions", one(), version="0"), 404,
         "Request for unknown model: 'versions' version 0 is not found"),
    Case("version too large: infer", infer("versions", one(), version="9" * 30), 400,
         f"invalid model version specified '{'9' * 30}' , version should be an integral value > 0"),
    Case("version too large: metadata", raw.get("/v2/models/versions/versions/" + "9" * 30), 400,
         f"invalid model version specified '{'9' * 30}' , version should be an integral value > 0"),
]  # fmt: skip

METHODS = [
    ("/v2", "GET"),
    ("/v2/health/live", "GET"),
    ("/v2/health/ready", "GET"),
    ("/v2/models/two", "GET"),
    ("/v2/models/two/versions/1", "GET"),
    ("/v2/models/two/ready", "GET"),
    ("/v2/models/two/config", "GET"),
    ("/v2/models/two/stats", "GET"),
    ("/v2/models/stats", "GET"),
    ("/v2/models/two/infer", "POST"),
    ("/v2/models/two/versions/1/infer", "POST"),
    ("/v2/models/two/generate", "POST"),
    ("/v2/models/two/generate_stream", "POST"),
    ("/v2/models/two/trace/setting", "GET, POST"),
    ("/v2/trace/setting", "GET, POST"),
    ("/v2/logging", "GET, POST"),
    ("/v2/repository/index", "POST"),
    ("/v2/repository/r/index", "POST"),
    ("/v2/repository/models/two/load", "POST"),
    ("/v2/repository/models/two/unload", "POST"),
    ("/v2/systemsharedmemory/status", "GET"),
    ("/v2/systemsharedmemory/region/r/status", "GET"),
    ("/v2/systemsharedmemory/region/r/register", "POST"),
    ("/v2/systemsharedmemory/unregister", "POST"),
    ("/v2/cudasharedmemory/status", "GET"),
    ("/v2/cudasharedmemory/region/r/register", "POST"),
    ("/v2/cudasharedmemory/region/r/unregister", "POST"),
]

REPOSITORY = [
    Case("ready is no boolean", raw.post("/v2/repository/index", b'{"ready": 1}'), 400,
         "Invalid value for 'ready': expected a boolean"),
    Case("repository in a load", raw.post("/v2/repository/r/models/control/load"), 501,
         "'repository_name' specification is not supported"),
    Case("repository in an unload", raw.post("/v2/repository/r/models/control/unload"), 501,
         "'repository_name' specification is not supported"),
    Case("load of an unknown model", raw.post("/v2/repository/models/nobody/load"), 500,
         "failed to load 'nobody', failed to poll from model repository..."),
    Case("traversal", raw.post("/v2/repository/models/../load"), 400,
         "invalid model name '..', model name must not contain path traversal characters"),
    Case("another parameter", raw.post("/v2/repository/models/control/load", b'{"parameters":{"other":"x"}}'), 500,
         "unexpected error on creating Triton parameter"),
    Case("config is no text", raw.post("/v2/repository/models/control/load", b'{"parameters":{"config":1}}'), 500,
         "Unable to parse 'config': attempt to access JSON non-string as string"),
    Case("config is no JSON", raw.post("/v2/repository/models/control/load", b'{"parameters":{"config":"{"}}'), 400,
         "Invalid config override: ..."),
    Case("dependents is no boolean",
         raw.post("/v2/repository/models/control/unload", b'{"parameters":{"unload_dependents":1}}'), 500,
         "Unable to parse 'unload_dependents': attempt to access JSON non-boolean as boolean"),
    Case("body is no JSON", raw.post("/v2/repository/index", b"{"), 500,
         "failed to parse the request JSON buffer: ..."),
]  # fmt: skip

SHARED_MEMORY = [
    Case(f"{kind} {action}", raw.post(f"/v2/{kind}sharedmemory/region/r/{action}", body), 501, SHM_OFF)
    for kind, action, body in [
        ("system", "register", b'{"key":"/k","offset":0,"byte_size":8}'),
        ("system", "unregister", b""),
        ("cuda", "register", b'{"raw_handle":{"b64":"AA=="},"device_id":0,"byte_size":8}'),
        ("cuda", "unregister", b""),
    ]
] + [
    Case("unregister all", raw.post("/v2/systemsharedmemory/unregister"), 501, SHM_OFF),
    Case("status of an unknown region", raw.get("/v2/systemsharedmemory/region/r/status"), 404,
         "Unable to find system shared memory region: 'r'"),
    Case("status of an unknown cuda region", raw.get("/v2/cudasharedmemory/region/r/status"), 404,
         "Unable to find cuda shared memory region: 'r'"),
]  # fmt: skip

# The numbers are those of the protocol's table of error texts.
INFER = [
    Case("1 header length is no number", with_binary("id_fp32", one(), b"", size="abc"), 400,
         "Unable to parse Inference-Header-Content-Length, got: abc"),
    Case("2 header length too large", with_binary("id_fp32", one(), b"", size="2147483648"), 400,
         "Unable to parse Inference-Header-Content-Length, value is out of range [ -2147483648, 2147483647 ], "
         "got: 2147483648"),
    Case("3 header length past the body", infer("id_fp32", b"{}", "Inference-Header-Content-Length: 3"), 400,
         "inference header size should be in range (0, 2), got: 3"),
    Case("3 negative header length", infer("id_fp32", b"{}", "Inference-Header-Content-Length: -1"), 400,
         "inference header size should be in range (0, 2), got: -1"),
    Case("5 empty document", infer("id_fp32", b""), 500,
         "failed to parse the request JSON buffer: The document is empty. at 0"),
    Case("5 invalid value", infer("id_fp32", b'{"inputs": nope}'), 500,
         "failed to parse the request JSON buffer: Invalid value. at 12"),
    Case("5 no comma", infer("id_fp32", b'{"a": 1 "b": 2}'), 500,
         "failed to parse the request JSON buffer: Missing a comma or '}' after an object member. at 8"),
    Case("6 no inputs", infer("id_fp32", b"{}"), 500,
         "Unable to parse 'inputs': attempt to access non-existing object member 'inputs'"),
    Case("6 inputs is no array", infer("id_fp32", {"inputs": 1}), 500,
         "Unable to parse 'inputs': attempt to access JSON non-array as array"),
    Case("6 no name", infer("id_fp32", inputs({"shape": [1], "datatype": "FP32", "data": [1]})), 500,
         "Unable to parse 'name': attempt to access non-existing object member 'name'"),
    Case("6 name is no text", infer("id_fp32", inputs(tensor(name=1))), 500,
         "Unable to parse 'name': attempt to access JSON non-string as string"),
    Case("6 no datatype", infer("id_fp32", inputs({"name": "INPUT0", "shape": [1, 1], "data": [1]})), 500,
         "Unable to parse 'datatype': attempt to access non-existing object member 'datatype'"),
    Case("6 no shape", infer("id_fp32", inputs({"name": "INPUT0", "datatype": "FP32", "data": [1]})), 500,
         "Unable to parse 'shape': attempt to access non-existing object member 'shape'"),
    Case("6 a negative dimension", infer("id_fp32", inputs(tensor(shape=[1, -2]))), 500,
         "Unable to parse 'shape': attempt to access JSON non-unsigned-integer as unsigned-integer"),
    Case("6 shape is no array", infer("id_fp32", inputs(tensor(shape=4))), 500,
         "Unable to parse 'shape': attempt to access JSON non-array as array"),
    Case("6 id is no text", infer("id_fp32", one(id=1)), 500,
         "Unable to parse 'id': attempt to access JSON non-string as string"),
    Case("6 parameters is no object", infer("id_fp32", one(parameters=[1])), 500,
         "failed to get request params.: attempt to get members for non-object"),
    Case("6 outputs is no array", infer("id_fp32", one(outputs=1)), 500,
         "Unable to parse 'outputs': attempt to access JSON non-array as array"),
    Case("6 output without a name", infer("id_fp32", one(outputs=[{}])), 500,
         "Unable to parse 'name': attempt to access non-existing object member 'name'"),
    Case("6 binary_data is no boolean",
         infer("id_fp32", one(outputs=[{"name": "OUTPUT0", "parameters": {"binary_data": 1}}])), 500,
         "Unable to parse 'binary_data': attempt to access JSON non-boolean as boolean"),
    Case("6 classification is no number",
         infer("id_fp32", one(outputs=[{"name": "OUTPUT0", "parameters": {"classification": "x"}}])), 500,
         "Unable to set 'classification': attempt to access JSON non-unsigned-integer as unsigned-integer"),
    Case("6 priority is no number", infer("id_fp32", one(parameters={"priority": "x"})), 500,
         "Unable to parse 'priority': attempt to access JSON non-unsigned-integer as unsigned-integer"),
    Case("6 timeout is negative", infer("id_fp32", one(parameters={"timeout": -1})), 500,
         "Unable to parse 'timeout': attempt to access JSON non-unsigned-integer as unsigned-integer"),
    Case("6 binary_data_output is no boolean", infer("id_fp32", one(parameters={"binary_data_output": 1})), 500,
         "Unable to parse 'binary_data_output': attempt to access JSON non-boolean as boolean"),
    Case("7 no data", infer("id_fp32", inputs({"name": "INPUT0", "datatype": "FP32", "shape": [1, 2]})), 400,
         "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', "
         "'shared_memory_region' in 'parameters'. But no field is set"),
    Case("7 both", with_binary("id_fp32", inputs(tensor(data=[1, 2], **binary(8))), bytes(8)), 400,
         "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', "
         "'shared_memory_region' in 'parameters'. But set 'data' 'binary_data_size'"),
    Case("8 binary without the header", infer("id_fp32", inputs(tensor(**binary(8)))), 400,
         "must specify valid 'Infer-Header-Content-Length' in request header and 'binary_data_size' when passing "
         "inputs in binary data format"),
    Case("9 too few bytes", with_binary("id_fp32", inputs(tensor(**binary(8))), bytes(5)), 400,
         "unexpected size for input 'INPUT0', expecting 3 additional bytes for model 'id_fp32'"),
    Case("10 too many bytes", with_binary("id_fp32", inputs(tensor(**binary(8))), bytes(9)), 400,
         "unexpected additional input data for model 'id_fp32'"),
    Case("12 region and classification",
         infer("id_fp32", one(outputs=[{"name": "OUTPUT0", "parameters": {
             "shared_memory_region": "r", "shared_memory_byte_size": 8, "classification": 1}}])), 400,
         "Output can't set both 'shared_memory_region' and 'classification'"),
    Case("12 region and binary",
         infer("id_fp32", one(outputs=[{"name": "OUTPUT0", "parameters": {
             "shared_memory_region": "r", "shared_memory_byte_size": 8, "binary_data": True}}])), 400,
         "Output can't set both 'shared_memory_region' and 'binary_data'"),
    Case("13 unknown datatype", infer("id_fp32", inputs(tensor(datatype="FP33"))), 400,
         "invalid datatype for input INPUT0"),
    Case("13 FP16 in JSON", infer("id_fp16", inputs(tensor(datatype="FP16"))), 400,
         "receiving FP16 data via JSON is not supported. Please use the binary data format for input INPUT0"),
    Case("13 BF16 in JSON", infer("id_bf16", inputs(tensor(datatype="BF16"))), 400,
         "receiving BF16 data via JSON is not supported. Please use the binary data format for input INPUT0"),
    Case("13 FP16 out as JSON", with_binary("id_fp16", inputs(tensor(datatype="FP16", **binary(4))), bytes(4)), 400,
         "sending FP16 data via JSON is not supported. Please use the binary data format for output"),
    Case("14 too few elements", infer("id_fp32", inputs(tensor(data=[1]))), 500,
         "Failed to parse 'data' field: shape does not match true shape"),
    Case("14 too many elements", infer("id_fp32", inputs(tensor(data=[1, 2, 3]))), 500,
         "Unable to parse 'data': Shape does not match true shape of 'data' field"),
    Case("14 too deep", infer("id_fp32", b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,1],"data":'
                              + b"[" * 101 + b"1" + b"]" * 101 + b"}]}"), 400,
         "Unable to parse 'data': JSON nesting depth exceeds maximum allowed limit (100)"),
    Case("15 negative dimension", infer("plain", inputs(tensor(shape=[1, 2**64 - 2]))), 400,
         "invalid shape for input 'INPUT0': shape [1,-2] contains one or more invalid dimensions"),
    Case("15 too many elements", infer("wide", inputs(tensor(shape=[4294967296, 4294967296]))), 400,
         "invalid shape for input 'INPUT0': shape [4294967296,4294967296] causes total element count to exceed maximum "
         f"size of {I64_MAX}"),
    Case("15 too many elements in binary",
         with_binary("wide", inputs(tensor(shape=[4294967296, 4294967296], **binary(8))), bytes(8)), 400,
         "invalid shape for input 'INPUT0': shape [4294967296,4294967296] causes total element count to exceed maximum "
         f"size of {I64_MAX}"),
    Case("15 too many bytes", infer("wide", inputs(tensor(shape=[2147483648, 2147483648]))), 400,
         "byte size overflow for input 'INPUT0': element count (4611686018427387904) * data type size (4) exceeds "
         f"maximum allowed size ({I64_MAX})"),
    Case("16 reserved parameter", infer("id_fp32", one(parameters={"triton_x": 1})), 400, RESERVED),
    Case("17 parameter of another type", infer("id_fp32", one(parameters={"p": None})), 400,
         "parameter 'p' has invalid type. It should be either 'int', 'bool', or 'string'."),
    Case("18 long correlation id", infer("id_fp32", one(parameters={"sequence_id": "x" * 129})), 501,
         "string correlation ID cannot be longer than 128 characters"),
    Case("20 raw body past the limit",
         infer("id_fp32", bytes(LIMIT + 4), "Inference-Header-Content-Length: 0"), 400,
         f"Raw input has a byte_size ({LIMIT + 4} bytes) that exceeds the maximum allowed value of {LIMIT} bytes. "
         + INPUT_LIMIT),
    Case("22 nothing to inflate", infer("id_fp32", b"", "Content-Encoding: gzip"), 400, "nothing to be decompressed"),
    Case("22 unknown encoding", infer("id_fp32", one(), "Content-Encoding: br"), 501, "Unsupported compression type"),
    Case("25 class of text",
         infer("id_bytes", {"inputs": [tensor(datatype="BYTES", data=["a", "b"])],
                            "outputs": [{"name": "OUTPUT0", "parameters": {"classification": 1}}]}), 400,
         "class result not available for output due to unsupported type 'BYTES'"),
    Case("25 class of too much",
         with_binary("id_int8", {"inputs": [tensor(datatype="INT8", shape=[1, 1000001], **binary(1000001))],
                                 "outputs": [{"name": "OUTPUT0", "parameters": {"classification": 1}}]},
                     bytes(1000001)), 400, "classification output tensor too large"),
    Case("26 region that is not there",
         infer("id_fp32", inputs(tensor(parameters={"shared_memory_region": "r", "shared_memory_byte_size": 8}))), 404,
         "Unable to find shared memory region: 'r'"),
    Case("26 output region that is not there",
         infer("id_fp32", one(outputs=[{"name": "OUTPUT0", "parameters": {
             "shared_memory_region": "r", "shared_memory_byte_size": 8}}])), 404,
         "Unable to find shared memory region: 'r'"),
    Case("27 an input is missing", infer("two", inputs(tensor(**INT32_INPUT))), 400,
         ANON + "expected 2 inputs but got 1 inputs for model 'two'. Got input(s) ['INPUT0'], but missing required "
         "input(s) ['INPUT1']. Please provide all required input(s)."),
    Case("27 no inputs at all, with an id", infer("two", {"id": "7", "inputs": []}), 400,
         "[request id: 7] expected 2 inputs but got 0 inputs for model 'two'. Got input(s) [], but missing required "
         "input(s) ['INPUT0','INPUT1']. Please provide all required input(s)."),
    Case("28 optional inputs",
         infer("optional", inputs(tensor("INPUT1", "INT32", [2]))), 400,
         ANON + "expected number of inputs between 1 and 2 but got 1 inputs for model 'optional'. Got input(s) "
         "['INPUT1'], but missing required input(s) ['INPUT0']. Please provide all required input(s)."),
    Case("29 unknown input", infer("id_fp32", inputs(tensor("OTHER"))), 400,
         "unexpected inference input 'OTHER' for model 'id_fp32'"),
    Case("29 unknown output", infer("id_fp32", one(outputs=[{"name": "OTHER"}])), 400,
         "unexpected inference output 'OTHER' for model 'id_fp32'"),
    Case("29 input twice", infer("two", inputs(tensor(**INT32_INPUT), tensor(**INT32_INPUT))), 400,
         "input 'INPUT0' already exists in request"),
    Case("29 output twice", infer("id_fp32", one(outputs=[{"name": "OUTPUT0"}, {"name": "OUTPUT0"}])), 400,
         "output 'OUTPUT0' already exists in request"),
    Case("30 datatype", infer("id_fp32", inputs(tensor(datatype="INT32"))), 400,
         ANON + "inference input 'INPUT0' data-type is 'INT32', but model 'id_fp32' expects 'FP32'"),
    Case("31 shape of a batching model", infer("two", inputs(
        tensor("INPUT0", "INT32", [1, 2]), tensor("INPUT1", **INT32_INPUT))), 400,
         ANON + "unexpected shape for input 'INPUT0' for model 'two'. Expected [-1,4], got [1,2]. " + NOTE),
    Case("31 shape without batching", infer("plain", inputs(tensor(shape=[2]))), 400,
         ANON + "unexpected shape for input 'INPUT0' for model 'plain'. Expected [2,2], got [2]. "),
    Case("32 a dimension left open", infer("plain", inputs(tensor(shape=[2, 2**64 - 1], data=[1, 2]))), 400,
         "invalid shape for input 'INPUT0': shape [2,-1] contains one or more invalid dimensions"),
    Case("33 batch too large", infer("id_fp32", inputs(tensor(shape=[9, 1], data=[0] * 9))), 400,
         ANON + "inference request batch-size must be <= 8 for 'id_fp32'"),
    Case("33 batches differ", infer("two", inputs(
        tensor("INPUT0", **INT32_INPUT), tensor("INPUT1", "INT32", [2, 4], data=[0] * 8))), 400,
         ANON + "input 'INPUT1' batch size does not match other inputs for 'two'"),
    Case("33 no shape", infer("id_fp32", inputs(tensor(shape=[], data=[1]))), 400,
         ANON + "input 'INPUT0' has no shape but model requires batch dimension for 'id_fp32'"),
    Case("34 size", with_binary("id_fp32", inputs(tensor(**binary(12))), bytes(12)), 400,
         ANON + "input byte size mismatch for input 'INPUT0' for model 'id_fp32'. Expected 8, got 12"),
    Case("35 too few texts", with_binary("id_bytes", inputs(tensor(datatype="BYTES", **binary(5))), texts(b"a")), 400,
         ANON + "expected 2 string elements for inference input 'INPUT0' for model 'id_bytes', got 1"),
    Case("35 too many texts",
         with_binary("id_bytes", inputs(tensor(datatype="BYTES", **binary(15))), texts(b"a", b"b", b"c")), 400,
         ANON + "unexpected number of string elements 3 for inference input 'INPUT0' for model 'id_bytes', "
         "expecting 2"),
    Case("35 a cut length",
         with_binary("id_bytes", inputs(tensor(datatype="BYTES", **binary(7))), texts(b"a") + b"\x01\x00"), 400,
         ANON + "incomplete string length indicator for inference input 'INPUT0' for model 'id_bytes', expecting 4 "
         "bytes but only 2 bytes available. Please make sure the string length indicator is in one buffer."),
    Case("36 raw: two inputs", infer("two", bytes(16), "Inference-Header-Content-Length: 0"), 400,
         ANON + "Raw request must only have 1 input (found 1) to be deduced but got 2 inputs in 'two' model "
         "configuration"),
    Case("36 raw: shape", infer("wide", bytes(16), "Inference-Header-Content-Length: 0"), 400,
         ANON + "The shape of the raw input 'INPUT0' can not be deduced because there are more than one variable-sized "
         "dimension"),
    Case("36 raw: texts", infer("texts", b"abc", "Inference-Header-Content-Length: 0"), 400,
         ANON + "For BYTE datatype raw input 'INPUT0', the model must have input shape [1]"),
]  # fmt: skip
