"""ONNX model repositories on disk, requests with numpy arrays, and onnxruntime itself to compare with.

Knows the directory layout and the binary form of the infer request; starts no server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime

from tests.helpers import raw
from tests.helpers.onnx_repository import wire_strings

Address = tuple[str, int]
Array = np.ndarray[Any, Any]

NUMPY: dict[str, Any] = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "FP16": np.float16, "FP32": np.float32,
    "FP64": np.float64, "BF16": ml_dtypes.bfloat16, "BYTES": object,
}  # fmt: skip
WIRE = {np.dtype(kind): name for name, kind in NUMPY.items()}


def add(root: Path, name: str, blob: bytes | None, config: str | None = None, version: str = "1") -> Path:
    """Write ``root/name/version/model.onnx`` and, where given, config.pbtxt; return the model's directory."""
    folder = root / name / version
    folder.mkdir(parents=True, exist_ok=True)
    if blob is not None:
        (folder / "model.onnx").write_bytes(blob)
    if config is not None:
        (root / name / "config.pbtxt").write_text(config)
    return root / name


def direct(blob: bytes, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What onnxruntime itself computes. Its Python interface has no BF16."""
    session = onnxruntime.InferenceSession(blob, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    given = {name: _texts(array) if array.dtype == object else array for name, array in inputs.items()}
    return dict(zip(names, session.run(names, given), strict=True))


def _texts(array: Array) -> Array:
    return np.array([item.decode() for item in array.flat], object).reshape(array.shape)


def request(model: str, inputs: Mapping[str, Array], *headers: str, **more: Any) -> bytes:
    """An infer request with binary tensors that wants binary outputs."""
    tensors, blobs = [], []
    for name, array in inputs.items():
        blob = wire_strings(list(array.flat)) if array.dtype == object else array.tobytes()
        blobs.append(blob)
        tensors.append({
            "name": name, "datatype": WIRE[array.dtype], "shape": list(array.shape),
            "parameters": {"binary_data_size": len(blob)},
        })  # fmt: skip
    head = json.dumps({"parameters": {"binary_data_output": True}, "inputs": tensors, **more}).encode()
    length = f"Inference-Header-Content-Length: {len(head)}"
    return raw.post(raw.infer_path(model), head + b"".join(blobs), length, *headers)


def arrays(answer: raw.Answer) -> dict[str, Array]:
    """The outputs of an infer answer."""
    assert answer.status == 200, answer.body
    size = int(answer.headers.get("inference-header-content-length", len(answer.body)))
    at, found = size, {}
    for output in json.loads(answer.body[:size])["outputs"]:
        if "data" in output:
            flat: list[Any] = output["data"]
        else:
            blob = answer.body[at : at + output["parameters"]["binary_data_size"]]
            at += len(blob)
            flat = _values(blob, output["datatype"])
        if output["datatype"] == "BYTES":
            made = np.empty(len(flat), object)
            made[:] = [item.encode() if isinstance(item, str) else item for item in flat]
        else:
            made = np.array(flat, NUMPY[output["datatype"]])
        found[output["name"]] = made.reshape(output["shape"])
    return found


def _values(blob: bytes, datatype: str) -> Any:
    if datatype != "BYTES":
        return np.frombuffer(blob, NUMPY[datatype])
    items, at = [], 0
    while at < len(blob):
        size = int.from_bytes(blob[at : at + 4], "little")
        items.append(blob[at + 4 : at + 4 + size])
        at += 4 + size
    return items


def infer(address: Address, model: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
    return arrays(raw.ask(address, request(model, inputs)))


def same(found: Array, expected: Array) -> bool:
    if expected.dtype == object:
        texts = [item.encode() if isinstance(item, str) else item for item in expected.flat]
        return found.shape == expected.shape and list(found.flat) == texts
    return found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes()


def config(address: Address, model: str) -> Any:
    answer = raw.ask(address, raw.get(f"/v2/models/{model}/config"))
    assert answer.status == 200, answer.body
    return answer.json()


def index(address: Address) -> dict[str, dict[str, str]]:
    """Index rows by ``name`` or ``name:version``; the latter where there are several."""
    rows = raw.ask(address, raw.post("/v2/repository/index")).json()
    names = [row["name"] for row in rows]
    return {
        f"{row['name']}:{row['version']}" if names.count(row["name"]) > 1 else row["name"]: row for row in rows
    }  # fmt: skip
