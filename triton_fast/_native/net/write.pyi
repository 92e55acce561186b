"""Writing to sockets, and memory of a block as a Python buffer. Native use only."""

class BlockView:
    """Read-only memory of a block, which lives as long as the view."""

    def __len__(self) -> int: ...
