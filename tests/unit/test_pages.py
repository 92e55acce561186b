"""What pages name exists: links, sections, tests, files, make targets, modules, flags, variables, settings, metrics.

A page that is wrong sends its reader to nothing. What only a machine with other software has is listed here by name.
"""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

from tests.unit import test_tree as tree
from triton_fast.cli.table import FLAGS
from triton_fast.observability.families import FAMILIES

ROOT = tree.ROOT
NATIVE = "ext/triton_fast/_native"
SOURCES = (".py", ".pyx", ".pxd", ".pxi", ".h", ".sh", ".toml", ".proto", ".yaml")
# Flags of other programs: pip, wrk, logrotate and the like.
FOREIGN_FLAGS = {"--no-deps", "--no-build-isolation"}
# Files that commands write.
MADE = ("build/", "bench/out/")
# Variables of others that pages tell to set or name only, and placeholders in a page's own examples.
FOREIGN_VARIABLES = {
    "PYTORCH_CUDA_ALLOC_CONF",
    "RLIMIT_MEMLOCK",
    "PR_SET_CHILD_SUBREAPER",
    "ADMIN_KEY",
    "PERMISSION_DENIED",
    "TENSOR_BACKEND_INPUT",
}
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


@cache
def tracked() -> tuple[str, ...]:
    return tuple(tree.name(path) for path in tree.tree())


PAGES = [name for name in tracked() if name.endswith(".md")]
each_page = pytest.mark.parametrize("page", PAGES)


@cache
def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8", errors="replace")


@cache
def words() -> frozenset[str]:
    """Every word of the sources, with dashes as a part of it and without."""
    found: set[str] = set()
    for name in tracked():
        if (name.endswith(SOURCES) or name == "Makefile") and name != "tests/unit/test_pages.py":
            found.update(re.findall(r"[A-Za-z_]\w*(?:-\w+)*", text(name)), re.findall(r"[A-Za-z_]\w*", text(name)))
    return frozenset(found)


def spans(page: str) -> list[str]:
    """What stands between backticks within a line."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", text(page)))


def commands(page: str) -> str:
    return "\n".join([*spans(page), *FENCE.findall(text(page))])


@cache
def places() -> frozenset[str]:
    """Every file and every folder."""
    return frozenset(part for name in tracked() for part in (name, *(str(up) for up in Path(name).parents)))


def exists(path: str) -> bool:
    """Whether a path, which may have wildcards, is that of a file or folder."""
    path = path.rstrip("/")
    return path in places() or ("*" in path and any(fnmatch(name, path) for name in places()))


def anchors(page: str) -> set[str]:
    """The names that sections get, as GitHub makes them."""
    heads = re.findall(r"^#+ +(.*?) *$", FENCE.sub("", text(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_the_pages_are_found() -> None:
    assert {"README.md", "docs/flags.md", "examples/trees/README.md"} <= set(PAGES)


@each_page
def test_links(page: str) -> None:
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text(page))):
        if re.match(r"https?:", link):
            continue
        path, _, section = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.exists():
            wrong.append(link)
        elif section and section not in anchors(target.resolve().relative_to(ROOT).as_posix()):
            wrong.append(f"{link} (no such section)")
    assert wrong == []


def test_every_page_is_reached_from_the_readme() -> None:
    reached, new = set(), {"README.md"}
    while new:
        reached |= new
        links = {
            ((ROOT / page).parent / path).resolve()
            for page in new
            for path in re.findall(r"\]\(([^)#\s:]+\.md)(?:#[^)]*)?\)", text(page))
        }
        new = {path.relative_to(ROOT).as_posix() for path in links} - reached
    assert [page for page in PAGES if page.startswith("docs/") and page not in reached] == []


@cache
def functions_in(name: str) -> frozenset[str]:
    tree = ast.parse(text(name))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@each_page
def test_tests(page: str) -> None:
    wrong = []
    for path, function in re.findall(r"((?:[\w.]+/)*(?:test|fuzz)_[\w*]+\.py)(?:::(\w+))?", commands(page)):
        files = [name for name in tracked() if fnmatch(f"/{name}", f"*/{path}")]
        if not any(not function or function in functions_in(name) for name in files):
            wrong.append(f"{path}::{function}".rstrip(":"))
    assert wrong == []


@each_page
def test_paths_of_the_tree(page: str) -> None:
    tops = {name.partition("/")[0] for name in tracked() if "/" in name}
    wrong = [
        path
        for path in re.findall(r"(?<![\w./<$-])([\w.-]+(?:/[\w.*-]+)+/?)", " ".join(spans(page)))
        if path.partition("/")[0] in tops and not path.startswith(MADE) and not exists(path)
    ]
    assert wrong == []


def test_places_of_limits() -> None:
    """The last column of the threat model's table: modules, of one folder where only the first has its name."""
    rows = re.findall(r"^\|(?:[^|]*\|){2}([^|]*)\|$", text("THREAT_MODEL.md"), re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([\w/]+)`", row)]
    modules = {name.rpartition(".")[0] for name in tracked()} | places()
    folders = ["", *{path.rpartition("/")[0] + "/" for path in named if "/" in path}]
    tops = (f"{NATIVE}/", "triton_fast/")
    assert len(named) > 30
    assert [
        name for name in named if not any(f"{top}{folder}{name}" in modules for top in tops for folder in folders)
    ] == []


def test_the_map_of_modules() -> None:
    """ARCHITECTURE.md names every extension and declaration, and every module of the packages below triton_fast."""
    (block,) = re.findall(r"^## Where things are$\n\n```\n(.*?)```", text("ARCHITECTURE.md"), re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"[\w*]+", block))
    modules = {
        path.stem for name in tracked() for path in [Path(name)]
        if (name.startswith(NATIVE) and path.suffix in (".pyx", ".pxd"))
        or (path.suffix == ".py" and name.count("/") <= 2 and name.startswith("triton_fast/") and "/cli/" not in name)
    }  # fmt: skip
    modules -= {"__init__", "_version"}
    assert len(modules) > 150
    assert sorted(one for one in modules if not any(fnmatch(one, pattern) for pattern in named)) == []


@each_page
def test_make_targets(page: str) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", text("Makefile"), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z][a-z-]*)", commands(page)))
    assert named <= targets


@each_page
def test_modules(page: str) -> None:
    named = re.findall(r"python -m ((?:triton_fast|bench|tests|scripts)[\w.]*)", commands(page))
    paths = [name.rstrip(".").replace(".", "/") for name in named]
    assert [path for path in paths if not exists(f"{path}.py") and not exists(f"{path}/__main__.py")] == []


@cache
def options() -> frozenset[str]:
    """Flags of the server and of every program of this tree, and what the server passes to its own processes."""
    own = {f"--{flag.name}" for flag in FLAGS}
    for name in tracked():
        if name.endswith((".py", ".sh")) and name != "tests/unit/test_pages.py":
            own.update(re.findall(r"[\"' ](--[a-z][a-z0-9-]*[a-z0-9])\b", text(name)))
    return frozenset(own) | FOREIGN_FLAGS


@each_page
def test_flags(page: str) -> None:
    named = set(re.findall(r"(?<![\w-])(--[a-z][a-z0-9-]*[a-z0-9])(?![\w*-])", text(page)))
    assert named <= options()


@each_page
def test_flags_of_the_server(page: str) -> None:
    """What follows the server's name is a flag of the server, not of any program."""
    own = {f"--{flag.name}" for flag in FLAGS}
    lines = re.findall(r"(?:tritonserver|python -m triton_fast)((?: +--[a-z][\w-]*(?:=\S+)?)+)", commands(page))
    assert {flag for line in lines for flag in re.findall(r"--[a-z][\w-]*[a-z]", line)} <= own


@each_page
def test_variables(page: str) -> None:
    named = set(re.findall(r"(?<![\w<])[A-Z][A-Z0-9]*_[A-Z0-9_]*[A-Z0-9]\b", " ".join(spans(page))))
    if page == "docs/python_worker.md":  # the words of the command line of a worker
        named = {word for word in named if not word.endswith("_FD")}
    assert named - words() - FOREIGN_VARIABLES == set()


@each_page
def test_settings(page: str) -> None:
    """First cells of tables of parameters, options and settings: names that the sources know."""
    unknown = []
    for head, body in re.findall(r"^\| *(\w*)[^\n]*\|\n\|[ |:-]+\|\n((?:\|[^\n]*\n)+)", text(page), re.MULTILINE):
        if head.lower() in ("parameter", "option", "setting", "field"):
            cells = [row.split("|")[1] for row in body.splitlines()]
            spelt = [name for cell in cells for name in re.findall(r"`(?:[a-z]+,)?([A-Za-z][\w.-]*)", cell)]
            unknown += [name for name in spelt if not set(re.findall(r"[\w-]+", name)) <= words()]
    assert unknown == []


@each_page
def test_metrics(page: str) -> None:
    known = {family.name for family in FAMILIES}
    named = set(re.findall(r"(?<![\w/])nv_[a-z_]+(?![\w*])", text(page)))
    named |= set(re.findall(r"\btriton_fast_[a-z_]+_(?:total|seconds)\b", text(page)))
    # nv_trt_llm_*: a family that models make themselves.
    assert {name for name in named - known if not name.startswith("nv_trt_llm_")} == set()
