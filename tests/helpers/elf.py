"""Shared objects without code, as small as the loader takes them: they have a name and need others."""

from __future__ import annotations

import struct
from collections.abc import Sequence


def shared_object(soname: str, needed: Sequence[str] = ()) -> bytes:
    """A 64-bit library of this machine's kind that can be opened with dlopen once what it needs is there."""
    names = [soname, *needed]
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in names)
    places, at = [], 1
    for name in names:
        places.append(at)
        at += len(name) + 1
    head, entry, tags = 64, 56, 6 + len(needed)
    dynamic = head + 3 * entry
    symbols = dynamic + 16 * tags
    table = symbols + 24
    size = table + len(strings)
    rows = [(1, place) for place in places[1:]]
    rows += [(14, places[0]), (5, table), (6, symbols), (10, len(strings)), (11, 24), (0, 0)]
    with open("/proc/self/exe", "rb") as file:
        machine = struct.unpack_from("<H", file.read(20), 18)[0]
    made = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 3, machine, 1, 0, head, 0, 0, 64, entry, 3, 0, 0, 0)
    made += struct.pack("<IIQQQQQQ", 1, 6, 0, 0, 0, size, size, 0x1000)
    made += struct.pack("<IIQQQQQQ", 2, 6, dynamic, dynamic, dynamic, 16 * tags, 16 * tags, 8)
    made += struct.pack("<IIQQQQQQ", 0x6474E551, 6, 0, 0, 0, 0, 0, 16)
    for tag, value in rows:
        made += struct.pack("<QQ", tag, value)
    return made + bytes(24) + strings
