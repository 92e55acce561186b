"""Real servers: models that share a resource, warm-up before readiness, instances and workers on chosen cores.

The Python models note what they are asked in files; what must not overlap holds a lock on one.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import raw
from tests.helpers.python_models import model_of
from tests.helpers.server import EXIT_TIMEOUT_S, Model, ServerProcess, repository, until

EXPLICIT = "--model-control-mode=explicit"
LIMITED = "--rate-limit=execution_count"
ALLOWED = sorted(os.sched_getaffinity(0))
# Answers 1, or an error if another model of this kind executes at the same time. Waits for the file "go" where
# FOLDER/<model>.wait is there.
EXCLUSIVE = """
import fcntl, json, os, time

class TritonPythonModel:
    def initialize(self, args):
        self.name = args["model_name"]
        self.folder = json.loads(args["model_config"])["parameters"]["folder"]["string_value"]
        self.lock = open(os.path.join(self.folder, "lock"), "w")

    def there(self, name):
        return os.path.exists(os.path.join(self.folder, name))

    def execute(self, requests):
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            open(os.path.join(self.folder, "overlap"), "w").close()
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError("both at once")) for _ in requests]
        open(os.path.join(self.folder, self.name + ".in"), "w").close()
        until = time.monotonic() + 60
        while self.there(self.name + ".wait") and not self.there("go") and time.monotonic() < until:
            time.sleep(0.002)
        fcntl.flock(self.lock, fcntl.LOCK_UN)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.ones((1, 1), np.int32))]) for _ in requests]
"""
# Writes a line for each call.
NOTES = """
import json, os

class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self.fails = parameters.get("fails")
        self.file = open(parameters["file"]["string_value"], "a", buffering=1)
        self.name = args["model_instance_name"]

    def execute(self, requests):
        values = [pb_utils.get_input_tensor_by_name(request, "IN").as_numpy().tolist() for request in requests]
        self.file.write(json.dumps([self.name, values, sorted(os.sched_getaffinity(0))]) + "\\n")
        if self.fails:
            raise ValueError("not warm")
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.ones((1, 1), np.int32))]) for _ in requests]
"""
CONFIG = """backend: "python" max_batch_size: 4
input [{ name: "IN" data_type: TYPE_INT32 dims: [1] }]
output [{ name: "OUT" data_type: TYPE_INT32 dims: [1] }]
"""


def group(text: str = "", count: int = 1) -> str:
    return f"instance_group [{{ count: {count} kind: KIND_CPU {text} }}]\n"


def needs(resources: str, priority: int = 1) -> str:
    return group(f"rate_limiter {{ resources [ {resources} ] priority: {priority} }}")


def parameter(key: str, value: object) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'


def warm(source: str = "zero_data: true", *, rows: int = 1, count: int = 1, name: str = "w") -> str:
    value = f"value {{ data_type: TYPE_INT32 dims: [1] {source} }}"
    return f'model_warmup [{{ name: "{name}" batch_size: {rows} count: {count} inputs {{ key: "IN" {value} }} }}]\n'


def infer(process: ServerProcess, name: str, value: int = 5) -> raw.Answer:
    tensor = {"name": "IN", "shape": [1, 1], "datatype": "INT32", "data": [value]}
    body = json.dumps({"inputs": [tensor]}).encode()
    return raw.ask(process.http, raw.post(f"/v2/models/{name}/infer", body))


def load(process: ServerProcess, name: str, verb: str = "load") -> raw.Answer:
    return raw.ask(process.http, raw.post(f"/v2/repository/models/{name}/{verb}"))


def notes(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


# --- rate limiter -----------------------------------------------------------------------------------------------------


def pair(root: Path, folder: Path, resources: str = '{ name: "R" count: 1 }') -> Path:
    folder.mkdir()
    for name in ("a", "b"):
        model_of(root, name, EXCLUSIVE, CONFIG + needs(resources) + parameter("folder", folder))
    return root


def test_models_that_share_a_resource_never_run_at_the_same_time(tmp_path: Path) -> None:
    folder = tmp_path / "seen"
    with (
        ServerProcess(pair(tmp_path / "models", folder, '{ name: "R" global: true count: 1 }'), LIMITED) as process,
        ThreadPoolExecutor(8) as threads,
    ):
        (folder / "a.wait").touch()
        first = threads.submit(infer, process, "a")
        assert until((folder / "a.in").exists)
        second = threads.submit(infer, process, "b")
        metric = 'nv_inference_pending_request_count{model="b",version="1"} 1'
        assert until(lambda: metric in raw.ask(process.metrics, raw.get("/metrics")).body.decode())
        assert not (folder / "b.in").exists()
        (folder / "go").touch()
        assert (first.result().status, second.result().status) == (200, 200)
        answers = list(threads.map(lambda k: infer(process, "ab"[k % 2]).status, range(200)))
        assert answers == [200] * 200
        assert not (folder / "overlap").exists()


# Asks the model of its parameter and answers what that does.
ASKS = """
import json

class TritonPythonModel:
    def initialize(self, args):
        self.whom = json.loads(args["model_config"])["parameters"]["whom"]["string_value"]

    def execute(self, requests):
        answers = []
        for request in requests:
            given = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            inner = pb_utils.InferenceRequest(
                model_name=self.whom, requested_output_names=["OUT"], inputs=[pb_utils.Tensor("IN", given)])
            answer = inner.exec()
            answers.append(
                pb_utils.InferenceResponse(error=answer.error()) if answer.has_error() else
                pb_utils.InferenceResponse([pb_utils.get_output_tensor_by_name(answer, "OUT")]))
        return answers
"""


@pytest.mark.parametrize("in_process", [False, True])
def test_a_call_that_waits_for_what_its_caller_holds_fails(tmp_path: Path, in_process: bool) -> None:
    """Through a model between them too; whatever backend the last one has; and what it holds is free again."""
    root, limited = tmp_path / "models", needs('{ name: "R" count: 1 }')
    local = parameter("EXECUTION_MODE", "in_process") if in_process else ""
    model_of(root, "python", NOTES, CONFIG + limited + parameter("file", tmp_path / "notes") + local)
    (root / "native" / "1").mkdir(parents=True)
    (root / "native" / "config.pbtxt").write_text(CONFIG.replace('"python"', '"identity"') + limited)
    for name, whom in (("a", "python"), ("b", "native"), ("between", "native"), ("c", "between")):
        model_of(root, name, ASKS, CONFIG + ("" if name == "between" else limited) + parameter("whom", whom) + local)
    with ServerProcess(root, LIMITED) as process:
        for name, target in (("a", "python"), ("b", "native"), ("c", "native")):
            answer = infer(process, name)
            assert answer.status == 500
            caller = "between" if name == "c" else name
            assert answer.error == (
                f"Deadlock: model '{caller}' waits for '{target}', which waits for the rate limiter's resource 'R' "
                f"that can not become free before. Give it to '{target}' alone, or raise its amount."
            )
            assert infer(process, target).status == 200


def test_without_the_limiter_they_do(tmp_path: Path) -> None:
    """The lock that the test above trusts does see an overlap."""
    folder = tmp_path / "seen"
    with ServerProcess(pair(tmp_path / "models", folder)) as process, ThreadPoolExecutor(1) as threads:
        (folder / "a.wait").touch()
        first = threads.submit(infer, process, "a")
        assert until((folder / "a.in").exists)
        answer = infer(process, "b")
        assert (answer.status, answer.json()["error"]) == (500, "both at once")
        (folder / "go").touch()
        assert first.result().status == 200
        assert (folder / "overlap").exists()


FEW = (
    'Resource count for "R" is limited to 1 which will prevent scheduling of one or more model instances, the minimum '
    "required count is 2"
)
BOTH = 'Resource "R" is present as both global and device-specific resource in the model configuration.'


def test_resources_follow_loads_and_unloads(tmp_path: Path) -> None:
    for name, resources in (
        ("one", '{ name: "R" count: 1 }'), ("two", '{ name: "R" count: 2 }'),
        ("all", '{ name: "R" global: true count: 1 }'),
    ):  # fmt: skip
        repository(tmp_path, Model(name, extra=needs(resources)))

    def reason(answer: raw.Answer) -> str:
        assert answer.status == 400
        return str(answer.json()["error"])

    with ServerProcess(tmp_path, EXPLICIT, LIMITED, "--rate-limit-resource=R:1") as process:
        assert load(process, "one").status == 200
        assert FEW in reason(load(process, "two"))
        assert BOTH in reason(load(process, "all"))
        assert load(process, "one", "unload").status == 200
        assert until(lambda: load(process, "all").status == 200)
        config = raw.ask(process.http, raw.get("/v2/models/all/config")).json()
        assert config["instance_group"][0]["rate_limiter"] == {
            "resources": [{"name": "R", "global": True, "count": 1}], "priority": 1,
        }  # fmt: skip
    with ServerProcess(tmp_path, EXPLICIT, LIMITED) as process:
        assert [load(process, name).status for name in ("one", "two", "one", "two")] == [200] * 4


def test_an_unload_does_not_wait_for_a_resource_that_it_does_not_need(tmp_path: Path) -> None:
    folder = tmp_path / "seen"
    root = pair(tmp_path / "models", folder)
    with ServerProcess(root, LIMITED, EXPLICIT, "--load-model=*") as process, ThreadPoolExecutor(1) as threads:
        (folder / "a.wait").touch()
        first = threads.submit(infer, process, "a")
        assert until((folder / "a.in").exists)
        assert load(process, "b", "unload").status == 200
        process.wait_for_log("successfully unloaded 'b'")
        (folder / "go").touch()
        assert first.result().status == 200


# --- warm-up ----------------------------------------------------------------------------------------------------------


def test_instances_are_warm_before_the_model_is_ready(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    text = CONFIG + group(count=2) + warm(rows=2, count=2) + warm('input_data_file: "d"', name="f")
    model = model_of(tmp_path / "models", "m", NOTES, text + parameter("file", file))
    (model / "warmup").mkdir()
    (model / "warmup" / "d").write_bytes((7).to_bytes(4, "little"))
    with ServerProcess(tmp_path / "models", "--log-verbose=1") as process:
        seen = notes(file)
        assert infer(process, "m").status == 200
        process.wait_for_log("warmup sample 'w' ran 2 time")
        process.wait_for_log("warmed up with 2 sample")
        config = raw.ask(process.http, raw.get("/v2/models/m/config")).json()
    assert sorted((name, values) for name, values, _ in seen) == sorted(
        (f"m_0_{k}", values) for k in range(2) for values in ([[[0]], [[0]]], [[[0]], [[0]]], [[[7]]])
    )
    assert [sample["name"] for sample in config["model_warmup"]] == ["w", "f"]
    assert config["model_warmup"][1]["inputs"]["IN"]["input_data_file"] == "d"
    assert "no effect" not in process.log()


def test_a_failing_warm_up_fails_the_load_and_keeps_what_serves(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    root = tmp_path / "models"
    model = model_of(root, "m", NOTES, CONFIG + group() + warm() + parameter("file", file))
    with ServerProcess(root, EXPLICIT, "--load-model=m") as process:
        config = model / "config.pbtxt"
        config.write_text(config.read_text() + parameter("fails", "yes"))
        answer = load(process, "m")
        assert answer.status == 400
        text = answer.json()["error"]
        assert "failed to run warmup sample 'w': Failed to process the request(s) for model 'm_0_0'" in text
        assert "ValueError: not warm" in text
        assert infer(process, "m").status == 200


def test_a_decoupled_and_a_repeated_model_are_warmed(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    code = NOTES.replace(
        "        return [pb_utils.InferenceResponse([pb_utils.Tensor",
        "        for request in requests:\n"
        "            sender = request.get_response_sender()\n"
        "            for _ in range(3):\n"
        '                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.ones((1, 1), np.int32))]))\n'
        "            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)\n"
        "        return None\n"
        "        return [pb_utils.InferenceResponse([pb_utils.Tensor",
    )
    text = CONFIG + group() + warm(rows=2) + "model_transaction_policy { decoupled: true }\n" + parameter("file", file)
    model_of(tmp_path / "models", "m", code, text)
    with ServerProcess(tmp_path / "models") as process:
        assert [values for _, values, _ in notes(file)] == [[[[0]], [[0]]]]
        stats = raw.ask(process.http, raw.get("/v2/models/m/stats")).json()["model_stats"][0]
        assert (stats["inference_count"], stats["execution_count"]) == (2, 1)


def test_warm_up_waits_for_the_resources_of_its_instance(tmp_path: Path) -> None:
    folder, file, root = tmp_path / "seen", tmp_path / "notes", tmp_path / "models"
    pair(root, folder)
    model_of(root, "m", NOTES, CONFIG + needs('{ name: "R" count: 1 }') + warm() + parameter("file", file))
    with ServerProcess(root, LIMITED, EXPLICIT, "--load-model=a") as process, ThreadPoolExecutor(2) as threads:
        (folder / "a.wait").touch()
        first = threads.submit(infer, process, "a")
        assert until((folder / "a.in").exists)
        loading = threads.submit(load, process, "m")
        assert until(lambda: raw.ask(process.http, raw.post("/v2/repository/index")).body.find(b"LOADING") > 0)
        assert notes(file) == []
        (folder / "go").touch()
        assert (first.result().status, loading.result().status) == (200, 200)
        assert len(notes(file)) == 1


# --- host policies ----------------------------------------------------------------------------------------------------


def threads_of(pid: int) -> dict[str, list[set[int]]]:
    """Names of a process's threads and the cores each may use."""
    found: dict[str, list[set[int]]] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            name, cores = (task / "comm").read_text().strip(), os.sched_getaffinity(int(task.name))
            found.setdefault(name, []).append(cores)
    return found


def test_instances_and_workers_run_on_the_cores_of_their_policy(tmp_path: Path) -> None:
    file, core = tmp_path / "notes", ALLOWED[-1]
    text = CONFIG + group('host_policy: "mine"') + warm() + parameter("file", file)
    model_of(tmp_path, "worker", NOTES, text)
    repository(tmp_path, Model("native", extra=group()), Model("other", extra=group('host_policy: "unknown"')))
    flags = (f"--host-policy=mine,cpu-cores={core}-{core}", f"--host-policy=cpu,cpu-cores={ALLOWED[0]}")
    with ServerProcess(tmp_path, *flags) as process:
        assert infer(process, "worker").status == 200
        found = threads_of(process.process.pid)
        config = raw.ask(process.http, raw.get("/v2/models/worker/config")).json()
    assert found["worker_0_0"] == [{core}]
    assert found["native_0_0"] == [{ALLOWED[0]}]
    assert found["other_0_0"] == [set(ALLOWED)]
    assert [cores for _, _, cores in notes(file)] == [[core]] * 2
    assert config["instance_group"][0]["host_policy"] == "mine"


@pytest.mark.parametrize(
    ("flag", "code", "text"),
    [
        ("cpu,cpu-cores=99999", "Invalid argument", "names cores 99999, which this process may not use; it may use "),
        ("cpu,cpu-cores=1:2", "Invalid argument", "host policy setting 'cpu-cores' format is "),
        ("cpu,numa-node=first", "Invalid argument", "host policy setting 'numa-node' must be the number of a node."),
        ("cpu,size=1", "Unsupported", "Unsupported host policy setting 'size' is specified, supported settings are "
         "'numa-node', 'cpu-cores'"),
    ],
)  # fmt: skip
def test_a_policy_that_can_not_be_kept_ends_the_server(flag: str, code: str, text: str, tmp_path: Path) -> None:
    argv = ServerProcess(tmp_path, f"--host-policy={flag}")
    run = subprocess.run(
        argv.argv, env=argv.env, capture_output=True, text=True, timeout=EXIT_TIMEOUT_S, check=False
    )  # fmt: skip
    assert run.returncode == 1
    assert f"{code} - " in run.stderr
    assert text in run.stderr


def test_the_servers_own_threads_keep_all_cores(tmp_path: Path) -> None:
    repository(tmp_path, Model("native", extra=group()))
    with ServerProcess(tmp_path, f"--host-policy=cpu,cpu-cores={ALLOWED[0]}") as process:
        found = threads_of(process.process.pid)
    others = [cores for name, each in found.items() if name != "native_0_0" for cores in each]
    assert others
    assert all(cores == set(ALLOWED) for cores in others)
