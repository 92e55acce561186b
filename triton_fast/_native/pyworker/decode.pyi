"""What a worker wrote, checked. Native interface only. Source: pyworker/decode.pyx."""
