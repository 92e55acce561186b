"""A Python buffer over native memory that lives as long as any view of it."""

class BlockView:
    """A buffer over one tensor's data; made by native code only. ``len`` is bytes."""

    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
