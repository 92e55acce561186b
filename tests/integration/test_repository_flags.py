"""Flags of the model repository on real servers: what is printed, what is loaded, what a start that fails says last."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.helpers import raw
from tests.helpers.ensembles import Chain, ensembles
from tests.helpers.server import EXIT_TIMEOUT_S, ROOT, Model, ServerProcess, repository
from tests.integration.onnx_files import add, config, index


def fails(root: Path, *flags: str) -> list[str]:
    """The stderr of a server that must end by itself with code 1."""
    argv = [
        sys.executable, "-m", "triton_fast", f"--model-repository={root}", "--http-address=127.0.0.1", "--http-port=0",
        "--metrics-port=0", "--allow-grpc=false", *flags,
    ]  # fmt: skip
    done = subprocess.run(
        argv, check=False, cwd=ROOT, capture_output=True, text=True, timeout=EXIT_TIMEOUT_S
    )  # fmt: skip
    assert done.returncode == 1
    return done.stderr.splitlines()


def test_the_last_lines_of_a_failed_start_say_what_to_do(tmp_path: Path) -> None:
    repository(tmp_path, Model("good"), Model("typo"))
    path = tmp_path / "typo" / "config.pbtxt"
    path.write_text(path.read_text().replace("max_batch_size", "max_batch_sise"))
    add(tmp_path, "empty", b"")
    lines = fails(tmp_path)
    assert lines[-1] == "error: creating server: Internal - failed to load all models"
    last = lines[-8:]
    at = next(n for n, line in enumerate(last) if line.startswith("failed to load 'empty': "))
    assert last[at + 1 : at + 3] == [
        "    empty/1/model.onnx: error: the file is empty", "        copy the model again",
    ]  # fmt: skip
    (typo,) = [line for line in last if line.startswith("failed to load 'typo': ")]
    assert "typo/config.pbtxt:2:1" in typo
    assert "max_batch_size" in typo


def test_a_start_may_go_on_with_failures(tmp_path: Path) -> None:
    repository(tmp_path, Model("good"))
    add(tmp_path, "empty", b"")
    for strict, status in (("true", 400), ("false", 200)):
        flags = ("--exit-on-error=false", f"--strict-readiness={strict}", "--model-load-retry-count=1")
        with ServerProcess(tmp_path, *flags) as process:
            assert index(process.http)["empty"]["state"] == "UNAVAILABLE"
            ready = raw.ask(process.http, raw.get("/v2/health/ready")).status
            assert (ready == 200) == (status == 200)
            process.wait_for_log("failed to load 'empty' version 1, 1 more to try")
            process.wait_for_log("empty/1/model.onnx: error: the file is empty")


def test_the_tables(tmp_path: Path) -> None:
    repository(tmp_path, Model("a"))
    flags = (
        "--model-control-mode=explicit", "--load-model=*", "--rate-limit=execution_count",
        "--rate-limit-resource=R:4:0", "--rate-limit-resource=S:2", "--cuda-memory-pool-byte-size=0:1024",
        "--model-config-name=none",
    )  # fmt: skip
    with ServerProcess(tmp_path, *flags) as process:
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in process.log().splitlines() if "|" in line]
    assert ["Repository Agent", "Path"] in rows
    assert ["checksum", "built in"] in rows
    at = rows.index(["Option", "Value"])
    assert [row[0] for row in rows[at + 1 :]] == [
        "server_id", "server_version", "server_extensions", "model_repository_path[0]", "model_control_mode",
        "startup_models_0", "strict_model_config", "model_config_name", "rate_limit", "rate_limit_resource[0]",
        "rate_limit_resource[1]", "pinned_memory_pool_byte_size", "cuda_memory_pool_byte_size{0}",
        "min_supported_compute_capability", "strict_readiness", "exit_timeout", "cache_enabled",
    ]  # fmt: skip
    shown = dict(row for row in rows[at + 1 :] if len(row) == 2)
    assert (shown["startup_models_0"], shown["model_control_mode"]) == ("*", "MODE_EXPLICIT")
    assert (shown["pinned_memory_pool_byte_size"], shown["min_supported_compute_capability"]) == ("268435456", "6.0")


def test_a_named_config_is_used_where_it_exists(tmp_path: Path) -> None:
    repository(tmp_path, Model("a"), Model("b"))
    (tmp_path / "a" / "configs").mkdir()
    (tmp_path / "a" / "configs" / "small.pbtxt").write_text(Model("a", max_batch=2).config())
    with ServerProcess(tmp_path, "--model-config-name=small") as process:
        assert [config(process.http, name)["max_batch_size"] for name in "ab"] == [2, 8]


def test_one_name_in_two_repositories(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for root in (one, two):
        repository(root, Model("m"), Model(f"only_{root.name}"))
        ensembles(root, Chain(f"e_{root.name}", ("m", f"only_{root.name}")))
    with ServerProcess(one, f"--model-repository={two}", "--model-namespacing=true") as process:
        for name in ("e_one", "e_two", "only_two"):
            assert raw.values_of(raw.ask(process.http, raw.infer_json(name, [7]))) == [7]
        answer = raw.ask(process.http, raw.infer_json("m", [7]))
        assert (answer.status, answer.error) == (
            400,
            "Request for unknown model: There are 2 identifiers of model 'm' in global map, model namespace must be "
            "provided to resolve ambiguity.",
        )
        stats = raw.ask(process.http, raw.get("/v2/models/stats")).json()["model_stats"]
        counts = [row["inference_stats"]["success"]["count"] for row in stats if row["name"] == "m"]
        assert counts == [1, 1]
        text = raw.ask(process.metrics, raw.get("/metrics")).body.decode()
        for root in (one, two):
            assert f'nv_inference_request_success{{model="m",namespace="{root}",version="1"}} 1' in text
