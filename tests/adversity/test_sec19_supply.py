"""SEC-19: what the server is made of: few packages, all declared, nothing fetched, and one list of them.

The list itself is ``make sbom``, and the gate ``make sbom AUDIT=1``, which needs a network. Floods of HTTP/2 (rapid
reset, CONTINUATION): test_grpc_floods.py.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The text of pyproject.toml is read with a pattern: tomllib is newer than the oldest Python that is supported.
_PROJECT = (ROOT / "pyproject.toml").read_text()
# Imported under another name than their distribution's.
NAMES = {
    "google": "protobuf",
    "prometheus_client": "prometheus-client",
    "pynvml": "nvidia-ml-py",
    "opentelemetry": "opentelemetry-sdk",
}
# Offered to models and backends, which bring it: not imported unless one of them has it.
OF_MODELS = {"numpy", "torch", "triton_python_backend_utils", "cupy", "ml_dtypes"}


def declared(section: str) -> set[str]:
    """Names of the packages in a list of pyproject.toml."""
    found = re.search(rf"^{section} = \[(.*?)\]\n", _PROJECT, re.DOTALL | re.MULTILINE)
    assert found, section
    return {re.split(r"[\[<>=]", item)[0].lower() for item in re.findall(r'"([^"]+)"', found[1])}


def optional() -> set[str]:
    table = _PROJECT.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    names = re.findall(r"^(\w+) = \[", table, re.MULTILINE)
    return set().union(*(declared(name) for name in names if name not in ("test", "bench")))


def imported() -> dict[str, set[str]]:
    """Top-level packages that are imported anywhere in the server, with the files that do."""
    found: dict[str, set[str]] = {}
    for path in [*(ROOT / "triton_fast").rglob("*.py"), *(ROOT / "ext").rglob("*.pyx")]:
        text = path.read_text()
        if path.suffix == ".pyx":
            names = re.findall(r"^\s*(?:from|import)\s+(\w+)[\w.]*\s+import\b|^\s*import\s+(\w+)", text, re.MULTILINE)
            tops = {first or second for first, second in names}
        else:
            tops = set()
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Import):
                    tops |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    tops.add(node.module.partition(".")[0])
        for top in tops:
            found.setdefault(top, set()).add(path.relative_to(ROOT).as_posix())
    return found


def test_every_import_is_declared() -> None:
    allowed = declared("dependencies") | optional()
    own = {"triton_fast", "triton_fast_worker"} | {
        path.stem for path in (ROOT / "triton_fast/backends/python/worker").rglob("*.py")
    }
    strange = {
        top: sorted(files) for top, files in imported().items()
        if top not in sys.stdlib_module_names and top not in own | OF_MODELS
        and NAMES.get(top, top).lower().replace("_", "-") not in {name.replace("_", "-") for name in allowed}
    }  # fmt: skip
    assert strange == {}


def test_every_version_has_a_lower_bound() -> None:
    table = _PROJECT.partition("[project]")[2].partition("[project.scripts]")[0]
    for item in re.findall(r'^\s+"([\w-]+(?:\[[\w,]+\])?[^"]*)",?$', table, re.MULTILINE):
        assert ">=" in item, item


def test_a_server_loads_only_what_it_declares() -> None:
    """What is in the process after a start without models: the smaller, the less there is to watch."""
    code = "import sys, json, triton_fast.app; print(json.dumps(sorted({n.partition('.')[0] for n in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    tops = json.loads(done.stdout.splitlines()[-1])
    of = metadata.packages_distributions()
    # The space of names "google" is shared by distributions; of it protobuf is meant.
    loaded = {NAMES.get(top, name).lower().replace("_", "-") for top in tops for name in of.get(top, ())}
    # What an installation in place, or a venv itself, loads is not the server's.
    loaded -= {"triton-fast", "setuptools", "distutils-precedence"}
    assert loaded <= {*declared("dependencies"), "obstore", "cython"}, loaded
    assert "protobuf" in loaded


@pytest.mark.parametrize("word", ["urllib.request", "requests", "http.client", "ftplib"])
def test_nothing_is_fetched(word: str) -> None:
    """No code of the server downloads on its own: clouds and pip are asked by their own libraries and tools."""
    pattern = re.compile(rf"^\s*(?:import|from)\s+{re.escape(word)}\b", re.MULTILINE)
    assert [path.name for path in (ROOT / "triton_fast").rglob("*.py") if pattern.search(path.read_text())] == []
