"""State of one Python model instance: slots of requests in flight. Native interface only. Source: ext/triton_fast/_native/pyworker/worker.pyx."""
