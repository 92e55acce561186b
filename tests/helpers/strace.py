"""A server under strace: every path that it and its children hand to the kernel, and which of them are out of bounds.

Needs strace and the right to trace; ``possible`` says whether there are both.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from tests.helpers.server import ROOT, ServerProcess

_CALL = re.compile(r"^\d+\s+(?P<name>\w+)\((?P<rest>.*)$")
_TEXT = re.compile(r'"((?:[^"\\]|\\.)*)"(\.\.\.)?')
_FD = re.compile(r'(?:AT_FDCWD|\d+)<(.*?)>, (?=")')
# What an interpreter, its libraries and its allocator look at by themselves.
_OWN = (
    "/proc/self/", "/proc/stat", "/proc/sys/vm/", "/proc/meminfo", "/proc/cpuinfo", "/sys/devices/system/",
    "/sys/fs/cgroup", "/usr/lib", "/usr/local/lib", "/lib", "/etc/localtime", "/etc/ld.so", "/usr/share/zoneinfo",
    "/usr/share/locale", "/dev/null", "/dev/urandom",
)  # fmt: skip
_INTERPRETER = re.compile(r"/proc/\d+/(?:stat|status|statm|maps|cgroup|fd|task|mountinfo)\b|.*/lib/python3\d+\.zip$")


@cache
def possible() -> bool:
    if shutil.which("strace") is None:
        return False
    tried = subprocess.run(["strace", "-f", "-qq", "-e", "trace=%file", "true"], capture_output=True, check=False)
    return tried.returncode == 0 and b"execve" in tried.stderr


class TracedServer(ServerProcess):
    """As ServerProcess. strace is no parent of the server but a process beside it, which ends with it."""

    def __init__(self, root: Path, log: Path, *flags: str, env: dict[str, str] | None = None) -> None:
        super().__init__(root, *flags, env=env)
        self._log = log
        self.argv = ["strace", "-D", "-f", "-qq", "-y", "-s", "20000", "-e", "trace=%file", "-o", str(log), *self.argv]
        self._from = 0

    def mark(self) -> None:
        """Look only at what comes from now on."""
        self._from = self._log.stat().st_size

    def paths(self) -> list[tuple[str, str]]:
        """(system call, path as the kernel would find it) of all since the mark."""
        with self._log.open("rb") as file:
            file.seek(self._from)
            lines = file.read().decode("latin-1").splitlines()
        return [
            found for line in lines if (match := _CALL.match(line)) for found in _paths(match["name"], match["rest"])
        ]


def _unescaped(text: str) -> str:
    return text.encode("latin-1").decode("unicode_escape").encode("latin-1").decode("utf-8", "surrogateescape")


def _paths(name: str, rest: str) -> Iterable[tuple[str, str]]:
    if name == "execve":
        found = _TEXT.search(rest)
        return [(name, _unescaped(found[1]))] if found else []
    made: list[tuple[str, str]] = []
    at = 0
    while at < len(rest):
        folder = _FD.match(rest, at)
        found = _TEXT.match(rest, folder.end() if folder else at)
        if found is None or (name.startswith("readlink") and made):
            break  # the rest is flags and the like; the second text of readlink is what the link says
        path = _unescaped(found[1])
        if path:
            made.append((name, os.path.normpath(os.path.join(_unescaped(folder[1]) if folder else "", path))))
        at = found.end() + len(", ")
    return made


def outside(paths: Iterable[tuple[str, str]], *allowed: Path | str) -> list[tuple[str, str]]:
    """Those that are below none of ``allowed``, nor part of the interpreter or the package."""
    homes = [ROOT, sys.prefix, sys.base_prefix, os.path.realpath(sys.prefix), *map(str, allowed)]
    prefixes = [f"{str(home).rstrip('/')}/" for home in homes]
    exact = {str(home).rstrip("/") for home in homes}
    # realpath looks at every directory on the way.
    exact |= {str(parent) for home in exact for parent in Path(home).parents}
    return [
        (call, path)
        for call, path in paths
        if path not in exact and not path.startswith((*prefixes, *_OWN)) and not _is_own(path)
    ]


def _is_own(path: str) -> bool:
    # The second: an interpreter that starts looks for its library upwards of itself.
    return _INTERPRETER.match(path) is not None
