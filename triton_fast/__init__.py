"""triton_fast: a drop-in NVIDIA Triton Inference Server with a native data path."""

from triton_fast._version import TRITON_COMPAT, __version__

__all__ = ["TRITON_COMPAT", "__version__"]
