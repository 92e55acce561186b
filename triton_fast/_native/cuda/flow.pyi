"""Copies between host and devices that run side by side and are waited for once; native code only.

The contract: ext/triton_fast/_native/cuda/flow.pxd.
"""

def trim() -> None:
    """Close the streams that are kept for reuse."""
