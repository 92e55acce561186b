"""The completion ring between instance threads and one event loop."""

from __future__ import annotations

class CompletionRing:
    """A loop's queue of finished responses.

    Any thread pushes (natively, without the GIL); the owning loop drains when the descriptor becomes readable.

    Raises
    ------
    OSError
        If no eventfd can be created.
    """

    def __init__(self) -> None: ...
    def fileno(self) -> int:
        """Return the eventfd; readable from the first push after a drain. The ring owns and closes it."""
