"""max_inflight_requests. It has a C interface only (ensemble_places.pxd)."""
