"""What of an HTTP connection is told to the access log and to a client that asks for times. Native use only."""

from triton_fast._native.http.channel import Channel

class Watched(Channel):
    """A connection as far as others look on."""
