"""What connections of the gRPC listener share: see ``GrpcServer`` in connection.pyi. Native use only."""
