"""The end of the process: signals under load, while models load and while nothing happens; what is left behind.

Every wait is for an event, with a generous limit; gates are files that the models look for. No time is asserted.
"""

from __future__ import annotations

import base64
import contextlib
import json
import signal
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.helpers import raw, workers
from tests.helpers.gated import BODIES, Gated
from tests.helpers.grpc_channel import Channel, Talk, infer_request, value_of
from tests.helpers.scrape import pending
from tests.helpers.server import ServerProcess, until
from triton_fast import protos

ENDS = [signal.SIGTERM, signal.SIGINT]
TEXT = "Exit timeout expired. Exiting immediately."
INSTANCES = 5  # of all models: stream has two


class Scene:
    """A server process with gated models, and what must be as before when it is gone."""

    def __init__(self, gated: Gated, process: ServerProcess, mark: str) -> None:
        self.gated, self.process, self.mark = gated, process, mark
        self.shared = workers.named_shared_memory()

    @property
    def children(self) -> list[int]:
        return [pid for pid in workers.with_marker(self.mark) if pid != self.process.process.pid]

    def nothing_is_left(self) -> None:
        assert until(lambda: not self.children, tries=6000), "a process is left"
        assert workers.ended(self.gated.pids()), "a worker is left"
        assert workers.named_shared_memory() <= self.shared
        assert until(lambda: not self.gated.temporary), f"left in the temporary directory: {self.gated.temporary}"
        for address in (self.process.http, self.process.grpc, self.process.metrics):
            if address[1]:
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(address)


@contextlib.contextmanager
def scene(tmp_path: Path, *flags: str, names: tuple[str, ...] = (), exit_code: int | None = 0) -> Iterator[Scene]:
    gated, mark = Gated(tmp_path, *names), uuid.uuid4().hex
    process = ServerProcess(gated.models, *flags, env=gated.environment(mark), exit_code=exit_code)
    with process:
        yield Scene(gated, process, mark)


class Load:
    """One request in flight of each kind: each model has begun it when this is made."""

    def __init__(self, process: ServerProcess, gated: Gated, stack: contextlib.ExitStack) -> None:
        self.infer, self.events, self.bls = (stack.enter_context(raw.Client(process.http)) for _ in range(3))
        self.channel = stack.enter_context(Channel(process.grpc))
        self.infer.send(raw.infer_json("plain", [1], shape=[1]))
        self.events.send(raw.generate("stream", {"INPUT0": 2}, stream=True))
        self.bls.send(raw.infer_json("asker", [3], shape=[1]))
        self.talk = stack.enter_context(Talk(self.channel, "/inference.GRPCInferenceService/ModelStreamInfer",
                                             protos.ModelStreamInferResponse))  # fmt: skip
        self.talk.send(infer_request("stream", [4.0], shape=[1]))
        self.first = self.talk.next()
        assert gated.saw("execute", 4)
        # Waits in the queue behind the other of its model.
        self.unary = self.channel.infer_later(infer_request("plain", [5.0], shape=[1]))
        assert until(lambda: pending(process, "plain") == 1)

    def finishes(self) -> None:
        """Everything is answered as if the server went on."""
        assert raw.values_of(self.infer.answer()) == [1]
        assert [event["OUTPUT0"] for event in self.events.answer().events] == [2, 3]
        answer = self.bls.answer()
        assert answer.status == 200, answer.body
        assert raw.values_of(answer) == [3]
        assert value_of(self.unary.result(), "OUTPUT0", "FP32") == [5]
        assert value_of(self.first, "OUTPUT0", "FP32") == [4]
        assert value_of(self.talk.next(), "OUTPUT0", "FP32") == [5]


def refuses(address: tuple[str, int]) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(address) != 0


# ---- under load


@pytest.mark.parametrize("number", ENDS, ids=lambda one: one.name)
def test_what_is_in_flight_finishes(tmp_path: Path, number: signal.Signals) -> None:
    with contextlib.ExitStack() as stack, scene(tmp_path) as s:
        process = s.process
        load = Load(process, s.gated, stack)
        probes = [stack.enter_context(raw.Client(process.http)) for _ in range(3)]
        paths = ["/v2/health/ready", "/v2/health/live", "/v2/models/m/ready"]
        for client, path in zip(probes, paths, strict=True):
            assert client.ask(raw.get(path)).status == 200
            client.send(raw.get(path)[:9])
        # Answered behind the others: those have been read then.
        assert raw.ask(process.http, raw.get("/v2")).status == 200
        watch = stack.enter_context(Talk(load.channel, "/grpc.health.v1.Health/Watch"))
        watch.send(b"")
        watch.end()
        assert watch.next() == b"\x08\x01"
        process.signal(number)
        process.wait_for_log(rf"Signal \({int(number)}\) received\.")
        # Not ready from now on: for who asks on a connection that he has, who watches, and who comes anew.
        for client, path in zip(probes, paths, strict=True):
            client.send(raw.get(path)[9:])
            answer = client.answer()
            assert (answer.status, answer.error) == (503, "Server exiting")
        assert until(lambda: refuses(process.http) and refuses(process.grpc))
        assert watch.rest().outcome == (14, "Server exiting")
        assert s.process.alive
        assert s.gated.notes("finalized") == []
        s.gated.open()
        load.finishes()
        load.talk.end()
        assert process.wait() == 0
        assert s.gated.finalized_once()
        assert len(s.gated.notes("finalized")) == INSTANCES
        s.nothing_is_left()


class Caller(threading.Thread):
    """Asks as fast as it is answered until the server is gone; ``refused``: with a word of the end."""

    def __init__(self, process: ServerProcess, kind: str) -> None:
        super().__init__(name=kind)
        self.process, self.kind = process, kind
        self.answered = self.refused = 0
        self.wrong: list[object] = []
        self.start()

    def run(self) -> None:
        try:
            if self.kind == "grpc":
                self._grpc()
            else:
                self._http()
        except (raw.Closed, OSError) as error:
            if getattr(error, "got", b""):
                self.wrong.append(error)
        except Exception as error:
            self.wrong.append(error)

    def _http(self) -> None:
        infer = raw.infer_json(self.kind, [1], shape=[1])
        request = raw.generate("plain2", {"INPUT0": 1}, stream=True) if self.kind == "events" else infer
        with raw.Client(self.process.http) as client:
            while True:
                answer = client.ask(request)
                if answer.status == 200:
                    self.answered += 1
                elif (answer.status, answer.error) == (503, "Server exiting"):
                    self.refused += 1
                else:
                    self.wrong.append((answer.status, answer.body))

    def _grpc(self) -> None:
        with Channel(self.process.grpc) as channel:
            while (reply := channel.infer(infer_request("plain2", [1.0], shape=[1]))).status == 0:
                self.answered += 1
        if reply.status != 14:
            self.wrong.append(reply)
        self.refused += 1


def test_many_clients(tmp_path: Path) -> None:
    """Whatever a model executed was answered; who comes too late is refused or finds the door closed."""
    with scene(tmp_path, names=("plain2", "asker")) as s:
        s.gated.open()
        callers = [Caller(s.process, kind) for kind in ("plain2", "grpc", "events", "asker") for _ in range(3)]
        try:
            assert until(lambda: all(caller.answered >= 3 for caller in callers))
        finally:
            s.process.signal()
        assert s.process.wait() == 0
        for caller in callers:
            caller.join(raw.TIMEOUT_S)
            assert not caller.is_alive()
        assert [caller.wrong for caller in callers if caller.wrong] == []
        asked = {name: s.gated.notes(f"execute {name}") for name in ("plain2", "asker")}
        executed = {name: len(lines) for name, lines in asked.items()}
        answered = sum(caller.answered for caller in callers)
        # Each request to asker is one to plain2, too.
        assert executed["plain2"] == answered
        assert executed["asker"] == sum(caller.answered for caller in callers if caller.kind == "asker")
        assert s.gated.finalized_once()
        s.nothing_is_left()


def test_a_request_on_an_open_stream(tmp_path: Path) -> None:
    """What comes on a stream that is in use is refused like anything else that comes then."""
    with contextlib.ExitStack() as stack, scene(tmp_path) as s:
        load = Load(s.process, s.gated, stack)
        s.process.signal()
        assert until(lambda: refuses(s.process.grpc))
        load.talk.send(infer_request("m", [1.0], shape=[1]))
        message = load.talk.next()
        assert "Server exiting" in message.error_message
        s.gated.open()
        load.finishes()
        load.talk.end()
        assert s.process.wait() == 0


def test_a_stream_that_its_client_never_ends(tmp_path: Path) -> None:
    """It ends with the answers to what it has asked."""
    with contextlib.ExitStack() as stack, scene(tmp_path) as s:
        load = Load(s.process, s.gated, stack)
        s.process.signal()
        assert until(lambda: refuses(s.process.grpc))
        s.gated.open()
        load.finishes()
        assert load.talk.rest().messages == []
        assert s.process.wait() == 0
        assert s.gated.finalized_once()


def test_work_that_does_not_end_in_time(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack, scene(tmp_path, "--exit-timeout-secs=1", exit_code=1) as s:
        load = Load(s.process, s.gated, stack)
        s.process.signal()
        assert s.process.wait() == 1
        s.process.wait_for_log(TEXT)
        for client in (load.infer, load.bls):
            with pytest.raises(raw.Closed):
                client.answer()
        with pytest.raises(grpc.RpcError):
            load.unary.result()
        s.nothing_is_left()


@pytest.mark.parametrize("first", ENDS, ids=lambda one: one.name)
@pytest.mark.parametrize("second", ENDS, ids=lambda one: one.name)
def test_a_second_signal_forces_the_end(tmp_path: Path, first: signal.Signals, second: signal.Signals) -> None:
    with contextlib.ExitStack() as stack, scene(tmp_path, "--exit-timeout-secs=3600", exit_code=1) as s:
        Load(s.process, s.gated, stack)
        s.process.signal(first)
        s.process.wait_for_log(rf"Signal \({int(first)}\) received\.")
        s.process.signal(second)
        assert s.process.wait() == 1
        assert TEXT not in s.process.log()
        s.nothing_is_left()


def test_kill(tmp_path: Path) -> None:
    """Nothing can be done then, and yet nothing is left: workers, shared memory, uploaded models, ports."""
    flags = ("--model-control-mode=explicit", "--load-model=*", "--allow-code-upload=true")
    with contextlib.ExitStack() as stack, scene(tmp_path, *flags, exit_code=-signal.SIGKILL) as s:
        # A model whose files lie in the temporary directory.
        folder = s.gated.models / "plain2"
        files = {"file:1/model.py": base64.b64encode((folder / "1" / "model.py").read_bytes()).decode()}
        given = {"parameters": {"config": json.dumps({"backend": "python"}), **files}}
        answer = raw.ask(s.process.http, raw.post("/v2/repository/models/uploaded/load", json.dumps(given).encode()))
        assert answer.status == 200, answer.body
        assert s.gated.temporary
        Load(s.process, s.gated, stack)
        assert len(s.children) >= INSTANCES + 1
        s.process.signal(signal.SIGKILL)
        assert s.process.wait() == -signal.SIGKILL
        s.nothing_is_left()
        assert s.gated.notes("finalized") == []


def test_an_uploaded_model_at_a_forced_end(tmp_path: Path) -> None:
    flags = ("--model-control-mode=explicit", "--load-model=m", "--allow-code-upload=true")
    with scene(tmp_path, *flags) as s:
        files = {
            "file:1/model.py": base64.b64encode((s.gated.models / "plain2" / "1" / "model.py").read_bytes()).decode()
        }
        given = {"parameters": {"config": json.dumps({"backend": "python"}), **files}}
        request = raw.post("/v2/repository/models/uploaded/load", json.dumps(given).encode())
        assert raw.ask(s.process.http, request).status == 200
        assert s.gated.temporary
        assert s.process.stop() == 0
        s.nothing_is_left()


# ---- while models load


@contextlib.contextmanager
def loading(tmp_path: Path, word: str, *flags: str, names: tuple[str, ...]) -> Iterator[Scene]:
    """A server whose last model is in the middle of its load."""
    gated, mark = Gated(tmp_path, *names), uuid.uuid4().hex
    process = ServerProcess(gated.models, *flags, env=gated.environment(mark), exit_code=None)
    process.wait_for_log = lambda pattern, timeout=0: ""  # type: ignore[assignment,method-assign]
    with process:
        del process.wait_for_log  # type: ignore[attr-defined]
        assert gated.saw(word, 1)
        yield Scene(gated, process, mark)


@pytest.mark.parametrize("number", ENDS, ids=lambda one: one.name)
def test_a_signal_in_initialize(tmp_path: Path, number: signal.Signals) -> None:
    """What loads is waited for and ended in order; nothing is served."""
    with loading(tmp_path, "initializing", names=("slow",)) as s:
        s.process.signal(number)
        s.process.wait_for_log(rf"Signal \({int(number)}\) received\.")
        s.gated.open("loaded")
        assert s.process.wait() == 0
        assert s.gated.finalized_once()
        assert "Started" not in s.process.log()
        s.nothing_is_left()


@pytest.mark.parametrize(("name", "word"), [("slow", "initializing"), ("unsure", "completing")])
def test_a_load_that_does_not_end_in_time(tmp_path: Path, name: str, word: str) -> None:
    with loading(tmp_path, word, "--exit-timeout-secs=1", names=(name,)) as s:
        s.process.signal()
        assert s.process.wait() == 1
        s.process.wait_for_log(TEXT)
        s.nothing_is_left()


@pytest.mark.parametrize(("name", "word"), [("slow", "initializing"), ("unsure", "completing")])
def test_a_second_signal_while_loading(tmp_path: Path, name: str, word: str) -> None:
    with loading(tmp_path, word, "--exit-timeout-secs=3600", names=(name,)) as s:
        s.process.signal()
        s.process.wait_for_log(r"Signal \(15\) received\.")
        s.process.signal()
        assert s.process.wait() == 1
        s.nothing_is_left()


def test_kill_while_loading(tmp_path: Path) -> None:
    with loading(tmp_path, "initializing", names=("slow",)) as s:
        s.process.signal(signal.SIGKILL)
        assert s.process.wait() == -signal.SIGKILL
        s.nothing_is_left()


def test_a_load_by_request_that_does_not_end_in_time(tmp_path: Path) -> None:
    """The same for a load that a client asked for, whose answer is waited for, too."""
    flags = ("--model-control-mode=explicit", "--load-model=m", "--exit-timeout-secs=1")
    with scene(tmp_path, *flags, names=("slow",), exit_code=1) as s, raw.Client(s.process.http) as client:
        client.send(raw.post("/v2/repository/models/slow/load"))
        assert s.gated.saw("initializing", 1)
        s.process.signal()
        assert s.process.wait() == 1
        s.process.wait_for_log(TEXT)
        s.nothing_is_left()


# ---- a start that fails


def test_a_port_in_use(tmp_path: Path) -> None:
    """The models that have loaded by then are ended in order."""
    gated, mark = Gated(tmp_path), uuid.uuid4().hex
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = ServerProcess(gated.models, f"--http-port={port}", env=gated.environment(mark), exit_code=None)
        with pytest.raises(AssertionError, match="no 'ready in"), process:
            pass
        assert process.process.wait() == 1
        assert f"Socket '127.0.0.1:{port}' already in use" in process.log()
    assert gated.finalized_once()
    Scene(gated, process, mark).nothing_is_left()


def test_a_model_that_fails(tmp_path: Path) -> None:
    """So are those beside one that does not load."""
    gated, mark = Gated(tmp_path), uuid.uuid4().hex
    (gated.models / "plain2" / "config.pbtxt").write_text("what")
    process = ServerProcess(gated.models, env=gated.environment(mark), exit_code=None)
    with pytest.raises(AssertionError, match="no 'ready in"), process:
        pass
    assert process.process.wait() == 1
    assert "error: creating server: Internal - failed to load all models" in process.log()
    assert gated.finalized_once()
    Scene(gated, process, mark).nothing_is_left()


# ---- other signals


def test_signals_that_end_nothing(tmp_path: Path) -> None:
    with scene(tmp_path, names=("plain2",)) as s:
        for number in (signal.SIGHUP, signal.SIGPIPE) * 3:
            s.process.signal(number)
            assert raw.values_of(raw.ask(s.process.http, raw.infer_json("plain2", [1], shape=[1]))) == [1]
        # A client that is gone before its answer.
        client = raw.Client(s.process.http)
        client.send(raw.infer_json("plain2", [1], shape=[1]) * 50)
        client.reset()
        assert raw.ask(s.process.http, raw.get("/v2/health/ready")).status == 200
        assert s.process.stop() == 0
        assert s.gated.finalized_once()


def test_the_gated_models_are_what_they_say(tmp_path: Path) -> None:
    """With the gate open everything is answered at once, so that a wait elsewhere is the gate's."""
    with contextlib.ExitStack() as stack, scene(tmp_path) as s:
        s.gated.open()
        clients: list[Any] = [stack.enter_context(raw.Client(s.process.http)) for _ in BODIES]
        for client, name in zip(clients, s.gated.names, strict=False):
            if name != "stream":
                assert raw.values_of(client.ask(raw.infer_json(name, [9], shape=[1]))) == [9]
        threads = [
            threading.Thread(target=client.ask, args=(raw.infer_json("plain", [1], shape=[1]),)) for client in clients
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert s.process.stop() == 0
        assert s.gated.finalized_once()


@pytest.mark.parametrize("logs_there", [True, False], ids=["log and output", "output"])
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_whoever_read_what_it_prints_has_gone(tmp_path: Path, logs_there: bool, unbuffered: str) -> None:
    """A pipe without a reader, such as that of a `tee` that was ended first. What a buffer still holds then is written
    once more when the interpreter ends, which would make another exit code."""
    (tmp_path / "models").mkdir()
    process = ServerProcess(tmp_path / "models", env={"PYTHONUNBUFFERED": unbuffered})
    log = tmp_path / "log"
    if not logs_there:
        process.argv.append(f"--log-file={log}")
    with subprocess.Popen(process.argv, env=process.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as server:
        try:
            assert server.stdout is not None
            if logs_there:
                assert any(b"ready in" in line for line in server.stdout)
            else:
                assert until(lambda: log.exists() and "ready in" in log.read_text(), tries=6000)
            server.stdout.close()
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=60) == 0
        finally:
            server.kill()
