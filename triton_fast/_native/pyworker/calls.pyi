"""Requests that a worker's model makes of other models (BLS). Native interface only. Source: ext/triton_fast/_native/pyworker/calls.pyx."""
