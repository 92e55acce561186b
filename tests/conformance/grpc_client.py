"""The clients of tritonclient.grpc behind the interface of the shared cases: arguments and results as over HTTP.

Translates what the two clients spell differently and nothing else; values and texts are those of the server.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import tritonclient.grpc as client_module
from google.protobuf.message import Message
from tritonclient.utils import InferenceServerException

from tests.conformance import client_infer, client_verbs
from tests.conformance.client_tensors import NOT_FOUND, Call, for_client


def plain(message: Message) -> dict[str, Any]:
    """A message as the JSON of HTTP: every field, int64 as numbers, enums by name; of a oneof what is set."""
    made: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            made[field.name] = {key: _one(field.message_type.fields_by_name["value"], value[key]) for key in value}
        elif field.is_repeated:
            made[field.name] = [_one(field, item) for item in value]
        else:
            made[field.name] = _one(field, value)
    return made


def _one(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return plain(value)
    return field.enum_type.values_by_number[value].name if field.enum_type is not None else value


class Result:
    """An infer result whose description is a dictionary, as the HTTP client has it."""

    def __init__(self, result: client_module.InferResult) -> None:
        self.result = result

    def as_numpy(self, name: str) -> Any:
        return self.result.as_numpy(name)

    def get_output(self, name: str) -> dict[str, Any] | None:
        found = self.result.get_output(name)
        return None if found is None else _description(found)

    def get_response(self) -> dict[str, Any]:
        response = self.result.get_response()
        made = {**plain(response), "outputs": [_description(output) for output in response.outputs]}
        if not response.id:
            del made["id"]
        return made


def _description(output: Any) -> dict[str, Any]:
    return {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}


def _shared_memory(message: Any) -> list[Any]:
    return list(plain(message)["regions"].values())


def _index(message: Any) -> list[Any]:
    return [{key: value for key, value in row.items() if value} for row in plain(message)["models"]]


# Methods that call no server.
LOCAL = {"close", "plugin", "register_plugin", "unregister_plugin"}
CONVERT: dict[str, Call] = {
    "infer": Result,
    "get_server_metadata": plain,
    "get_model_metadata": plain,
    "get_model_config": lambda message: plain(message)["config"],
    "get_model_repository_index": _index,
    "get_inference_statistics": plain,
    "get_system_shared_memory_status": _shared_memory,
    "get_cuda_shared_memory_status": _shared_memory,
}


def grpc_call(invoke: Call) -> Call:
    """``call`` of the cases over a client of tritonclient.grpc; ``invoke`` takes a method's name and its arguments."""

    def call(method: str, *arguments: Any, **named: Any) -> Any:
        named.pop("query_params", None)
        if "headers" in named:  # names of metadata have no upper case
            named["headers"] = {name.lower(): value for name, value in named["headers"].items()}
        try:
            found = invoke(
                method, *(for_client("grpc", value) for value in arguments),
                **{name: for_client("grpc", value) for name, value in named.items()},
            )  # fmt: skip
        except InferenceServerException as error:
            # The HTTP client says False to any status that is no success; see test_not_ready_is_an_error.
            if method == "is_model_ready" and error.status() == NOT_FOUND:
                return False
            raise
        return CONVERT[method](found) if method in CONVERT else found

    return call


def uncalled(kind: type, *elsewhere: str) -> set[str]:
    """Public methods of a client that the shared cases do not name, but for those tested ``elsewhere``."""
    source = "".join(inspect.getsource(module) for module in (client_infer, client_verbs))
    called = set(re.findall(r'"(\w+)"', source.replace("{kind}", "system") + source.replace("{kind}", "cuda")))
    public = {name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}
    return public - called - LOCAL - set(elsewhere)
