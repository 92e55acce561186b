"""What an Accept-Encoding header asks for."""

from __future__ import annotations

from triton_fast.frontends.compression import DEFLATE, GZIP, IDENTITY


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
