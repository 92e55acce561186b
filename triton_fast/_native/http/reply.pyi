"""HTTP response heads and replies. Native use only."""
