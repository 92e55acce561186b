"""Which optimization profile takes which shapes, remembered. Source: tensorrt/shapes.pyx, for its instances."""

from collections.abc import Sequence

Key = Sequence[int]

class ShapeTable:
    """A table on its own, for tests: ``length`` numbers a key; ``profiles``: (least, best, most) of each number."""

    def __init__(self, length: int, profiles: Sequence[tuple[Key, Key, Key]]) -> None: ...
    def seek(self, key: Key) -> tuple[int, int] | None:
        """Return (profile, serial number of the entry) for a key, made when it is new; None: no profile takes it."""
