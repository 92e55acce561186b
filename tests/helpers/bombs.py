"""Compressed messages far smaller than what they hold. Knows the three formats of zlib; knows no server."""

from __future__ import annotations

import struct
import zlib
from functools import cache

MIB = 1 << 20
GZIP, ZLIB, RAW = 31, 15, -15


@cache
def packed(wbits: int, total: int, first: bytes = b"", byte: bytes = b"\0") -> bytes:
    """``first`` and then ``total`` bytes, whole MiB of ``byte``, compressed as zlib's ``wbits`` says.

    A MiB is compressed once: it ends on a full flush, so that the same bytes may follow each other.
    """
    piece = byte * MIB
    count = total // MIB
    packer = zlib.compressobj(9, zlib.DEFLATED, RAW)
    head = packer.compress(first) + packer.flush(zlib.Z_FULL_FLUSH)
    body = packer.compress(piece) + packer.flush(zlib.Z_FULL_FLUSH)
    data = head + body * count + packer.flush()
    if wbits == RAW:
        return data
    check = zlib.crc32 if wbits == GZIP else zlib.adler32
    total_check = check(first)
    for _ in range(count):
        total_check = check(piece, total_check)
    if wbits == GZIP:
        header = b"\x1f\x8b\x08" + bytes(5) + b"\x02\xff"
        return header + data + struct.pack("<II", total_check, (len(first) + count * MIB) & 0xFFFFFFFF)
    return b"\x78\xda" + data + struct.pack(">I", total_check)
