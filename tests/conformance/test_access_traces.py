"""Lines of the access log name the trace of their request as the collector or the trace file knows it. Requests that
nobody takes have lines with id and trace, too; their spans have failed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import raw
from tests.helpers.grpc_channel import Channel, infer_request
from tests.helpers.otlp import Collector
from tests.helpers.scrape import pending
from tests.helpers.server import Model, ServerProcess, repository, until
from tests.helpers.traces import parse

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"traceparent: 00-{TRACE}-b7ad6b7169203331-01"
# One request executes for long, none may wait.
FULL = """instance_group [{ count: 1 kind: KIND_CPU }]
dynamic_batching { default_queue_policy { max_queue_size: 1 } }
"""
LEVEL = "--trace-config=level=TIMESTAMPS"


def line_of(server: ServerProcess, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(server.wait_for_log(f'"message":"access".*"id":"{name}"'))
    return found


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return repository(tmp_path / "models", Model("m"), Model("full", max_batch=1, delay_ms=60000, extra=FULL))


def otel(models: Path, collector: Collector) -> ServerProcess:
    env = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    flags = ("--trace-config=mode=opentelemetry", f"--trace-config=opentelemetry,url={collector.url}",
             "--trace-config=opentelemetry,bsp_schedule_delay=20", LEVEL, "--trace-config=rate=1")  # fmt: skip
    return ServerProcess(models, "--access-log=1", "--log-format=json", "--exit-timeout-secs=1", *flags, env=env)


def end(server: ServerProcess) -> None:
    """What executes would do so for a minute."""
    server.exit_code = None
    server.kill()


def test_the_id_at_the_collector(models: Path) -> None:
    with Collector() as collector, otel(models, collector) as server:
        assert raw.ask(server.http, raw.infer_json("m", [1], PARENT, id="given")).status == 200
        assert raw.ask(server.http, raw.infer_json("m", [1], id="made")).status == 200
        with Channel(server.grpc) as channel:
            metadata = dict([PARENT.split(": ")])
            assert channel.infer(infer_request("m", [1.0], id="grpc"), metadata=metadata).outcome[0] == 0
        found = {line_of(server, name)["trace"]: name for name in ("given", "grpc", "made")}
        assert found.pop(TRACE) == "grpc"
        ((made, _),) = found.items()
        spans = collector.wait_for(9)
        assert line_of(server, "given")["trace"] == TRACE
        assert made in {one.trace for one in spans}


def test_what_is_refused_names_its_trace(models: Path) -> None:
    with Collector() as collector, otel(models, collector) as server, raw.several(server.http, 2) as clients:
        clients[0].send(raw.infer_json("full", [1]))
        server_has_read(server)
        assert until(lambda: pending(server, "full") == 0)  # it is executed
        clients[1].send(raw.infer_json("full", [1]))
        assert until(lambda: pending(server, "full") == 1)
        assert raw.ask(server.http, raw.infer_json("full", [1], PARENT, id="http")).status == 503
        found = line_of(server, "http")
        assert (found["status"], found["model"], found["version"], found["trace"]) == (503, "full", 1, TRACE)
        spans = collector.wait_for(2)
        assert {one.name: one.failed for one in spans if one.trace == TRACE} == {"InferRequest": True, "full": True}
        end(server)


def test_what_is_given_up_in_the_queue_has_failed(models: Path) -> None:
    with Collector() as collector, otel(models, collector) as server, raw.Client(server.http) as first:
        first.send(raw.infer_json("full", [1]))
        with raw.Client(server.http) as second:
            second.send(raw.infer_json("full", [1], PARENT, id="gone"))
            server_has_read(server)
            second.reset()
        assert line_of(server, "gone")["trace"] == TRACE
        spans = collector.wait_for(2)
        assert {one.name: one.failed for one in spans if one.trace == TRACE} == {"InferRequest": True, "full": True}
        end(server)


def server_has_read(server: ServerProcess) -> None:
    with raw.Client(server.http) as other:
        for _ in range(2):  # after the second the server has read what came before the first
            assert other.ask(raw.get("/v2/health/live")).status == 200


def test_the_number_in_the_file(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    flags = (f"--trace-config=triton,file={path}", LEVEL, "--trace-config=rate=2")
    with ServerProcess(models, "--access-log=1", "--log-format=json", "--exit-timeout-secs=1", *flags) as server:
        for name in ("one", "two"):
            assert raw.ask(server.http, raw.infer_json("m", [1], id=name)).status == 200
        assert "trace" not in line_of(server, "one")
        number = line_of(server, "two")["trace"]
        server.stop()
    (traced,) = parse(path.read_bytes())
    assert (str(traced.id), traced.request_id) == (number, "two")
