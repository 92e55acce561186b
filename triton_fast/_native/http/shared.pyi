"""What connections of a listener share: see ``HttpServer`` in connection.pyi. Native use only."""
