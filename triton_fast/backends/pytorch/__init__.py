"""The PyTorch backend: TorchScript, exported programs, AOTInductor packages, and model.py classes with weights."""

from __future__ import annotations

from triton_fast.backends.pytorch.backend import PyTorchBackend

__all__ = ["PyTorchBackend"]
