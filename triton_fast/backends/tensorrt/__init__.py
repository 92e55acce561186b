"""The TensorRT backend: plans (serialized engines) run on NVIDIA GPUs through TensorRT's Python API."""

from __future__ import annotations

from triton_fast.backends.tensorrt.backend import TensorRtBackend

__all__ = ["TensorRtBackend"]
