"""Ensembles of real servers: start, explicit control, members that change, what the verbs answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import raw
from tests.helpers.ensembles import Chain, ensembles
from tests.helpers.gated import Gated
from tests.helpers.grpc_channel import Channel
from tests.helpers.server import LocalServer, Model, ServerProcess, repository, until
from tests.integration.onnx_files import config, index, infer
from triton_fast import protos

EXPLICIT = "--model-control-mode=explicit"


def control(server: Any, verb: str, name: str, **parameters: Any) -> raw.Answer:
    body = json.dumps({"parameters": parameters}).encode() if parameters else b""
    return raw.ask(server.http, raw.post(f"/v2/repository/models/{name}/{verb}", body))


def ready(server: Any, name: str) -> int:
    return raw.ask(server.http, raw.get(f"/v2/models/{name}/ready")).status


def states(server: Any) -> dict[str, str]:
    return {name: row.get("state", "") for name, row in index(server.http).items()}


def echoed(server: Any, name: str, *shape: int) -> None:
    given = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    answer = infer(server.http, name, {"INPUT0": given})["OUTPUT0"]
    assert answer.shape == shape
    assert np.array_equal(answer, given)


def test_served_from_the_start(tmp_path: Path) -> None:
    repository(tmp_path, Model("a"), Model("b"))
    ensembles(tmp_path, Chain("e", ("a", "b", "a")), Chain("outer", ("e", "b")))
    with LocalServer(tmp_path) as server:
        assert states(server) == dict.fromkeys(("a", "b", "e", "outer"), "READY")
        echoed(server, "outer", 3, 5)
        echoed(server, "e", 2, 1)
        assert ready(server, "outer") == 200
        metadata = raw.ask(server.http, raw.get("/v2/models/e")).json()
        tensor = {"datatype": "FP32", "shape": [-1, -1]}
        assert metadata == {
            "name": "e", "versions": ["1"], "platform": "ensemble",
            "inputs": [{"name": "INPUT0", **tensor}], "outputs": [{"name": "OUTPUT0", **tensor}],
        }  # fmt: skip
        shown = config(server.http, "outer")
        assert shown["ensemble_scheduling"]["step"][0] == {
            "model_name": "e", "model_version": -1, "model_namespace": "",
            "input_map": {"INPUT0": "INPUT0"}, "output_map": {"OUTPUT0": "t1"},
        }  # fmt: skip
        assert (shown["instance_group"], shown["backend"]) == ([], "")
        assert shown["model_transaction_policy"] == {"decoupled": False}
        stats = raw.ask(server.http, raw.get("/v2/models/e/stats")).json()["model_stats"]
        assert [(row["name"], row["inference_stats"]["success"]["count"]) for row in stats] == [("e", 2)]
        metrics = raw.ask(server.metrics, raw.get("/metrics")).body.decode()
        assert 'nv_inference_request_success{model="outer",version="1"} 1' in metrics


@pytest.mark.parametrize(
    ("chain", "member", "shape"),
    [
        (Chain("e", ("m",), dims="4"), Model("m", dims=(4,), max_batch=0), (1, 4)),
        (Chain("e", ("m",), dims="4"), Model("m", dims=(-1, 4), max_batch=0), (3, 4)),
        (Chain("e", ("m",), dims="4", max_batch=0), Model("m", dims=(4,)), (4,)),
        (Chain("e", ("m",), dims="-1, 4", max_batch=0), Model("m", dims=(4,)), (3, 4)),
    ],
)
def test_the_batch_dimension_comes_and_goes(
    tmp_path: Path, chain: Chain, member: Model, shape: tuple[int, ...]
) -> None:
    repository(tmp_path, member)
    ensembles(tmp_path, chain)
    with LocalServer(tmp_path) as server:
        echoed(server, "e", *shape)


def test_explicit_load_and_unload(tmp_path: Path) -> None:
    repository(tmp_path, Model("a"), Model("b"), Model("c"))
    ensembles(tmp_path, Chain("e", ("a", "b")), Chain("outer", ("e",)))
    with LocalServer(tmp_path, EXPLICIT) as server:
        assert control(server, "load", "outer").status == 200
        assert states(server) == {**dict.fromkeys(("a", "b", "e", "outer"), "READY"), "c": ""}
        assert control(server, "unload", "outer").status == 200
        assert ready(server, "e") == 200
        assert control(server, "load", "outer").status == 200
        assert control(server, "unload", "outer", unload_dependents=True).status == 200
        assert until(lambda: set(states(server).values()) == {"UNAVAILABLE", ""})
        # The same over gRPC.
        assert control(server, "load", "outer").status == 200
        with Channel(server.grpc) as channel:
            request = protos.RepositoryModelUnloadRequest(model_name="outer")
            request.parameters["unload_dependents"].bool_param = True
            reply = channel.ask("RepositoryModelUnload", request)
            assert reply.outcome == (0, "")
        assert until(lambda: set(states(server).values()) == {"UNAVAILABLE", ""})


def test_a_member_is_reloaded_under_the_ensemble(tmp_path: Path) -> None:
    repository(tmp_path, Model("a"))
    ensembles(tmp_path, Chain("e", ("a",)))
    with LocalServer(tmp_path, EXPLICIT, "--load-model=e") as server:
        echoed(server, "e", 1, 2)
        repository(tmp_path, Model("a", extra="parameters { key: 'x' value { string_value: 'y' } }"))
        assert control(server, "load", "a").status == 200
        assert config(server.http, "a")["parameters"] == {"x": {"string_value": "y"}}
        echoed(server, "e", 1, 2)
        # One that does not fit ends the ensemble, one that fits brings it back.
        repository(tmp_path, Model("a", datatype="INT32"))
        assert control(server, "load", "a").status == 200
        assert until(lambda: states(server)["e"] == "UNAVAILABLE")
        assert index(server.http)["e"]["reason"] == (
            "in ensemble e, ensemble tensor INPUT0: inconsistent data type: TYPE_FP32 is inferred from model e while "
            "TYPE_INT32 is inferred from model a"
        )
        answer = raw.ask(server.http, raw.infer_json("e", [1.0], shape=[1, 1]))
        assert (answer.status, answer.json()) == (
            404, {"error": "Request for unknown model: 'e' has no available versions"},
        )  # fmt: skip
        assert raw.ask(server.http, raw.get("/v2/health/ready")).status == 200
        repository(tmp_path, Model("a"))
        assert control(server, "load", "a").status == 200
        echoed(server, "e", 1, 2)


def test_a_failing_member_at_start(tmp_path: Path) -> None:
    repository(tmp_path, Model("a"), Model("bad", extra='parameters { key: "execute_delay_ms" value { } }'))
    (tmp_path / "bad" / "config.pbtxt").write_text('backend: "mxnet"\n')
    ensembles(tmp_path, Chain("e", ("a", "bad")), Chain("fine", ("a",)))
    with LocalServer(tmp_path) as server:
        rows = index(server.http)
        assert (rows["fine"]["state"], rows["e"]["state"]) == ("READY", "UNAVAILABLE")
        assert rows["e"]["reason"].startswith(
            "ensemble 'e' depends on 'bad' which has no loaded version. Model 'bad' loading failed with error: version "
            "1 is at UNAVAILABLE state: Invalid argument: unable to find backend library for backend 'mxnet'"
        )
        assert raw.ask(server.http, raw.get("/v2/health/ready")).status == 400
        echoed(server, "fine", 1, 1)


def test_a_cycle_at_start_is_told_and_ends(tmp_path: Path) -> None:
    repository(tmp_path, Model("a"))
    ensembles(tmp_path, Chain("e", ("f",)), Chain("f", ("a", "e")))
    with LocalServer(tmp_path) as server:
        rows = index(server.http)
        assert rows["e"]["reason"] == "circular dependency between ensembles: e -> ... -> f -> e"
        assert rows["f"]["reason"] == "circular dependency between ensembles: f -> ... -> e -> f"
        echoed(server, "a", 1, 1)


INT32 = {
    "backend": "identity",
    "input": [{"name": "INPUT0", "data_type": "TYPE_INT32", "dims": [1]}],
    "output": [{"name": "OUTPUT0", "data_type": "TYPE_INT32", "dims": [1]}],
}


@pytest.mark.parametrize("name", ["flat", "outer"])
@pytest.mark.parametrize("change", ["unload", "another type"])
def test_a_request_under_way_ends_with_the_members_that_it_began_with(tmp_path: Path, name: str, change: str) -> None:
    gated = Gated(tmp_path, "plain")
    chains = (
        Chain("flat", ("plain", "m"), dims="1", max_batch=0), Chain("inner", ("m",), dims="1", max_batch=0),
        Chain("outer", ("plain", "inner"), dims="1", max_batch=0),
    )  # fmt: skip
    ensembles(gated.models, *chains)
    body = b'{"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1], "data": [7]}]}'
    with ServerProcess(gated.models, EXPLICIT, "--load-model=*") as process, raw.Client(process.http) as client:
        client.send(raw.post(f"/v2/models/{name}/infer", body))
        assert gated.saw("execute", 1)
        if change == "unload":
            assert control(process, "unload", "m").status == 200
            assert states(process)["m"] == "UNLOADING"
        else:
            assert control(process, "load", "m", config=json.dumps(INT32)).status == 200
        assert until(lambda: states(process)[name] != "READY")
        gated.open()
        assert raw.values_of(client.answer()) == [7]
        # Nothing holds anything any more.
        wanted = {"flat": "UNAVAILABLE", "inner": "UNAVAILABLE", "outer": "UNAVAILABLE", "plain": "READY"}
        wanted["m"] = "UNAVAILABLE" if change == "unload" else "READY"
        assert until(lambda: states(process) == wanted), states(process)
        process.wait_for_log("successfully unloaded 'm' version 1")


def test_an_idle_ensemble_holds_no_version_that_was_replaced(tmp_path: Path) -> None:
    repository(tmp_path, Model("a"))
    ensembles(tmp_path, Chain("e", ("a",)))
    with ServerProcess(tmp_path, EXPLICIT, "--load-model=*") as process:
        echoed(process, "e", 2, 3)
        for _ in range(3):
            assert control(process, "load", "a", config=config_text("a")).status == 200
        assert until(lambda: process.log().count("successfully unloaded 'a' version 1") == 3)
        echoed(process, "e", 2, 3)


def config_text(name: str) -> str:
    tensor = {"data_type": "TYPE_FP32", "dims": [-1]}
    return json.dumps({"name": name, "backend": "identity", "max_batch_size": 8,
                       "input": [{"name": "INPUT0", **tensor}], "output": [{"name": "OUTPUT0", **tensor}]})  # fmt: skip
