"""SEC-05 and SEC-06 for Python models: nothing of the server's inside leaves it, memory has no name, no shell is asked.

What a model's own exception says, its own files and lines among it, is Triton's documented text and goes to the client;
paths outside the model repository, names of regions, process ids and addresses do not.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conformance import python_loads
from tests.conformance.python_cases import CASES, Case, methods, named
from tests.helpers import python_models, raw, workers
from tests.helpers.server import ROOT, ServerProcess, until

SOURCES = [ROOT / "triton_fast", ROOT / "ext"]
FLAGS = ("--model-control-mode=explicit", "--allow-metrics=false", "--exit-on-error=false")
# Models whose answers tell paths or addresses by purpose.
TELL = {"layout", "utilities"}


class Served(NamedTuple):
    process: ServerProcess
    root: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    base = tmp_path_factory.mktemp("sec05")
    root = python_models.write(base / "models", marker=base)
    python_loads.write(root)
    with ServerProcess(root, *FLAGS) as process:
        yield Served(process, root)


def leaks(text: str, process: ServerProcess, root: Path) -> list[str]:
    """What of the server's inside a text tells."""
    found = []
    pids = {process.process.pid, *workers.workers(process.process.pid), os.getpid()}
    places = {
        str(root): "the repository's path", str(ROOT): "the server's path", sys.prefix: "the interpreter's path",
        sys.base_prefix: "the interpreter's path", "site-packages": "a library's path", "/proc/": "/proc",
        "memfd": "a region", "/dev/shm": "a region", "triton_fast_worker": "the worker's files",  # noqa: S108
        "start.py": "the worker's files", "eventfd": "a descriptor",
    }  # fmt: skip
    found += [f"{what}: {place}" for place, what in places.items() if place in text]
    found += [f"a process: {pid}" for pid in pids if pid > 999 and re.search(rf"(?<!\d){pid}(?!\d)", text)]
    found += [f"an address: {one}" for one in re.findall(r"0x[0-9a-f]{6,16}", text)]
    return found


def load(served: Served, name: str) -> raw.Answer:
    return raw.ask(served.process.http, raw.post(f"/v2/repository/models/{name}/load"))


@pytest.mark.parametrize("model", ["errors", "sender", "tensors", "bls", "bls_async", "control", "metrics", "strings"])
def test_errors_of_requests_tell_nothing(served: Served, model: str) -> None:
    assert load(served, model).status == 200
    cases = [case for case in CASES.values() if case.model == model]
    assert cases
    for case in cases:
        answer = raw.ask(served.process.http, case.http())
        text = answer.body.decode("utf-8", "replace")
        assert leaks(text, served.process, served.root) == [], (case, text[:1000])


def test_errors_of_loads_tell_nothing(served: Served) -> None:
    names = sorted(path.name for path in served.root.iterdir() if path.name.startswith(("wrong_", "complete_")))
    assert len(names) > 50
    seen = 0
    for name in names:
        answer = load(served, name)
        seen += answer.status != 200
        text = answer.body.decode("utf-8", "replace")
        assert leaks(text, served.process, served.root) == [], text[:1000]
    assert seen > 20
    index = raw.ask(served.process.http, raw.post("/v2/repository/index")).body.decode()
    assert leaks(index, served.process, served.root) == []


@pytest.mark.parametrize("how", ["kill", "segv", "abort", "exit3", "system_exit"])
def test_deaths_tell_nothing(served: Served, how: str) -> None:
    assert load(served, "crash").status == 200
    assert until(lambda: raw.ask(served.process.http, raw.get("/v2/models/crash/ready")).status == 200, tries=6000)
    before = workers.workers(served.process.process.pid)
    text = raw.ask(served.process.http, named("crash", how).http()).body.decode()
    assert leaks(text, served.process, served.root) == [], text
    assert not [pid for pid in before if re.search(rf"(?<!\d){pid}(?!\d)", text)], text


def test_too_much_tells_nothing(served: Served) -> None:
    """An output, or an input, that no region can hold: an error, and the model goes on."""
    assert load(served, "large").status == 200
    for n in (2**40, 2**62):
        case = Case("large", [("N", "INT64", [1], [n])], outputs=["SHAPED"])
        answer = raw.ask(served.process.http, case.http())
        assert leaks(answer.body.decode(), served.process, served.root) == [], answer.body[:1000]
    case = Case("large", [("N", "INT64", [1], [3])], outputs=["FLOATS"])
    assert until(lambda: raw.ask(served.process.http, case.http()).status == 200, tries=4000)


def test_the_suite_looks_at_every_method() -> None:
    asked = {(case.model, case.inputs[0][3][0]) for case in CASES.values() if case.inputs[0][0] == "CASE"}
    for model in ("errors", "sender", "tensors", "bls", "control", *TELL):
        assert {(model, name) for name in methods(model)} <= asked


# ---- memory without a name


def test_regions_cannot_be_opened_by_name(served: Served) -> None:
    assert load(served, "crash").status == 200
    server = served.process.process.pid
    assert until(lambda: workers.workers(server) != [])
    regions = [workers.regions(pid) for pid in workers.workers(server)]
    assert any(regions), "no worker maps a region"
    for pid in (server, *workers.workers(server)):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            assert "/dev/shm" not in line, line  # noqa: S108


def test_regions_are_sealed_against_growing_and_shrinking(served: Served) -> None:
    import fcntl

    assert load(served, "crash").status == 200
    server = served.process.process.pid
    seals = []
    for entry in Path(f"/proc/{server}/fd").iterdir():
        try:
            if "/memfd:" in os.readlink(entry):
                with open(entry, "rb") as file:
                    seals.append(fcntl.fcntl(file, fcntl.F_GET_SEALS))
        except OSError:
            continue
    wanted = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
    assert all(seal & wanted == wanted for seal in seals), seals


# ---- no pickle, no shell


def modules() -> list[tuple[str, ast.Module]]:
    found = [(str(path.relative_to(ROOT)), ast.parse(path.read_text()))
             for folder in SOURCES for path in sorted(folder.rglob("*.py"))]  # fmt: skip
    assert len(found) > 50
    return found


PICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
SHELLS = {"system", "popen", "getoutput", "getstatusoutput"}


def imported(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def shells(tree: ast.Module) -> list[int]:
    """Lines with shell=True or a function that runs a shell, and exec or eval of text."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = getattr(node.func.value, "id", "") if isinstance(node.func, ast.Attribute) else ""
        asks = any(word.arg == "shell" and not (isinstance(word.value, ast.Constant) and word.value.value is False)
                   for word in node.keywords)  # fmt: skip
        builtin = isinstance(node.func, ast.Name) and name in ("exec", "eval")
        if asks or builtin or (owner in ("os", "subprocess", "commands") and name in SHELLS):
            found.append(node.lineno)
    return found


def test_nothing_is_unpickled() -> None:
    assert [name for name, tree in modules() if imported(tree) & PICKLERS] == []
    native = [path for path in (ROOT / "ext").rglob("*.pyx") if re.search(r"\bimport +c?pickle\b", path.read_text())]
    assert native == []


def test_no_shell_is_run() -> None:
    assert [(name, lines) for name, tree in modules() if (lines := shells(tree))] == []


def test_the_static_checks_find_what_they_look_for() -> None:
    assert imported(ast.parse("import pickle\nfrom dill import x")) & PICKLERS == {"pickle", "dill"}
    for line in ("os.system('x')", "subprocess.run('x', shell=True)", "subprocess.getoutput('x')", "eval('x')"):
        assert shells(ast.parse(line)) == [1], line
    assert shells(ast.parse("subprocess.run(['x'], shell=False)\nre.compile('x')\nrequest.exec()")) == []


def test_source_has_no_shell_script_for_environments() -> None:
    """Nothing but the interpreter itself is started from text: no ``sh -c`` anywhere."""
    for name, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.List | ast.Tuple):
                words = [item.value for item in node.elts if isinstance(item, ast.Constant)]
                assert not {"sh", "bash", "/bin/sh", "/bin/bash"} & set(map(str, words)), (name, node.lineno)


# ---- names with a meaning to a shell

HOSTILE = [
    "x;touch {mark}",
    "$(touch {mark})",
    "`touch {mark}`",
    "x|touch {mark}",
    "x&&touch {mark}",
    "../x",
    "a b",
    "x\ny",
    "-c",
    "--help",
    "'x'",
    '"x"',
    "x>{mark}",
    "*",
    "%s%n",
    "\u2028",
    "x" * 300,
]


def quoted(name: str) -> str:
    return "".join(f"%{byte:02X}" for byte in name.encode())


@pytest.mark.parametrize("pattern", HOSTILE)
def test_a_name_in_a_load_is_only_a_name(served: Served, tmp_path: Path, pattern: str) -> None:
    mark = tmp_path / "mark"
    name = pattern.format(mark=mark) if "{mark}" in pattern else pattern
    answer = raw.ask(served.process.http, raw.post(f"/v2/repository/models/{quoted(name)}/load"))
    assert answer.status in (400, 404, 500), answer.body
    assert not mark.exists()
    assert served.process.alive


@pytest.mark.parametrize("pattern", ["x;touch {mark}", "$(touch {mark})", "a b", "`touch {mark}`", "x|y", "&"])
def test_a_model_directory_of_such_a_name(tmp_path: Path, pattern: str) -> None:
    """As a directory of the repository: refused or served, never run. A name holds no slash."""
    mark = tmp_path / "mark"
    name = pattern.format(mark="mark")
    python_models.add(tmp_path / "models", "forward", as_name=name)
    process = ServerProcess(tmp_path / "models", *FLAGS)
    with process:
        process_answer = raw.ask(process.http, raw.post(f"/v2/repository/models/{quoted(name)}/load"))
        assert process_answer.status in (200, 400, 404, 500)
        assert process.alive
    assert not mark.exists()
    assert not (ROOT / "mark").exists()
    assert not list((tmp_path / "models").rglob("mark"))


PATHS = [
    "$(touch {mark})", "/nowhere;touch {mark}", "`touch {mark}`", "|touch {mark}",
    "$$TRITON_MODEL_DIRECTORY/../../x;touch {mark}", "{mark}.tar.gz", "\\x00", "requirements.txt;touch {mark}",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATHS)
def test_an_environment_path_is_only_a_path(tmp_path: Path, pattern: str) -> None:
    mark = tmp_path / "mark"
    value = pattern.format(mark=mark)
    config = python_loads.PLAIN + f'parameters {{ key: "EXECUTION_ENV_PATH" value {{ string_value: "{value}" }} }}\n'
    python_models.model_of(tmp_path / "models", "env", python_loads.CLASS, config)
    with ServerProcess(tmp_path / "models", *FLAGS) as process:
        answer = raw.ask(process.http, raw.post("/v2/repository/models/env/load"))
        assert answer.status in (400, 500), answer.body
        assert process.alive
    assert not mark.exists()


def test_no_code_over_the_network(tmp_path: Path) -> None:
    """Files with a load are refused unless the server was told to take them."""
    import base64
    import json

    root = python_models.write(tmp_path / "models", only=["forward"])
    body: dict[str, Any] = {"parameters": {
        "config": json.dumps({"backend": "python"}),
        "file:1/model.py": base64.b64encode(b"import os; os.mkdir('mark')").decode(),
    }}  # fmt: skip
    with ServerProcess(root, *FLAGS) as process:
        answer = raw.ask(process.http, raw.post("/v2/repository/models/sent/load", json.dumps(body).encode()))
        assert answer.status in (400, 403, 501)
        assert "allow-code-upload" in answer.error


def test_the_worker_is_started_without_a_shell(served: Served) -> None:
    assert load(served, "crash").status == 200
    pids = workers.workers(served.process.process.pid)
    assert pids
    for pid in pids:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        assert not {b"-c", b"sh", b"/bin/sh", b"bash"} & set(words)
    shells_started = subprocess.run(
        ["ps", "-o", "comm=", "--ppid", str(served.process.process.pid)], capture_output=True, text=True, check=False
    ).stdout.split()
    assert not {"sh", "bash"} & set(shells_started)
