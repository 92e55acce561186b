"""The access log's ring: requests leave records, one thread prints them."""

from asyncio import BaseTransport

class AccessLog:
    """Requests to be told of, and their records until they are printed.

    Parameters
    ----------
    size
        Bytes of records that may wait, a power of two; 0: the log stays off.
    seed
        Of the choice of requests.
    """

    tensors: bool
    def __init__(self, size: int = 0, seed: int = ...) -> None: ...
    @property
    def lost(self) -> int:
        """Records for which there was no room."""
    def set_share(self, share: float) -> None:
        """Pick this share of all requests, 0 to 1."""
    def wait(self, gather_ns: int) -> bool:
        """Wait until there are records, then up to ``gather_ns`` for more; False when there will be none."""
    def close(self) -> None:
        """Let ``wait`` return at once from now on, with what there is."""
    def take(self, form: str, pid: int, escape: bool = True) -> bytes:
        """Return the next lines in a format of ``observability.log``; b"" when no record waits."""

def peer_of(transport: BaseTransport) -> bytes:
    """Return the client's address: host:port, [host]:port, or b"" for what has none."""

def repeat_record(log: AccessLog, n: int) -> None:
    """Pick, take down and drop n records; for benchmarks."""

def repeat_lines(log: AccessLog, n: int) -> int:
    """Print the same record n times; for benchmarks. Returns bytes printed."""

def _put(
    log: AccessLog,
    kind: int,
    status: int,
    method: bytes | None,
    path: bytes | None,
    model: bytes | None,
    peer: bytes | None,
    ident: bytes = b"",
    began: int = 0,
) -> None: ...
def _picked(log: AccessLog, n: int) -> int: ...
