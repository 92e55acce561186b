"""gzip and deflate bodies, both ways, with a bound on what a body may inflate to."""

from __future__ import annotations

import zlib

from triton_fast.errors import InvalidArg, Unsupported

IDENTITY, GZIP, DEFLATE, UNKNOWN = range(4)
_WBITS = {GZIP: 31, DEFLATE: 15}
# A gzip file may be several members end to end; a bomb may be many thousands.
MAX_MEMBERS = 1000
PIECE = 65536


def inflate(data: bytes, encoding: int, limit: int) -> bytes:
    """Return the plain body.

    Raises
    ------
    InvalidArg
        Broken or truncated data, or more than ``limit`` bytes of output.
    Unsupported
        A Content-Encoding other than gzip, deflate and identity.
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
                    "Use --http-max-input-size to increase the limit."
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


def deflate(data: bytes, encoding: int) -> bytes:
    """Return ``data`` compressed for ``encoding`` (GZIP or DEFLATE)."""
    packer = zlib.compressobj(wbits=_WBITS[encoding])
    return packer.compress(data) + packer.flush()


def choose_encoding(accept: str) -> int:
    """Return the encoding an Accept-Encoding header prefers: the highest q wins, the first of equals."""
    best, chosen = 0.0, IDENTITY
    for item in accept.split(",")[:32]:
        name, _, arguments = item.partition(";")
        encoding = {"gzip": GZIP, "x-gzip": GZIP, "deflate": DEFLATE, "identity": IDENTITY}.get(name.strip().lower())
        if encoding is None:
            continue
        quality = _quality(arguments)
        if quality > best:
            best, chosen = quality, encoding
    return chosen


def _quality(arguments: str) -> float:
    for argument in arguments.split(";"):
        key, _, value = argument.partition("=")
        if key.strip().lower() == "q":
            try:
                quality = float(value)
            except ValueError:
                return 0.0
            return quality if 0.0 <= quality <= 1.0 else 0.0
    return 1.0
