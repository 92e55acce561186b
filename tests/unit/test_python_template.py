"""Workers that a template makes: no different from those that are started plainly, and independent of its fate."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import pytest

from tests.helpers import standin, workers
from tests.helpers.standin import is_running, until
from triton_fast.backends.python import native, supervisor, template
from triton_fast.backends.python.plan import WORKER
from triton_fast.backends.python.supervisor import Supervisor
from triton_fast.backends.python.template import Kind
from triton_fast.backends.python.worker_process import Launch, WorkerProcess
from triton_fast.errors import ServerError

# Writes what it finds itself in; its class completes nothing.
MODEL = r"""
import __main__, ctypes, json, os, random, resource, signal, sys, threading, time
import numpy as np

def dies_with():
    number = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(number), 0, 0, 0)
    return number.value

def kinds_of_fds():
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}").partition(":")[0])
        except OSError:
            pass
    return sorted(found)

main = threading.main_thread().ident
signal.pthread_kill(main, 0)
numbers = np.arange(250_000, dtype=np.float64).reshape(500, 500)
facts = {
    "folder": os.getcwd(), "variables": dict(os.environ), "path": sys.path, "flags": list(sys.flags), "argv": sys.argv,
    "main": __main__.__file__, "handlers": [str(signal.getsignal(n)).partition(" at ")[0] for n in range(1, 32)],
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), "leads": os.getsid(0) == os.getpid(),
    "parent": os.getppid(), "dies_with": dies_with(), "limits": [resource.getrlimit(n) for n in range(10)],
    "cores": sorted(os.sched_getaffinity(0)), "nice": os.getpriority(os.PRIO_PROCESS, 0), "umask": os.umask(0o22),
    "threads": sorted(one.name for one in threading.enumerate()), "fds": kinds_of_fds(),
    "out": [[one.encoding, one.errors, one.line_buffering, one.write_through, one.isatty()]
            for one in (sys.stdout, sys.stderr)],
    "kernel": threading.main_thread().native_id == os.getpid(),
    "clock": time.clock_gettime(time.pthread_getcpuclockid(main)) > 0,
    "product": float((numbers @ numbers).sum()),
}
own = {"pid": os.getpid(), "random": random.random(), "numpy": np.random.random(), "secret": os.urandom(4).hex()}
with open(os.path.join(os.path.dirname(__file__), "facts"), "w") as file:
    json.dump([facts, own], file)
print("printed", flush=True)


class TritonPythonModel:
    pass
"""


class Owner:
    """Of any worker; knows the ends of them."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def on_message(self, process, message, blob):
        pass

    def on_death(self, process, reason):
        self.reasons.append(reason)

    def hung(self):
        return ""


class Scene:
    def __init__(self, folder: Path, clock=None) -> None:
        self.folder = folder
        self.supervisor = Supervisor(clock) if clock else Supervisor()
        self.owner = Owner()
        self.variables = dict(os.environ)
        self.native = native.client_path()
        self.script = WORKER
        self.started: list[WorkerProcess] = []
        (folder / "model.py").write_text(MODEL)

    def start(self, *, plainly: bool = False) -> WorkerProcess:
        argv = (sys.executable, "-u", str(self.script))
        kind = None if plainly else Kind(argv, dict(self.variables), str(self.folder), self.native)
        launch = Launch("m", "m_0", argv, dict(self.variables), str(self.folder), kind=kind)
        made = WorkerProcess.start(launch, self.owner, self.supervisor)
        self.started.append(made)
        return made

    def facts(self, process: WorkerProcess) -> tuple[dict, dict]:
        context = {
            "model_path": str(self.folder / "model.py"), "version_dir": str(self.folder), "model_dir": str(self.folder),
            "model_name": "m", "instance_name": "m_0", "explicit_control": False, "native": self.native,
            "keep_bytes": 0, "bls_threads": 1, "shm_wait": 1.0,
        }  # fmt: skip
        process.request({"type": "auto_complete", "config": {"name": "m"}, "context": context}).result(standin.WAIT_S)
        facts, own = json.loads((self.folder / "facts").read_text())
        return facts, own

    @property
    def template(self) -> template.Template:
        found = self.supervisor.resident
        assert isinstance(found, template.Template)
        return found

    def is_copy(self, process: WorkerProcess) -> bool:
        arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
        return isinstance(process._child, template.Copy) and b"--instance" in arguments

    def end(self, process: WorkerProcess) -> None:
        process.kill()
        assert process.ended.wait(standin.WAIT_S)

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.started:
            self.end(process)
        resident = self.supervisor.resident
        assert self.supervisor.join(standin.WAIT_S)
        if isinstance(resident, template.Template):
            assert resident.closed
            assert not is_running(resident.pid)
        assert not [one.pid for one in self.started if is_running(one.pid)]


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A busy machine is no reason to start plainly."""
    monkeypatch.setattr(template, "READY_LIMIT_S", standin.WAIT_S)
    monkeypatch.setattr(template, "COPY_LIMIT_S", standin.WAIT_S)


@pytest.fixture
def scene(tmp_path):
    with Scene(tmp_path) as made:
        yield made


def test_a_copy_finds_what_a_plain_worker_finds(scene):
    plain, _ = scene.facts(scene.start(plainly=True))
    copy = scene.start()
    assert scene.is_copy(copy)
    copied, own = scene.facts(copy)
    assert own["pid"] == copy.pid
    assert copied == plain
    assert copied["parent"] == os.getpid()
    assert copied["dies_with"] == signal.SIGKILL


def test_copies_share_no_random_numbers_and_no_session(scene):
    found = [scene.facts(scene.start())[1] for _ in range(3)]
    assert all(map(scene.is_copy, scene.started))
    for key in ("pid", "random", "numpy", "secret"):
        assert len({one[key] for one in found}) == 3, key
    assert len({os.getsid(one["pid"]) for one in found}) == 3


# What the C library and BLAS keep for threads, which they set right in their own forks.
THREADS = r"""
import ctypes, json, os, threading
import numpy as np

def tasks():
    return len(os.listdir("/proc/self/task"))

numbers = (np.arange(360_000, dtype=np.float64) % 7).reshape(600, 600)
expected = float(numbers.sum(axis=0).dot(numbers.sum(axis=1)))
library, found = ctypes.CDLL(None), []

def work():
    for k in range(5):
        found.append(float((numbers @ numbers).sum()) == expected)
        library.fflush(None)
        found.append(bool(np.ones(100_000 + k).all()))

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
child = os.fork()
if child == 0:
    os._exit(7 if float((numbers @ numbers).sum()) == expected else 1)
forked = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
float((numbers @ numbers).sum())
with open(os.path.join(os.path.dirname(__file__), "facts"), "w") as file:
    json.dump([{"found": found, "forked": forked, "tasks": tasks()}, {}], file)


class TritonPythonModel:
    pass
"""


def test_threads_of_blas_and_the_c_library_in_a_copy(scene):
    """It is none of the C library's forks: what would be set right there is right without."""
    (scene.folder / "model.py").write_text(THREADS)
    plain, _ = scene.facts(scene.start(plainly=True))
    assert plain["found"] == [True] * 40 and plain["forked"] == 7
    for _ in range(2):
        copy = scene.start()
        assert scene.is_copy(copy)
        assert scene.facts(copy)[0] == plain
        assert len(os.listdir(f"/proc/{scene.template.pid}/task")) == 1


# Stands for an OpenSSL that learns of copies by the C library's fork, and was used before.
OPENSSL = """
import os, ssl
ssl.RAND_add = lambda data, entropy: os.environ.__setitem__("ADDED", f"{data.hex()} {entropy}")
"""


def test_copies_share_no_random_numbers_of_openssl(scene):
    (scene.folder / "sitecustomize.py").write_text(OPENSSL)
    scene.variables["PYTHONPATH"] = str(scene.folder)
    added = [scene.facts(scene.start())[0]["variables"]["ADDED"] for _ in range(2)]
    assert all(map(scene.is_copy, scene.started))
    assert added[0] != added[1]
    assert [len(bytes.fromhex(one.split()[0])) for one in added] == [32, 32]


def test_copies_come_from_one_template(scene):
    first = scene.start()
    pid = scene.template.pid
    assert [scene.is_copy(scene.start()) for _ in range(3)] == [True] * 3
    assert scene.template.pid == pid
    assert os.getsid(first.pid) != os.getsid(pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_the_end_of_a_copy_is_seen(scene, number):
    copy = scene.start()
    os.kill(copy.pid, number)
    assert copy.ended.wait(standin.WAIT_S)
    assert copy.returncode == -number
    assert number.name in scene.owner.reasons[0]
    with pytest.raises(ServerError, match=number.name):
        copy.request({"type": "is_ready"}).result()
    assert scene.is_copy(scene.start())


def test_copies_outlive_their_template(scene):
    copy = scene.start()
    first = scene.template
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: first.closed)
    scene.facts(copy)
    assert not first.failed
    second = scene.start()
    assert scene.is_copy(second)
    assert scene.template.pid != first.pid


def test_one_that_does_not_answer_is_ended(scene, monkeypatch):
    scene.start()
    stopped = scene.template
    os.kill(stopped.pid, signal.SIGSTOP)
    until(lambda: Path(f"/proc/{stopped.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    monkeypatch.setattr(template, "COPY_LIMIT_S", 0.01)
    plain = scene.start()
    assert not isinstance(plain._child, template.Copy)
    assert stopped.closed
    scene.facts(plain)


@pytest.mark.parametrize("late_s", [template._LATE_S, 0.0])
def test_a_copy_whose_number_comes_too_late_does_not_live(scene, monkeypatch, late_s):
    """It has the descriptors of the worker that is started in its place."""
    scene.start()
    for limit_s in (0.0, 0.0005, 0.001, 0.002, 0.003):
        before = set(workers.processes())
        with monkeypatch.context() as patch:
            patch.setattr(template, "COPY_LIMIT_S", limit_s)
            patch.setattr(template, "_LATE_S", late_s)
            made = scene.start()
        known = {os.getpid(), made.pid, scene.template.pid}
        until(lambda before=before, known=known: not strangers(before, known))
        assert scene.facts(made)[1]["pid"] == made.pid
        scene.template.faults = 0


def strangers(before, known):
    """Processes that came since, are this one's children and have not ended, but for those that are known."""
    fresh = set(workers.processes()) - before - known
    return [pid for pid in fresh if workers._parent(pid) == os.getpid() and workers.alive(pid)]


def test_a_template_that_is_killed_at_any_time(scene):
    for k in range(8):
        scene.start()
        before, victim = set(workers.processes()), scene.template.pid
        killer = threading.Timer(k * 0.0008, os.kill, (victim, signal.SIGKILL))
        killer.start()
        made = scene.start()
        killer.join()
        until(lambda before=before, made=made: not strangers(before, {made.pid, scene.template.pid}))
        assert scene.facts(made)[1]["pid"] == made.pid
        scene.template.faults = 0


def test_failures_one_after_another_are_the_last(scene, monkeypatch):
    scene.start()
    monkeypatch.setattr(template, "COPY_LIMIT_S", 0.0)
    for faults in range(1, template.MAX_FAULTS + 1):
        scene.start()
        assert scene.template.faults == faults
    last = scene.template
    monkeypatch.undo()
    assert not isinstance(scene.start()._child, template.Copy)
    assert scene.template is last
    assert last.failed


def test_one_that_does_not_get_ready_is_waited_for_once(scene, monkeypatch):
    script = scene.folder / "start.py"
    script.write_text(
        "import runpy, sys, time\nif '--template' in sys.argv: time.sleep(3600)\n"
        f"sys.path.insert(0, {str(WORKER.parent)!r})\nrunpy.run_path({str(WORKER)!r}, run_name='__main__')"
    )
    scene.script = script
    monkeypatch.setattr(template, "READY_LIMIT_S", 0.01)
    scene.start()
    hung = scene.template
    assert hung.failed
    assert hung.closed
    assert not is_running(hung.pid)
    scene.start()
    assert scene.template is hung


def test_ends_are_seen_where_nobody_waits_for_children(scene):
    """As in a process that was started with SIGCHLD ignored."""
    copy = scene.start()
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        os.kill(copy.pid, signal.SIGKILL)
        assert copy.ended.wait(standin.WAIT_S)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_other_files_need_another_template(scene):
    """As after an update of what it has imported: a worker starts with what is there now."""
    file = scene.folder / Path(scene.native).name
    shutil.copy(scene.native, file)
    scene.native = str(file)
    assert scene.is_copy(scene.start())
    first = scene.template.pid
    os.utime(file, (1, 1))
    plain = scene.start()
    assert not isinstance(plain._child, template.Copy)
    assert scene.is_copy(scene.start())
    assert scene.template.pid != first


def test_other_variables_need_another_template(scene):
    scene.start()
    first = scene.template
    scene.variables["TF_TEST_OF_TEMPLATES"] = "1"
    second = scene.start()
    assert scene.is_copy(second)
    assert scene.template is not first
    assert first.closed
    assert scene.facts(second)[0]["variables"]["TF_TEST_OF_TEMPLATES"] == "1"


THREAD = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"


@pytest.mark.parametrize("why", ["no client", "other threads", "another program"])
def test_where_there_can_be_none(scene, why):
    if why == "no client":
        scene.native = str(scene.folder / "no_such_client.so")
    elif why == "other threads":
        (scene.folder / "sitecustomize.py").write_text(THREAD)
        scene.variables["PYTHONPATH"] = str(scene.folder)
    else:
        scene.script = standin.write(scene.folder)
    processes = [scene.start() for _ in range(template.MAX_FAULTS)]
    assert not [one for one in processes if isinstance(one._child, template.Copy)]
    assert scene.template.failed
    assert all(is_running(one.pid) for one in processes)


def test_it_ends_when_nothing_has_needed_it_for_a_while(tmp_path):
    now = [0.0]
    with Scene(tmp_path, clock=lambda: now[0]) as scene:
        first = scene.start()
        kept = scene.template
        scene.end(first)
        assert scene.is_copy(scene.start())  # between the workers of a load
        assert scene.template is kept
        scene.end(scene.started[-1])
        now[0] += supervisor.LINGER_S - 1
        assert scene.supervisor.call(lambda: scene.supervisor.resident).result() is kept
        assert not kept.closed
        now[0] += 2
        thread = scene.supervisor._thread
        scene.supervisor.post(lambda: None)
        if thread is not None:
            thread.join(standin.WAIT_S)
        assert kept.closed


def test_many_at_once(scene):
    made: list[WorkerProcess] = []
    threads = [threading.Thread(target=lambda: made.append(scene.start())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(standin.WAIT_S)
    assert len({one.pid for one in made}) == 8
    assert all(map(scene.is_copy, made))
    for one in made:
        assert scene.facts(one)[1]["pid"] == one.pid
