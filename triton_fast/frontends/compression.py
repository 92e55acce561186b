"""gzip and deflate, both ways, with a bound on what a body or message may inflate to; for every front end."""

from __future__ import annotations

import zlib

from triton_fast.errors import InvalidArg, Unsupported

IDENTITY, GZIP, DEFLATE, UNKNOWN = range(4)
_WBITS = {GZIP: 31, DEFLATE: 15}
# A gzip file may be several members end to end; a bomb may be many thousands.
MAX_MEMBERS = 1000
PIECE = 65536


def inflate(data: bytes, encoding: int, limit: int, *, flag: str) -> bytes:
    """Return the plain body. ``flag`` sets the limit, and is named when there is more.

    Raises
    ------
    InvalidArg
        Broken or truncated data, or more than ``limit`` bytes of output.
    Unsupported
        An encoding other than gzip, deflate and identity.
    """
    if encoding not in _WBITS:
        raise Unsupported("Unsupported compression type")
    if not data:
        raise InvalidArg("nothing to be decompressed")
    parts: list[bytes] = []
    total = at = 0
    for _ in range(MAX_MEMBERS):
        member = zlib.decompressobj(_WBITS[encoding])
        while not member.eof and at < len(data):
            # By pieces: what follows a member is copied by zlib each time.
            piece = data[at : at + PIECE]
            at += len(piece)
            try:
                part = member.decompress(piece, limit - total + 1)
            except zlib.error as error:
                raise InvalidArg(f"the compressed request body is not valid: {error}") from None
            total += len(part)
            if total > limit:
                raise InvalidArg(
                    f"Decompressed data size exceeds the maximum allowed value of {limit} bytes. "
                    f"Use {flag} to increase the limit."
                )
            parts.append(part)
        if not member.eof:
            raise InvalidArg("the compressed request body is truncated")
        at -= len(member.unused_data)
        if at == len(data):
            return b"".join(parts)
        if encoding == DEFLATE:
            break
    raise InvalidArg("the compressed request body is followed by bytes that do not belong to it")


def deflate(data: bytes, encoding: int, level: int = zlib.Z_DEFAULT_COMPRESSION) -> bytes:
    """Return ``data`` compressed for ``encoding`` (GZIP or DEFLATE); ``level`` is zlib's."""
    packer = zlib.compressobj(level, wbits=_WBITS[encoding])
    return packer.compress(data) + packer.flush()
