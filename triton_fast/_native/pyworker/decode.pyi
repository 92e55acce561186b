"""What a worker wrote, checked. Native interface only. Source: ext/triton_fast/_native/pyworker/decode.pyx."""
