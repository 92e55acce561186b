"""The one place that names the version."""

__version__ = "0.1.0"
# The Triton release whose behaviour is the contract (see docs/compatibility.md).
TRITON_COMPAT = "2.73.0"
