"""Inputs of a batch as ONNX Runtime values; nothing here is for Python. Source: ort/gather.pyx."""
