"""The four clients of tritonclient behind one interface, for regions and for inference with them.

Knows the clients and numpy; no server and no files.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

from tests.helpers.server import ServerProcess

KINDS: dict[str, tuple[ModuleType, ModuleType]] = {
    "http": (tritonclient.http, tritonclient.http),
    "http aio": (tritonclient.http.aio, tritonclient.http),
    "grpc": (tritonclient.grpc, tritonclient.grpc),
    "grpc aio": (tritonclient.grpc.aio, tritonclient.grpc),
}


class At(NamedTuple):
    """A stretch of a region, as the value of an input or the place of an output."""

    region: str
    byte_size: int
    offset: int = 0
    datatype: str = "FP32"
    shape: tuple[int, ...] = ()


class Client:
    """``call`` runs any method of the client; ``infer`` takes arrays and stretches of regions for either end."""

    def __init__(self, kind: str, server: ServerProcess) -> None:
        module, self._tensors = KINDS[kind]
        host, port = server.http if kind.startswith("http") else server.grpc
        self.is_grpc = kind.startswith("grpc")
        self._loop = asyncio.new_event_loop() if kind.endswith("aio") else None
        self._client = self._run(self._make(module, f"{host}:{port}"))

    async def _make_later(self, module: ModuleType, url: str) -> Any:
        return module.InferenceServerClient(url)

    def _make(self, module: ModuleType, url: str) -> Any:
        return self._make_later(module, url) if self._loop is not None else module.InferenceServerClient(url)

    def _run(self, made: Any) -> Any:
        return self._loop.run_until_complete(made) if self._loop is not None else made

    def call(self, method: str, *arguments: Any, **named: Any) -> Any:
        return self._run(getattr(self._client, method)(*arguments, **named))

    def close(self) -> None:
        self.call("close")
        if self._loop is not None:
            self._loop.close()

    def regions(self, name: str = "") -> list[tuple[str, str, int, int]]:
        """Name, key, offset, byte_size of each registered region."""
        status = self.call("get_system_shared_memory_status", name)
        rows = [status.regions[key] for key in sorted(status.regions)] if self.is_grpc else status
        return [
            (row.name, row.key, row.offset, row.byte_size) if self.is_grpc
            else (row["name"], row["key"], row["offset"], row["byte_size"])
            for row in rows
        ]  # fmt: skip

    def infer(self, model: str, inputs: dict[str, Any], outputs: dict[str, Any], **named: Any) -> Any:
        """``outputs``: a stretch, or arguments of InferRequestedOutput."""
        given = []
        for name, value in inputs.items():
            if isinstance(value, At):
                tensor = self._tensors.InferInput(name, value.shape, value.datatype)
                tensor.set_shared_memory(value.region, value.byte_size, offset=value.offset)
            else:
                tensor = self._tensors.InferInput(name, value.shape, datatype_of(value))
                tensor.set_data_from_numpy(value)
            given.append(tensor)
        wanted = []
        for name, place in outputs.items():
            output = self._tensors.InferRequestedOutput(name, **({} if isinstance(place, At) else place))
            if isinstance(place, At):
                output.set_shared_memory(place.region, place.byte_size, offset=place.offset)
            wanted.append(output)
        return self.call("infer", model, given, outputs=wanted, **named)

    def output(self, result: Any, name: str) -> dict[str, Any]:
        """What the response says of an output: name, datatype, shape, parameters."""
        found = result.get_output(name)
        if not self.is_grpc:
            return dict(found)
        made = {"name": found.name, "datatype": found.datatype, "shape": list(found.shape)}
        return {**made, "parameters": dict(found.parameters)} if found.parameters else made


def floats(*values: float) -> np.ndarray[Any, Any]:
    return np.array([values], np.float32)


def refused(client: Client, method: str, *arguments: Any, **named: Any) -> tuple[str, str]:
    """Return status and message of the error that a method, or ``infer``, ends with."""
    with pytest.raises(InferenceServerException) as error:
        getattr(client, method)(*arguments, **named) if method == "infer" else client.call(method, *arguments, **named)
    return str(error.value.status()), str(error.value.message())


def status(client: Client, http: int, grpc: str) -> str:
    return f"StatusCode.{grpc}" if client.is_grpc else str(http)


def own_helpers() -> Any:
    """Return tritonclient.utils.shared_memory. It asks a part of setuptools, which new releases lack, for one path."""
    if "pkg_resources" not in sys.modules and importlib.util.find_spec("pkg_resources") is None:
        standin = ModuleType("pkg_resources")
        standin.resource_filename = (
            lambda package, name: str(  # type: ignore[attr-defined]
                Path(tritonclient.__path__[0], *package.split(".")[1:], name)
            )
        )
        with pytest.MonkeyPatch.context() as patch:
            # For this import only: others would take it for the whole package.
            patch.setitem(sys.modules, "pkg_resources", standin)
            return importlib.import_module("tritonclient.utils.shared_memory")
    return importlib.import_module("tritonclient.utils.shared_memory")


def datatype_of(array: np.ndarray[Any, Any]) -> str:
    kinds = {"float32": "FP32", "int32": "INT32", "object": "BYTES", "uint32": "UINT32"}
    return kinds[array.dtype.name]
