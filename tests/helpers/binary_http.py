"""A client of the v2 protocol over HTTP with binary tensors, as small as tests and benches need it; one connection.

Knows numpy arrays and bytes, no server.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

HEADER_LENGTH = "Inference-Header-Content-Length"
NAMES = {"float16": "FP16", "float32": "FP32", "float64": "FP64", "bool": "BOOL"}
TYPES: dict[str, Any] = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64, "BOOL": np.bool_}
for _bits in (8, 16, 32, 64):
    for _name in (f"INT{_bits}", f"UINT{_bits}"):
        NAMES[_name.lower()], TYPES[_name] = _name, np.dtype(_name.lower()).type
TYPES["BF16"] = np.uint16  # its bits


def request(inputs: Mapping[str, np.ndarray], datatypes: Mapping[str, str] | None = None) -> tuple[bytes, int]:
    """The body of an infer request, and how much of it is JSON. Object arrays are BYTES, of elements of bytes."""
    tensors, data = [], []
    for name, value in inputs.items():
        if value.dtype == object:
            kind = "BYTES"
            raw = b"".join(len(item).to_bytes(4, "little") + item for item in value.reshape(-1))
        else:
            kind = (datatypes or {}).get(name) or NAMES[value.dtype.name]
            raw = np.ascontiguousarray(value).tobytes()
        parameters = {"binary_data_size": len(raw)}
        tensors.append({"name": name, "datatype": kind, "shape": list(value.shape), "parameters": parameters})
        data.append(raw)
    head = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
    return head + b"".join(data), len(head)


def arrays(body: bytes, json_size: int) -> dict[str, np.ndarray]:
    """The outputs of an answer with binary tensors."""
    found, at = {}, json_size
    for tensor in json.loads(body[:json_size])["outputs"]:
        n = tensor["parameters"]["binary_data_size"]
        raw, at = body[at : at + n], at + n
        if tensor["datatype"] != "BYTES":
            found[tensor["name"]] = np.frombuffer(raw, TYPES[tensor["datatype"]]).reshape(tensor["shape"])
            continue
        items = []
        while raw:
            size = int.from_bytes(raw[:4], "little")
            items.append(raw[4 : 4 + size])
            raw = raw[4 + size :]
        value = np.empty(len(items), object)
        value[:] = items
        found[tensor["name"]] = value.reshape(tensor["shape"])
    return found


class BinaryClient:
    """One connection, kept open."""

    def __init__(self, address: tuple[str, int], timeout: float = 60) -> None:
        self._connection = http.client.HTTPConnection(*address, timeout=timeout)

    def infer(
        self, model: str, inputs: Mapping[str, np.ndarray], datatypes: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """The status, and the outputs by name or the error's text."""
        body, json_size = request(inputs, datatypes)
        self._connection.request("POST", f"/v2/models/{model}/infer", body, {HEADER_LENGTH: str(json_size)})
        answer = self._connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            return answer.status, json.loads(data)["error"]
        return 200, arrays(data, int(answer.headers[HEADER_LENGTH]))

    def get(self, path: str) -> Any:
        return self._ask("GET", path, b"")[1]

    def post(self, path: str, value: object = None) -> tuple[int, Any]:
        """The status and the parsed answer."""
        return self._ask("POST", path, b"" if value is None else json.dumps(value).encode())

    def _ask(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        self._connection.request(method, path, body)
        answer = self._connection.getresponse()
        data = answer.read()
        return answer.status, json.loads(data) if data else None

    def close(self) -> None:
        self._connection.close()
