"""Chunked bodies of HTTP/1.1: the Python name of the native decoder.

The server calls the C interface in ``chunked.pxd``; this class serves tests and fuzzing. It knows nothing of heads or
connections. ``HttpError`` is that of ``http1``.
"""

class ChunkedDecoder:
    """Incremental decoder of one chunked body; trailer fields are checked and dropped.

    Parameters
    ----------
    max_body : int
        Payload bytes; a chunk that would exceed them is refused with 413 when its size is read.
    max_chunks : int
        Non-empty chunks; one more is refused with 400.
    """

    def __init__(self, max_body: int = ..., max_chunks: int = 65536) -> None: ...
    @property
    def n_chunks(self) -> int:
        """Non-empty chunks begun so far."""
    def feed(self, data: bytes, dst_cap: int = 65536) -> tuple[bytes, bool, int]:
        """Decode from ``data`` at most ``dst_cap`` payload bytes.

        Returns
        -------
        tuple
            Payload, whether the body and its trailers are finished, and how many bytes of ``data`` were used;
            feed the rest again when the payload was cut by ``dst_cap``.

        Raises
        ------
        HttpError
            400 malformed or too many chunks, 413 body too large, 431 trailers too large; the same again on
            every later call.
        """
    def discard(self, data: bytes) -> tuple[int, bool, int]:
        """As ``feed`` without limit or copy: the payload is only counted."""
