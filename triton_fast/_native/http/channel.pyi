"""Bytes into and out of an HTTP connection. Native use only."""
