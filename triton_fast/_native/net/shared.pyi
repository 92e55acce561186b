"""What connections of a listener share, whatever their protocol: see ``HttpServer`` and ``GrpcServer``."""
