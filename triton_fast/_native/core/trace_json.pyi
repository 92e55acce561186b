"""A trace as the objects of a Triton trace file, natively; ``core.collector`` gives them out."""
