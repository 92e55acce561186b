"""Parsed request heads to routes and lengths. Native use only: no Python names."""
