"""Infer requests with tensors of PyTorch over one kept HTTP connection. Knows the binary form of the messages alone."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch

KINDS: dict[str, torch.dtype] = {
    "BOOL": torch.bool, "UINT8": torch.uint8, "UINT16": torch.uint16, "UINT32": torch.uint32, "UINT64": torch.uint64,
    "INT8": torch.int8, "INT16": torch.int16, "INT32": torch.int32, "INT64": torch.int64, "FP16": torch.float16,
    "FP32": torch.float32, "FP64": torch.float64, "BF16": torch.bfloat16,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in KINDS.items()}
HEADER = "Inference-Header-Content-Length"
TIMEOUT_S = 100.0


class Refused(Exception):
    """The server's error; ``status`` of HTTP."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def data_of(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""


def infer_message(inputs: Mapping[str, torch.Tensor | dict[str, Any]]) -> tuple[int, bytes]:
    """Return (length of the JSON part, body); a dict is an entry of its own, without data."""
    entries, blobs = [], []
    for name, one in inputs.items():
        if isinstance(one, dict):
            entries.append({"name": name, **one})
            continue
        blobs.append(data_of(one))
        entries.append({
            "name": name, "datatype": NAMES[one.dtype], "shape": list(one.shape),
            "parameters": {"binary_data_size": len(blobs[-1])},
        })  # fmt: skip
    head = json.dumps({"parameters": {"binary_data_output": True}, "inputs": entries}).encode()
    return len(head), head + b"".join(blobs)


class Wire:
    def __init__(self, address: tuple[str, int]) -> None:
        self._connection = http.client.HTTPConnection(*address, timeout=TIMEOUT_S)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._connection.close()

    def ask(self, path: str, body: Any = None, method: str = "POST") -> Any:
        """Return the JSON of an answer, None for an empty one. Raises Refused."""
        text = json.dumps(body).encode() if body is not None else b""
        return self._json(*self._answer(method, path, text, {}))

    def status(self, path: str) -> int:
        return self._answer("GET", path, b"", {})[0]

    def infer(self, model: str, inputs: Mapping[str, torch.Tensor | dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the outputs. Raises Refused."""
        size, body = infer_message(inputs)
        status, headers, answer = self._answer("POST", f"/v2/models/{model}/infer", body, {HEADER: str(size)})
        at = int(headers.get(HEADER, len(answer)))
        found = {}
        for one in self._json(status, headers, answer[:at])["outputs"]:
            blob = bytearray(answer[at : at + one["parameters"]["binary_data_size"]])
            at += len(blob)
            kind = KINDS[one["datatype"]]
            flat = torch.frombuffer(blob, dtype=kind) if blob else torch.empty(0, dtype=kind)
            found[one["name"]] = flat.reshape(one["shape"])
        return found

    def _answer(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, Any, bytes]:
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        return answer.status, answer.headers, answer.read()

    @staticmethod
    def _json(status: int, headers: Any, body: bytes) -> Any:
        value = json.loads(body) if body else None
        if status != 200:
            raise Refused(status, str(value.get("error", value)) if isinstance(value, dict) else str(value))
        return value
