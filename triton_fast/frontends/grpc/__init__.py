"""The gRPC front end: the service as a table over the dataplane, on the native connection."""
