"""What of an HTTP connection is told to the access log and to a client that asks for times. Native use only."""

class Watched:
    """A connection as far as others look on."""
