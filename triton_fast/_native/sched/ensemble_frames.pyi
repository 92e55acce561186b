"""The memory of a run. It has a C interface only (ensemble_frames.pxd)."""
