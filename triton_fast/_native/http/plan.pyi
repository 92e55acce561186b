"""What a connection remembers of its last infer request. Native use only: no Python names."""
