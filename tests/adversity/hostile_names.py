"""Some 300 names and paths that mean another place to somebody: to a kernel, a proxy, a decoder, a shell or a reader.

Made from a few targets and many spellings; no spelling leads to a place that a test does not look at.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator

# Where they want to go; a test puts real files at the relative ones.
TARGETS = ("secret", "secret.txt", "etc/passwd", "outside/1/model.onnx")
ABSOLUTE = (
    "/etc/passwd",
    "/etc/shadow",
    "/proc/self/environ",
    "/proc/self/mem",
    "/dev/shm/x",  # noqa: S108 - never opened
    "/dev/sda",
    "/".join(("", "root", ".ssh", "id_rsa")),
)
# One step up, as it has been written.
UPS = (
    "../", "..\\", "%2e%2e/", "%2e%2e%2f", "..%2f", "..%5c", "%2e%2e%5c", "%252e%252e%252f", "..%252f",
    "%25252e%25252e%25252f",
    "%c0%ae%c0%ae/", "%e0%80%ae%e0%80%ae/", "%c0%ae%c0%ae%c0%af", "..%c0%af", "..%u2215", "%uff0e%uff0e/", "....//",
    "....\\\\", ".../", "..;/", "..%00/", "..\0/", "./../", ".//../", "..//", "../.", "\u2024\u2024/",
    "\uff0e\uff0e/", "\uff0e\uff0e\uff0f", "..\uff0f", "..\u2215", "..\u2044", "\u2025/", "\ufe52\ufe52/", "..\u29f8",
    "..\u200b/", "\u202e../", ".\u0338./", "..\u00a0/", ".. /", "..\t/", "..\n/", "..\r\n/", "..\x7f/",
)  # fmt: skip
DRIVES = ("C:\\windows\\win.ini", "C:/windows/win.ini", "c:secret", "C:", "\\\\server\\share\\x", "//server/share/x",
          "\\\\?\\C:\\x", "\\\\.\\pipe\\x", "file:///etc/passwd", "FILE://etc/passwd", "s3://bucket/x", "gs://b/x",
          "http://127.0.0.1/x", "\\??\\C:\\x", "CON", "NUL", "AUX.txt", "COM1", "LPT1")  # fmt: skip
ENDS = (".", "..", "...", " ", "  ", "\t", "\n", "\r\n", "\0", "/", "//", "\\", "/.", "/..", ":", "::$DATA", "~", "*",
        "?", "%", "%00", "%0a", "#", ";", "|", "&")  # fmt: skip
CONTROLS = (
    *map(chr, (*range(1, 32), 127, 0x80, 0x85, 0x9B)),
    "\u200b", "\u200e", "\u202a", "\u202e", "\u2028", "\u2066", "\ufeff", "\U000e0041", "\ud800", "\udcff",
)  # fmt: skip
SHELL = (
    "$HOME",
    "${HOME}",
    "$(id)",
    "`id`",
    ";id",
    "|id",
    "&id",
    "~root",
    "-rf",
    "--help",
    "%s%n",
    "{{7*7}}",
    "'",
    '"',
    "<x>",
)


def _names() -> Iterator[str]:
    yield from (".", "..", "/", "\\", "\0", "~", "")
    yield from ABSOLUTE
    for target in TARGETS:
        yield f"/{target}"
        for depth in (1, 2, 8):
            yield "../" * depth + target
        yield f"m/../../{target}"
        yield urllib.parse.quote(f"../{target}", safe="")
    for up in UPS:
        yield up * 2 + "secret"
        yield f"{up}secret"
        yield f"m/{up}{up}secret"
    yield from DRIVES
    for end in ENDS:
        yield f"m{end}"
        yield f"{end}m"
    for char in CONTROLS:
        yield f"m{char}secret"
    yield from SHELL
    yield from ("x" * 255, "x" * 256, "x" * 4096, "../" * 1365, "/" + "x/" * 2000, "\u00e9" * 200, "./" * 2000 + "m")
    yield from ("link", "link/secret", "link_out", "link_out/x", "m/link", "hard")


NAMES: tuple[str, ...] = tuple(dict.fromkeys(_names()))


def as_text(name: str) -> str:
    """Return the name with what UTF-8 cannot hold replaced: for senders that refuse to send it."""
    return name.encode("utf-8", "replace").decode()
