"""Requests to the Python models of tests/models/python, and what of their answers two servers can be compared by.

The cases of a model that takes its case as input are the methods of its class: a method added there is a case here.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from tests.helpers import raw
from tests.helpers.grpc_channel import Channel, Reply, add_input, set_parameters, unpacked
from tests.helpers.python_models import ADD_TYPES, SOURCE
from triton_fast import protos

Tensor = tuple[str, str, Sequence[int], Sequence[Any]]
TYPES = ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP32", "FP64")
DECOUPLED = {"square", "repeat", "decoupled", "coroutine_decoupled", "endless", "nest_bottom"}
# Of methods that are no case.
_OTHER = {"execute", "initialize", "finalize", "answer", "called", "log", "note"}
_CODES = (
    "UNKNOWN", "INTERNAL", "NOT_FOUND", "INVALID_ARG", "UNAVAILABLE", "UNSUPPORTED", "ALREADY_EXISTS", "CANCELLED",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    model: str
    inputs: Sequence[Tensor]
    outputs: Sequence[str] = ()
    id: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def decoupled(self) -> bool:
        return self.model in DECOUPLED

    def http(self) -> bytes:
        tensors = [
            {"name": name, "datatype": kind, "shape": list(shape), "data": list(values)}
            for name, kind, shape, values in self.inputs
        ]
        body: dict[str, Any] = {"inputs": tensors}
        if self.id:
            body["id"] = self.id
        if self.parameters:
            body["parameters"] = dict(self.parameters)
        if self.outputs:
            body["outputs"] = [{"name": name} for name in self.outputs]
        return raw.post(raw.infer_path(self.model), json.dumps(body).encode())

    def grpc(self) -> Any:
        made = protos.ModelInferRequest(model_name=self.model, id=self.id)
        set_parameters(made.parameters, self.parameters)
        for name, kind, shape, values in self.inputs:
            data = [value.encode() for value in values] if kind == "BYTES" else values
            add_input(made, name, data, kind, shape)
        for name in self.outputs:
            made.outputs.add(name=name)
        return made


def methods(model: str) -> list[str]:
    """The cases that a model takes by name."""
    tree = ast.parse((SOURCE / model / "1" / "model.py").read_text())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    chosen = classes.get("Case", classes["TritonPythonModel"])
    found = [node.name for node in chosen.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [name for name in found if name not in _OTHER and not name.startswith("_")]


def named(model: str, name: str, *more: Tensor, **fields: Any) -> Case:
    return Case(model, [("CASE", "BYTES", [1], [name]), *more], **fields)


def one(model: str, value: Any, kind: str = "INT32", name: str = "IN", **fields: Any) -> Case:
    return Case(model, [(name, kind, [1], [value])], **fields)


def _numbers(kind: str) -> list[Any]:
    if kind == "BOOL":
        return [True, False, True]
    if kind == "BYTES":
        return ["", "h\u00e9", "x" * 300]
    if kind.startswith("UINT"):
        return [0, 1, 200]
    return [0, 1, -5] if kind.startswith("INT") else [0.5, -1.25, 3.0]


def _cases() -> Iterator[tuple[str, Case]]:
    for kind in ADD_TYPES:
        name = f"add_sub_{kind.lower()}"
        values = _numbers(kind)
        yield name, Case(name, [("INPUT0", kind, [1, 3], values), ("INPUT1", kind, [1, 3], values[::-1])])
        four = [("INPUT0", kind, [2, 2], [1, 2, 3, 4]), ("INPUT1", kind, [2, 2], [1, 1, 1, 1])]
        yield f"{name} batch", Case(name, four)
        yield f"{name} one output", Case(name, four, outputs=["OUTPUT1"])
    for kind in (*TYPES, "BYTES"):
        name = "identity" if kind == "FP32" else f"identity_{'string' if kind == 'BYTES' else kind.lower()}"
        yield name, Case(name, [("INPUT0", kind, [1, 3], _numbers(kind))])
        yield f"{name} batch", Case(name, [("INPUT0", kind, [3, 1], _numbers(kind))])
        if kind != "BYTES":
            yield f"{name} empty", Case(name, [("INPUT0", kind, [2, 0], [])])
    yield "identity flat", Case("identity_flat", [("INPUT0", "FP32", [2], [1.5, 2.5])])
    texts = [("INPUT0", "BYTES", [2, 2], ["1", "2", "-3", "40"]), ("INPUT1", "BYTES", [2, 2], ["5", "6", "7", "8"])]
    yield "strings", Case("strings", texts)
    yield "strings one output", Case("strings", texts, outputs=["JOINED"])
    wrong = [texts[0], ("INPUT1", "BYTES", [2, 2], ["5", "six", "7", "8"])]
    yield "strings that are no numbers", Case("strings", wrong)
    for n in (0, 1, 5):
        yield f"square {n}", one("square", n)
    repeat = [("IN", "INT32", [3], [4, 5, 6]), ("DELAY", "UINT32", [3], [0, 1, 0]), ("WAIT", "UINT32", [1], [1])]
    yield "repeat", Case("repeat", repeat)
    yield "repeat one output", Case("repeat", repeat, outputs=["IDX"], id="r1")
    yield "coroutine", one("coroutine", 4)
    yield "coroutine raises", one("coroutine", -4)
    yield "coroutine decoupled", one("coroutine_decoupled", 3)
    for value in (5, 7, -2):
        yield f"counter {value}", one("counter", value, "INT64")
    a, b, c = ((name, "INT32", [2], [i, i + 1]) for i, name in enumerate("ABC"))
    yield "optional none", Case("optional", [a])
    yield "optional one", Case("optional", [a, c])
    yield "optional all", Case("optional", [c, b, a])
    yield "optional without the required", Case("optional", [b])
    echo = [("IN", "INT32", [2], [1, 2])]
    yield "echo plain", Case("echo", echo)
    yield "echo id", Case("echo", echo, id="h\u00e9 1")
    yield "echo sequence", Case(
        "echo", echo, parameters={"sequence_id": 7, "sequence_start": True, "sequence_end": False}
    )
    yield "echo sequence text", Case("echo", echo, parameters={"sequence_id": "seven", "sequence_end": True})
    yield "echo priority and timeout", Case("echo", echo, parameters={"priority": 3, "timeout": 5_000_000})
    yield "echo parameters", Case(
        "echo", echo, parameters={"b": True, "i": -5, "big": 2**40, "s": "h\u00e9\"\\", "d": 1.5, "empty": ""}
    )
    yield "echo only SEEN", Case("echo", echo, outputs=["SEEN"])
    yield "echo both", Case("echo", echo, outputs=["SEEN", "OUT"])
    yield "isolation", Case("isolation", [("IN", "INT32", [2, 2], [1, 2, 3, 4])])
    yield "forward", named("forward", "passed on")
    yield "nested", one("nest_top", 1)
    yield "cycle of no depth", one("cycle_a", 0)
    for model in ("decoupled", "sender", "errors", "bls", "bls_async", "control", "utilities", "layout", "metrics"):
        for name in methods(model):
            yield f"{model} {name}", named(model, name)
    for code in _CODES:
        yield f"errors code_{code}", named("errors", f"code_{code}")
    data = ("DATA", "FP32", [4], [1.0, 2.0, 3.5, -4.0])
    for name in methods("tensors"):
        yield f"tensors {name}", named("tensors", name, data)
    for name in ("all", "none", "float", "key", "list", "large", "value_none"):
        yield f"response parameters {name}", named("response_parameters", name)
    for n in (0, 3):
        for output in ("TEXTS", "FLOATS", "SHAPED"):
            yield f"large {n} {output}", one("large", n, "INT64", "N", outputs=[output])


CASES: dict[str, Case] = dict(_cases())


# ---- answers


def cleaned(text: str, root: Path) -> str:
    """A text without what differs from run to run."""
    text = text.replace(str(root), "<models>")
    text = re.sub(r"0x[0-9a-f]{6,}", "<address>", text)
    text = re.sub(r"object at <address>", "object", text)
    # Frames of the server's own files and of the import machinery, which differ with the version of Python.
    own = r"\S*(?:triton_python_backend_utils|triton_fast_worker/\w+)\.py|<frozen importlib[.\w]*>"
    text = re.sub(rf"^  (?:{own})\(\d+\): \S+\n", "", text, flags=re.M)
    # A frame of a model, also in a text that a model handed on as JSON.
    text = re.sub(r"(^|\\n)  <models>/", r"\1  ", text, flags=re.M)
    return re.sub(r"^  /\S*/(\w+\.py)\(\d+\): ", r"  <library>/\1: ", text, flags=re.M)


def _clean(value: Any, root: Path) -> Any:
    if isinstance(value, str):
        return cleaned(value, root)
    if isinstance(value, dict):
        return {key: _clean(item, root) for key, item in value.items()}
    return [_clean(item, root) for item in value] if isinstance(value, list) else value


def _message(message: Any) -> dict[str, Any]:
    error = getattr(message, "error_message", "")
    response = getattr(message, "infer_response", message)
    outputs = {}
    for output, data in zip(response.outputs, response.raw_output_contents, strict=True):
        if not output.datatype:  # the reference's answer to an output that was given twice
            continue
        values = _texts(data) if output.datatype == "BYTES" else unpacked(data, output.datatype)
        outputs[output.name] = [output.datatype, list(output.shape), values]
    parameters = {
        key: getattr(value, value.WhichOneof("parameter_choice")) for key, value in response.parameters.items()
        if key not in ("sequence_id", "sequence_start", "sequence_end")
    }  # fmt: skip
    found = {"error": error, "id": response.id, "outputs": outputs, "parameters": parameters}
    return {key: value for key, value in found.items() if value}


def _texts(data: bytes) -> list[str]:
    found, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        found.append(data[at + 4 : at + 4 + size].decode("utf-8", "replace"))
        at += 4 + size
    return found


def over_http(address: tuple[str, int], case: Case, root: Path) -> dict[str, Any]:
    answer = raw.ask(address, case.http())
    if answer.status != 200:
        return _clean({"status": answer.status, "error": answer.error}, root)
    body = json.loads(answer.body.decode("utf-8", "replace"))
    outputs = {one["name"]: [one["datatype"], one["shape"], one["data"]] for one in body.get("outputs", ())}
    parameters = {key: value for key, value in body.get("parameters", {}).items()
                  if key not in ("sequence_id", "sequence_start", "sequence_end")}  # fmt: skip
    found = {"status": 200, "id": body.get("id", ""), "outputs": outputs, "parameters": parameters}
    return _clean({key: value for key, value in found.items() if value}, root)


def over_grpc(channel: Channel, case: Case, root: Path, timeout: float = 30) -> dict[str, Any]:
    """A decoupled model is asked on a stream, the others by a unary call."""
    if case.decoupled:
        request = case.grpc()
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        reply = streamed(channel, request, timeout)
    else:
        reply = channel.infer(case.grpc(), timeout=timeout)
    found = {"status": reply.status, "error": reply.text, "messages": [_message(one) for one in reply.messages]}
    return _clean({key: value for key, value in found.items() if value or key == "status"}, root)


def streamed(channel: Channel, request: Any, timeout: float) -> Reply:
    """One request on a stream, read to its last response: an error or a final one ends it."""
    with channel.talk(timeout=timeout) as talk:
        talk.send(request)
        talk.end()
        messages: list[Any] = []
        try:
            for message in talk:
                messages.append(message)
        except grpc.RpcError:
            pass
        return Reply(talk.call.code().value[0], talk.call.details() or "", messages)
