"""Whole bodies to decoded requests. Native use only: no Python names."""
