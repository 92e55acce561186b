"""The requests that the differential test sends to both servers; the models are those of ``REFERENCE_MODELS``."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from typing import Any

from tests.conformance import http_cases
from tests.conformance.http_cases import binary, infer, inputs, one, tensor, texts, with_binary
from tests.helpers import raw

# What of tests/conformance/models.py the Python backend of the reference can serve too.
REFERENCE_MODELS = (
    "id_fp32", "id_fp64", "id_fp16", "id_int8", "id_bytes", "id_bool", "two", "plain", "labelled", "wide", "text",
    "texts", "half_open", "versions", "optional", "control",
)  # fmt: skip


def fp32_text(data: str, shape: str = "[1,2]", more: str = "") -> bytes:
    body = f'{{"inputs":[{{"name":"INPUT0","datatype":"FP32","shape":{shape},"data":{data}}}]{more}}}'
    return infer("id_fp32", body.encode())


def typed(model: str, datatype: str, data: Any, shape: Any = (1, 2)) -> bytes:
    return infer(model, inputs(tensor(datatype=datatype, shape=list(shape), data=data)))


def wanted(*outputs: dict[str, Any], **parameters: Any) -> bytes:
    return infer("id_fp32", one(outputs=list(outputs), parameters=parameters))


def packed(encoding: str, data: bytes, *headers: str) -> bytes:
    return raw.post(raw.infer_path("id_fp32"), data, f"Content-Encoding: {encoding}", *headers)


BODY = json.dumps(one()).encode()
BOTH = {"parameters": {"binary_data_output": True}, "inputs": [tensor(**binary(8))]}
OUT = {"name": "OUTPUT0"}


def _verbs() -> dict[str, bytes]:
    made = {
        path: raw.get(path)
        for path in (
            "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/two", "/v2/models/two/config",
            "/v2/models/two/ready",
            "/v2/models/versions", "/v2/models/versions/versions/2", "/v2/models/versions/versions/2/config",
            "/v2/models/labelled/config", "/v2/models/plain", "/v2/models/plain/config", "/v2/models/optional/config",
            "/v2/models/id_bytes", "/v2/models/half_open/config", "/v2/models/two/versions/1/ready", "/v2/nothing",
            "/v2/",
            "/v2/models/nobody", "/v2/models/nobody/ready", "/v2/models/nobody/config", "/v2/models/nobody/stats",
            "/v2/models/versions/versions/9", "/v2/models/versions/versions/9/ready",
            "/v2/models/versions/versions/9/config", "/v2/models/versions/versions/9/stats",
            "/v2/models/versions/versions/0/ready", "/v2/models/versions/versions/x", "/v2/models/tw%6f",
            "/v2/models/two?x=1", "/v2/models/two/infer", "/v2/systemsharedmemory/status",
            "/v2/cudasharedmemory/status",
            "/v2/systemsharedmemory/region/r/status", "/v2/cudasharedmemory/region/r/status",
            "/v2/models/versions/versions/" + "9" * 30,
        )
    }  # fmt: skip
    index = "/v2/repository/index"
    control = "/v2/repository/models/control"
    made |= {
        "wrong method": raw.post("/v2/health/live"),
        "index": raw.post(index),
        "index of what is ready": raw.post(index, b'{"ready": true}'),
        "index with a wrong ready": raw.post(index, b'{"ready": 1}'),
        "index with a wrong body": raw.post(index, b"["),
        "index of a repository": raw.post("/v2/repository/r/index"),
        "load": raw.post(f"{control}/load"),
        "load of an unknown model": raw.post("/v2/repository/models/nobody/load"),
        "load in a repository": raw.post("/v2/repository/r/models/control/load"),
        "load with an unknown parameter": raw.post(f"{control}/load", b'{"parameters":{"x":"y"}}'),
        "load with a broken config": raw.post(f"{control}/load", b'{"parameters":{"config":"{"}}'),
        "load with a config of another type": raw.post(f"{control}/load", b'{"parameters":{"config":1}}'),
        "unload of an unknown model": raw.post("/v2/repository/models/nobody/unload"),
        "unload in a repository": raw.post("/v2/repository/r/models/control/unload"),
        "unload with wrong dependents": raw.post(f"{control}/unload", b'{"parameters":{"unload_dependents":1}}'),
    }
    return made


def _infer() -> dict[str, bytes]:
    return {
        "JSON": infer("id_fp32", one()),
        "id and parameters": infer("id_fp32", one(id="a\u00e9", parameters={"a": 1, "b": "x", "c": True, "d": 1.5})),
        "nested data": fp32_text("[[1],[2]]", "[2,1]"),
        "numbers of every form": fp32_text("[1e2,-0.5,0,1E-3,12345678901234567890,0.1]", "[1,6]"),
        "integers in a float tensor": fp32_text("[1,16777217]"),
        "NaN and infinity": fp32_text("[NaN,Infinity,-Infinity,Inf]", "[1,4]"),
        "float overflow": fp32_text("[1e39,1e-50]"),
        "double": typed("id_fp64", "FP64", [0.1, 5e-324]),
        "number past double": fp32_text("[1e400,1]"),
        "narrowing": typed("id_int8", "INT8", [300, -129]),
        "float in an integer tensor": typed("id_int8", "INT8", [1.5, 2]),
        "integers past 64 bits": typed("id_int8", "INT8", [2**64, 1]),
        "boolean": typed("id_bool", "BOOL", [True, False]),
        "number in a boolean tensor": typed("id_bool", "BOOL", [1, 0]),
        "boolean in a float tensor": fp32_text("[true,false]"),
        "text in a float tensor": fp32_text('["1","2"]'),
        "null in a float tensor": fp32_text("[null,1]"),
        "object in a float tensor": fp32_text("[{},1]"),
        "data is no array": fp32_text("1", "[1,1]"),
        "texts": typed("id_bytes", "BYTES", ["", "h\u00e9 \U0001f600 \"\\\n"]),
        "number in a text tensor": typed("id_bytes", "BYTES", [1, 2]),
        "too few texts": typed("id_bytes", "BYTES", ["a"]),
        "too many texts": typed("id_bytes", "BYTES", ["a", "b", "c"]),
        "escapes": infer("id_bytes", b'{"inputs":[{"name":"INPUT0","datatype":"BYTES","shape":[1,1],'
                                     b'"data":["\\u00e9\\ud83d\\ude00\\/\\b\\t"]}]}'),
        "half a surrogate": infer("id_bytes", b'{"inputs":[{"name":"INPUT0","datatype":"BYTES","shape":[1,1],'
                                              b'"data":["\\ud83d"]}]}'),
        "binary texts": with_binary("id_bytes", {
            "parameters": {"binary_data_output": True},
            "inputs": [tensor(datatype="BYTES", **binary(13))]}, texts(b"\xff\x00", b"abc")),
        "empty": fp32_text("[]", "[1,0]"),
        "empty in binary": with_binary("id_fp32", {**BOTH, "inputs": [tensor(shape=[1, 0], **binary(0))]}, b""),
        "binary": with_binary("id_fp32", BOTH, raw.fp32([1, 2])),
        "binary in, JSON out": with_binary("id_fp32", inputs(tensor(**binary(8))), raw.fp32([0.1, 2])),
        "half precision": with_binary("id_fp16", {
            "parameters": {"binary_data_output": True},
            "inputs": [tensor(datatype="FP16", **binary(4))]}, struct.pack("<2e", 0.5, -2)),
        "raw binary": infer("id_fp32", raw.fp32([1, 2, 3]), "Inference-Header-Content-Length: 0"),
        "raw text": infer("text", b"abc", "Inference-Header-Content-Length: 0"),
        "raw with a variable dimension": infer("half_open", raw.fp32([0] * 6), "Inference-Header-Content-Length: 0"),
        "raw of an odd size": infer("id_fp32", b"abc", "Inference-Header-Content-Length: 0"),
        "raw and empty": infer("id_fp32", b"", "Inference-Header-Content-Length: 0"),
        "two outputs": infer("two", inputs(*(tensor(f"INPUT{i}", **http_cases.INT32_INPUT) for i in range(2)))),
        "one of two outputs": infer("two", {
            **inputs(*(tensor(f"INPUT{i}", **http_cases.INT32_INPUT) for i in range(2))),
            "outputs": [{"name": "OUTPUT1"}]}),
        "an output in binary": wanted({**OUT, "parameters": {"binary_data": True}}),
        "named output under binary_data_output": wanted(OUT, binary_data_output=True),
        "JSON output under binary_data_output": wanted({**OUT, "parameters": {"binary_data": False}},
                                                       binary_data_output=True),
        "no outputs named": wanted(binary_data_output=False),
        "classes with labels": infer("labelled", {
            "inputs": [tensor(shape=[2, 4], data=[0.1, 0.5, 0.25, -1, 9, 8, 7, 10])],
            "outputs": [{**OUT, "parameters": {"classification": 2}}]}),
        "classes without labels": wanted({**OUT, "parameters": {"classification": 5}}),
        "classes of integers": infer("id_int8", {"inputs": [tensor(datatype="INT8", shape=[1, 3], data=[3, -1, 7])],
                                                 "outputs": [{**OUT, "parameters": {"classification": 2}}]}),
        "classes in binary": wanted({**OUT, "parameters": {"classification": 1, "binary_data": True}}),
        "no classes": wanted({**OUT, "parameters": {"classification": 0}}),
        "negative classes": wanted({**OUT, "parameters": {"classification": -1}}),
        "version 1": infer("versions", inputs(tensor(datatype="INT32", shape=[1, 1], data=[1])), version="1"),
        "version by policy": infer("versions", inputs(tensor(datatype="INT32", shape=[1, 1], data=[1]))),
        "version 0": infer("versions", one(), version="0"),
        "missing version": infer("versions", one(), version="9"),
        "unknown model": infer("nobody", one()),
        "gzip": packed("gzip", gzip.compress(BODY)),
        "deflate": packed("deflate", zlib.compress(BODY)),
        "identity": packed("identity", BODY),
        "broken gzip": packed("gzip", b"nonsense"),
        "gzip out": infer("id_fp32", one(), "Accept-Encoding: gzip"),
        "deflate out": infer("id_fp32", one(), "Accept-Encoding: gzip;q=0.2, deflate;q=0.9"),
        "no encoding acceptable": infer("id_fp32", one(), "Accept-Encoding: br"),
        "compressed binary": packed(
            "gzip", gzip.compress(json.dumps(BOTH).encode() + raw.fp32([1, 2])),
            f"Inference-Header-Content-Length: {len(json.dumps(BOTH))}", "Accept-Encoding: deflate"),
        "sequence id": infer("id_fp32", one(parameters={"sequence_id": 7, "sequence_start": True})),
        "sequence id of another type": infer("id_fp32", one(parameters={"sequence_id": 1.5})),
        "sequence start of another type": infer("id_fp32", one(parameters={"sequence_start": 1})),
        "priority and timeout": infer("id_fp32", one(parameters={"priority": 1, "timeout": 100000})),
        "parameter that is an object": infer("id_fp32", one(parameters={"x": {}})),
        "parameter that is an array": infer("id_fp32", one(parameters={"x": []})),
        "white space": infer("id_fp32", b" \n\t" + BODY + b" \n"),
        "a member twice": fp32_text("[1,2]", more=',"id":"a","id":"b"'),
        "unknown members": fp32_text("[1,2]", more=',"other":{"deep":[1,{}]}'),
        "names have a case": infer("id_fp32", {"Inputs": [tensor()]}),
        "bytes after the document": infer("id_fp32", BODY + b"x"),
        "a comma too many": fp32_text("[1,2,]"),
        "a comment": fp32_text("[1,2/*x*/]"),
        "a number with a zero in front": fp32_text("[01,2]"),
        "a plus": fp32_text("[+1,2]"),
        "no quote": infer("id_fp32", b'{"inputs'),
        "a tab in a text": fp32_text("[1,2]", more=',"id":"a\tb"'),
        "bytes that are no UTF-8": infer("id_bytes", b'{"inputs":[{"name":"INPUT0","datatype":"BYTES","shape":[1,1],'
                                                     b'"data":["\xff\xfe"]}]}'),
        "an array": infer("id_fp32", b"[]"),
        "a number": infer("id_fp32", b"1"),
        "shape with a text": fp32_text("[1,2]", '["1",2]'),
        "shape with a float": fp32_text("[1,2]", "[1.0,2]"),
        "an input is no object": infer("id_fp32", {"inputs": [1]}),
        "an output is no object": wanted(1),  # type: ignore[arg-type]
        "input parameters are no object": infer("id_fp32", inputs(tensor(parameters=1))),
        "binary size of another type": infer("id_fp32", inputs(tensor(parameters={"binary_data_size": "x"}))),
        "datatype is no text": infer("id_fp32", inputs(tensor(datatype=1))),
        "lower case datatype": infer("id_fp32", inputs(tensor(datatype="fp32"))),
        "optional input left out": infer("optional", {
            "inputs": [tensor("INPUT0", "INT32", [2])], "outputs": [OUT]}),
        "chunked": raw.chunked(raw.infer_path("id_fp32"), [BODY[:10], BODY[10:]]),
        "HTTP/1.0": raw.post(raw.infer_path("id_fp32"), BODY, version="1.0"),
        "content type of another kind": infer("id_fp32", one(), "Content-Type: text/html"),
    }  # fmt: skip


def requests() -> dict[str, bytes]:
    """Name -> request, in the order in which they are sent."""
    made = {**_verbs(), **_infer()}
    for case in http_cases.INFER:
        model = case.request.split(b" ", 2)[1].split(b"/")[3].decode()
        # The reference has no size limits to meet, and no such type.
        if model in REFERENCE_MODELS and "limit" not in case.name:
            made[f"#{case.name}"] = case.request
    return made
