"""The FIL backend: gradient-boosted trees and random forests, run by treelite's GTIL, or on GPUs by nvforest."""

from __future__ import annotations

from triton_fast.backends.fil.backend import FilBackend

__all__ = ["FilBackend"]
