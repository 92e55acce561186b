"""Which requests may use a restricted API: one check for all protocols, which word the refusal.

Categories are those of --http-restricted-api and --grpc-restricted-protocol (``cli.values.RESTRICTED``).
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import NamedTuple


class _Guard(NamedTuple):
    shown: str
    name: str
    value: bytes


class Authorizer:
    """``restricted``: category -> (header, value), as the command line gives it."""

    def __init__(self, restricted: Mapping[str, tuple[str, str]] | None = None) -> None:
        self._guards = {
            category: _Guard(header, header.lower(), value.encode())
            for category, (header, value) in (restricted or {}).items()
        }

    def missing(self, category: str, headers: Mapping[str, str]) -> str:
        """Return the header that a request lacks, or has with another value; empty when it may pass.

        ``headers``: lower-case names; values are latin-1, as bytes of the wire decode without loss.
        """
        guard = self._guards.get(category)
        if guard is None or hmac.compare_digest(_wire(headers.get(guard.name, "")), guard.value):
            return ""
        return guard.shown


def _wire(value: str) -> bytes:
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        # Not from the wire; never equal to less than it is.
        return value.encode("utf-8", "surrogatepass")
