"""Imports only go down: holds the order of ARCHITECTURE.md for import and cimport lines, by reading the sources."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "triton_fast"

# Top first. A module may import what stands on a later line, and its own package. Modules on the same line do not know
# each other.
LAYERS = (
    ("app", "endpoints", "listeners", "startup", "cli", "__main__"),
    ("frontends",),
    ("dataplane",),
    ("scheduling", "repository", "shared_memory"),
    ("backends",),
    ("config", "memory", "observability"),
    ("_native",),
    ("protos", "errors", "types", "_version", ""),
)
# Same line, but allowed: the importer on the left.
SIDEWAYS = {
    ("__main__", "app"), ("__main__", "cli"), ("app", "cli"), ("app", "endpoints"),
    ("app", "startup"), ("startup", "cli"),
    ("endpoints", "cli"), ("endpoints", "listeners"), ("listeners", "cli"),
    ("errors", "types"), ("", "_version"),
}  # fmt: skip

# Within _native: what a group may cimport besides itself. Backends (ort is one) know only the contract of sched.
NATIVE = {
    "core": (),
    "cuda": ("core",),
    "wire": ("core",),
    "sched": ("core", "cuda"),
    "ort": ("core", "cuda", "sched.instance"),
    "backends": ("core", "sched.instance"),
    "arrays": ("core", "sched.instance"),
    "openvino": ("core", "sched.instance", "arrays"),
    "fil": ("core", "sched.instance", "arrays"),
    "tensorrt": ("core", "cuda", "sched.instance", "arrays"),
    "pyworker": ("core", "wire", "sched"),
    "net": ("core", "sched"),
    "http": ("core", "wire", "sched", "net"),
    "grpc": ("core", "wire", "sched", "net"),
}
# Same package, but apart.
SEPARATE = (("frontends.http", "frontends.grpc"), ("_native.http", "_native.grpc"))
# Runs in other interpreters too: may import nothing of the package but itself.
ALONE = ("backends.python.worker",)

RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def python_imports(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that Python source imports; ``from a import b`` gives a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            base = parts[: len(parts) - node.level + is_package] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in node.names)


CYTHON_FROM = re.compile(r"^[ \t]*from[ \t]+(\S+)[ \t]+c?import\b[ \t]*(\([^)]*\)|[^\n#]*)", re.MULTILINE)
CYTHON_IMPORT = re.compile(r"^[ \t]*c?import[ \t]+([^\n#(]+)$", re.MULTILINE)


def cython_imports(source: str) -> Iterator[tuple[int, str]]:
    """The same for .pyx and .pxd; relative imports are refused, so that each line says where it reaches."""
    for found in CYTHON_FROM.finditer(source):
        line = source.count("\n", 0, found.start(1)) + 1
        names = re.sub(r"#[^\n]*|[()\n]", " ", found[2])
        for name in filter(None, (part.split(" as ")[0].strip() for part in names.split(","))):
            yield line, f"{found[1]}.{name}"
    for found in CYTHON_IMPORT.finditer(source):
        line = source.count("\n", 0, found.start(1)) + 1
        for name in found[1].split(","):
            yield line, name.split(" as ")[0].strip()


def group(name: str) -> str | None:
    """The layer table's name of a module inside the package (without "triton_fast."); None if it has no row."""
    first = name.partition(".")[0]
    if first in RANK:
        return first
    # "from triton_fast import __version__" reaches the package itself, not a module.
    return "" if first.startswith("__") else None


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def violation(importer: str, imported: str) -> str | None:
    """What is wrong with one import inside the package, or None. Names without "triton_fast."."""
    above, below = group(importer), group(imported)
    if above is None or below is None:
        return f"'{importer if above is None else imported}' stands in no layer: add it to LAYERS"
    for alone in ALONE:
        if within(importer, alone) and not within(imported, alone):
            return f"{alone} stands alone and must not import {imported}"
    for pair in SEPARATE:
        for one, other in (pair, pair[::-1]):
            if within(importer, one) and within(imported, other):
                return f"{one} and {other} do not know each other"
    if above != below:
        if RANK[above] < RANK[below] or (above, below) in SIDEWAYS:
            return None
        return f"{above} must not import {below}"
    if above == "_native":
        mine, theirs = importer.split(".")[1:2], imported.split(".")[1:2]
        if not mine or not theirs or mine == theirs:
            return None
        if mine[0] not in NATIVE:
            return f"'{importer}' stands in no native group: add it to NATIVE"
        if not any(within(imported, f"_native.{allowed}") for allowed in NATIVE[mine[0]]):
            return f"_native.{mine[0]} may reach only {', '.join(NATIVE[mine[0]]) or 'itself'}, not {imported}"
    return None


def module_name(path: Path, base: Path) -> str:
    parts = list(path.relative_to(base).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def sources() -> Iterator[tuple[str, int, str, str]]:
    """Path, line, importing module and imported name, for every import of the package by the package."""
    for path in sorted((ROOT / PACKAGE).rglob("*.py*")):
        if path.suffix in {".py", ".pyi"}:
            module = module_name(path, ROOT)
            for line, name in python_imports(path.read_text(encoding="utf-8"), module, path.stem == "__init__"):
                yield str(path.relative_to(ROOT)), line, module, name
    for path in sorted((ROOT / "ext").rglob("*.p[yx][xd]")):
        module = module_name(path, ROOT / "ext")
        for line, name in cython_imports(path.read_text(encoding="utf-8")):
            yield str(path.relative_to(ROOT)), line, module, name


def inside(name: str) -> str | None:
    """The name without "triton_fast.", None for everything outside the package."""
    if name == PACKAGE:
        return ""
    return name[len(PACKAGE) + 1 :] if name.startswith(PACKAGE + ".") else None


def test_imports_only_go_down():
    checked, wrong = 0, []
    for path, line, module, name in sources():
        if name.startswith("."):
            wrong.append(f"{path}:{line}: relative import in Cython: {name}")
            continue
        importer, imported = inside(module), inside(name)
        if importer is None or imported is None:
            continue
        checked += 1
        fault = violation(importer, imported)
        if fault and f"{path}:{line}: {fault}" not in wrong:
            wrong.append(f"{path}:{line}: {fault}")
    assert not wrong, "\n".join(wrong)
    assert checked > 50, "the scan found too few imports to mean anything"


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("app", "frontends.http", True),
        ("app", "cli.options", True),
        ("cli.parse", "app", False),
        ("frontends.http.routes", "dataplane", True),
        ("frontends.http.routes", "frontends.grpc.service", False),
        ("frontends.grpc", "frontends.http", False),
        ("dataplane", "frontends.http", False),
        ("dataplane", "repository.index", True),
        ("scheduling.dynamic", "repository", False),
        ("backends.onnxruntime", "scheduling", False),
        ("backends.onnxruntime", "frontends.metrics", False),
        ("backends.onnxruntime", "_native.ort.session", True),
        ("config.parse", "observability.log", False),
        ("backends.python.worker.triton_fast_worker.main", "errors", False),
        ("backends.python.worker.triton_fast_worker.main", "backends.python.worker.triton_fast_worker.log", True),
        ("config", "config.parse", True),
        ("_native.wire.http1", "config", False),
        ("_native.wire.http1", "_native.core.memory", True),
        ("_native.core.memory", "_native.wire.http1", False),
        ("_native.ort.session", "_native.sched.instance", True),
        ("_native.ort.session", "_native.sched.queue", False),
        ("_native.http.plan", "_native.grpc.plan", False),
        ("_native.core.ring", "errors.Internal", True),
        ("errors", "types", True),
        ("types", "errors", False),
        ("newcomer", "errors", False),
        ("config.parse", "newcomer", False),
        ("cli.usage", "__version__", True),
    ],
)
def test_rules_tell_right_from_wrong(importer, imported, allowed):
    assert (violation(importer, imported) is None) is allowed


def test_cython_lines_are_understood():
    source = (
        "from libc.stdint cimport int32_t, int64_t  # sizes\n"
        "from triton_fast._native.core.request cimport (\n    Model, Request,  # two\n    Tensor as T,\n)\n"
        "cimport cython, triton_fast._native.core.memory as m\n"
        "import os\n"
        "cdef f():\n    from triton_fast import app\n"
    )
    assert set(cython_imports(source)) == {
        (1, "libc.stdint.int32_t"),
        (1, "libc.stdint.int64_t"),
        (2, "triton_fast._native.core.request.Model"),
        (2, "triton_fast._native.core.request.Request"),
        (2, "triton_fast._native.core.request.Tensor"),
        (6, "cython"),
        (6, "triton_fast._native.core.memory"),
        (7, "os"),
        (9, "triton_fast.app"),
    }


def test_python_lines_are_understood():
    source = (
        "import triton_fast.app\nfrom . import parse\nfrom ..errors import Internal\n"
        "if 0:\n    from triton_fast import types\n"
    )
    assert set(python_imports(source, "triton_fast.config.errors", is_package=False)) == {
        (1, "triton_fast.app"),
        (2, "triton_fast.config.parse"),
        (3, "triton_fast.errors.Internal"),
        (5, "triton_fast.types"),
    }
    assert set(python_imports("from . import parse\n", "triton_fast.config", is_package=True)) == {
        (1, "triton_fast.config.parse")
    }
