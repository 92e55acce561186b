"""The service thread of one worker process. Native interface only. Source: pyworker/service.pyx."""
