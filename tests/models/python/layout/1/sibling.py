"""Beside the model."""

VALUE = "from the sibling"
