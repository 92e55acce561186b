"""State of one Python model instance: slots of requests in flight. Native interface only. Source: pyworker/worker.pyx."""
