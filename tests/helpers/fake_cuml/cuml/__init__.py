"""A stand-in for the package ``cuml`` of releases before nvforest: see fil.py."""

__version__ = "25.10.00"
