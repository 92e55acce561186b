"""What a request to an ensemble waits for. It has a C interface only (ensemble_look.pxd)."""
