"""State of one Python model instance: slots of requests. Native interface only. Source: pyworker/worker.pyx."""
