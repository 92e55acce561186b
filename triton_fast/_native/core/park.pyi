"""Parking of native threads. It has a C interface only (park.pxd) and nothing for Python."""
