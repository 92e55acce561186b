"""Tensors between an ensemble, its steps and its client. It has a C interface only (ensemble_tensors.pxd)."""
