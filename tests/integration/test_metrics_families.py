"""All families of a server with everything switched on: agreement with statistics, summaries, first responses, and the
names that the dashboard and the alert rules use."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict

from tests.helpers import onnx_models, raw
from tests.helpers.server import ROOT, Model, ServerProcess, repository, until, with_repeat
from tests.integration.onnx_files import add, request
from tests.integration.test_metrics_stats import ONE_BY_ONE, REASONS, samples, scrape, stats
from triton_fast import protos
from triton_fast.observability.families import FAMILIES, GPU, PHASES

BUCKETS = """
model_metrics { metric_control [{
  metric_identifier { family: "nv_inference_first_response_histogram_ms" }
  histogram_options { buckets: [ 0.5, 60000 ] }
}] }
"""
ENSEMBLE = """
platform: "ensemble"
max_batch_size: 8
input { name: "X" data_type: TYPE_FP32 dims: [ -1 ] }
output { name: "Y" data_type: TYPE_FP32 dims: [ -1 ] }
ensemble_scheduling { step { model_name: "member" model_version: -1
  input_map { key: "INPUT0" value: "X" } output_map { key: "OUTPUT0" value: "Y" } } }
"""
FLAGS = (
    "--cache-config=local,size=1048576", "--metrics-config=summary_latencies=true",
    "--metrics-config=summary_quantiles=0.5:0.01,0.99:0.001", "--metrics-config=histogram_latencies=true",
)  # fmt: skip
NO = frozenset[tuple[str, str]]()
DOCS = ROOT / "docs" / "grafana"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("families")
    repository(
        root,
        Model("plain", extra=ONE_BY_ONE % ""), Model("member"),
        Model("cached", extra="response_cache { enable: true }"),
        Model("held", max_batch=1, delay_ms=40, extra=ONE_BY_ONE % "default_queue_policy { max_queue_size: 3 }"),
        Model("buckets", extra=BUCKETS), Model("idle", extra="response_cache { enable: true }"),
    )  # fmt: skip
    with_repeat(root)
    add(root, "gather", onnx_models.gather())
    (root / "whole" / "1").mkdir(parents=True)
    (root / "whole" / "config.pbtxt").write_text(ENSEMBLE)
    with ServerProcess(root, *FLAGS) as process:
        yield process


def grpc_stats(process: ServerProcess, model: str) -> dict[str, Any]:
    host, port = process.grpc
    # tritonclient's message lacks response_stats.
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelStatistics",
            request_serializer=protos.ModelStatisticsRequest.SerializeToString,
            response_deserializer=protos.ModelStatisticsResponse.FromString,
        )
        answer = call(protos.ModelStatisticsRequest(name=model), timeout=30)
    (found,) = MessageToDict(
        answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )["model_stats"]  # fmt: skip
    return dict(found)


def whole_numbers(value: Any) -> Any:
    """Protobuf's JSON has 64-bit numbers as texts."""
    if isinstance(value, dict):
        return {key: whole_numbers(one) for key, one in value.items()}
    if isinstance(value, list):
        return [whole_numbers(one) for one in value]
    return int(value) if isinstance(value, str) and value.isdigit() else value


def send_some(process: ServerProcess, seed: int) -> dict[str, int]:
    """Send requests that succeed, fail, hit the cache, are refused or given up; return how many each model got."""
    rng = random.Random(seed)
    sent: dict[str, int] = dict.fromkeys(("plain", "member", "cached", "whole", "gather", "held"), 0)
    for _ in range(40):
        model = rng.choice(("plain", "cached", "whole", "gather"))
        sent[model] += 1
        if model == "gather":
            raw.ask(process.http, request("gather", {"INDEX": np.array([[rng.choice((3, 99))]], np.int64)}))
        elif model == "whole":
            tensor = {"name": "X", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}
            body = json.dumps({"inputs": [tensor]}).encode()
            assert raw.ask(process.http, raw.post(raw.infer_path("whole"), body)).status == 200
            sent["member"] += 1
        else:
            rows = rng.randint(1, 4)
            values = [rng.randint(0, 3)] * rows
            assert raw.ask(process.http, raw.infer_json(model, values, shape=[rows, 1])).status == 200
    # More than there is room for; some clients go away without their answers.
    with raw.several(process.http, 8) as clients:
        for client in clients:
            client.send(raw.infer_json("held", [1]))
            sent["held"] += 1
        gone = rng.sample(range(8), 3)
        for i in gone:
            clients[i].reset()
        for i, client in enumerate(clients):
            if i not in gone:
                assert client.answer().status in (200, 503)
    # The one instance does one after the other: with the last, all are over.
    assert until(lambda: samples(process, "held")["nv_inference_pending_request_count", NO] == 0)
    assert raw.ask(process.http, raw.infer_json("held", [1])).status == 200
    sent["held"] += 1
    return sent


def counted(process: ServerProcess, model: str) -> int:
    found = stats(process, model)["inference_stats"]
    return int(found["success"]["count"] + found["fail"]["count"])


@pytest.mark.parametrize("seed", range(4))
def test_three_ways_to_ask_agree(full: ServerProcess, seed: int) -> None:
    models = ("plain", "member", "cached", "whole", "gather", "held")
    before = {model: counted(full, model) for model in models}
    sent = send_some(full, seed)
    for model in models:
        # A request whose client has gone may never have come in whole.
        new = counted(full, model) - before[model]
        assert new == sent[model] or (model == "held" and sent[model] - 3 <= new <= sent[model])
        found, text = stats(full, model), samples(full, model)
        assert whole_numbers(grpc_stats(full, model)) == whole_numbers(found)
        agree(found, text, cached=model == "cached")


def agree(found: dict[str, Any], text: dict[Any, float], *, cached: bool) -> None:
    spent = found["inference_stats"]
    success, failed = spent["success"]["count"], spent["fail"]["count"]
    assert text["nv_inference_request_success", NO] == success == spent["queue"]["count"]
    reasons = [text["nv_inference_request_failure", frozenset([("reason", reason)])] for reason in REASONS]
    assert sum(reasons) == failed
    assert text["nv_inference_count", NO] == found["inference_count"]
    assert text["nv_inference_exec_count", NO] == found["execution_count"]
    hits = spent["cache_hit"]["count"]
    for name, phase in zip(PHASES, ("success", *PHASES[1:]), strict=True):
        count, ns = spent[phase]["count"], spent[phase]["ns"]
        assert count == success - (hits if name.startswith("compute") else 0)
        assert 0 <= ns // 1000 - text[f"nv_inference_{name}_duration_us", NO] <= count
        assert text[f"triton_fast_{name}_duration_seconds_count", NO] == count
        summary = f"nv_inference_{name}_summary_us"
        if cached and name == "request":
            assert (f"{summary}_count", NO) not in text
            continue
        assert text[f"{summary}_count", NO] == count
        assert text[f"{summary}_sum", NO] == text[f"nv_inference_{name}_duration_us", NO]
        quantiles = [text[summary, frozenset([("quantile", q)])] for q in ("0.5", "0.99")]
        assert not count or quantiles == sorted(quantiles)
    first = text["nv_inference_first_response_histogram_ms_count", NO]
    assert success - hits <= first <= success - hits + failed
    if cached:
        assert text["nv_cache_num_hits_per_model", NO] == hits == text["nv_cache_hit_summary_per_model_count", NO]
        misses = spent["cache_miss"]["count"]
        assert text["nv_cache_num_misses_per_model", NO] == misses
        assert text["nv_cache_miss_summary_per_model_count", NO] == misses
    else:
        assert ("nv_cache_num_hits_per_model", NO) not in text
    assert (
        sum(row["batch_size"] * row["compute_infer"]["count"] for row in found["batch_stats"])
        == (found["inference_count"])
    )


def test_the_table_is_what_a_scrape_has(full: ServerProcess) -> None:
    """GPU families are only there with GPUs; everything else is on."""
    expected = [family for family in FAMILIES if family not in GPU.values()]
    lines = scrape(full).splitlines()
    assert [line for line in lines if line.startswith("# HELP")] == [f"# HELP {f.name} {f.help}" for f in expected]
    assert [line for line in lines if line.startswith("# TYPE")] == [f"# TYPE {f.name} {f.kind}" for f in expected]
    allowed = {family.name: {*family.labels, "le", "quantile"} for family in expected}
    for line in lines:
        if not line.startswith("#"):
            name = family_of(line.partition("{")[0].partition(" ")[0], allowed)
            assert set(re.findall(r'[{,]([a-z_]+)="', line)) <= allowed[name], line


def family_of(name: str, known: Any) -> str:
    for suffix in ("", "_bucket", "_sum", "_count"):
        if suffix == "" and name in known:
            return name
        if suffix and name.endswith(suffix) and name.removesuffix(suffix) in known:
            return name.removesuffix(suffix)
    raise AssertionError(f"{name} is in no family")


def test_models_without_requests_have_summaries_without_quantiles(full: ServerProcess) -> None:
    text = scrape(full)
    assert 'nv_inference_queue_summary_us_count{model="idle",version="1"} 0\n' in text
    assert 'nv_inference_queue_summary_us{model="idle",version="1",quantile="0.99"} NaN\n' in text
    assert 'nv_cache_hit_summary_per_model_count{model="idle",version="1"} 0\n' in text


def test_buckets_of_the_config(full: ServerProcess) -> None:
    name = "nv_inference_first_response_histogram_ms"
    assert raw.ask(full.http, raw.infer_json("buckets", [1])).status == 200
    found = {
        dict(rest)["le"]: value for (key, rest), value in samples(full, "buckets").items() if key == f"{name}_bucket"
    }
    assert set(found) == {"0.5", "60000", "+Inf"}
    assert found["60000"] == found["+Inf"] == 1
    text = scrape(full)
    for bound in ("100", "500", "2000", "5000", "+Inf"):
        assert f'{name}_bucket{{model="plain",version="1",le="{bound}"}} ' in text


def test_streams_are_timed_to_their_first_response(full: ServerProcess) -> None:
    name = "nv_inference_first_response_histogram_ms"
    before = samples(full, "repeat")
    body = {"IN": [4, 5], "DELAY": [0, 700], "WAIT": [0]}
    answer = raw.ask(full.http, raw.generate("repeat", body, stream=True))
    assert answer.status == 200
    assert [event["OUT"] for event in answer.events if "OUT" in event] == [4, 5]
    after = samples(full, "repeat")
    assert after[f"{name}_count", NO] - before[f"{name}_count", NO] == 1
    # The second response came so much later than the first.
    first_ms = after[f"{name}_sum", NO] - before[f"{name}_sum", NO]
    whole = "nv_inference_request_duration_us"
    assert after[whole, NO] - before[whole, NO] - first_ms * 1000 >= 700_000 - 1
    found = stats(full, "repeat")["response_stats"]
    assert set(found) == {"0", "1", "2"}
    for index, fields in (("0", ("success",)), ("1", ("success",)), ("2", ("empty_response",))):
        counts = {field: spent["count"] for field, spent in found[index].items()}
        wanted = {"compute_infer", *fields, *(("compute_output",) if index != "2" else ())}
        assert counts == {field: int(field in wanted) for field in counts}
        assert set(counts) == {"compute_infer", "compute_output", "success", "fail", "empty_response", "cancel"}
    assert found["1"]["compute_infer"]["ns"] >= 700_000_000
    assert whole_numbers(grpc_stats(full, "repeat")) == whole_numbers(stats(full, "repeat"))


# ---- the dashboard and the alert rules

_WORD = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_SPOKEN = {
    "sum", "rate", "by", "histogram_quantile", "clamp_min", "min_over_time", "label_values", "on", "ignoring",
}  # fmt: skip


def used(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Yield each metric that an expression names with the labels it selects by; and "" with those it groups by."""
    rest = expression
    for group in re.findall(r"\bby \(([^)]*)\)", rest):
        yield "", set(_WORD.findall(group))
    rest = re.sub(r"\bby \([^)]*\)|\[[^\]]*\]", " ", rest)
    for name, selector in re.findall(
        r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{([^}]*)\})?", re.sub(r"\b[0-9.e-]+\b", " ", rest)
    ):
        if name not in _SPOKEN:
            yield name, set(re.findall(r"([a-zA-Z_]\w*)\s*(?:=~|!~|!=|=)", selector))


def expressions() -> list[str]:
    board = json.loads((DOCS / "triton_fast.json").read_text(encoding="utf-8"))
    found = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    rules = re.sub(r">-\n\s+", "", (DOCS / "alerts.yaml").read_text(encoding="utf-8"))
    rules = re.sub(r"\n\s+(?=[/+] )", " ", rules)
    alerts = re.findall(r"^\s+expr: (.*)$", rules, re.MULTILINE)
    assert len(alerts) == rules.count("- alert:")
    return found + alerts


def test_the_parser_of_expressions() -> None:
    text = 'sum by (le, a) (rate(x_bucket{m=~"$m",r!="b"}[$__rate_interval])) / clamp_min(y, 1e-9) > 0.5'
    assert list(used(text)) == [("", {"le", "a"}), ("x_bucket", {"m", "r"}), ("y", set())]


def test_what_the_dashboard_and_the_alerts_ask_for_exists(full: ServerProcess) -> None:
    for model in ("plain", "cached"):
        assert raw.ask(full.http, raw.infer_json(model, [1])).status == 200
    scraped: dict[str, set[str]] = {}
    for line in scrape(full).splitlines():
        if not line.startswith("#"):
            name = line.partition("{")[0].partition(" ")[0]
            scraped.setdefault(name, set()).update(re.findall(r'[{,]([a-z_]+)="', line))
    for family in GPU.values():
        scraped[family.name] = set(family.labels)
    asked = expressions()
    assert len(asked) > 30
    for expression in asked:
        metrics = [(name, labels) for name, labels in used(expression) if name]
        assert metrics, expression
        grouped = set().union(*(labels for name, labels in used(expression) if not name))
        for name, labels in metrics:
            assert name in scraped, f"{name} in {expression}"
            assert labels | grouped <= scraped[name], expression


def test_grafana_finds_what_it_needs() -> None:
    board = json.loads((DOCS / "triton_fast.json").read_text(encoding="utf-8"))
    assert board["title"] == "triton_fast"
    assert board["schemaVersion"] >= 36
    variables = {one["name"]: one for one in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    assert variables["model"]["query"]["query"] == "label_values(nv_inference_request_success, model)"
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == panel["datasource"]["uid"] == "${datasource}"
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= {"model", "__rate_interval"}


def test_a_config_with_wrong_buckets_does_not_load(tmp_path: Path) -> None:
    for buckets in ("[ 5, 5 ]", "[ 5, 1 ]", "[ nan ]"):
        repository(tmp_path, Model("wrong", extra=BUCKETS.replace("[ 0.5, 60000 ]", buckets)))
        with ServerProcess(tmp_path, "--exit-on-error=false", "--strict-readiness=false") as process:
            rows = raw.ask(process.http, raw.post("/v2/repository/index")).json()
            assert "Bucket Boundaries must be strictly sorted" in rows[0]["reason"]
