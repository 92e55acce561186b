"""Rules for the source tree that a reader would otherwise have to check by eye: stubs, sizes, paths, GIL."""

from __future__ import annotations

import os
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Lines a file may have; one subject a file keeps it below.
BUDGET = {".py": 450, ".pyi": 450, ".pyx": 650, ".pxd": 120, ".h": 650, ".c": 650, ".cpp": 650, ".sh": 200, ".md": 600}
TEST_BUDGET = 800
# path -> (lines, reason). An entry goes as soon as the file fits.
OVER_BUDGET: dict[str, tuple[int, str]] = {
    "ext/triton_fast/_native/http/connection.pyx": (785, "one state machine: what its states share is its subject"),
    "ext/triton_fast/_native/grpc/nghttp2.pxd": (150, "another library's declarations, only those used"),
    "ext/triton_fast/_native/pyworker/layout.pxd": (135, "one wire, stated in one place"),
    "ext/triton_fast/_native/sched/sequence_types.pxd": (152, "the structs that the parts of one scheduler share"),
    "ext/triton_fast/_native/ort/capi.pxd": (150, "another library's declarations, only those used"),
}

# Pieces are joined here so that this file does not contain what it looks for.
FORBIDDEN = {
    "a path of somebody's machine": re.compile(r"(?<![\w.:/-])/" + r"(?:work|home/\w+|root|Users/\w+|opt/pypi)/"),
    "a package registry's host": re.compile(
        r"\b(?:test\.)?py" + r"pi\.org|pythonhosted" + r"\.org|--(?:extra-)?index-" + r"url"
    ),
}


@cache
def tree() -> tuple[Path, ...]:
    """Files under version control or about to be; without git, all but what the build makes."""
    git = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(git, check=True, capture_output=True, text=True).stdout
        files = [ROOT / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        made = {"build", "dist", "__pycache__"}
        files = [
            Path(folder) / name
            for folder, folders, names in os.walk(ROOT)
            if not folders.__setitem__(slice(None), [d for d in folders if d not in made and not d.startswith(".")])
            for name in names
            if not name.endswith((".so", ".onnx", ".binpb"))
        ]
    return tuple(sorted(path for path in files if path.is_file()))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def suffix(*wanted: str) -> list[Path]:
    return [path for path in tree() if path.suffix in wanted]


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_the_scan_sees_the_tree():
    assert {"setup.py", "Makefile", "tests/unit/test_tree.py"} <= {name(path) for path in tree()}


def test_every_extension_has_a_stub():
    missing = []
    for path in suffix(".pyx"):
        stub = (ROOT / path.relative_to(ROOT / "ext")).with_suffix(".pyi")
        if not stub.is_file():
            missing.append(f"{name(path)}: no {name(stub)}")
    assert not missing, "\n".join(missing)


def test_every_stub_has_an_extension():
    native = ROOT / "triton_fast" / "_native"
    orphans = [
        name(path)
        for path in suffix(".pyi")
        if path.is_relative_to(native) and not (ROOT / "ext" / path.relative_to(ROOT)).with_suffix(".pyx").is_file()
    ]
    assert not orphans, "\n".join(orphans)


def test_no_binary_is_tracked():
    binary = [name(path) for path in tree() if b"\0" in path.read_bytes()[:8000]]
    assert not binary, "\n".join(binary)


@pytest.mark.parametrize("what", FORBIDDEN)
def test_nothing_names(what):
    found = []
    for path in tree():
        content = path.read_bytes().decode("utf-8", "replace")
        for match in FORBIDDEN[what].finditer(content):
            found.append(f"{name(path)}:{content.count(chr(10), 0, match.start()) + 1}: {match[0]}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("see /" + "work/notes", "a path of somebody's machine"),
        ("cd /" + "home/ann/src", "a path of somebody's machine"),
        ("pip install --index-" + "url x", "a package registry's host"),
        ("https://py" + "pi.org/simple", "a package registry's host"),
    ],
)
def test_forbidden_patterns_find(line, what):
    assert FORBIDDEN[what].search(line)


def test_forbidden_patterns_leave_the_protocol_alone():
    ours = "/v2/models/work/infer /opt/tritonserver/backends /opt/ml/models/x build/work/a http://h/home/b/"
    assert not any(pattern.search(ours) for pattern in FORBIDDEN.values())


def test_size_budget():
    wrong = []
    for path in tree():
        limit = BUDGET.get(path.suffix)
        if limit is None:
            continue
        if path.is_relative_to(ROOT / "tests"):
            limit = max(limit, TEST_BUDGET)
        lines = text(path).count("\n")
        allowed, _ = OVER_BUDGET.get(name(path), (limit, ""))
        if lines > allowed:
            wrong.append(f"{name(path)}: {lines} lines, {allowed} allowed: split it by subject")
        if name(path) in OVER_BUDGET and lines <= limit:
            wrong.append(f"{name(path)}: fits now ({lines} lines): take it out of OVER_BUDGET")
    listed = {name(path) for path in tree()}
    wrong += [f"{path} in OVER_BUDGET does not exist" for path in OVER_BUDGET if path not in listed]
    assert not wrong, "\n".join(wrong)


def test_every_source_says_what_it_is_for():
    silent = []
    for path in suffix(".py", ".pyi", ".pyx", ".pxd"):
        content = text(path).strip()
        # Compiler directives are no description.
        lines = [line for line in content.splitlines() if not re.match(r"# *(distutils|cython):", line)]
        if content and not re.match(r'r?"""|#', lines[0]):
            silent.append(f"{name(path)}: begins with {lines[0][:60]!r}")
    assert not silent, "\n".join(silent)


NOGIL = re.compile(
    r"^[ \t]*cp?def[ \t]+(?!extern|class|struct|enum|union)[^=\n]*?"  # up to the name
    r"\([^()]*(?:\([^()]*\)[^()]*)*\)([^\n:]*)",  # arguments, which may have brackets of their own; what follows
    re.MULTILINE,
)


def gil_traps(source: str) -> list[int]:
    """Lines of nogil functions that take the GIL back after each call to look for an exception."""
    return [
        source.count("\n", 0, found.start(1)) + 1
        for found in NOGIL.finditer(source)
        if re.search(r"\bnogil\b", found[1]) and not re.search(r"\bnoexcept\b|\bexcept[ \t]*[-?+0-9A-Z]", found[1])
    ]


def test_nogil_functions_state_how_they_fail():
    found = [f"{name(path)}:{line}" for path in suffix(".pyx", ".pxd") for line in gil_traps(text(path))]
    assert not found, "nogil without noexcept or an error value:\n" + "\n".join(found)


def test_gil_traps_are_recognized():
    assert gil_traps("cdef void f(int a) nogil:\n    pass\n") == [1]
    assert gil_traps("cdef inline int g(int a,\n        char* b) nogil\n") == [2]
    assert not gil_traps("cdef void f(int a) noexcept nogil:\n    pass\n")
    assert not gil_traps("cdef int f(int a) except -1 nogil\ncdef object h():\n    with nogil:\n        pass\n")


def test_readme_has_the_two_commands():
    content = text(ROOT / "README.md")
    assert "make demo" in content
    assert "make test" in content


def test_scripts_can_be_run():
    wrong = [name(path) for path in [*suffix(".sh"), ROOT / ".ci" / "run"]
             if path.name != "lib.sh" and not os.access(path, os.X_OK)]
    assert not wrong, "\n".join(wrong)
