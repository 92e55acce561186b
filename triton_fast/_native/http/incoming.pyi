"""Bytes on their way into an HTTP connection (see ``http/incoming.pxd``); no Python names."""
