"""grpc.reflection.v1 and v1alpha: descriptors of all services, from the set that the build makes.

Stateless: each question has its whole answer, the file and all it imports. No file has extensions (proto3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from google.protobuf.message import DecodeError

from triton_fast import protos
from triton_fast.errors import STATUS, Code
from triton_fast.frontends.grpc.calls import BROKEN, INTERNAL, OK, RESOURCE_EXHAUSTED, Call, CallHandler

PACKAGES = ("grpc.reflection.v1", "grpc.reflection.v1alpha")
# A question is given back in its answer.
MAX_QUESTION = 65536

_NOT_FOUND = STATUS[Code.NOT_FOUND].grpc
_INVALID = STATUS[Code.INVALID_ARG].grpc


def path(package: str) -> str:
    return f"/{package}.ServerReflection/ServerReflectionInfo"


@cache
def services() -> tuple[str, ...]:
    """Return the full names of all services."""
    return tuple(sorted(f"{file.package}.{service.name}" for file in protos.FILES.values() for service in file.service))


@cache
def symbols() -> dict[str, str]:
    """Return full name -> file, of every message, field, oneof, enum, enum value, service and method."""
    return {name: file.name for file in protos.FILES.values() for name in _names(file)}


def _names(file: Any) -> Iterator[str]:
    prefix = f"{file.package}."
    for message in file.message_type:
        yield from _message_names(prefix, message)
    for enum in file.enum_type:
        yield from _enum_names(prefix, enum)
    for service in file.service:
        yield prefix + service.name
        yield from (f"{prefix}{service.name}.{method.name}" for method in service.method)


def _message_names(prefix: str, message: Any) -> Iterator[str]:
    yield prefix + message.name
    inner = f"{prefix}{message.name}."
    yield from (inner + part.name for part in (*message.field, *message.oneof_decl))
    for enum in message.enum_type:
        yield from _enum_names(inner, enum)
    for nested in message.nested_type:
        yield from _message_names(inner, nested)


def _enum_names(prefix: str, enum: Any) -> Iterator[str]:
    # The values of an enum lie beside it, not in it.
    yield prefix + enum.name
    yield from (prefix + value.name for value in enum.value)


@cache
def with_imports(name: str) -> tuple[bytes, ...]:
    """Return a file and everything it imports, each once, serialized. Raises KeyError."""
    found: dict[str, bytes] = {}
    todo = [name]
    while todo:
        file = protos.FILES[todo.pop(0)]
        if file.name not in found:
            found[file.name] = file.SerializeToString()
            todo += file.dependency
    return tuple(found.values())


class Reflection(CallHandler):
    """One ServerReflectionInfo stream of either package. ``refused(call)``: (status, text) when it may not go on."""

    limit = MAX_QUESTION

    def __init__(
        self, call: Call, package: str, refused: Callable[[Call], tuple[int, str] | None] = lambda _call: None
    ) -> None:
        super().__init__(call)
        self._refused = refused
        self._is_first = True
        self._request = protos.message_class(f"{package}.ServerReflectionRequest")
        self._response = protos.message_class(f"{package}.ServerReflectionResponse")

    def message(self, data: bytes) -> None:
        if not self.is_open:
            return
        if len(data) > MAX_QUESTION:
            self.finish(RESOURCE_EXHAUSTED, f"Received message larger than max ({len(data)} vs. {MAX_QUESTION})")
            return
        # The first question came with the call, which was let in; a key may have been taken back since.
        refused = None if self._is_first else self._refused(self.call)
        self._is_first = False
        if refused is not None:
            self.finish(*refused)
            return
        try:
            request = self._request.FromString(data)
        except DecodeError:
            self.finish(INTERNAL, BROKEN)
            return
        self.send(self._answer(request).SerializeToString())

    def end(self) -> None:
        self.finish(OK)

    def _answer(self, request: Any) -> Any:
        response = self._response(valid_host=request.host, original_request=request)
        question = request.WhichOneof("message_request")
        if question == "list_services":
            for name in services():
                response.list_services_response.service.add(name=name)
        elif question == "file_by_filename":
            _files(response, request.file_by_filename, "File not found.")
        elif question == "file_containing_symbol":
            _files(response, symbols().get(request.file_containing_symbol), "Symbol not found.")
        elif question == "file_containing_extension":
            _error(response, _NOT_FOUND, "Extension not found.")
        elif question == "all_extension_numbers_of_type":
            _extension_numbers(response, request.all_extension_numbers_of_type)
        else:
            _error(response, _INVALID, "the request asks for nothing that is known")
        return response


def _files(response: Any, name: str | None, missing: str) -> None:
    if name in protos.FILES:
        response.file_descriptor_response.file_descriptor_proto.extend(with_imports(name))
    else:
        _error(response, _NOT_FOUND, missing)


def _extension_numbers(response: Any, name: str) -> None:
    try:
        protos.message_class(name)
    except KeyError:
        _error(response, _NOT_FOUND, "Type not found.")
    else:
        response.all_extension_numbers_response.base_type_name = name


def _error(response: Any, code: int, text: str) -> None:
    response.error_response.error_code = code
    response.error_response.error_message = text
