"""Bytes of a connection on their way to its socket. Native use only."""
