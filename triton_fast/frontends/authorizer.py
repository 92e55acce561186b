"""Which requests may use an API: one check for all protocols, which word the refusal.

Categories are those of --http-restricted-api and --grpc-restricted-protocol (``cli.values.RESTRICTED``), and "metrics".
A request needs both, where both are asked for: the header of its restricted category, and an API key.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import NamedTuple

from triton_fast.frontends.keys import KeyRing, Refusal


class _Guard(NamedTuple):
    shown: str
    name: str
    value: bytes


class Authorizer:
    """``restricted``: category -> (header, value), as the command line gives it. ``keys``: None where none is asked."""

    def __init__(self, restricted: Mapping[str, tuple[str, str]] | None = None, keys: KeyRing | None = None) -> None:
        self._guards = {
            category: _Guard(header, header.lower(), value.encode())
            for category, (header, value) in (restricted or {}).items()
        }
        self._keys = keys

    def missing(self, category: str, headers: Mapping[str, str]) -> str:
        """Return what a request lacks; empty when it may pass.

        A ``Refusal``, which has its statuses with it, when its API key is not good for this; else the header that is
        missing, or has another value than its category's. Front ends give either to their ``denied``.

        ``headers``: lower-case names; values are latin-1, as bytes of the wire decode without loss.
        """
        if self._keys is not None and category not in self._keys.exempt:
            refusal = self._keys.refusal(presented(headers), category)
            if refusal is not None:
                return refusal
        guard = self._guards.get(category)
        if guard is None or hmac.compare_digest(_wire(headers.get(guard.name, "")), guard.value):
            return ""
        return guard.shown


def presented(headers: Mapping[str, str]) -> bytes:
    """Return the API key that a request presents, b"" when it presents none."""
    own = headers.get("x-api-key")
    if own is not None:
        return _wire(own)
    kind, _, key = headers.get("authorization", "").partition(" ")
    return _wire(key.lstrip(" ")) if kind.lower() == "bearer" else b""


def _wire(value: str) -> bytes:
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        # Not from the wire; never equal to less than it is.
        return value.encode("utf-8", "surrogatepass")


__all__ = ["Authorizer", "Refusal", "presented"]
