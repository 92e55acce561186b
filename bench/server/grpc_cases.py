"""What is measured over gRPC: one row per case, with its request, the check of its answer and its target.

It knows the messages and their five-byte prefix, and nothing of h2load, nginx or processes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from bench.server import models
from bench.server.cases import Target
from triton_fast import protos

PATH = "/inference.GRPCInferenceService/ModelInfer"
PREFIX = struct.Struct(">?I")  # compressed, length of the message


@dataclass(frozen=True)
class GrpcCase:
    """``streams`` is how many requests each connection has in flight."""

    protocol: ClassVar[str] = "grpc"
    path: ClassVar[str] = PATH
    name: str
    model: str
    connections: int
    streams: int
    target: Target | None = None
    body: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "body", frame(encode(self.model)))

    @property
    def load(self) -> dict[str, int]:
        return {"connections": self.connections, "streams": self.streams}

    @property
    def headers(self) -> Mapping[str, str]:
        return {"content-type": "application/grpc", "te": "trailers"}

    def verify(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Raise unless the answer is the model's own output for this request."""
        found = self.verify_shape(status, headers, body)
        if not np.allclose(found, models.expected(self.model), rtol=1e-4, atol=1e-5):
            raise RuntimeError(f"{self.name}: wrong values: {found[:8]}")

    def verify_shape(self, status: int, _: Mapping[str, str], body: bytes) -> np.ndarray:
        """The output's values, after checks of the gRPC status, name, type and element count."""
        compressed, length = PREFIX.unpack_from(body.ljust(PREFIX.size, b"\0"))
        if status or compressed or length != len(body) - PREFIX.size:
            raise RuntimeError(f"{self.name}: gRPC status {status}: {body[:500]!r}")
        reply = protos.ModelInferResponse.FromString(body[PREFIX.size :])
        (output,), (raw,) = reply.outputs, reply.raw_output_contents
        values = np.frombuffer(raw, "<f4")
        if (output.name, output.datatype) != ("OUTPUT", "FP32") or len(values) != models.WIDTH[self.model]:
            raise RuntimeError(f"{self.name}: unexpected output {output} with {len(values)} values")
        return values


def frame(message: bytes) -> bytes:
    """The message as it travels in DATA frames."""
    return PREFIX.pack(False, len(message)) + message


def encode(model: str) -> bytes:
    """The request in the form that tritonclient gives it, without an id."""
    values = models.sample(model)
    request = protos.ModelInferRequest(model_name=model)
    request.inputs.add(name="INPUT", datatype="FP32", shape=[1, len(values)])
    request.outputs.add(name="OUTPUT")
    request.raw_input_contents.append(values.tobytes())
    return request.SerializeToString()


GRPC_CASES = (
    GrpcCase("grpc-mlp-c4-m8", "mlp", 4, 8, Target("min_ratio", 1.31)),
    GrpcCase("grpc-mlp-c8-m1", "mlp", 8, 1, Target("min_rate", 25_000)),
    GrpcCase("grpc-mlp-c4-m32", "mlp", 4, 32),
    GrpcCase("grpc-mlp-c1-m1", "mlp", 1, 1),
    GrpcCase("grpc-identity-602KB-c4-m2", "identity", 4, 2, Target("min_rate", 2000)),
)
