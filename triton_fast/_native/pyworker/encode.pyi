"""Requests and responses as records for a worker. Native interface only. Source: pyworker/encode.pyx."""
