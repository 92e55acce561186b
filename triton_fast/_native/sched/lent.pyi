"""Outputs into the shared memory of clients, on the thread that made them. Native code only; see ``core.regions``."""
