"""What the reader of system-call traces makes of lines; a reader that misses calls would let its tests pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import strace


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('openat(AT_FDCWD</a>, "b/../../c", O_RDONLY) = 3</c>', [("openat", "/c")]),
        ('openat(7</a/m">, "x", O_RDONLY|O_CLOEXEC) = -1 ENOENT (No such file or directory)', [("openat", '/a/m"/x')]),
        ('stat("/etc/passwd", {st_mode=S_IFREG|0644}) = 0', [("stat", "/etc/passwd")]),
        ('newfstatat(5</a>, "", {st_mode=S_IFREG}, AT_EMPTY_PATH) = 0', []),
        ('rename("/a", "/b") = 0', [("rename", "/a"), ("rename", "/b")]),
        ('renameat2(3</x>, "a", 4</y>, "b", 0) = 0', [("renameat2", "/x/a"), ("renameat2", "/y/b")]),
        ('readlink("/a/l", "/etc/shadow", 4096) = 11', [("readlink", "/a/l")]),
        ('execve("/bin/sh", ["sh", "-c", "/x"], 0x7ff /* 3 vars */) = 0', [("execve", "/bin/sh")]),
        ('openat(AT_FDCWD</a>, "\\303\\251\\n\\"", O_RDONLY <unfinished ...>', [("openat", '/a/\u00e9\n"')]),
        ("<... openat resumed>) = 3", []),
    ],
)
def test_lines(line: str, found: list[tuple[str, str]]) -> None:
    matched = strace._CALL.match("12 " + line)
    assert list(strace._paths(matched["name"], matched["rest"]) if matched else []) == found


def test_what_is_outside(tmp_path: Path) -> None:
    paths = [("openat", str(tmp_path / "a/b")), ("lstat", str(tmp_path)), ("lstat", str(tmp_path.parent)),
             ("openat", str(tmp_path) + "x"), ("stat", "/etc/passwd"), ("open", "/proc/self/status")]  # fmt: skip
    assert strace.outside(paths, tmp_path) == [paths[3], paths[4]]
