"""What is measured over HTTP: one row per case, with its request, the check of its answer and its target.

It knows the v2 protocol and nothing of wrk, nginx or processes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from bench.server import models

JSON = "application/json"
BINARY = "application/octet-stream"
HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Target:
    """``kind`` is min_ratio (requests/s over nginx's), max_p50_ratio (p50 over nginx's) or min_rate (requests/s)."""

    kind: str
    value: float

    def __str__(self) -> str:
        return {"min_ratio": f">= {self.value:.0%} of nginx", "max_p50_ratio": f"p50 <= {self.value:g}x nginx",
                "min_rate": f">= {self.value:.0f}/s"}[self.kind]


@dataclass(frozen=True)
class Case:
    protocol: ClassVar[str] = "http"
    name: str
    model: str
    connections: int
    binary: bool
    target: Target | None = None
    _request: tuple[bytes, Mapping[str, str]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_request", encode(self.model, self.binary))

    @property
    def path(self) -> str:
        return f"/v2/models/{self.model}/infer"

    @property
    def load(self) -> dict[str, int]:
        return {"connections": self.connections}

    @property
    def body(self) -> bytes:
        return self._request[0]

    @property
    def headers(self) -> Mapping[str, str]:
        return self._request[1]

    def verify(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Raise unless the answer is the model's own output for this request."""
        found = self.verify_shape(status, headers, body)
        if not np.allclose(found, models.expected(self.model), rtol=1e-4, atol=1e-5):
            raise RuntimeError(f"{self.name}: wrong values: {found[:8]}")

    def verify_shape(self, status: int, headers: Mapping[str, str], body: bytes) -> np.ndarray:
        """The output's values, after checks of status, name, type and element count."""
        if status != 200:
            raise RuntimeError(f"{self.name}: status {status}: {body[:500]!r}")
        length = next((int(value) for key, value in headers.items() if key.lower() == HEADER_LENGTH.lower()), len(body))
        output = json.loads(body[:length])["outputs"][0]
        values = np.frombuffer(body[length:], "<f4") if self.binary else np.array(output["data"], np.float32)
        if (output["name"], output["datatype"]) != ("OUTPUT", "FP32") or len(values) != models.WIDTH[self.model]:
            raise RuntimeError(f"{self.name}: unexpected output {output} with {len(values)} values")
        return values


def encode(model: str, binary: bool) -> tuple[bytes, Mapping[str, str]]:
    """The request in the form that tritonclient gives it, without an id."""
    values = models.sample(model)
    tensor: dict[str, object] = {"name": "INPUT", "shape": [1, len(values)], "datatype": "FP32"}
    if binary:
        tensor["parameters"] = {"binary_data_size": values.nbytes}
        outputs = [{"name": "OUTPUT", "parameters": {"binary_data": True}}]
    else:
        tensor["data"] = [float(f"{value:.6g}") for value in values]
        outputs = [{"name": "OUTPUT", "parameters": {"binary_data": False}}]
    head = json.dumps({"inputs": [tensor], "outputs": outputs}, separators=(",", ":")).encode()
    if binary:
        return head + values.tobytes(), {"Content-Type": BINARY, HEADER_LENGTH: str(len(head))}
    return head, {"Content-Type": JSON}


CASES = (
    Case("mlp-binary-c32", "mlp", 32, True, Target("min_ratio", 0.5)),
    Case("mlp-binary-c1", "mlp", 1, True, Target("max_p50_ratio", 2.0)),
    Case("mlp-json-c32", "mlp", 32, False),
    Case("mlp-json-c1", "mlp", 1, False),
    Case("identity-602KB-c8", "identity", 8, True, Target("min_rate", 2500)),
)
