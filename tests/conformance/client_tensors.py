"""Inputs, outputs and statuses as the cases of the clients write them, and what each protocol's client makes of them.

Knows the classes of tritonclient; knows nothing of servers or calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
import tritonclient.grpc as grpc_module
import tritonclient.http as http_module
from tritonclient.utils import InferenceServerException

from tests.helpers.pb import TYPED
from triton_fast.errors import STATUS, Code

Call = Callable[..., Any]
GRPC_NAMES = {status.value[0]: str(status) for status in grpc.StatusCode}


class Refusal:
    """A code of Triton as a client's exception spells it: ``"404"`` over HTTP, ``"StatusCode.NOT_FOUND"`` over gRPC."""

    def __init__(self, code: Code) -> None:
        self._spelled = (str(STATUS[code].http), GRPC_NAMES[STATUS[code].grpc])

    def __eq__(self, other: object) -> bool:
        return other in self._spelled

    def __hash__(self) -> int:
        return hash(self._spelled)

    def __repr__(self) -> str:
        return " or ".join(self._spelled)


INTERNAL, NOT_FOUND, INVALID, UNAVAILABLE, UNSUPPORTED = (
    Refusal(code) for code in (Code.INTERNAL, Code.NOT_FOUND, Code.INVALID_ARG, Code.UNAVAILABLE, Code.UNSUPPORTED)
)


def refused(call: Call, *arguments: Any, **named: Any) -> tuple[str, str]:
    """The status and message of the exception that a call must raise."""
    with pytest.raises(InferenceServerException) as caught:
        call(*arguments, **named)
    return caught.value.status(), caught.value.message()


class Given(NamedTuple):
    """An input. ``binary`` says raw bytes, not JSON or typed contents; ``region``: shared memory and bytes of it."""

    name: str
    datatype: str
    array: np.ndarray[Any, Any]
    binary: bool = True
    region: tuple[str, int] | None = None

    def http(self) -> http_module.InferInput:
        made = http_module.InferInput(self.name, list(self.array.shape), self.datatype)
        if self.region:
            made.set_shared_memory(*self.region)
        else:
            made.set_data_from_numpy(self.array, binary_data=self.binary)
        return made

    def grpc(self) -> grpc_module.InferInput:
        made = grpc_module.InferInput(self.name, list(self.array.shape), self.datatype)
        if self.region:
            made.set_shared_memory(*self.region)
        elif self.binary:
            made.set_data_from_numpy(self.array)
        else:
            # The client has no method for it, but sends what the message holds.
            contents = made._get_tensor().contents
            contents.SetInParent()
            getattr(contents, TYPED[self.datatype][0]).extend(self.array.ravel().tolist())
        return made


class Wanted(NamedTuple):
    """A requested output; ``binary`` says something over HTTP only."""

    name: str
    binary: bool = True
    class_count: int = 0

    def http(self) -> http_module.InferRequestedOutput:
        return http_module.InferRequestedOutput(self.name, binary_data=self.binary, class_count=self.class_count)

    def grpc(self) -> grpc_module.InferRequestedOutput:
        return grpc_module.InferRequestedOutput(self.name, class_count=self.class_count)


def for_client(protocol: str, value: Any) -> Any:
    """A call's argument with its tensors as the client of ``protocol`` takes them."""
    if isinstance(value, (Given, Wanted)):
        return getattr(value, protocol)()
    if isinstance(value, list):
        return [for_client(protocol, item) for item in value]
    return value


def http_call(invoke: Call) -> Call:
    """``call`` of the cases over a client of tritonclient.http; ``invoke`` takes a method's name and its arguments."""

    def call(method: str, *arguments: Any, **named: Any) -> Any:
        return invoke(
            method, *(for_client("http", value) for value in arguments),
            **{name: for_client("http", value) for name, value in named.items()},
        )  # fmt: skip

    return call
