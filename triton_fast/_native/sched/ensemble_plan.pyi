"""What an ensemble is, and its members. It has a C interface only (ensemble_plan.pxd)."""
