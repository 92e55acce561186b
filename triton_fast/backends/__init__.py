"""Backends: adapters from the engine's batches to the frameworks that run models."""

from __future__ import annotations

from triton_fast.backends.registry import INSTEAD, NAMES, Listed, find, get, listed, names, path_parameters

__all__ = ["INSTEAD", "NAMES", "Listed", "find", "get", "listed", "names", "path_parameters"]
