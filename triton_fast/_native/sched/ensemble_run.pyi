"""A request to an ensemble on its way. It has a C interface only (ensemble_run.pxd)."""
