"""Requests to the front ends of clouds: the binary content types, and the environment of each."""

from __future__ import annotations

import struct
from typing import Any

from tests.helpers import raw

SAGEMAKER = "application/vnd.sagemaker-triton.binary+json;json-header-size="
VERTEX = "application/vnd.vertex-ai-triton.binary+json;json-header-size="
TARGET = "X-Amzn-SageMaker-Target-Model"
REDIRECT = "X-Vertex-Ai-Triton-Redirect"
PREDICT = "/v1/endpoints/7/deployedModels/9:predict"
HEALTH = "/v1/endpoints/7/deployedModels/9"
AIP = {"AIP_PREDICT_ROUTE": PREDICT, "AIP_HEALTH_ROUTE": HEALTH}


def infer(path: str, values: list[float], *headers: str, **more: Any) -> bytes:
    """An infer request as JSON."""
    return raw.post(path, _json(values, **more), *headers)


def _json(values: list[float], **more: Any) -> bytes:
    return raw.infer_json("m", values, **more).partition(b"\r\n\r\n")[2]


def binary(path: str, kind: str, values: list[float], *headers: str, size: object = None) -> bytes:
    """An infer request with a binary tensor and a binary answer; ``size`` stands in for the right header size."""
    body, length = raw.binary_body(raw.fp32(values), [1, len(values)])
    return raw.post(path, body, f"Content-Type: {kind}{length if size is None else size}", *headers)


def binary_values(answer: raw.Answer, kind: str) -> list[float]:
    """The only output of an answer of this binary type."""
    given = answer.headers["content-type"]
    assert given.startswith(kind), given
    assert "inference-header-content-length" not in answer.headers
    data = answer.body[int(given[len(kind) :]) :]
    return list(struct.unpack(f"<{len(data) // 4}f", data))
