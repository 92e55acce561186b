"""Start and end of the process: tables, log formats, ports, signals, exit codes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.helpers import raw
from tests.helpers.server import EXIT_TIMEOUT_S, ROOT, Model, ServerProcess, repository, until

SLOW = "instance_group [{ count: 1 kind: KIND_CPU }]"


def read_by_now(process: ServerProcess) -> None:
    """Have a request on a new connection answered: what other connections sent before has been read then."""
    assert raw.ask(process.http, raw.get("/v2/models/a/stats")).status == 200


def queued(process: ServerProcess, model: str, count: int) -> bool:
    text = raw.ask(process.metrics, raw.get("/metrics")).body.decode()
    return f'nv_inference_pending_request_count{{model="{model}",version="1"}} {count}' in text


# ---- start


def test_start_up_log(tmp_path: Path) -> None:
    repository(tmp_path, Model("a"), Model("b"))
    (tmp_path / "b" / "2").mkdir()
    with ServerProcess(tmp_path, "--id=my server") as process:
        lines = process.log().splitlines()
    at = {
        text: next(i for i, line in enumerate(lines) if text in line)
        for text in ("| Backend ", "| Model ", "| Option ", "Started HTTPService at 127.0.0.1:",
                     "Started Metrics Service at 127.0.0.1:", "ready in ")
    }  # fmt: skip
    assert list(at.values()) == sorted(at.values())
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    assert ["a", "1", "READY"] in rows
    assert ["b", "2", "READY"] in rows
    assert ["server_id", "my server"] in rows
    assert ["model_repository_path[0]", str(tmp_path)] in rows
    assert ["exit_timeout", "30"] in rows
    assert {"identity", "onnxruntime"} <= {row[0] for row in rows}


UNLISTED = """
from triton_fast import backends
from triton_fast.__main__ import main

def listed(directory):
    raise PermissionError(13, "Permission denied", "backends")

backends.listed = listed
main()
"""


def test_backends_that_can_not_be_listed_are_only_missing_in_the_table(tmp_path: Path) -> None:
    process = ServerProcess(repository(tmp_path, Model("a")))
    process.argv[1:3] = ["-c", UNLISTED]
    with process:
        assert "backends that there are can not be listed: [Errno 13] Permission denied: 'backends'" in process.log()
        assert raw.ask(process.http, raw.get("/v2/models/a/ready")).status == 200


@pytest.mark.parametrize(
    ("form", "pattern"),
    [("default", r"^I\d{4} \d\d:\d\d:\d\d\.\d{6} \d+ "), ("ISO8601", r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ I ")],
)
def test_log_format(tmp_path: Path, form: str, pattern: str) -> None:
    repository(tmp_path, Model("a"))
    with ServerProcess(tmp_path, f"--log-format={form}") as process:
        process.wait_for_log(pattern + r".*ready in \d+ ms")


def test_log_as_json(tmp_path: Path) -> None:
    repository(tmp_path, Model("a"))
    with ServerProcess(tmp_path, "--log-format=json") as process:
        raw.ask(process.http, raw.get("/v2"))
    records = [json.loads(line) for line in process.log().splitlines()]
    assert all(isinstance(record, dict) for record in records)
    for text in ("ready in", "Signal (15) received.", "successfully unloaded 'a' version 1"):
        assert any(text in json.dumps(record) for record in records)


def test_log_file(tmp_path: Path) -> None:
    repository(tmp_path / "models", Model("a"))
    target = tmp_path / "server.log"
    argv = [
        sys.executable, "-m", "triton_fast", f"--model-repository={tmp_path / 'models'}", "--http-address=127.0.0.1",
        "--http-port=0", "--metrics-port=0", "--allow-grpc=false", f"--log-file={target}",
    ]  # fmt: skip
    process = subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE)
    try:
        assert until(lambda: target.exists() and "ready in" in target.read_text())
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=EXIT_TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert b"ready in" not in out
    assert "| a " in target.read_text()


def test_port_in_use(tmp_path: Path) -> None:
    repository(tmp_path, Model("a"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for flag in ("--http-port", "--metrics-port"):
            other = "--metrics-port=0" if flag == "--http-port" else "--http-port=0"
            argv = [
                sys.executable, "-m", "triton_fast", f"--model-repository={tmp_path}", "--http-address=127.0.0.1",
                "--allow-grpc=false", f"{flag}={port}", other,
            ]  # fmt: skip
            ended = subprocess.run(
                argv, capture_output=True, text=True, timeout=EXIT_TIMEOUT_S, check=False,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            assert ended.returncode == 1
            assert f"Socket '127.0.0.1:{port}' already in use" in ended.stderr
            assert "Traceback" not in ended.stderr


def test_shared_port(tmp_path: Path) -> None:
    repository(tmp_path, Model("a"))
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        probe.bind(("127.0.0.1", 0))
        flags = (f"--http-port={probe.getsockname()[1]}", "--reuse-http-port=true")
        with ServerProcess(tmp_path, *flags) as first, ServerProcess(tmp_path, *flags) as second:
            assert first.http == second.http


def test_without_http(tmp_path: Path) -> None:
    repository(tmp_path, Model("a"))
    with ServerProcess(tmp_path, "--allow-http=false") as process:
        assert "Started HTTPService" not in process.log()
        assert raw.ask(process.metrics, raw.get("/metrics")).status == 200


# ---- end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal(tmp_path: Path, number: signal.Signals) -> None:
    repository(tmp_path, Model("a"))
    with ServerProcess(tmp_path) as process, raw.Client(process.http) as idle:
        assert idle.ask(raw.get("/v2/health/ready")).status == 200
        process.signal(number)
        assert process.wait() == 0
        assert idle.closed()
        process.wait_for_log(rf"Signal \({int(number)}\) received\.")
        assert "successfully unloaded 'a' version 1" in process.log()


def test_requests_in_flight_finish(tmp_path: Path) -> None:
    repository(tmp_path, Model("a", max_batch=1, delay_ms=300, extra=SLOW))
    with ExitStack() as stack, ServerProcess(tmp_path) as process:
        clients = [stack.enter_context(raw.Client(process.http)) for _ in range(3)]
        for client in clients:
            client.send(raw.infer_json("a", [7]))
        # One executes; two wait in the queue.
        assert until(lambda: queued(process, "a", 2))
        process.signal()
        answers = [client.answer() for client in clients]
        assert process.wait() == 0
        assert [raw.values_of(answer) for answer in answers] == [[7]] * 3
        assert all(answer.closes for answer in answers)
        assert all(client.closed() for client in clients)


def test_not_ready_any_more(tmp_path: Path) -> None:
    repository(tmp_path, Model("a", max_batch=1, delay_ms=400, extra=SLOW))
    requests = [raw.get("/v2/health/ready"), raw.get("/v2/health/live"), raw.infer_json("a", [1])]
    with ExitStack() as stack, ServerProcess(tmp_path) as process:
        held, *begun = (stack.enter_context(raw.Client(process.http)) for _ in range(len(requests) + 1))
        # Begun before the signal, whole after it.
        for client, request in zip(begun, requests, strict=True):
            client.send(request[:10])
        held.send(raw.infer_json("a", [1]))
        read_by_now(process)
        process.signal()
        assert until(lambda: refuses(process.http))
        for client, request in zip(begun, requests, strict=True):
            client.send(request[10:])
            answer = client.answer()
            assert (answer.status, answer.error) == (503, "Server exiting")
            assert answer.closes
        assert held.answer().status == 200
        assert process.wait() == 0


def refuses(address: tuple[str, int]) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(address) != 0


def test_exit_timeout(tmp_path: Path) -> None:
    repository(tmp_path, Model("a", max_batch=1, delay_ms=60_000, extra=SLOW))
    with ServerProcess(tmp_path, "--exit-timeout-secs=1", exit_code=1) as process, raw.Client(process.http) as client:
        client.send(raw.infer_json("a", [1]))
        read_by_now(process)
        process.signal()
        assert process.wait() == 1
        process.wait_for_log("Exit timeout expired. Exiting immediately.")
        with pytest.raises(raw.Closed):
            client.answer()


def test_second_signal(tmp_path: Path) -> None:
    repository(tmp_path, Model("a", max_batch=1, delay_ms=60_000, extra=SLOW))
    with ServerProcess(tmp_path, exit_code=1) as process, raw.Client(process.http) as client:
        client.send(raw.infer_json("a", [1]))
        read_by_now(process)
        process.signal()
        process.wait_for_log(r"Signal \(15\) received\.")
        process.signal()
        assert process.wait() == 1
        assert process.log().count("Signal (15) received.") == 2


def test_early_signal(tmp_path: Path) -> None:
    """A signal before the server is up ends it too, once what loads has loaded."""
    repository(tmp_path, *(Model(f"m{i}") for i in range(50)))
    process = ServerProcess(tmp_path, exit_code=None)
    began = threading.Event()
    process.wait_for_log = lambda pattern, timeout=0: began.set() or ""  # type: ignore[assignment,method-assign]
    with process:
        assert began.is_set()
        assert until(lambda: "loading: m" in process.log(), tries=6000)
        process.signal()
        assert process.wait() == 0
