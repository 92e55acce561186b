"""The ONNX Runtime backend: models in .onnx files, run through ORT's C API without the GIL."""

from __future__ import annotations

from triton_fast.backends.onnxruntime.backend import OnnxRuntimeBackend

__all__ = ["OnnxRuntimeBackend"]
