"""The instance thread's part of a Python model. Native interface only. Source: ext/triton_fast/_native/pyworker/execute.pyx."""
