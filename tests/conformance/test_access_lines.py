"""The access log of a running server: which requests get a line, what it says, what it never says, where it goes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import raw
from tests.helpers.grpc_channel import Channel, infer_request, repeat_request
from tests.helpers.server import ROOT, Model, ServerProcess, repository, until, with_repeat
from triton_fast import protos

HOSTILE = 'a\r\nE1122 forged\x1b[2J\u202e\u2066\u200b\u2028\x7f"\\'
SECRET = "s3cr3t-value"  # noqa: S105


def models(root: Path) -> Path:
    return with_repeat(repository(root, Model("m"), Model("slow", delay_ms=1000)))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = models(tmp_path_factory.mktemp("access"))
    flags = ("--access-log=1", "--log-format=json", f"--http-restricted-api=shared-memory:x-key={SECRET}")
    with ServerProcess(root, *flags) as process:
        yield process


@pytest.fixture(scope="module")
def channel(server: ServerProcess) -> Iterator[Channel]:
    with Channel(server.grpc) as opened:
        yield opened


def record(server: ServerProcess, pattern: str) -> dict[str, Any]:
    """The access line that holds the pattern, waited for."""
    found = json.loads(server.wait_for_log(f'"message":"access".*{pattern}'))
    for name in ("time", "pid", "level", "source", "message"):
        found.pop(name)
    assert found.pop("us") >= 0
    return dict(found)


def timeless(found: dict[str, Any]) -> dict[str, Any]:
    assert found.pop("queue_us") >= 0
    assert found.pop("compute_us") >= 0
    return found


def test_http_infer(server: ServerProcess) -> None:
    request = raw.infer_json("m", [1, 2], id="http-1")
    with raw.Client(server.http) as client:
        host, port = client.sock.getsockname()
        client.send(request)
        answer = client.answer()
    assert answer.status == 200
    found = timeless(record(server, '"id":"http-1"'))
    assert found.pop("bytes_out") > len(answer.body)
    assert found == {
        "protocol": "http", "method": "POST", "rpc": "infer", "model": "m", "version": 1, "id": "http-1",
        "peer": f"{host}:{port}", "status": 200, "bytes_in": len(request.split(b"\r\n\r\n", 1)[1]),
    }  # fmt: skip


def test_bytes_out_are_those_of_the_answer(server: ServerProcess) -> None:
    with raw.Client(server.http) as client:
        client.send(raw.infer_binary("m", raw.fp32([1.0] * 5000), [1, 5000], "Connection: close", id="bytes"))
        got = client.answer()
    head = sum(len(name) + len(value) + 4 for name, value in got.headers.items()) + len("HTTP/1.1 200 OK\r\n") + 2
    assert record(server, '"id":"bytes"')["bytes_out"] == head + len(got.body)


def test_a_head_seen_before_and_an_answer_like_the_last_one_get_their_lines(server: ServerProcess) -> None:
    request = raw.infer_binary("m", raw.fp32([1.0, 2.0]), [1, 2], id="again")
    with raw.Client(server.http) as client:
        bodies = {client.ask(request).body for _ in range(6)}
    assert len(bodies) == 1
    raw.ask(server.http, raw.infer_json("m", [1], id="after-again"))
    record(server, "after-again")
    lines = [json.loads(line) for line in server.log().splitlines() if '"id":"again"' in line]
    assert len(lines) == 6
    assert len({(line["bytes_in"], line["bytes_out"], line["status"]) for line in lines}) == 1


@pytest.mark.parametrize(
    ("request_", "pattern", "expected"),
    [
        (raw.get("/v2/health/live?token=" + SECRET, f"X-Key: {SECRET}"), "health/live",
         {"method": "GET", "path": "/v2/health/live", "status": 200}),
        (raw.get("/v2/no%0Asuch"), "no%0Asuch", {"method": "GET", "path": "/v2/no%0Asuch", "status": 404}),
        (raw.post("/v2/systemsharedmemory/status"), "systemsharedmemory", {"status": 403, "method": "POST"}),
        (raw.infer_json("nobody", [1]), '"model":"nobody"', {"rpc": "infer", "status": 404}),
        (raw.post(raw.infer_path("m"), b"{"), '"bytes_in":1,', {"rpc": "infer", "model": "m"}),
        (raw.post("/v2/models/m/generate", b'{"INPUT0":[1]}'), '"rpc":"generate"', {"model": "m", "status": 200}),
        (b"BAD HEAD\r\n\r\n", '"protocol":"http","peer"', {"status": 400}),
    ],
    ids=["verb", "not found", "restricted", "unknown model", "broken JSON", "generate", "no HTTP"],
)  # fmt: skip
def test_what_is_refused_has_a_line_too(
    server: ServerProcess, request_: bytes, pattern: str, expected: dict[str, Any]
) -> None:
    answer = raw.ask(server.http, request_)
    found = record(server, pattern)
    assert answer.status == found["status"]
    assert expected.items() <= found.items()


def test_server_sent_events(server: ServerProcess) -> None:
    body = {"IN": [1, 2, 3], "DELAY": [0, 0, 0], "WAIT": 0, "id": "x"}
    answer = raw.ask(server.http, raw.generate("repeat", body, stream=True))
    assert len(answer.events) == 3
    found = timeless(record(server, '"rpc":"generate_stream"'))
    assert (found["model"], found["status"], found["responses"]) == ("repeat", 200, 3)


def test_a_client_that_goes_away_is_499(server: ServerProcess) -> None:
    with raw.Client(server.http) as client:
        client.send(raw.infer_json("slow", [1], id="gone"))
        with raw.Client(server.http) as other:
            for _ in range(2):  # after the second the server has read what came before the first
                assert other.ask(raw.get("/v2/health/live")).status == 200
        client.reset()
    found = record(server, '"status":499')
    assert (found["rpc"], found["model"]) == ("infer", "slow")


def test_grpc_infer(server: ServerProcess, channel: Channel) -> None:
    request = infer_request("m", id="grpc-1")
    assert channel.infer(request).outcome == (0, "")
    found = timeless(record(server, '"id":"grpc-1"'))
    assert re.fullmatch(r"127\.0\.0\.1:\d+", found.pop("peer"))
    assert found.pop("bytes_out") > 0
    assert found == {
        "protocol": "grpc", "rpc": "ModelInfer", "model": "m", "version": 1, "id": "grpc-1", "status": 0,
        "bytes_in": request.ByteSize(),
    }  # fmt: skip


def test_grpc_errors(server: ServerProcess, channel: Channel) -> None:
    assert channel.infer(infer_request("nobody", id="grpc-2")).status == 5
    found = record(server, '"id":"grpc-2"')
    assert (found["rpc"], found["model"], found["status"]) == ("ModelInfer", "nobody", 5)


def test_a_call_whose_deadline_comes(server: ServerProcess, channel: Channel) -> None:
    assert channel.infer(infer_request("slow", id="late"), timeout=0.1).status == 4
    found = record(server, '"rpc":"ModelInfer".*"status":(4|1),')
    assert found["status"] in (1, 4), "the server's own timer, or the client's end of the call"


def test_a_grpc_verb(server: ServerProcess, channel: Channel) -> None:
    request = protos.ModelMetadataRequest(name="m")
    reply = channel.ask("ModelMetadata", request)
    found = record(server, "ModelMetadata")
    assert found["path"] == "/inference.GRPCInferenceService/ModelMetadata"
    assert (found["status"], found["bytes_in"], found["bytes_out"]) == (0, request.ByteSize(), reply.message.ByteSize())


def test_each_request_of_a_stream(server: ServerProcess, channel: Channel) -> None:
    reply = channel.stream([
        infer_request("m", id="stream-1"), repeat_request([1, 2, 3], id="stream-2"),
        infer_request("nobody", id="stream-3"),
    ])  # fmt: skip
    assert len(reply.messages) == 5
    one, two, three = (record(server, f'"id":"stream-{n}"') for n in (1, 2, 3))
    assert (one["rpc"], one["model"], one["status"], one["responses"]) == ("ModelStreamInfer", "m", 0, 1)
    assert (two["model"], two["status"], two["responses"]) == ("repeat", 0, 3)
    assert two["bytes_out"] > one["bytes_out"] > 0
    assert (three["model"], three["status"]) == ("nobody", 5)
    assert "responses" not in three


def test_requests_of_a_stream_that_is_cancelled(server: ServerProcess, channel: Channel) -> None:
    with channel.talk() as talk:
        talk.send(repeat_request([1, 2], [0, 500], id="cut"))
        talk.next()
        talk.call.cancel()
        found = record(server, '"id":"cut"')
    assert (found["rpc"], found["status"], found["responses"]) == ("ModelStreamInfer", 1, 1)


def test_nothing_can_forge_a_line(server: ServerProcess, channel: Channel) -> None:
    before = server.log().count("\n")
    assert raw.ask(server.http, raw.infer_json("m", [1], id=HOSTILE)).status == 200
    assert channel.infer(infer_request("m", id="grpc" + HOSTILE)).status == 0
    assert channel.infer(infer_request("nobody\u202e\x9b")).status == 5
    record(server, r'"model":"nobody\\u202E')
    assert json.loads(server.wait_for_log(r'"id":"a\\r'))["id"] == HOSTILE
    assert json.loads(server.wait_for_log(r'"id":"grpca\\r'))["id"] == "grpc" + HOSTILE
    log = server.log()
    assert log.count("\n") == before + 3
    assert all(char.isprintable() or char == "\n" for char in log)


def test_no_secret_is_told(server: ServerProcess, channel: Channel) -> None:
    headers = (f"X-Key: {SECRET}", f"Authorization: Bearer {SECRET}", f"Cookie: {SECRET}")
    assert raw.ask(server.http, raw.get(f"/v2/systemsharedmemory/status?key={SECRET}", *headers)).status == 200
    assert raw.ask(server.http, raw.infer_json("m", [1], *headers, id="secret-1")).status == 200
    metadata = {"x-key": SECRET, "authorization": SECRET}
    assert channel.infer(infer_request("m", id="secret-2"), metadata=metadata).status == 0
    for pattern in ("systemsharedmemory/status.*200", "secret-1", "secret-2"):
        record(server, pattern)
    assert SECRET not in server.log()


def test_off_by_default(tmp_path: Path) -> None:
    with ServerProcess(models(tmp_path)) as process:
        assert raw.ask(process.http, raw.infer_json("m", [1])).status == 200
    assert "access:0]" not in process.log()


def test_what_the_server_is_to_blame_for_is_told_at_any_share(tmp_path: Path) -> None:
    with ServerProcess(models(tmp_path), "--access-log=0.000000001") as process, Channel(process.grpc) as channel:
        assert raw.ask(process.http, raw.infer_json("m", [1])).status == 200
        assert raw.ask(process.http, raw.infer_json("nobody", [1])).status == 404
        assert raw.ask(process.http, raw.post("/v2/logging", b"")).status == 500
        process.wait_for_log('"access".*path="/v2/logging".*status=500')
        assert channel.infer(infer_request("m", id="unseen")).status == 0
    assert process.log().count("access:0]") == 1


def test_verbose_levels(tmp_path: Path) -> None:
    with ServerProcess(models(tmp_path), "--log-verbose=2") as process, Channel(process.grpc) as channel:
        assert raw.ask(process.http, raw.infer_json("m", [1, 2, 3], id="v")).status == 200
        assert 'inputs="INPUT0 FP32[1,3]"' in process.wait_for_log('access:0].* id="v"')
        channel.infer(repeat_request([1, 2], id="w"))
        line = process.wait_for_log('access:0].* id="w"')
        assert "inputs=" not in line, "it was refused before it was one of the model's"
        raw.ask(process.http, raw.post("/v2/logging", b'{"log_verbose_level":1}'))
        assert raw.ask(process.http, raw.infer_json("m", [1, 2, 3], id="x")).status == 200
        assert "inputs=" not in process.wait_for_log('access:0].* id="x"')


def test_a_log_file_that_was_moved_is_opened_anew(tmp_path: Path) -> None:
    path, moved = tmp_path / "server.log", tmp_path / "server.log.1"
    argv = [
        sys.executable, "-m", "triton_fast", f"--model-repository={models(tmp_path / 'models')}", "--allow-grpc=false",
        "--http-address=127.0.0.1", "--http-port=0", "--metrics-port=0", "--access-log=1", f"--log-file={path}",
    ]  # fmt: skip

    def has(text: str) -> bool:
        return path.exists() and text in path.read_text()

    process = subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    try:
        assert until(lambda: has("ready in"))
        found = re.search(r"HTTPService at 127\.0\.0\.1:(\d+)", path.read_text())
        assert found
        address = ("127.0.0.1", int(found[1]))
        assert raw.ask(address, raw.infer_json("m", [1], id="one")).status == 200
        assert until(lambda: has('id="one"'))
        path.rename(moved)
        process.send_signal(signal.SIGHUP)
        assert until(path.exists)
        assert raw.ask(address, raw.infer_json("m", [1], id="two")).status == 200
        assert until(lambda: has('id="two"'))
        assert 'id="two"' not in moved.read_text()
    finally:
        process.terminate()
        assert process.wait(40) == 0
