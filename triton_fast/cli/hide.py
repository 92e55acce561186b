"""Takes secrets out of the process's command line, which ``ps`` shows to every user of the machine.

The bytes are overwritten where the kernel reads them, between the start and the end of the arguments in this process's
memory. Between the start of the process and this they can be read: ``file:`` and ``env:`` values never can.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from triton_fast.cli.getopt import GetoptError, split
from triton_fast.cli.table import FLAGS
from triton_fast.cli.values import FROM_ELSEWHERE

_RESTRICTED = ("http_restricted_api", "grpc_restricted_protocol")
_CACHE = ("user", "username", "password")
# Of the fields of /proc/self/stat after the name: where the arguments start and end.
_START, _END = 45, 46


def secrets(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (value of a flag, the secret that it ends with)."""
    try:
        for flag, text in split(argv, FLAGS):
            name, _, value = text.partition("=")
            is_secret = flag is not None and (
                (flag.field in _RESTRICTED and not value.startswith(FROM_ELSEWHERE))
                or (flag.field == "cache_config" and name.rpartition(",")[2] in _CACHE)
            )
            if is_secret and value:
                yield text, value
    except GetoptError:
        return  # said by the parser, which ends the process


def hide(argv: Sequence[str]) -> bool:
    """Overwrite the secrets of the command line by asterisks; return whether the kernel shows none any more."""
    found = list(secrets(argv))
    if not found:
        return True
    for words in (sys.argv, sys.orig_argv):
        words[:] = [_masked(word, found) for word in words]
    return _overwrite([(text.encode(errors="surrogateescape"), len(value.encode(errors="surrogateescape")))
                       for text, value in found])  # fmt: skip


def _masked(word: str, found: Sequence[tuple[str, str]]) -> str:
    for text, value in found:
        if word.endswith(text):
            return word[: len(word) - len(value)] + "*" * len(value)
    return word


def _overwrite(found: Sequence[tuple[bytes, int]]) -> bool:
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[_START]), int(fields[_END])
        shown = Path("/proc/self/cmdline").read_bytes()
        # Anything else than what the kernel shows is not ours to write to.
        if not shown or end - start != len(shown) or ctypes.string_at(start, len(shown)) != shown:
            return False
    except (OSError, ValueError, IndexError):
        return False
    at = 0
    for word in shown.split(b"\0"):
        at += len(word)
        for text, size in found:
            if word.endswith(text):
                ctypes.memset(start + at - size, ord("*"), size)
        at += 1
    return True
