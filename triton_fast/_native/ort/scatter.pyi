"""Outputs of a batch as slices for the responses; nothing here is for Python. Source: ort/scatter.pyx."""
