"""The names of the module that Triton's native stub provides, for models that import it or unpickle its classes."""

from triton_fast_worker.bls import ResponseIterator
from triton_fast_worker.errors import TritonError, TritonModelException
from triton_fast_worker.functions import is_model_ready, load_model, unload_model
from triton_fast_worker.log import Logger
from triton_fast_worker.metrics import Metric, MetricFamily, MetricKind
from triton_fast_worker.request import InferenceRequest, InferenceTrace, MemoryType, PreferredMemory
from triton_fast_worker.response import InferenceResponse
from triton_fast_worker.sender import InferenceResponseSender
from triton_fast_worker.tensor import Tensor

COUNTER, GAUGE, HISTOGRAM = MetricKind
TRITONSERVER_MEMORY_GPU, TRITONSERVER_MEMORY_CPU = MemoryType

__all__ = [
    "COUNTER", "GAUGE", "HISTOGRAM", "TRITONSERVER_MEMORY_CPU", "TRITONSERVER_MEMORY_GPU", "InferenceRequest",
    "InferenceResponse", "InferenceResponseSender", "InferenceTrace", "Logger", "MemoryType", "Metric", "MetricFamily",
    "MetricKind", "PreferredMemory", "ResponseIterator", "Tensor", "TritonError", "TritonModelException",
    "is_model_ready", "load_model", "unload_model",
]  # fmt: skip
