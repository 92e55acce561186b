"""SEC-06 for the Python backend: no shell text anywhere, and archives that try to leave their directory."""

from __future__ import annotations

import ast
import io
import os
import tarfile
from pathlib import Path

import pytest

from triton_fast.backends.python import archive, environment
from triton_fast.backends.python.cache import EnvironmentCache
from triton_fast.errors import Internal

ROOT = Path(__file__).resolve().parents[2]
SHELLS = {"system", "popen", "getoutput", "getstatusoutput", "create_subprocess_shell", "execlp", "execvp", "spawnlp"}


def shell_uses(source: str) -> list[str]:
    """Everything in Python source that gives text to a shell or to the interpreter."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in SHELLS or (isinstance(node.func, ast.Name) and name in {"eval", "exec"}):
            found.append(f"{node.lineno}: {name}")
        if any(word.arg == "shell" and getattr(word.value, "value", True) is not False for word in node.keywords):
            found.append(f"{node.lineno}: shell=")
    return found


def test_nothing_is_given_to_a_shell():
    files = sorted((ROOT / "triton_fast").rglob("*.py"))
    assert len(files) > 50
    found = [f"{path.relative_to(ROOT)}:{use}" for path in files for use in shell_uses(path.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    ["import os; os.system('x')", "run('x', shell=True)", "run('x', shell=flag)", "eval(x)", "exec(x)", "os.popen(x)"],
)
def test_the_static_check_finds(source):
    assert shell_uses(source)


def packed(path: Path, *members, mode="w:gz"):
    """Write an archive of (name, what): bytes, ("sym", target), ("hard", target) or ("type", of tarfile)."""
    with tarfile.open(path, mode) as tar:
        for name, what in members:
            info = tarfile.TarInfo(name)
            info.mode = 0o6777
            if isinstance(what, bytes):
                info.size = len(what)
                tar.addfile(info, io.BytesIO(what))
                continue
            kind, value = what
            info.type = {"sym": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE}.get(kind, value)
            info.linkname = "" if kind == "type" else value
            tar.addfile(info)
    return path


@pytest.mark.parametrize(
    "members",
    [
        [("/abs", b"x")],
        [("../up", b"x")],
        [("a/../../up", b"x")],
        [("./../up", b"x")],
        [("l", ("sym", "/etc"))],
        [("l", ("sym", "../up"))],
        [("a/l", ("sym", "../../up"))],
        [("l", ("sym", ".")), ("l/x", b"x")],
        [("a/l", ("sym", "../b")), ("a/l/x", b"x")],
        [("d", ("sym", "a/b/c")), ("e", ("sym", "d/../../../..")), ("e/x", b"x")],
        [("l", ("sym", "f")), ("l", ("type", tarfile.DIRTYPE))],
        [("h", ("hard", "/etc/passwd"))],
        [("h", ("hard", "../../etc/passwd"))],
        [("l", ("sym", "f")), ("h", ("hard", "l"))],
        [("h", ("hard", "nothing"))],
        [("a", ("type", tarfile.DIRTYPE)), ("a", ("sym", "b"))],
        [("d", ("type", tarfile.CHRTYPE))],
        [("d", ("type", tarfile.BLKTYPE))],
        [("d", ("type", tarfile.FIFOTYPE))],
        [("x" * 5000, b"x")],
        [("l", ("sym", ""))],
    ],
)
def test_archives_that_lead_out_are_refused(tmp_path, members):
    path = packed(tmp_path / "env.tar.gz", ("first", b"1"), *members)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(Internal, match=r"^Failed to extract env\.tar\.gz: "):
        archive.extract(path, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "out"])
    assert not os.path.lexists(tmp_path / "up")


def test_bombs_are_refused(tmp_path):
    path = packed(tmp_path / "env.tar.gz", ("a", bytes(3 << 20)))
    with pytest.raises(Internal, match="is too large"):
        archive.extract(path, tmp_path / "out", max_bytes=2 << 20)
    assert (tmp_path / "out" / "a").stat().st_size <= 2 << 20
    path = packed(tmp_path / "many.tar.gz", *((str(i), b"") for i in range(101)))
    with pytest.raises(Internal, match="has too many entries"):
        archive.extract(path, tmp_path / "many", max_entries=100)


@pytest.mark.parametrize("cut", [0, 1, 10, 100, -1])
def test_broken_archives_are_refused(tmp_path, cut):
    path = packed(tmp_path / "env.tar.gz", ("a", os.urandom(2000)))
    data = path.read_bytes()
    path.write_bytes(data[:cut] if cut >= 0 else os.urandom(5000))
    with pytest.raises(Internal, match=r"^Failed to extract"):
        archive.extract(path, tmp_path / "out")


def test_a_good_archive_is_extracted_as_it_is(tmp_path):
    path = packed(
        tmp_path / "env.tar.gz", ("./", ("type", tarfile.DIRTYPE)), ("bin", ("type", tarfile.DIRTYPE)),
        ("bin/python3", b"#!"),
        ("bin/python", ("sym", "python3")), ("lib/deep/a", b"a"), ("lib/l", ("sym", "../bin/python3")),
        ("hard", ("hard", "lib/deep/a")), ("bin/python3", b"replaced"),
    )  # fmt: skip
    archive.extract(path, tmp_path / "out")
    out = tmp_path / "out"
    assert (out / "bin" / "python").read_bytes() == b"replaced"
    assert (out / "lib" / "l").read_bytes() == b"replaced"
    assert (out / "hard").read_bytes() == b"a"
    # No setuid, and nobody else may write.
    assert (out / "bin" / "python3").stat().st_mode & 0o7022 == 0


EVIL = "a;touch pwned $(touch pwned)`touch pwned`'\"&|"


def test_paths_with_shell_characters_are_only_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / EVIL
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "activate").write_text('export FROM_ACTIVATE="$VALUE x"\nexport PATH="/own:$PATH"\n')
    (root / "bin" / "python").write_text("#!/bin/sh\n")
    (root / "bin" / "python").chmod(0o755)
    found = environment.prepare(f"$$TRITON_MODEL_DIRECTORY/{EVIL}", tmp_path, EnvironmentCache(tmp_path / "cache"))
    assert found.variables["FROM_ACTIVATE"] == " x"
    assert found.variables["PATH"].startswith("/own:")
    assert found.variables["LD_LIBRARY_PATH"].split(":")[0] == str(root / "lib")
    assert found.interpreter == str(root / "bin" / "python")
    assert not found.own
    assert not (tmp_path / "pwned").exists()
