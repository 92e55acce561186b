"""Workers of Python models that die, hang or are ended, and what the server makes of it.

Every wait has a generous limit and no test asserts a time; the times that were seen are printed (``pytest -s``).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.conformance.python_cases import Case, named
from tests.helpers import python_models, raw, workers
from tests.helpers.server import ServerProcess, until

FLAGS = ("--model-control-mode=explicit", "--load-model=*", "--allow-metrics=false")
MODELS = ("crash", "forward")
NAMED = "/dev/shm/"  # noqa: S108
MARKER = "PYTHON_SUPERVISION_TEST"


class Served:
    """A server with the model that dies and a neighbour; ``notes`` are the lines that the former wrote."""

    def __init__(self, process: ServerProcess, file: Path, mark: str) -> None:
        self.process, self.file, self.mark = process, file, mark

    def ask(self, name: str, model: str = "crash") -> raw.Answer:
        return raw.ask(self.process.http, named(model, name).http())

    def worker(self) -> int:
        answer = self.ask("pid")
        assert answer.status == 200, answer.body
        return int(answer.json()["outputs"][0]["data"][0])

    def notes(self, word: str = "") -> list[str]:
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        return [line for line in lines if line.startswith(word)]

    def ready(self, model: str = "crash") -> bool:
        return raw.ask(self.process.http, raw.get(f"/v2/models/{model}/ready")).status == 200

    def neighbour_answers(self) -> None:
        answer = self.ask("hello", "forward")
        assert (answer.status, answer.json()["outputs"][0]["data"]) == (200, ["hello"])


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    root = python_models.write(tmp_path / "models", marker=tmp_path, only=MODELS)
    mark = uuid.uuid4().hex
    with ServerProcess(root, *FLAGS, env={MARKER: mark}) as process:
        yield Served(process, tmp_path / "crash", mark)


class Asked:
    """A request under way on a connection and a thread of its own."""

    def __init__(self, served: Served, name: str) -> None:
        self.answer: raw.Answer | None = None
        self._thread = Thread(target=self._run, args=(served, name))
        self._thread.start()

    def _run(self, served: Served, name: str) -> None:
        with contextlib.suppress(raw.Closed):  # the server was killed
            self.answer = served.ask(name)

    def result(self) -> raw.Answer:
        self._thread.join(raw.TIMEOUT_S)
        assert self.answer is not None, "the request was not answered"
        return self.answer


# How the worker ends, and how an error names that.
DEATHS = [
    ("kill", r"SIGKILL|signal 9"),
    ("terminate", r"SIGTERM|signal 15"),
    ("segv", r"SIGSEGV|signal 11"),
    ("abort", r"SIGABRT|signal 6"),
    ("exit3", r"exit code 3|status 3|code 3"),
    ("exit0", r"exit code 0|status 0|code 0"),
]


@pytest.mark.parametrize(("how", "named_so"), DEATHS, ids=[how for how, _ in DEATHS])
def test_a_worker_that_dies_in_execute(served: Served, how: str, named_so: str) -> None:
    first = served.worker()
    began = time.monotonic()
    answer = served.ask(how)
    print(f"{how}: answered after {(time.monotonic() - began) * 1000:.0f} ms: {answer.error}")
    assert answer.status in (500, 503)
    assert re.search(named_so, answer.error), answer.error
    served.neighbour_answers()
    assert until(served.ready), "the model is not ready again"
    print(f"{how}: ready again after {(time.monotonic() - began) * 1000:.0f} ms")
    second = served.worker()
    assert second != first
    assert not workers.alive(first)
    assert until(lambda: len(workers.workers(served.process.process.pid)) == len(MODELS)), "an ended worker is left"
    assert served.notes("finalized") == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT], ids=lambda one: one.name)
def test_a_worker_that_is_killed_while_idle(served: Served, number: signal.Signals) -> None:
    first = served.worker()
    os.kill(first, number)
    assert workers.ended([first])
    began = time.monotonic()
    assert until(lambda: served.notes("initialized")[-1:] != [f"initialized {first}"]), "no other worker was started"
    assert until(served.ready)
    print(f"{number.name} while idle: back after {(time.monotonic() - began) * 1000:.0f} ms")
    assert served.worker() != first


def test_every_request_in_hand_is_answered(served: Served) -> None:
    """One executes and others wait in the queue: the first fails; the others fail too or are served by the next."""
    first = served.worker()
    executing = Asked(served, "wait60000")
    assert until(lambda: served.notes("wait60000") != [])
    queued = [Asked(served, "pid") for _ in range(8)]
    os.kill(first, signal.SIGKILL)
    began = time.monotonic()
    assert executing.result().status in (500, 503)
    assert re.search("SIGKILL|signal 9", executing.result().error)
    print(f"in flight: answered after {(time.monotonic() - began) * 1000:.0f} ms")
    for one in queued:
        answer = one.result()
        assert answer.status in (200, 500, 503), answer.body
        if answer.status == 200:
            assert int(answer.json()["outputs"][0]["data"][0]) != first
    served.neighbour_answers()


def test_not_ready_until_the_next_worker_is(served: Served) -> None:
    """A worker that dies in every initialize keeps the model from being ready, and nothing else; then it recovers."""
    first = served.worker()
    stop = Path(f"{served.file}.die")
    stop.touch()
    os.kill(first, signal.SIGKILL)
    assert until(lambda: not served.ready()), "the model is still ready"
    answer = served.ask("pid")
    assert answer.status in (500, 503), answer.body
    assert served.ready("forward")
    served.neighbour_answers()
    assert not served.ready()
    stop.unlink()
    assert until(served.ready, tries=6000), "the model did not recover"
    assert served.worker() != first


def test_a_worker_that_is_stopped(served: Served) -> None:
    """SIGSTOP: it neither answers nor dies. Its request fails, it is replaced, and nothing of it is left."""
    first = served.worker()
    began = time.monotonic()
    answer = served.ask("stop")
    print(f"stopped: answered after {(time.monotonic() - began) * 1000:.0f} ms: {answer.body!r}")
    assert answer.status in (500, 503)
    served.neighbour_answers()
    assert workers.ended([first]), "the stopped worker still exists"
    assert until(served.ready)
    assert served.worker() != first


def test_a_slow_worker_is_left_alone(served: Served) -> None:
    first = served.worker()
    answer = served.ask("wait3000")
    assert answer.status == 200, answer.body
    assert served.worker() == first


def test_a_worker_that_raises_system_exit(served: Served) -> None:
    """As any exception or as an end of the process: an error that says so, and the model goes on."""
    answer = served.ask("system_exit")
    assert answer.status in (500, 503)
    assert re.search(r"SystemExit: 4|code 4", answer.error), answer.error
    assert until(served.ready)
    served.worker()


def test_a_worker_that_dies_in_initialize(tmp_path: Path) -> None:
    root = python_models.write(tmp_path / "models", marker=tmp_path, only=MODELS)
    Path(f"{tmp_path / 'crash'}.die").touch()
    flags = ("--model-control-mode=explicit", "--load-model=forward", "--allow-metrics=false")
    with ServerProcess(root, *flags) as process:
        answer = raw.ask(process.http, raw.post("/v2/repository/models/crash/load"))
        assert answer.status in (400, 500)
        assert re.search("SIGKILL|signal 9", answer.error), answer.error
        assert raw.ask(process.http, named("forward", "x").http()).status == 200
        assert len(workers.workers(process.process.pid)) == 1
        Path(f"{tmp_path / 'crash'}.die").unlink()
        assert raw.ask(process.http, raw.post("/v2/repository/models/crash/load")).status == 200


# ---- nothing is left


def test_an_unload_ends_the_worker_after_finalize(served: Served) -> None:
    pid, server = served.worker(), served.process.process.pid
    before = served.process.fds()
    regions = workers.regions(server)
    held = workers.regions(pid)
    assert held, "the worker holds no region"
    assert raw.ask(served.process.http, raw.post("/v2/repository/models/crash/unload")).status == 200
    assert workers.ended([pid])
    assert served.notes("finalized") == [f"finalized {pid}"]
    assert until(lambda: len(workers.workers(server)) == 1)
    assert until(lambda: not workers.regions(server) & held), "the server still holds the region"
    assert until(lambda: served.process.fds() < before)
    assert len(workers.regions(server)) < len(regions) or not regions


def test_descriptors_and_regions_after_many_deaths(served: Served) -> None:
    server = served.process.process.pid
    served.worker()
    served.neighbour_answers()

    def state() -> tuple[int, int, int]:
        return served.process.fds(), len(workers.regions(server)), len(workers.workers(server))

    assert until(lambda: state()[2] == len(MODELS))
    with raw.Client(served.process.http) as client:
        for _ in range(2):  # with the second answer it has noticed the end of the connections before this one
            assert client.ask(raw.get("/v2/health/live")).status == 200
        before = state()
        for _ in range(4):
            assert served.ask("kill").status in (500, 503)
            assert until(served.ready, tries=6000)
            served.worker()
        assert until(lambda: state() == before), (before, state())


@pytest.mark.parametrize("how", ["stop", "kill -9"])
def test_workers_end_with_the_server(served: Served, how: str) -> None:
    shared = workers.named_shared_memory()
    pids = [served.worker(), *workers.workers(served.process.process.pid)]
    assert len(set(pids)) == len(MODELS)
    templates = workers.templates(served.process.process.pid)
    assert len(templates) == 1
    regions = set().union(*(workers.regions(pid) for pid in pids))
    assert regions, "no worker holds a region"
    executing = Asked(served, "wait60000") if how == "kill -9" else None
    if executing:
        assert until(lambda: served.notes("wait60000") != [])
    if how == "stop":
        assert served.process.stop() == 0
    else:
        served.process.exit_code = None
        served.process.kill()
    assert workers.ended(pids + templates), "workers outlive the server"
    assert until(lambda: workers.with_marker(served.mark) == [])
    left = set().union(*(workers.regions(pid) for pid in workers.processes()))
    assert not left & regions, "somebody holds the workers' shared memory"
    assert workers.named_shared_memory() <= shared
    if how == "stop":
        assert len(served.notes("finalized")) == 1


def test_workers_do_not_depend_on_their_template(served: Served) -> None:
    """They live on without it, and the next worker gets another one."""
    first, server = served.worker(), served.process.process.pid
    (template,) = workers.templates(server)
    os.kill(template, signal.SIGKILL)
    assert until(lambda: template not in workers.templates(server))
    assert served.worker() == first
    served.neighbour_answers()
    assert served.ask("kill").status in (500, 503)
    assert until(served.ready, tries=6000)
    assert served.worker() != first
    assert len(workers.templates(server)) == 1


# Sets a variable in the server itself, as frameworks do when they are opened.
SETTING = """
import os


class TritonPythonModel:
    def initialize(self, args):
        os.environ["SET_IN_THE_SERVER"] = "1"
"""
TELLING = """
import os


class TritonPythonModel:
    def execute(self, requests):
        told = np.array([os.environ.get("SET_IN_THE_SERVER", "nothing").encode()], np.object_)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("O", told)]) for _ in requests]
"""
IO = """
backend: "python"
input { name: "INPUT0" data_type: TYPE_FP32 dims: 1 }
output { name: "O" data_type: TYPE_STRING dims: 1 }
"""
INSIDE = 'parameters { key: "EXECUTION_MODE" value { string_value: "in_process" } }'


def test_workers_get_what_the_server_was_started_with(tmp_path: Path) -> None:
    """Whatever was loaded before them: else a worker's environment, and so its template, would depend on that."""
    for name, code, more in (("first", TELLING, ""), ("setting", SETTING, INSIDE), ("second", TELLING, "")):
        python_models.model_of(tmp_path, name, code, IO + more)
    with ServerProcess(tmp_path, "--model-control-mode=explicit", "--load-model=first") as process:
        for name in ("setting", "second"):
            assert raw.ask(process.http, raw.post(f"/v2/repository/models/{name}/load")).status == 200
        told = [raw.ask(process.http, raw.infer_json(name, [1], shape=[1])) for name in ("first", "second")]
        assert [answer.json()["outputs"][0]["data"] for answer in told] == [["nothing"]] * 2


def test_no_named_shared_memory_while_it_serves(served: Served) -> None:
    served.worker()
    mine = {served.process.process.pid, *workers.workers(served.process.process.pid)}
    mapped = set()
    for pid in mine:
        mapped |= {line.split(None, 5)[5] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()
                   if NAMED in line}  # fmt: skip
        mapped |= {target for entry in Path(f"/proc/{pid}/fd").iterdir()
                   if NAMED in (target := _target(entry))}  # fmt: skip
    assert mapped == set()


def _target(entry: Path) -> str:
    try:
        return os.readlink(entry)
    except OSError:
        return ""


# ---- finalize, output, cancellation


@pytest.mark.parametrize("text", ["", "finalize went wrong"])
def test_finalize_runs_once(tmp_path: Path, text: str) -> None:
    root = tmp_path / "models"
    python_models.add(root, "lifecycle", parameters={"marker": str(tmp_path / "seen"), "finalize": text})
    with ServerProcess(root, *FLAGS) as process:
        assert raw.ask(process.http, named("lifecycle", "x").http()).status == 200
        assert raw.ask(process.http, raw.post("/v2/repository/models/lifecycle/unload")).status == 200
        seen = tmp_path / "seen"
        assert until(lambda: seen.read_text().split() == ["initialized", "finalized"])
        if text:
            process.wait_for_log(text)
        assert raw.ask(process.http, raw.post("/v2/repository/models/lifecycle/load")).status == 200
    assert seen.read_text().split() == ["initialized", "finalized"] * 2


def test_what_a_model_prints_and_logs(tmp_path: Path) -> None:
    """Each in the server's log with the model's name; control characters cannot write lines of their own."""
    root = python_models.write(tmp_path / "models", only=["logger"])
    with ServerProcess(root, *FLAGS, "--log-verbose=1") as process:
        assert raw.ask(process.http, named("logger", "x").http()).status == 200
        for text in ("in initialize", "by default", "level info", "level verbose", "log_info", "log_verbose"):
            assert re.match("I", process.wait_for_log(re.escape(text)))
        for text in ("level warning", "log_warn"):
            assert re.match("W", process.wait_for_log(text))
        for text in ("level error", "log_error"):
            line = process.wait_for_log(text)
            assert re.match("E", line)
            assert re.search(r"model\.py:\d+", line)
        assert "logger" in process.wait_for_log("printed")
        lines = process.log()
        assert "\x1b" not in lines
        assert not [line for line in lines.splitlines() if line.startswith("lines")]
        process.stop()
        assert "in finalize" in process.log()


def test_a_client_that_goes_away_cancels(tmp_path: Path) -> None:
    root = python_models.write(tmp_path / "models", marker=tmp_path, only=["wait"])
    marker = tmp_path / "wait"
    with ServerProcess(root, *FLAGS) as process:
        request = Case("wait", [("IN", "INT32", [1], [60])]).http()
        with raw.Client(process.http) as client:
            client.send(request)
            assert until(lambda: marker.exists() and "began" in marker.read_text())
        assert until(lambda: "cancelled" in marker.read_text()), "the model was not told"
        answer = raw.ask(process.http, Case("wait", [("IN", "INT32", [1], [0])]).http())
        assert answer.json()["outputs"][0]["data"] == [0]
        assert marker.read_text().split("\n") == ["began", "cancelled", "began", "not cancelled", ""]


def test_statistics_after_a_death_are_exact(served: Served) -> None:
    for _ in range(3):
        served.worker()
    assert served.ask("exit3").status in (500, 503)
    found: Any = json.loads(raw.ask(served.process.http, raw.get("/v2/models/crash/stats")).body)["model_stats"][0]
    assert int(found["inference_stats"]["success"]["count"]) == 3
    assert int(found["inference_stats"]["fail"]["count"]) == 1
