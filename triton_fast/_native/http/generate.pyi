"""Generate requests of an HTTP connection. Native use only, but for the job that a worker thread runs."""

class Generation:
    """The answer to one generate request, as far as it has come."""

class EventJob:
    """A response that takes long to encode."""

    def run(self) -> None:
        """Encode it; on any thread, once."""
