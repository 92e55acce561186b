"""Requests and responses as records for a worker. Native interface only. Source: ext/triton_fast/_native/pyworker/encode.pyx."""
