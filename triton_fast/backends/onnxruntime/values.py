"""Text values of parameters and of --backend-config, parsed with an error that names the parameter."""

from __future__ import annotations

from triton_fast.errors import InvalidArg

_TRUE = ("1", "true", "on", "yes")
_FALSE = ("0", "false", "off", "no", "")
LIMIT = 2**31 - 1


def flag(text: str, key: str) -> bool:
    """Return a yes-or-no value. Raises InvalidArg."""
    lowered = text.strip().lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    raise InvalidArg(f"parameter '{key}' must be true or false, got '{text}'")


def whole(text: str, key: str) -> int:
    """Return a whole number of at least 0. Raises InvalidArg."""
    return number(text, key, LIMIT)


def number(text: str, key: str, limit: int) -> int:
    """Return a whole number from 0 to ``limit``. Raises InvalidArg."""
    stripped = text.strip()
    digits = len(str(limit))
    if not stripped.isascii() or not stripped.isdigit() or len(stripped) > digits or int(stripped) > limit:
        raise InvalidArg(f"parameter '{key}' must be a whole number from 0 to {limit}, got '{text}'")
    return int(stripped)
