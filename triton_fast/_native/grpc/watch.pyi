"""What of gRPC calls is told to the access log and to clients that ask for times. Native use only."""
