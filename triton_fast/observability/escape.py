"""Text from outside made safe to print: always one line, no terminal control, no reordering of what is read.

Knows nothing of logs or tables.
"""

from __future__ import annotations

import re

# C0, DEL and C1 controls; line and paragraph separators; bidirectional marks, embeddings, overrides and isolates;
# zero-width and invisible characters; surrogates, which no encoder takes; tag characters.
_HIDDEN = (
    "\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f"
)
_UNSAFE = re.compile(f"[{_HIDDEN}]")
_UNSAFE_QUOTED = re.compile(f'["\\\\{_HIDDEN}]')
_SHORT = {"\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}


def _escape(found: re.Match[str]) -> str:
    char = found.group()
    short = _SHORT.get(char)
    if short is not None:
        return short
    code = ord(char)
    if 0xD800 <= code <= 0xDFFF:
        return "\\uFFFD"  # half a pair: strict JSON readers refuse its own escape
    if code > 0xFFFF:
        code -= 0x10000
        return f"\\u{0xD800 + (code >> 10):04X}\\u{0xDC00 + (code & 0x3FF):04X}"
    return f"\\u{code:04X}"


def visible(text: str) -> str:
    """Return ``text`` on one line, hidden characters as JSON escapes; quotes and backslashes stay as they are."""
    return _UNSAFE.sub(_escape, text)


def quoted(text: str) -> str:
    """Return ``text`` as a JSON string on one line in which every hidden character is escaped."""
    return f'"{_UNSAFE_QUOTED.sub(_escape, text)}"'
