"""The name under which some models import the classes directly."""

from triton_python_backend_utils import (
    InferenceRequest,
    InferenceResponse,
    InferenceResponseSender,
    InferenceTrace,
    Logger,
    LogLevel,
    MemoryType,
    Metric,
    MetricFamily,
    PreferredMemory,
    ResponseIterator,
    Tensor,
    TritonError,
    TritonModelException,
)

__all__ = [
    "InferenceRequest", "InferenceResponse", "InferenceResponseSender", "InferenceTrace", "LogLevel", "Logger",
    "MemoryType", "Metric", "MetricFamily", "PreferredMemory", "ResponseIterator", "Tensor", "TritonError",
    "TritonModelException",
]  # fmt: skip
