"""Calls over gRPC, good and bad, as data: unary ones and whole streams, for the models that the reference can serve."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tests.conformance import both_cases, differences, differential_cases
from tests.helpers.grpc_channel import add_input, infer_request, repeat_request, set_parameters
from triton_fast import protos

REPEATS = ("repeat", "slow")
SERVED = (*differential_cases.REFERENCE_MODELS, *REPEATS)
# Of the cases made for both protocols, what is not sent to the reference: classes of what has no order end its process,
# and dimensions past all sense are as wrong for one datatype as for the others.
LEFT_OUT = re.compile(r"(BYTES|BOOL|FP16) (raw|typed) classes|(?!FP32)\w+ (past everything|negative)")
# Metadata of a stream that asks for gRPC statuses.
STATUSES = {"triton_grpc_error": "true"}


def _verb(name: str, /, **fields: Any) -> tuple[str, Any]:
    return name, getattr(protos, f"{name}Request")(**fields)


def _text(value: str) -> dict[str, Any]:
    return {"string_param": value}


def verbs() -> dict[str, tuple[str, Any]]:
    """Name -> RPC and request."""
    made = {
        "live": _verb("ServerLive"), "ready": _verb("ServerReady"), "server": _verb("ServerMetadata"),
        "index": _verb("RepositoryIndex"), "index of what is ready": _verb("RepositoryIndex", ready=True),
        "index of a repository": _verb("RepositoryIndex", repository_name="r"),
        "load": _verb("RepositoryModelLoad", model_name="control"),
        "load in a repository": _verb("RepositoryModelLoad", repository_name="r", model_name="control"),
        "load of an unknown model": _verb("RepositoryModelLoad", model_name="nobody"),
        "load of no model": _verb("RepositoryModelLoad"),
        "load with a broken config": _verb("RepositoryModelLoad", model_name="control",
                                           parameters={"config": _text("{")}),
        "load with a config of another type": _verb("RepositoryModelLoad", model_name="control",
                                                    parameters={"config": {"bytes_param": b"{}"}}),
        "load with a file of another type": _verb("RepositoryModelLoad", model_name="control",
                                                  parameters={"file:1/x": _text("x")}),
        "load with an unknown parameter": _verb("RepositoryModelLoad", model_name="control",
                                                parameters={"x": _text("y")}),
        "unload of an unknown model": _verb("RepositoryModelUnload", model_name="nobody"),
        "unload in a repository": _verb("RepositoryModelUnload", repository_name="r", model_name="control"),
        "unload with wrong dependents": _verb("RepositoryModelUnload", model_name="control",
                                              parameters={"unload_dependents": {"int64_param": 1}}),
        "statistics of an unknown model": _verb("ModelStatistics", name="nobody"),
        "statistics of an unknown version": _verb("ModelStatistics", name="versions", version="9"),
        "statistics of no version": _verb("ModelStatistics", name="versions", version="x"),
        "system regions": _verb("SystemSharedMemoryStatus"), "CUDA regions": _verb("CudaSharedMemoryStatus"),
        "an unknown region": _verb("SystemSharedMemoryStatus", name="r"),
        "an unknown CUDA region": _verb("CudaSharedMemoryStatus", name="r"),
    }  # fmt: skip
    for name in ("Metadata", "Config", "Ready"):
        for model, version in (
            ("two", ""), ("two", "1"), ("versions", ""), ("versions", "2"), ("versions", "9"), ("versions", "0"),
            ("versions", "x"), ("versions", "9" * 30), ("versions", "-1"), ("labelled", ""), ("optional", ""),
            ("plain", ""), ("id_bytes", ""), ("half_open", ""), ("repeat", ""), ("nobody", ""), ("", ""),
        ):  # fmt: skip
            made[f"{name} of {model or 'no model'} {version}".rstrip()] = _verb(f"Model{name}", name=model,
                                                                              version=version)  # fmt: skip
    return made


def one(change: Callable[[Any], object], **more: Any) -> Any:
    """A good request of id_fp32, changed."""
    made = infer_request("id_fp32", **more)
    change(made)
    return made


def _no_data(message: Any) -> None:
    del message.raw_input_contents[:]


def _typed(message: Any, **fields: Any) -> None:
    _no_data(message)
    contents = message.inputs[0].contents
    contents.SetInParent()
    for name, values in fields.items():
        getattr(contents, name).extend(values)


def _in_region(message: Any, **parameters: Any) -> None:
    _no_data(message)
    set_parameters(message.inputs[0].parameters, parameters)


def _output(message: Any, **parameters: Any) -> None:
    set_parameters(message.outputs.add(name="OUTPUT0").parameters, parameters)


def _unsigned(message: Any) -> None:
    message.parameters["x"].uint64_param = 1


def _unset(message: Any) -> None:
    message.parameters["x"].SetInParent()


def messages() -> dict[str, Any]:
    """Name -> a ModelInferRequest whose subject is the message itself."""
    region = {"shared_memory_region": "r", "shared_memory_byte_size": 8}
    made = {
        "typed contents": one(lambda m: _typed(m, fp32_contents=[1, 2])),
        "typed contents of another type": one(lambda m: _typed(m, int_contents=[1, 2])),
        "typed contents of two types": one(lambda m: _typed(m, fp32_contents=[1, 2], int_contents=[1, 2])),
        "too few typed contents": one(lambda m: _typed(m, fp32_contents=[1])),
        "too many typed contents": one(lambda m: _typed(m, fp32_contents=[1, 2, 3])),
        "empty typed contents": one(_typed),
        "typed and raw contents": one(lambda m: m.inputs[0].contents.fp32_contents.extend([1, 2])),
        "no data": one(_no_data),
        "no data, with an id": one(_no_data, id="7"),
        "more raw contents than inputs": one(lambda m: m.raw_input_contents.append(b"1234")),
        "empty raw contents": one(lambda m: m.raw_input_contents.__setitem__(0, b"")),
        "no inputs": one(lambda m: m.ClearField("inputs")),
        "no inputs and no contents": one(lambda m: (m.ClearField("inputs"), _no_data(m))),
        "no model": one(lambda m: m.ClearField("model_name")),
        "no datatype": one(lambda m: m.inputs[0].ClearField("datatype")),
        "unknown datatype": one(lambda m: setattr(m.inputs[0], "datatype", "FP33")),
        "no name": one(lambda m: m.inputs[0].ClearField("name")),
        "no shape": one(lambda m: m.inputs[0].ClearField("shape")),
        "version that is no number": one(lambda m: None, model_version="x"),
        "version below zero": one(lambda m: None, model_version="-1"),
        "version that is missing": one(lambda m: None, model_version="9"),
        "priority below zero": one(lambda m: None, parameters={"priority": -1}),
        "priority of another type": one(lambda m: None, parameters={"priority": "x"}),
        "timeout of another type": one(lambda m: None, parameters={"timeout": "x"}),
        "sequence id of another type": one(lambda m: None, parameters={"sequence_id": True}),
        "sequence start of another type": one(lambda m: None, parameters={"sequence_start": 1}),
        "sequence end of another type": one(lambda m: None, parameters={"sequence_end": "x"}),
        "sequence id that is too long": one(lambda m: None, parameters={"sequence_id": "x" * 129}),
        "reserved parameter": one(lambda m: None, parameters={"triton_x": 1}),
        "final response of another type": one(lambda m: None,
                                              parameters={"triton_enable_empty_final_response": 1}),
        "parameters of every type": one(lambda m: None, parameters={"a": 1, "b": True, "c": "x", "d": 0.5}),
        "unsigned parameter": one(_unsigned),
        "parameter without a value": one(_unset),
        "binary_data_output": one(lambda m: None, parameters={"binary_data_output": False}),
        "region that is not there": one(lambda m: _in_region(m, **region)),
        "region of another type": one(lambda m: _in_region(m, shared_memory_region=1)),
        "region without a size": one(lambda m: _in_region(m, shared_memory_region="r")),
        "size without a region": one(lambda m: _in_region(m, shared_memory_byte_size=8)),
        "offset without a region": one(lambda m: _in_region(m, shared_memory_offset=8)),
        "size of another type": one(lambda m: _in_region(m, shared_memory_region="r", shared_memory_byte_size="x")),
        "offset of another type": one(lambda m: _in_region(m, **region, shared_memory_offset="x")),
        "output region that is not there": one(lambda m: _output(m, **region)),
        "output region and classes": one(lambda m: _output(m, **region, classification=1)),
        "output region without a size": one(lambda m: _output(m, shared_memory_region="r")),
        "classes of another type": one(lambda m: _output(m, classification="x")),
        "no classes": one(lambda m: _output(m, classification=0)),
        "negative classes": one(lambda m: _output(m, classification=-1)),
        "other parameter of an output": one(lambda m: _output(m, x=1)),
        "other parameter of an input": one(lambda m: set_parameters(m.inputs[0].parameters, {"x": 1})),
        "unary to a decoupled model": repeat_request([1]),
    }  # fmt: skip
    two = infer_request("two", [1, 2, 3, 4], "INT32")
    add_input(two, "INPUT1", [5, 6, 7, 8], "INT32", [1, 4])
    made["two inputs"] = two
    mixed = protos.ModelInferRequest.FromString(two.SerializeToString())
    mixed.inputs[0].contents.int_contents.extend([1, 2, 3, 4])
    del mixed.raw_input_contents[0]
    made["one raw and one typed input"] = mixed
    # Out of the cases of HTTP: what the reference serves and survives.
    for name, (_, message) in both_cases.requests().items():
        is_served = message.model_name in SERVED or message.model_name == "nobody"
        if is_served and "limit" not in name and not (name.startswith(differences.FATAL) or LEFT_OUT.match(name)):
            made.setdefault(name, message)
    return made


def _final(**more: Any) -> dict[str, Any]:
    return {"parameters": {"triton_enable_empty_final_response": True, **more}}


def streams() -> dict[str, tuple[dict[str, str], list[Any]]]:
    """Name -> metadata and the requests of a stream."""
    good, lost = infer_request("id_fp32", [1], id="good"), infer_request("nobody", [1], id="lost")
    wrong = infer_request("id_fp32", [1], "INT32", id="wrong")
    slow = infer_request("slow", [7], "INT32", id="slow")
    plain: dict[str, list[Any]] = {
        "nothing": [],
        "one": [good],
        "several": [infer_request("id_fp32", [k], id=str(k)) for k in range(20)],
        "a slow one first": [slow, good, good],
        "unknown model on a stream": [lost, good],
        "errors between": [good, wrong, good, lost, good],
        "an error behind a slow one": [slow, lost],
        "repeat": [repeat_request([4, 2, 0], id="r")],
        "repeat of nothing": [repeat_request([], id="r")],
        "repeat with a final response": [repeat_request([4, 2], id="r", **_final())],
        "repeat of nothing with a final response": [repeat_request([], id="r", **_final())],
        "repeat of a version": [repeat_request([1], id="r", model_version="1", **_final())],
        "final response of one answer": [infer_request("id_fp32", [1], id="one", **_final())],
        "wrong request of a decoupled model": [infer_request("repeat", [1], id="w"), repeat_request([1])],
        "without an id": [infer_request("id_fp32", [1]), infer_request("nobody", [1])],
        "a version that is no number": [infer_request("id_fp32", [1], id="v", model_version="x")],
        "one output": [_only(repeat_request([3, 4], id="o"), "IDX")],
        "two decoupled one after the other": [repeat_request([1, 2], id="a"), repeat_request([3, 4], id="b")],
    }
    made: dict[str, tuple[dict[str, str], list[Any]]] = {name: ({}, requests) for name, requests in plain.items()}
    for name in ("unknown model on a stream", "one", "repeat", "wrong request of a decoupled model",
                 "a version that is no number"):  # fmt: skip
        made[f"{name}, with statuses"] = (STATUSES, plain[name])
    made["errors first, with statuses"] = (STATUSES, [wrong, good])
    return made


def _only(request: Any, *outputs: str) -> Any:
    for name in outputs:
        request.outputs.add(name=name)
    return request
