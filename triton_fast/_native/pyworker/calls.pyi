"""Requests that a worker's model makes of other models (BLS). Native interface only. Source: pyworker/calls.pyx."""
