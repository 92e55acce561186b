"""gRPC messages on their way out. Native use only."""
