"""What a client of either protocol is told when a model's queue is full: as Triton, or 429; and what ends batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import raw
from tests.helpers.grpc_channel import Channel, infer_request
from tests.helpers.scrape import pending, scrape
from tests.helpers.server import Model, ServerProcess, repository, until

FULL = "Exceeds maximum queue size"
# A request waits in the queue for the rest of its batch, which never comes.
ONE_PLACE = """
instance_group [{ count: 1 kind: KIND_CPU }]
dynamic_batching { max_queue_delay_microseconds: 600000000 default_queue_policy { max_queue_size: 1 } }
"""
# What is refused is a step: the ensemble's own request has been taken.
CHAIN = """
platform: "ensemble" max_batch_size: 2
input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [-1] }] output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [-1] }]
ensemble_scheduling { step [{ model_name: "m" model_version: -1
  input_map { key: "INPUT0" value: "INPUT0" } output_map { key: "OUTPUT0" value: "OUTPUT0" } }] }
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("overload")
    (made / "chain" / "1").mkdir(parents=True)
    (made / "chain" / "config.pbtxt").write_text(CHAIN)
    return repository(
        made, Model("m", max_batch=2, extra=ONE_PLACE),
        Model("alone", max_batch=2), Model("pairs", max_batch=2, extra="dynamic_batching { }"),
    )  # fmt: skip


@pytest.fixture(params=["", "--overload-status=503", "--overload-status=429"])
def served(root: Path, request: pytest.FixtureRequest) -> Iterator[tuple[ServerProcess, bool]]:
    with ServerProcess(root, *filter(None, [request.param])) as process:
        yield process, request.param.endswith("429")


def test_a_full_queue(served: tuple[ServerProcess, bool]) -> None:
    process, told_apart = served
    with raw.Client(process.http) as waiting, Channel(process.grpc) as channel:
        waiting.send(raw.infer_json("m", [1.0], shape=[1, 1]))
        assert until(lambda: pending(process, "m") == 1)
        over_http = raw.ask(process.http, raw.infer_json("m", [1.0], shape=[1, 1]))
        over_grpc = channel.infer(infer_request("m", [1.0], shape=[1, 1]))
        assert (over_http.status, over_http.error) == (429 if told_apart else 503, FULL)
        assert over_http.headers.get("retry-after") == ("1" if told_apart else None)
        assert over_grpc.outcome == (8 if told_apart else 14, FULL)
        for asked in (
            raw.infer_json("chain", [1.0], shape=[1, 1]),
            *(raw.generate(model, {"INPUT0": [1.0]}, stream=stream, version=version)
              for model in ("m", "chain") for stream in (False, True) for version in ("1.1", "1.0")),
        ):  # fmt: skip
            answer = raw.ask(process.http, asked)
            assert (answer.status, answer.headers.get("retry-after")) == ((429, "1") if told_apart else (503, None))
        # Other errors have the codes that they always have.
        wrong = raw.ask(process.http, raw.infer_json("nobody", [1.0]))
        assert "retry-after" not in wrong.headers
        assert channel.infer(infer_request("nobody", [1.0])).status in (5, 14)
    # A client that goes away gives its place back.
    assert until(lambda: pending(process, "m") == 0)


def test_what_ends_batches_is_counted(root: Path) -> None:
    with ServerProcess(root) as process:
        for model in ("alone", "pairs"):
            assert raw.ask(process.http, raw.infer_json(model, [1.0, 2.0], shape=[2, 1])).status == 200
        text = scrape(process)
    assert 'triton_fast_batch_break_total{model="pairs",reason="max",version="1"} 1\n' in text
    assert 'triton_fast_batch_break_total{model="pairs",reason="delay",version="1"} 0\n' in text
    assert 'triton_fast_batch_break_total{model="alone"' not in text
