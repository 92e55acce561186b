"""Ragged batches of ONNX models: native only, see ort/instance.pyi. Source: ext/triton_fast/_native/ort/ragged.pyx."""
