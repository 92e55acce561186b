"""The same infer request for both protocols: read from the HTTP cases, or made here, and written as ModelInferRequest.

An HTTP case whose subject is JSON, a header or an encoding has no counterpart; ``translated`` says None to it.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tests.conformance import differential_cases, http_cases, models
from tests.conformance.http_cases import infer, inputs, tensor, with_binary
from tests.helpers.grpc_channel import packed
from tests.helpers.pb import TYPED, elements
from triton_fast import protos

SIZES = {"BOOL": 1, "UINT8": 1, "INT8": 1, "UINT16": 2, "INT16": 2, "FP16": 2, "BF16": 2, "UINT32": 4, "INT32": 4,
         "FP32": 4, "UINT64": 8, "INT64": 8, "FP64": 8}  # fmt: skip
# Headers that change what an HTTP request means; none has a counterpart in a message.
ENCODING = ("content-encoding", "accept-encoding", "transfer-encoding", "expect")
INT64 = range(-(2**63), 2**63)


def translated(request: bytes) -> Any:
    """An HTTP infer request as ModelInferRequest: JSON data as typed contents, binary data raw. None: it has none."""
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    parts = path.partition("?")[0].split("/")
    if method != "POST" or not re.fullmatch(r"/v2/models/[^/]+(/versions/[^/]+)?/infer", path):
        return None
    if set(headers) & set(ENCODING):
        return None
    length = headers.get("inference-header-content-length", str(len(body)))
    if not length.isdigit() or not 0 < int(length) <= len(body):
        return None
    try:
        value = json.loads(body[: int(length)].decode(), object_pairs_hook=_once)
        made = protos.ModelInferRequest(model_name=parts[3], model_version=parts[5] if len(parts) > 5 else "",
                                        id=value.get("id", ""))  # fmt: skip
        _parameters(made.parameters, value.get("parameters", {}))
        _inputs(made, value["inputs"], body[int(length) :])
        for given in value.get("outputs", []):
            _parameters(made.outputs.add(name=given["name"]).parameters, given.get("parameters", {}))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None  # what JSON can say and a message can not
    return made


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a member twice")
    return made


def _parameters(target: Any, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if key in ("binary_data", "binary_data_output"):
            continue
        kind = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[type(value)]
        if kind == "int64_param" and value not in INT64:
            raise ValueError(value)
        setattr(target[key], kind, value)


def _inputs(made: Any, given: Any, data: bytes) -> None:
    at = 0
    for one in given:
        shape = [n - 2**64 if n >= 2**63 else n for n in one["shape"]]
        target = made.inputs.add(name=one["name"], datatype=one["datatype"], shape=shape)
        parameters = dict(one.get("parameters", {}))
        size = parameters.pop("binary_data_size", None)
        _parameters(target.parameters, parameters)
        if size is not None:
            made.raw_input_contents.append(data[at : at + size])
            at += size
        elif "data" in one:
            target.contents.SetInParent()
            field = TYPED[one["datatype"]][0]
            values = list(_flat(one["data"]))
            if field == "bytes_contents":
                values = [text.encode() for text in values]
            getattr(target.contents, field).extend(values)
    if at != len(data):
        raise ValueError("more or fewer bytes than the inputs say")


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for item in value:
            yield from _flat(item)
    else:
        yield value


# ---- requests made for both

ALL_BINARY: dict[str, Any] = {"parameters": {"binary_data_output": True}}


def _of_type(datatype: str, count: int) -> tuple[list[Any], bytes]:
    """JSON values and bytes of a tensor."""
    if datatype == "BYTES":
        texts = [f"text {k}" for k in range(count)]
        return texts, elements([text.encode() for text in texts])
    values = [k % 2 == 1 for k in range(count)] if datatype == "BOOL" else [k % 100 for k in range(count)]
    return values, packed(values, datatype)


def _made() -> Iterator[tuple[str, bytes]]:
    binary: dict[str, Any] = {"name": "OUTPUT0", "parameters": {"binary_data": True}}
    classes: dict[str, Any] = {"name": "OUTPUT0", "parameters": {"classification": 2}}
    sequence = {"sequence_id": 3, "sequence_start": True, "sequence_end": True, "priority": 1, "timeout": 10}
    variants: dict[str, dict[str, Any]] = {
        "all": {}, "wanted": {"outputs": [binary]}, "id": {"id": "i d"}, "classes": {"outputs": [classes]},
        "other output": {"outputs": [{"name": "OTHER"}]}, "parameters": {"parameters": {"a": 1, "b": "x", "c": True}},
        "sequence": {"id": "s", "parameters": sequence},
    }  # fmt: skip
    for datatype, (name, more) in itertools.product(models.DATATYPES, variants.items()):
        for shape in ([1, 3], [2, 2]) if name == "all" else ([1, 4],):
            values, data = _of_type(datatype, shape[0] * shape[1])
            model, label = models.of_type(datatype), f"{name} {shape}"
            given = tensor(datatype=datatype, shape=shape, **http_cases.binary(len(data)))
            whole = {**more, "parameters": {**more.get("parameters", {}), "binary_data_output": True}}
            yield f"{datatype} raw {label}", with_binary(model, {**inputs(given), **whole}, data)
            if datatype in TYPED:
                given = tensor(datatype=datatype, shape=shape, data=values)
                yield f"{datatype} typed {label}", infer(model, {**inputs(given), **more})
    for datatype in models.DATATYPES:
        values, data = _of_type(datatype, 4)
        model = models.of_type(datatype)
        for name, shape, cut in (
            ("batch too large", [9, 1], data * 3), ("bytes too few", [1, 4], data[:-1]), ("no batch", [], data),
            ("bytes too many", [1, 4], data + data), ("another rank", [1, 2, 2], data),
            ("negative", [1, 2**64 - 4], data), ("past everything", [2**62, 2**62], data), ("empty", [1, 0], b""),
        ):  # fmt: skip
            given = tensor(datatype=datatype, shape=shape, **http_cases.binary(len(cut)))
            yield f"{datatype} {name}", with_binary(model, {**inputs(given), **ALL_BINARY}, cut)
        given = tensor(datatype="FP32" if datatype != "FP32" else "INT32", shape=[1, 1], **http_cases.binary(4))
        yield f"{datatype} another datatype", with_binary(model, inputs(given), bytes(4))
        given = tensor("OTHER", datatype=datatype, shape=[1, 4], **http_cases.binary(len(data)))
        yield f"{datatype} another name", with_binary(model, inputs(given), data)


def requests() -> dict[str, tuple[bytes, Any]]:
    """Name -> the request over HTTP, and the same over gRPC."""
    over_http = {**differential_cases.requests(), **{f"#{case.name}": case.request for case in http_cases.INFER}}
    over_http |= dict(_made())
    return {name: (request, message) for name, request in over_http.items()
            if (message := translated(request)) is not None}  # fmt: skip
