"""What a run of a TensorRT model copies, and how it waits. Nothing to call from Python. Source: tensorrt/run.pyx."""
