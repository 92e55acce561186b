"""The OpenVINO backend: IR, ONNX, TensorFlow and other models, run through OpenVINO's C API without the GIL."""

from __future__ import annotations

from triton_fast.backends.openvino.backend import OpenVinoBackend

__all__ = ["OpenVinoBackend"]
