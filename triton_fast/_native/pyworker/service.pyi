"""The service thread of one worker process. Native interface only. Source: ext/triton_fast/_native/pyworker/service.pyx."""
