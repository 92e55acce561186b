"""The instance thread's part of a Python model. Native interface only. Source: pyworker/execute.pyx."""
