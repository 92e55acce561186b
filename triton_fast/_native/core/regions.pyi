"""Regions of shared memory that clients registered by name, kept until the last request is done.

Source: spec/http.md section 7. A file that its client makes smaller does not end the process: see ``faults``.
"""

from __future__ import annotations

class SharedRegions:
    """The regions of one server, by name. Any thread may call; requests look names up without the interpreter."""

    def __len__(self) -> int:
        """Return how many there are, with those that requests still use."""

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Map ``byte_size`` bytes of the file that ``key`` names in /dev/shm, with or without a leading slash.

        The file must be a plain one directly there, no link, with one name, and the server's own user's, or readable
        and writable for its user without the rights of root.

        Raises
        ------
        InvalidArg
            The key is no name of a file there or is reserved; the bytes are not within the file; they do not begin at
            a page.
        AlreadyExists
            The name is taken, maybe by a region that requests still use.
        Internal
            There is no such file, or clients may not have it.
        Unavailable
            The process has 4096 regions.
        """

    def check_free(self, name: str) -> None:
        """Raise AlreadyExists where the name is taken, by a region of either kind."""

    def status(self) -> list[tuple[str, str, int, int]]:
        """Return (name, key, offset, byte_size) of each region in system memory, by name.

        Those that requests still use are in it.
        """

    def device_status(self) -> list[tuple[str, int, int]]:
        """Return (name, device, byte_size) of each region in memory of a GPU, likewise, until it is unmapped."""

    def unregister(self, name: str, cuda: bool = False) -> None:
        """Take a name away; one that is not there, is leaving or is of the other kind, is left alone.

        What requests use stays, name and all, until the last of them is done.
        """

    def unregister_all(self, cuda: bool = False) -> None:
        """Do the same with every name of a kind."""

def faults() -> int:
    """Return how many faults in regions the handler has mended."""

class Loan:
    """A stretch of a region in the hands of a request, until ``end`` or the object's end (tests and bench).

    Raises
    ------
    ServerError
        What the request would be refused with.
    """

    def __init__(self, regions: SharedRegions | None, name: bytes, offset: int, byte_size: int) -> None: ...
    def end(self) -> None: ...
    def read(self, settle: bool = False) -> bytes:
        """Return the bytes as an input would hold them: in place, or copied out (``settle``) as texts are.

        Raises
        ------
        ServerError
            The region broke.
        """

    def write(self, data: bytes) -> None:
        """Write at most as much as was lent; whether the region is whole is told by ``read``."""
