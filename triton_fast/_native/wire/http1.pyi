"""HTTP/1.1 request heads: the Python names of the native parser.

The server calls the C interface in ``http1.pxd``; these names serve tests, fuzzing and instruction counts, and
know nothing of sockets or routes.
"""

from typing import TypedDict

class HttpError(Exception):
    """A request that must be refused. The connection cannot be used further.

    Attributes
    ----------
    status : int
        400, 413, 414, 417, 431, 501 or 505.
    text : str
        What is wrong and what to send instead; a quoted value is cut at 256 bytes.
    """

    status: int
    text: str
    def __init__(self, status: int, text: str) -> None: ...

class HeadDict(TypedDict):
    """One request head. Fields are None where the request has none; bytes are as sent, without outer blanks."""

    method: str
    minor: int
    keep_alive: bool
    expect_continue: bool
    chunked: bool
    content_length: int | None
    method_name: bytes
    target: bytes
    path: bytes
    query: bytes | None
    host: bytes | None
    authority: bytes | None
    content_type: bytes | None
    content_encoding: bytes | None
    accept_encoding: bytes | None
    authorization: bytes | None
    infer_header_len: bytes | None
    transfer_encoding: bytes | None
    head_len: int
    headers: list[tuple[bytes, bytes]]

def parse_head(data: bytes, max_head: int = 16384) -> HeadDict | None:
    """Parse the request head at the start of ``data``.

    Parameters
    ----------
    data : bytes
        Anything may follow the head.
    max_head : int
        Bytes; a head that does not end within them is refused.

    Returns
    -------
    dict or None
        None when more bytes are needed. ``method`` is ``"OTHER"`` for a method without a number of its own;
        ``head_len`` counts the blank line and tolerated empty lines before the request line.

    Raises
    ------
    HttpError
        The head breaks RFC 9112, RFC 9110 or a limit.
    """

class HeadParser:
    """One request head that arrives in pieces, as the connection code calls the parser.

    Parameters
    ----------
    max_head : int
        Bytes, as for ``parse_head``.
    """

    def __init__(self, max_head: int = 16384) -> None: ...
    @property
    def passes(self) -> int:
        """Full passes over the head so far: at most one for each line feed, and one more."""
    def feed(self, data: bytes) -> HeadDict | None:
        """Add ``data``; the result and errors are those of ``parse_head`` on all bytes so far.

        An error in an unfinished last line may be reported only once its line feed has come.
        """

def parse_infer_header_len(value: bytes) -> int:
    """Parse the value of Inference-Header-Content-Length: decimal, whole field, int32.

    A sign other than '-', blanks, other digits, "-0" and trailing text are refused.

    Raises
    ------
    HttpError
        400 with text 1 or 2 of the protocol's error list.
    """

def repeat_parse(data: bytes, times: int) -> int:
    """Parse ``data`` ``times`` times without the GIL; the sum of ``head_len`` (0 for a head that is no good)."""
