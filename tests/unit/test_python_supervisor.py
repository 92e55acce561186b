"""Workers as real processes under supervision: start, death of every kind, restart, readiness, control, output, end."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from tests.helpers import standin
from tests.helpers.standin import FakeChannel, FakeInstance, engine, is_running, until
from triton_fast import config as cfg
from triton_fast.backends.base import InstanceSpec, LoadContext
from triton_fast.backends.host import Host
from triton_fast.backends.python import environment, native
from triton_fast.backends.python.backend import AutoComplete, PythonModel
from triton_fast.backends.python.plan import ModelPlan, merged
from triton_fast.backends.python.settings import Parameters, Settings
from triton_fast.backends.python.supervisor import Supervisor
from triton_fast.config import parse
from triton_fast.errors import Internal, InvalidArg, ServerError
from triton_fast.observability import log

IO = 'input { name: "I" data_type: TYPE_FP32 dims: 1 } output { name: "O" data_type: TYPE_FP32 dims: 1 }'


class Control:
    """Records what models ask for."""

    def __init__(self):
        self.asked = []
        self.go = threading.Event()

    def load_model(self, caller, name, config, files):
        self.asked.append((caller, name, config, dict(files)))

    def unload_model(self, caller, name, unload_dependents):
        self.go.wait(standin.WAIT_S)
        raise Internal("not now")

    def is_model_ready(self, caller, name, version):
        return name == "up"


class World:
    """One model of stand-in workers, and what it told the server."""

    def __init__(self, folder: Path, code: str, *, specs=1, settings=None, name="m", beside=None):
        self.code = folder / "model.py"
        self.code.write_text(code)
        self.folder = folder
        # ``beside``: the world whose supervisor it shares.
        self.is_guest = beside is not None
        self.supervisor = beside.supervisor if beside else Supervisor()
        self.changes = threading.Semaphore(0)
        self.control = Control()
        self.host = Host(control=self.control, changed=self.changes.release)
        parsed = parse.parse_text(f'name: "{name}" backend: "python" {IO}'.encode(), "f")
        cfg.normalize(parsed.config, cpu_count=1)
        context = LoadContext(name, 1, folder, folder, parsed.config, host=self.host)
        self.plan = ModelPlan(context, settings or Settings(stub_timeout_s=20), Parameters(), environment.default(),
                              self.code, standin.write(folder))  # fmt: skip
        self.specs = [InstanceSpec(f"{name}_0_{i}", "KIND_CPU") for i in range(specs)]
        self.model = PythonModel(self.plan, engine(), self.supervisor)

    def start(self) -> list[FakeInstance]:
        self.model.prepare(self.specs)
        self.natives = [self.model.create_instance(spec) for spec in self.specs]
        return self.natives

    def pid(self, number=0) -> int:
        return self.model._instances[self.specs[number].name]._process.pid

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.control.go.set()
        pids = [one._process.pid for one in self.model._instances.values() if one._process is not None]
        self.model.close()
        assert self.is_guest or self.supervisor.join(standin.WAIT_S)
        assert not [pid for pid in pids if is_running(pid)]


@pytest.fixture
def lines(monkeypatch):
    """The records of the log: (letter, message, source, fields)."""
    found = []

    def record(letter, message, fields, source, **rest):
        found.append((letter, message, source, dict(fields)))

    monkeypatch.setattr(log._logger, "record", record)
    return found


def test_a_worker_is_initialised_attached_and_finalised(tmp_path, lines):
    code = """
def init(worker, message):
    print("args", sorted(message["args"]), message["inputs"], message["outputs"], message["decoupled"], flush=True)
def finalize(worker):
    print("finalizing", flush=True)
"""
    with World(tmp_path, code) as world:
        (made,) = world.start()
        made.saw("attach")
        assert world.model.is_ready()
        assert not world.model.ready_may_block
        pid = world.pid()
    assert [what for what, _ in made.events] == ["attach", "finalize", "fail"]
    assert not is_running(pid)
    text = [message for _, message, source, fields in lines if source[0] == "stdout" and fields["model"] == "m"]
    assert text == [
        "args ['model_config', 'model_instance_device_id', 'model_instance_kind', 'model_instance_name', 'model_name', "
        "'model_repository', 'model_version'] ['I'] ['O'] False",
        "finalizing",
    ]


def test_workers_of_one_model_start_together(tmp_path):
    # Each waits in initialize until all three are there.
    code = """
import os, time
def init(worker, message):
    folder = worker.context["model_dir"]
    open(os.path.join(folder, "at-" + worker.context["instance_name"]), "w").close()
    while len([n for n in os.listdir(folder) if n.startswith("at-")]) < 3:
        time.sleep(0.01)
"""
    with World(tmp_path, code, specs=3) as world:
        assert len(world.start()) == 3


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def (", "SyntaxError: "),
        ("def init(worker, message): raise ValueError('boom')", "ValueError: boom"),
        ("import os\ndef init(worker, message): os._exit(3)",
         "Stub process 'm_0_0' is not healthy. The worker process exited with code 3"),
        ("import os\ndef init(worker, message): os.abort()",
         "Stub process 'm_0_0' is not healthy. The worker process was killed by signal SIGABRT"),
        ("def init(worker, message): worker.raw(b'\\xff' * 100)",
         "Stub process 'm_0_0' is not healthy. The worker process sent a control message that is not valid and was "),
    ],
)  # fmt: skip
def test_load_errors_say_why(tmp_path, code, message):
    with World(tmp_path, code) as world:
        with pytest.raises(ServerError) as caught:
            world.start()
        assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("death", "ending"),
    [
        (lambda pid: os.kill(pid, signal.SIGKILL), "was killed by signal SIGKILL"),
        (lambda pid: os.kill(pid, signal.SIGSEGV), "was killed by signal SIGSEGV"),
        (lambda pid: os.kill(pid, signal.SIGTERM), "was killed by signal SIGTERM"),
        (lambda pid: os.kill(pid, signal.SIGSTOP), "was stopped by a signal, counts as hung and was killed by signal "
         "SIGKILL"),
    ],
)  # fmt: skip
def test_a_dead_worker_fails_what_is_in_flight_and_is_restarted(tmp_path, death, ending):
    with World(tmp_path, "") as world:
        (made,) = world.start()
        first = world.pid()
        death(first)
        assert made.saw("fail") == f"Stub process 'm_0_0' is not healthy. The worker process {ending}"
        made.saw("attach", 2)
        until(world.model.is_ready)
        assert world.pid() != first
        until(lambda: b"restarts_total" in _scrape(world) and b"} 1\n" in _scrape(world))
    assert [what for what, _ in made.events] == ["attach", "fail", "attach", "finalize", "fail"]


def _scrape(world):
    from triton_fast.observability.metrics import exposition

    return exposition(world.host.metrics.collect())


def test_not_ready_while_it_is_down_and_requests_fail_when_restarts_do(tmp_path):
    with World(tmp_path, "") as world:
        (made,) = world.start()
        world.code.write_text("def init(worker, message): raise RuntimeError('still broken')")
        os.kill(world.pid(), signal.SIGKILL)
        reason = made.saw("give_up")
        assert reason.endswith("was killed by signal SIGKILL, and its restart failed")
        assert not world.model.is_ready()
        world.code.write_text("")
        made.saw("attach", 2)
        until(world.model.is_ready)


def test_an_instance_that_is_lost_does_not_take_work_from_one_that_is_up(tmp_path):
    code = """
import os
def init(worker, message):
    if os.path.exists(os.path.join(worker.context["model_dir"], "broken")): raise RuntimeError("no")
"""
    with World(tmp_path, code, specs=2) as world:
        lost, up = world.start()
        (tmp_path / "broken").touch()
        os.kill(world.pid(0), signal.SIGKILL)
        lost.saw("fail", 2)
        assert "give_up" not in [what for what, _ in lost.events]
        assert [what for what, _ in up.events] == ["attach"]
        (tmp_path / "broken").unlink()
        lost.saw("attach", 2)


def test_an_execution_over_the_limit_counts_as_hung(tmp_path):
    with World(tmp_path, "", settings=Settings(execution_timeout_s=5.0, stub_timeout_s=20)) as world:
        (made,) = world.start()
        made.execution_started_ns = 1
        assert made.saw("fail").endswith("executed for more than 5 s (execution-timeout-seconds) and was killed by "
                                         "signal SIGKILL")  # fmt: skip
        made.execution_started_ns = 0


def test_finalize_that_does_not_end_is_killed(tmp_path, lines):
    code = "import time\ndef finalize(worker): time.sleep(1000)"
    with World(tmp_path, code, settings=Settings(stub_timeout_s=1)) as world:
        world.start()
    assert any("did not finalize within 1 s and is killed" in line[1] for line in lines)


def test_close_during_a_slow_restart_ends_it(tmp_path):
    with World(tmp_path, "") as world:
        (made,) = world.start()
        lines = ["import time", "def init(worker, message):", f"    open('{tmp_path}/begun', 'w').close()"]
        world.code.write_text("\n".join([*lines, "    time.sleep(1000)"]))
        os.kill(world.pid(), signal.SIGKILL)
        until((tmp_path / "begun").exists)
    made.saw("give_up")


def test_children_of_a_worker_end_with_it(tmp_path):
    code = """
import subprocess, os
def init(worker, message):
    child = subprocess.Popen(["sleep", "1000"])
    with open(os.path.join(worker.context["model_dir"], "child.tmp"), "w") as file:
        file.write(str(child.pid))
    os.rename(file.name, file.name[:-4])
"""
    with World(tmp_path, code) as world:
        world.start()
        child = int((tmp_path / "child").read_text())
        assert is_running(child)
    until(lambda: not is_running(child))


def test_own_check_of_readiness(tmp_path, lines):
    code = """
import os
def is_ready(worker):
    return eval(open(os.path.join(worker.context["model_dir"], "ready")).read())
"""
    with World(tmp_path, code, specs=2) as world:
        world.start()
        assert world.model.ready_may_block
        for value, expected in (("True", True), ("False", False), ("1", False), ("1/0", False), ("True", True)):
            (tmp_path / "ready").write_text(value)
            assert world.model.is_ready() is expected
            # One instance that is not ready is enough of an answer; the other's may still read the file.
            for one in world.model._instances.values():
                one.told_ready(one.ask_ready(), standin.WAIT_S)
        errors = [line[1] for line in lines if line[0] == "E"]
        assert "is_ready() must return a boolean value" in errors
        assert "user-defined is_ready() failed: ZeroDivisionError: division by zero" in errors


def test_concurrent_checks_share_one_call(tmp_path):
    code = """
import os, time
def is_ready(worker):
    folder = worker.context["model_dir"]
    with open(os.path.join(folder, "asked"), "a") as file: file.write("x")
    while not os.path.exists(os.path.join(folder, "go")): time.sleep(0.01)
    return True
"""
    with World(tmp_path, code) as world:
        world.start()
        (one,) = world.model._instances.values()
        calls = [one.ask_ready() for _ in range(10)]
        assert all(call is calls[0] for call in calls)
        assert not one.told_ready(calls[0], 0.0)
        (tmp_path / "go").touch()
        assert one.told_ready(calls[0], standin.WAIT_S)
        assert one.ask_ready() is not calls[0]
        until(lambda: (tmp_path / "asked").read_text() == "xx")


def test_messages_of_a_worker(tmp_path, lines):
    code = """
def init(worker, message):
    worker.send({"type": "log", "level": 1, "file": "/a/b/own.py", "line": 7, "message": "two\\nlines"})
    worker.send({"type": "log", "level": 0, "file": "own.py", "line": 8, "message": "of one", "id": "r\\x1b"})
    files = [["file:1/model.py", 3], ["file:x", 0]]
    results = [
        worker.call({"type": "load_model", "model": "n", "config": "{}", "files": files}, b"abc"),
        worker.call({"type": "is_model_ready", "model": "up", "version": ""}),
        worker.call({"type": "is_model_ready", "model": "down", "version": "1"}),
        worker.call({"type": "metric_family", "family": 1, "name": "f", "description": "d", "kind": "counter"}),
        worker.call({"type": "metric_family", "family": 2, "name": "f", "description": "d", "kind": "gauge"}),
        worker.call({"type": "metric", "metric": 1, "family": 1, "labels": {"a": "b"}, "buckets": None}),
        worker.call({"type": "metric", "metric": 2, "family": 1, "labels": {"a": 1}, "buckets": None}),
        worker.send({"type": "metric_update", "metric": 1, "op": "increment", "value": 2}),
        worker.call({"type": "metric_value", "metric": 1}),
    ]
    for result in results: print(result, flush=True)
"""
    with World(tmp_path, code) as world:
        world.start()
        assert b'f{a="b"} 2\n' in _scrape(world)
        caller = world.control.asked[0][0]
        assert caller.model == "m"
        assert caller.loading
        assert world.control.asked[0][1:] == ("n", "{}", {"file:1/model.py": b"abc", "file:x": b""})
    kind, text = "Family name already exists with different type", "attempt to access JSON non-string as string"
    kind, text = (str({"code": 3, "message": cause}) for cause in (kind, text))
    printed = [line[1] for line in lines if line[2][0] == "stdout"]
    assert printed == ["None", "True", "False", "None", kind, "None", text, "None", "2.0"]
    about = {"model": "m", "version": 1, "instance": "m_0_0"}
    assert ("W", "two\nlines", ("own.py", 7), about) in lines
    assert ("I", "of one", ("own.py", 8), {**about, "id": "r\x1b"}) in lines
    assert b"f{" not in _scrape(world)


@pytest.mark.parametrize(
    "message",
    [
        '{"type": "log", "level": 4, "file": "", "line": 1, "message": ""}',
        '{"type": "log", "level": 0, "file": "", "line": "1", "message": ""}',
        '{"type": "nothing of the kind"}',
        '{"type": "answer", "call": 77, "value": 1}',
        '{"type": "load_model", "model": "n", "config": "", "files": [["a", 1]], "call": 1}',
        '{"type": "load_model", "model": "n", "config": "", "files": [["a", -1]], "call": 1}',
        '{"type": "load_model", "model": 5, "config": "", "files": [], "call": 1}',
        '{"type": "unload_model", "model": "n", "unload_dependents": 1, "call": 1}',
        '{"type": "is_model_ready", "model": "n", "version": ""}',
        '{"type": "metric", "metric": 1, "family": 1, "labels": [], "buckets": None, "call": 1}',
        '{"type": "metric_update", "metric": 9, "op": "set", "value": 1}',
    ],
)
def test_a_message_that_is_not_valid_kills_that_worker_only(tmp_path, message):
    code = "import time\ndef is_ready(worker):\n    worker.send(%s)\n    time.sleep(1000)" % message  # noqa: UP031
    other = tmp_path / "other"
    other.mkdir()
    with World(tmp_path, code) as world, World(other, "", name="n", beside=world) as bystander:
        (standing,) = bystander.start()
        (made,) = world.start()
        world.code.write_text("")
        assert not world.model.is_ready()
        assert made.saw("fail").endswith("sent a control message that is not valid and was killed by signal SIGKILL")
        assert bystander.model.is_ready()
        assert [what for what, _ in standing.events] == ["attach"]


def test_a_call_that_waits_does_not_hold_up_others(tmp_path, lines):
    code = """
import threading
def init(worker, message):
    ask = {"type": "unload_model", "model": "x", "unload_dependents": False}
    threading.Thread(target=lambda: print(worker.call(ask), flush=True), daemon=True).start()
    print(worker.call({"type": "is_model_ready", "model": "up", "version": ""}), flush=True)
"""
    with World(tmp_path, code) as world:
        world.start()
        world.control.go.set()
        until(lambda: len([line for line in lines if line[2][0] == "stdout"]) == 2)
    assert [line[1] for line in lines if line[2][0] == "stdout"] == ["True", str({"code": 1, "message": "not now"})]


def test_output_is_cut_into_lines_that_pass_for_nothing_else(tmp_path, lines):
    code = """
import os, sys
def init(worker, message):
    os.write(1, b"a" * 200000 + b"\\nI1125 fake record\\r\\n\\xff\\x1b[31m\\nno newline at the end")
    os.write(2, b"to stderr\\n")
"""
    with World(tmp_path, code) as world:
        world.start()
    text = [line[1] for line in lines if line[2][0] == "stdout"]
    assert text[0] == "a" * (64 << 10) + " ... (line cut)"
    assert text[1:] == ["I1125 fake record", "\ufffd\x1b[31m", "no newline at the end"]
    assert [line[1] for line in lines if line[2][0] == "stderr"] == ["to stderr"]


def test_a_worker_that_floods_the_log_does_not_hold_up_another(tmp_path, lines):
    code = """
import os, threading
def flood():
    while True: os.write(1, b"x" * 100 + b"\\n")
def init(worker, message): threading.Thread(target=flood, daemon=True).start()
def is_ready(worker): return True
"""
    with World(tmp_path, code, specs=2) as world:
        world.start()
        assert world.model.is_ready()
    # Twice what may come at once, and some more for the time that it took; a pipe without a limit gives hundreds of MB.
    assert 0 < len(lines) < 300_000


def test_regions_are_halved_until_the_system_gives_one():
    class Small(FakeChannel):
        limit = 100 << 20

    made = native.open_channel(engine(Small), 8 << 30)
    assert (Small.limit >> 1) < made.size <= Small.limit

    class None_(FakeChannel):
        limit = 0

    with pytest.raises(Internal, match="no memory for a worker's region"):
        native.open_channel(engine(None_), 8 << 30)


def test_auto_complete_takes_over_what_it_may(tmp_path):
    code = """
def auto_complete(worker, config):
    config["max_batch_size"] = 4
    config["dynamic_batching"] = {}
    config["input"] = [{"name": "J", "data_type": "TYPE_INT8", "dims": [2], "optional": True}]
    config["output"].append({"name": "P", "data_type": "TYPE_STRING", "dims": [-1]})
    config["model_transaction_policy"] = {"decoupled": True}
    config["instance_group"] = [{"count": 7}]
    config["parameters"] = {"a": {"string_value": "b"}}
    return config
"""
    with World(tmp_path, code) as world:
        config = merged(world.plan.context.config, AutoComplete(world.plan, world.supervisor).run())
    assert (config.max_batch_size, config.WhichOneof("scheduling_choice")) == (4, "dynamic_batching")
    assert [(t.name, list(t.dims), t.optional) for t in config.input] == [("J", [2], True)]
    assert [t.name for t in config.output] == ["O", "P"]
    assert config.model_transaction_policy.decoupled
    assert config.instance_group[0].count == 1
    assert not config.parameters


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def auto_complete(w, c): raise ValueError('no way')", "ValueError: no way"),
        ("def auto_complete(w, c): return 5", "auto_complete_config of model 'm' returned no config"),
        ("def auto_complete(w, c): return {'input': 5}", "auto_complete_config of model 'm' returned a config that "),
        ("import os\ndef auto_complete(w, c): os._exit(7)", "Stub process 'm' is not healthy. The worker process "),
        ("def auto_complete(w, c): w.call({'type': 'load_model', 'model': 'x', 'config': '', 'files': []})",
         "Stub process 'm' is not healthy. The worker process sent a control message that is not valid"),
    ],
)  # fmt: skip
def test_auto_complete_that_fails(tmp_path, code, message):
    with World(tmp_path, code) as world, pytest.raises(ServerError) as caught:
        merged(world.plan.context.config, AutoComplete(world.plan, world.supervisor).run())
    assert str(caught.value).startswith(message)


def test_names_that_triton_refuses(tmp_path):
    with World(tmp_path, "") as world:
        for name in ("a;b", "$(x)", "`id`", "a|b", "a'b", ""):
            with pytest.raises(InvalidArg, match=r"^Invalid stub name: contains invalid characters$"):
                world.plan.launch(name)
