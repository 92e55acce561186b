"""What an HTTP/2 connection does by time: pings both ways, age, stalled calls, leaving. Native use only."""

from triton_fast._native.grpc.h2 import H2Session

class H2Connection(H2Session):
    """One HTTP/2 connection with its pings, its age and its way out."""
